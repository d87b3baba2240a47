"""An optimizer's class where a type checker cannot know which options it has."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from steprule.optimizer.base import Optimizer, ParamsT

if TYPE_CHECKING:

    class AnyOptimizer(Optimizer):
        """What is made of a rule, or named by a string: its options are looked at when it runs."""

        def __init__(self, params: ParamsT, *options: Any, **named: Any) -> None: ...

else:
    AnyOptimizer = Optimizer
