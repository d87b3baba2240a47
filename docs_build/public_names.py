"""The public names, and which page of the reference has which."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import steprule
from steprule import formats, lr_scheduler, matrix_ops, ops, schedules, swa_utils
from steprule.optimizer import SharedOptions
from steprule.rules import OPTIMIZERS


@dataclass(frozen=True)
class PublicName:
    """Something that users name: where it is imported from, and what it is."""

    name: str
    thing: Any

    @property
    def anchor(self) -> str:
        """The id that its heading has."""
        return self.name

    @property
    def short(self) -> str:
        """The last part of its name."""
        return self.name.rpartition(".")[2]


# Pages of the reference: their titles, and of which packages what has no other page stands there.
PAGES: dict[str, tuple[str, tuple[str, ...]]] = {
    "optimizer": ("Reference: the optimizers' base class", ("steprule.optimizer",)),
    "wrappers": (
        "Reference: wrappers and averages",
        ("steprule.wrappers", "steprule.swa_utils"),
    ),
    "schedules": ("Reference: schedules", ("steprule.schedules", "steprule.plotting")),
    "lr_scheduler": ("Reference: scheduler classes", ("steprule.lr_scheduler",)),
    "checkpoints": ("Reference: checkpoints", ("steprule.training", "steprule.checkpoints")),
    "rules": (
        "Reference: rules",
        ("steprule.language", "steprule.ops", "steprule.matrix_ops", "steprule.formulas"),
    ),
    "formats": ("Reference: formats", ("steprule.formats",)),
    "helpers": ("Reference: helpers", ("steprule",)),
}
_MOVED = {  # what is defined in one place and looked for in another
    "steprule.make_optimizer": "rules",
    "steprule.OPTIMIZERS": "optimizer",
    "steprule.register_optimizer_step_pre_hook": "optimizer",
    "steprule.register_optimizer_step_post_hook": "optimizer",
}
_MATRIX_OPERATIONS = (
    "mean_square",
    "mean",
    "matmul",
    "orthogonalized",
    "sandwiched",
    "gram",
    "eigenbasis",
    "inverse_root",
)


def optimizers() -> list[PublicName]:
    """Return the optimizers; each has a page outside the reference."""
    return [PublicName(f"steprule.{cls.__name__}", cls) for cls in OPTIMIZERS.values()]


def page_of_optimizer(cls: type) -> str:
    """Return the page of an optimizer in the site's source."""
    name = next(name for name, known in OPTIMIZERS.items() if known is cls)
    return f"optimizers/{name}.md"


def names_by_page() -> dict[str, list[PublicName]]:
    """Return what each page of the reference describes, in the order of names."""
    found: dict[str, list[PublicName]] = {page: [] for page in PAGES}
    for public in _all():
        found[_page_of(public)].append(public)
    return found


def _all() -> Iterator[PublicName]:
    classes = {cls.__name__ for cls in OPTIMIZERS.values()}
    for name in vars(steprule)["__all__"]:
        if name not in classes:
            yield PublicName(f"steprule.{name}", getattr(steprule, name))
    yield PublicName("steprule.optimizer.SharedOptions", SharedOptions)
    for module in (schedules, lr_scheduler, swa_utils, ops, formats):
        for name in sorted(module.__all__):
            thing = getattr(module, name)
            is_ours = getattr(thing, "__module__", "steprule").startswith("steprule")
            if is_ours or module is not swa_utils:
                yield PublicName(f"{module.__name__}.{name}", thing)
    for name in _MATRIX_OPERATIONS:
        yield PublicName(f"steprule.matrix_ops.{name}", getattr(matrix_ops, name))


def _page_of(public: PublicName) -> str:
    if public.name in _MOVED:
        return _MOVED[public.name]
    thing = public.thing
    if isinstance(thing, ModuleType):
        home = thing.__name__
    else:
        by_name = public.name.rpartition(".")[0]
        home = by_name if by_name != "steprule" else str(inspect.getmodule(thing).__name__)  # type: ignore[union-attr]
    for page, (_, packages) in PAGES.items():
        if any(f"{home}.".startswith(f"{package}.") for package in packages):
            return page
    return "helpers"
