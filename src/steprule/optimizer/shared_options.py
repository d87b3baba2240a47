"""Options that every optimizer takes by keyword, written once."""

from __future__ import annotations

from typing import Literal, TypedDict

from torch import Tensor

from steprule.schedules import Schedule


class Guards(TypedDict, total=False):
    """The guards among :class:`SharedOptions`."""

    clip_grad_norm: float | Tensor | Schedule | None
    clip_grad_norm_over: Literal["all", "group", "param"]
    clip_grad_value: float | Tensor | Schedule | None
    on_nonfinite: Literal["propagate", "skip", "raise"]


class SharedOptionsBesideDecay(Guards, total=False):
    """Those of :class:`SharedOptions` but ``decoupled_weight_decay``, which some classes name."""

    state_format: str
    state_format_min_size: int
    param_rounding: Literal["nearest", "stochastic", "kahan", "split", "split24"]
    rounding_seed: int
    ema_decay: float | Tensor | Schedule | None
    ema_format: str
    cautious: bool
    cautious_weight_decay: bool
    peak_lr: float | Tensor | None


class SharedOptions(SharedOptionsBesideDecay, total=False):
    """Keyword arguments of every optimizer, and group options: guards, storage, averages, decay.

    The guards (``docs/guards.md``):

    - ``clip_grad_norm``: multiply the gradients by min(1, clip_grad_norm / (norm + 1e-6)), as
      ``torch.nn.utils.clip_grad_norm_`` does, without writing them; > 0, None for no clipping
      (default), inf to measure only;
    - ``clip_grad_norm_over``: the gradients that the norm is of: ``"all"`` of the groups that have
      a bound (default), those of the ``"group"``, or each ``"param"`` its own;
    - ``clip_grad_value``: bound on the absolute value of each element, put in force after that;
    - ``on_nonfinite``: what a step does whose gradients are not all finite: ``"propagate"`` them
      (default), ``"skip"`` it, or ``"raise"``. Nothing at all changes in the last two.

    Storage (``docs/memory.md``):

    - ``state_format``: how state is stored: ``"param"``, in the parameter's dtype as torch does
      (default), ``"float32"``, ``"bfloat16"``, ``"int8"``, ``"int4"``, or a name given to
      :func:`steprule.register_state_format`;
    - ``state_format_min_size``: state of fewer elements is kept in float32 (default 4096);
    - ``param_rounding``: how parameters of 16 bits are rounded: to ``"nearest"`` (default), at
      random (``"stochastic"``), with what is lost kept beside them (``"kahan"``), or as the upper
      half of a float32 number whose other bits are kept: all 16 (``"split"``) or 8
      (``"split24"``); the last two for bfloat16;
    - ``rounding_seed``: an integer that random bits depend on (default 0).

    Running averages (``docs/checkpoints.md``):

    - ``ema_decay``: keep an average of each parameter, ``ema_decay * ema + (1 - ema_decay) *
      param`` after each of its updates, in the same pass over memory; in [0, 1], None for none
      (default). It starts at the parameter. :meth:`~steprule.Optimizer.averaged` puts the averages
      in the parameters' place;
    - ``ema_format``: how it is stored, one of the names of ``state_format``; ``"float32"`` by
      default.

    Caution and weight decay (``docs/terms.md``):

    - ``cautious``: leave out of each update the elements whose step has not the gradient's sign,
      and divide the others by their share, at least 0.001 (Liang et al., 2024; default False);
    - ``decoupled_weight_decay``: ``param * (1 - lr * weight_decay)`` in the place of
      ``grad + weight_decay * param`` (Loshchilov, Hutter, 2019; default False, but where a class
      says otherwise);
    - ``peak_lr``: the largest lr of the schedule. Decoupled decay is then ``lr / peak_lr *
      weight_decay``, the paper's, which does not depend on how large lr is; > 0, None for torch's
      ``lr * weight_decay`` (default);
    - ``cautious_weight_decay``: decoupled decay only of elements that the step draws towards 0 as
      well (Chen et al., 2025; default False).
    """

    decoupled_weight_decay: bool
