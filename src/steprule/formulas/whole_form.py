"""A form as it is on paper, where nothing is known before the step that follows from gradients."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from steprule.language import guards
from steprule.language.form import Form
from steprule.ops import norm_of


@dataclass(frozen=True, eq=False)
class WholeForm(Form):
    """A form that computes the factor of clipping by the norm, which steps are supplied with."""

    @property
    def scalars(self) -> tuple[str, ...]:
        """Names of the numbers that the form computes with."""
        return tuple("clip_grad_norm" if n == "clip_factor" else n for n in super().scalars)

    def _clip_factor(self, grad: Any, scalars: Mapping[str, Any]) -> Any:
        assert self.clip_norm != "none"
        clip_factor = guards.clip_factor(scalars["clip_grad_norm"], norm_of(grad, self.clip_norm))
        return clip_factor  # noqa: RET504  # the name is what the line gets


def whole(form: Form) -> WholeForm:
    """Return a form with its clipping spelled out."""
    return WholeForm(**{field.name: getattr(form, field.name) for field in fields(form)})
