"""The optimizers that are timed: a class of ours, its twin in torch, and the options of both."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from steprule.optimizer import Optimizer
from steprule.rules import OPTIMIZERS

# torch's ways to take a step on the CPU; the first is what it does when nothing is asked for.
MODES: Mapping[str, Mapping[str, bool]] = {
    "loop": {"foreach": False},
    "foreach": {"foreach": True},
    "fused": {"fused": True},
}
# Options that change how much a step has to move.
VARIANTS: Mapping[str, tuple[str, Mapping[str, Any]]] = {"sgd+momentum": ("sgd", {"momentum": 0.9})}

Make = Callable[[Any], torch.optim.Optimizer]


@dataclass(frozen=True)
class Subject:
    """One optimizer as it is timed: `label` in the tables, `options` for both classes."""

    label: str
    cls: type[Optimizer]
    twin: Callable[..., torch.optim.Optimizer]
    options: Mapping[str, Any] = field(default_factory=dict)

    def ours(self, params: Any) -> torch.optim.Optimizer:
        """Return our optimizer, as it is when nothing more is asked for."""
        make: Callable[..., torch.optim.Optimizer] = self.cls
        return make(params, **self.options)

    def modes(self) -> dict[str, Make]:
        """Return a maker for each mode that torch's class has."""
        taken = inspect.signature(self.twin).parameters

        def maker(flags: Mapping[str, bool]) -> Make:
            return lambda params: self.twin(params, **self.options, **flags)

        return {mode: maker(flags) for mode, flags in MODES.items() if flags.keys() <= taken.keys()}

    def slots(self) -> int:
        """Return how many arrays of the parameter's shape the state has."""
        assert self.cls.rule is not None
        optimizer = self.ours([torch.zeros(1, requires_grad=True)])
        group = {**self.cls.extras, **optimizer.param_groups[0]}
        slots = self.cls.rule.slots.values()
        return sum(slot.shape == "param" and slot.is_present(group) for slot in slots)

    def step_bytes(self, elements: int) -> int:
        """Return the bytes that a step of float32 must move: all is read, all but grad written."""
        return 4 * elements * (3 + 2 * self.slots())


def subjects() -> dict[str, Subject]:
    """Return, by label, the optimizers with kernels for dense gradients that torch has as well."""
    found = {}
    for name, cls in OPTIMIZERS.items():
        rule, twin = cls.rule, getattr(torch.optim, cls.__name__, None)
        if rule is not None and rule.elementwise and rule.sparse != "only" and twin is not None:
            found[name] = Subject(name, cls, twin)
    for label, (name, options) in VARIANTS.items():
        found[label] = Subject(label, found[name].cls, found[name].twin, options)
    return found


def fullest(labels: Sequence[str]) -> str:
    """Return the one that stands for all where a table does not need every optimizer."""
    return "adam" if "adam" in labels else labels[0]
