"""Options that every optimizer takes by keyword, written once."""

from __future__ import annotations

from typing import Literal, TypedDict

from torch import Tensor

from steprule.schedules import Schedule


class SharedOptions(TypedDict, total=False):
    """The guards (``docs/guards.md``): keyword arguments of every optimizer, and group options.

    - ``clip_grad_norm``: multiply the gradients by min(1, clip_grad_norm / (norm + 1e-6)), as
      ``torch.nn.utils.clip_grad_norm_`` does, without writing them; > 0, None for no clipping
      (default), inf to measure only;
    - ``clip_grad_norm_over``: the gradients that the norm is of: ``"all"`` of the groups that have
      a bound (default), those of the ``"group"``, or each ``"param"`` its own;
    - ``clip_grad_value``: bound on the absolute value of each element, put in force after that;
    - ``on_nonfinite``: what a step does whose gradients are not all finite: ``"propagate"`` them
      (default), ``"skip"`` it, or ``"raise"``. Nothing at all changes in the last two.
    """

    clip_grad_norm: float | Tensor | Schedule | None
    clip_grad_norm_over: Literal["all", "group", "param"]
    clip_grad_value: float | Tensor | Schedule | None
    on_nonfinite: Literal["propagate", "skip", "raise"]
