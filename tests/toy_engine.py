"""An engine in a file of its own, as somebody else would write one: by the contract alone."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import ClassVar

from torch import Tensor

from steprule.engines.engine import Leaf, Numbers, Runner, UnavailableError
from steprule.language.form import Form


class ToyEngine:
    """Sets a parameter to itself minus ``lr`` times its gradient, whatever the rule says."""

    name = "toy"
    by_address = False

    def refusal(self, leaf: Leaf, form: Form) -> str | None:
        return "toys are for vectors" if leaf.param.dim() != 1 else None

    def bucket_key(self, leaf: Leaf, form: Form) -> Hashable:
        return leaf.param.shape

    def runner(self, form: Form, leaves: Sequence[Leaf]) -> Runner:
        if len(leaves[0].param) > 100:
            raise UnavailableError("this toy is too small")
        return ToyRunner(leaves)


class ToyRunner:
    made: ClassVar[list[int]] = []  # how many leaves each runner was made for

    def __init__(self, leaves: Sequence[Leaf]) -> None:
        self._params = [(leaf.param, leaf.group) for leaf in leaves]
        self._grads: list[Tensor | None] = []
        self._lr: dict[int, float] = {}
        self.made.append(len(leaves))

    def set_numbers(self, group: int, numbers: Numbers) -> None:
        self._lr[group] = numbers["lr"]

    def collect(self) -> bool:
        self._grads = [param.grad for param, _ in self._params]
        return True

    def run(self) -> None:
        for (param, group), grad in zip(self._params, self._grads, strict=True):
            if grad is not None:
                param -= self._lr[group] * grad
        self.let_go()

    def let_go(self) -> None:
        self._grads = []


class StubbornEngine(ToyEngine):
    """A runner of it finds nothing as planned, ever."""

    name = "stubborn"

    def runner(self, form: Form, leaves: Sequence[Leaf]) -> Runner:
        class Stubborn(ToyRunner):
            def collect(self) -> bool:
                return False

        return Stubborn(leaves)
