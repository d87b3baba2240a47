"""The foreach engine: the recording replayed over lists of tensors, ``torch._foreach_*``."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import torch
from torch import Tensor

from steprule.engines.eager.engine import update_one
from steprule.engines.engine import Leaf, Runner
from steprule.engines.foreach.runner import ForeachRunner
from steprule.formats.floating import is_transformed
from steprule.language.form import Form


class ForeachEngine:
    """Replays the recording over all parameters that share their numbers at once."""

    name = "foreach"
    by_address = False

    def refusal(self, leaf: Leaf, form: Form) -> str | None:
        """Refuse what needs a tensor as a scalar, or is not a plain tensor."""
        if not form.rule.is_recorded:
            return "the rule works on whole tensors, not on elements"
        if form.capturable:
            return "capturable=True keeps the step count a tensor, one for each parameter"
        if leaf.grad.is_sparse:
            return form.sparse_reason
        for tensor in (leaf.param, leaf.grad):
            if type(tensor) not in (Tensor, torch.nn.Parameter):
                return f"{type(tensor).__name__} is a tensor subclass"
            if is_transformed(tensor):
                return "a transform of torch.func is to see the update"
        return None

    def bucket_key(self, leaf: Leaf, form: Form) -> Hashable:
        return leaf.storage

    def runner(self, form: Form, leaves: Sequence[Leaf]) -> Runner:
        return ForeachRunner(form, leaves)

    def update_in_graph(self, form: Form, leaf: Leaf, numbers: dict[str, Any]) -> None:
        """Update a leaf by the rule's own function: it is the compiler that joins operations."""
        update_one(form, leaf, numbers)
