"""Shampoo."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from typing_extensions import Unpack

from steprule.language.rule import Range, Slot, rule
from steprule.matrix_ops import Side, gram, inverse_root, sandwiched
from steprule.matrix_ops.kept import is_multiple, slots_of_sides
from steprule.ops import norm_of, sqrt, where
from steprule.optimizer import Number, Optimizer, ParamsT, SharedOptions, own_options
from steprule.optimizer.counts import check_count
from steprule.schedules import checks

GRAFTINGS = ("adam", "sgd", "none")
_GRAFTING = f"grafting must be one of {', '.join(map(repr, GRAFTINGS))}, got {{!r}}"

LEFT, RIGHT, LEFT_ROOT, RIGHT_ROOT = slots_of_sides(
    "max_preconditioner_dim", "small eigenvalues would be lost"
)


@rule(
    exp_avg_sq=Slot(signed=False, when="grafting", when_is="adam"),
    left_gram=LEFT,
    right_gram=RIGHT,
    left_root=LEFT_ROOT,
    right_root=RIGHT_ROOT,
    ranges={
        "beta2": Range(low=0.0, high=1.0),
        "eps": Range(low=0.0, low_included=False),
        "graft_eps": Range(low=0.0, low_included=False),
    },
    elementwise=False,
    batched=True,
    decoupled=True,
    takes_complex=False,
    source="Gupta, Koren, Singer: Shampoo: Preconditioned stochastic tensor optimization, 2018",
)
def shampoo(
    param: Any,
    grad: Any,
    exp_avg: Any,
    exp_avg_sq: Any,
    left_gram: Any,
    right_gram: Any,
    left_root: Any,
    right_root: Any,
    *,
    step: Any,
    lr: Any,
    beta1: Any,
    beta2: Any,
    eps: Any,
    graft_eps: Any,
    precondition_frequency: int,
    start_preconditioning_step: int | None,
    max_preconditioner_dim: int,
    precondition_1d: bool,
    grafting: str,
    exponent: float | None,
) -> Any:
    """Return the update of :class:`Shampoo`."""
    del max_preconditioner_dim, precondition_1d  # a side without matrices is given as None
    if grafting not in GRAFTINGS:  # as a group's value may have become
        raise ValueError(_GRAFTING.format(grafting))
    start = start_preconditioning_step
    if start is None:
        start = precondition_frequency
    is_due = (is_multiple(step, precondition_frequency) & (step > start)) | (step == start)
    weight2 = where(beta2 < 1, 1 - beta2, 1.0)
    correction1 = 1 - beta1**step
    correction2 = where(beta2 < 1, 1 - beta2**step, 1.0)
    sides = [root for root in (left_root, right_root) if root is not None]

    def rooted(gram_then: Any, root: Any, side: Side) -> Any:
        if root is None:
            return None, None
        power = 1 / (2 * len(sides)) if exponent is None else exponent
        gram_now = beta2 * gram_then + weight2 * gram(grad, side)
        return gram_now, inverse_root(
            gram_now, root, power, weight=correction2, eps=eps, is_due=is_due
        )

    left_gram, left_root = rooted(left_gram, left_root, "left")
    right_gram, right_root = rooted(right_gram, right_root, "right")

    exp_avg = beta1 * exp_avg + (1 - beta1) * grad
    plain = exp_avg / correction1
    grafted = plain
    if grafting == "adam":
        exp_avg_sq = beta2 * exp_avg_sq + weight2 * (grad * grad)
        grafted = plain / (sqrt(exp_avg_sq / correction2) + graft_eps)

    update = grafted
    if sides:
        update = sandwiched(left_root, plain, right_root)
        if grafting != "none":
            update = norm_of(grafted) / (norm_of(update) + 1e-16) * update
        update = where(step >= start, update, grafted)
    slots = (exp_avg, exp_avg_sq, left_gram, right_gram, left_root, right_root)
    return param - lr * update, *slots


class Shampoo(Optimizer):
    """Shampoo: gradients between inverse roots of their averaged products on either side.

    ::

        L = beta2 * L + (1 - beta2) * grad grad^T;  R likewise of grad^T grad
        m = beta1 * m + (1 - beta1) * grad;  M = m / (1 - beta1**t)
        from start_preconditioning_step on, and every precondition_frequency steps:
            PL = (L / (1 - beta2**t) + eps I)**-exponent;  PR likewise
        U = PL M PR
        v = beta2 * v + (1 - beta2) * grad**2;  A = M / (sqrt(v / (1 - beta2**t)) + graft_eps)
        param = param * (1 - lr * weight_decay) - lr * |A| / |U| * U      (at first: A for U)

    Args:
        params: tensors, named tensors or groups, see :class:`~steprule.Optimizer`, which has
            the arguments not listed here. What has more than two axes is taken as the matrix of
            its first axis and all others: a convolution of 512 x 512 x 3 x 3 then has a right side
            of 4608; see max_preconditioner_dim.
        lr: learning rate (default 1e-3): that of the grafted method. For grafting ``"sgd"`` and
            ``"none"`` it must be raised, as for SGD.
        betas: decay of the averages of gradients, in [0, 1), and of their products and squares,
            in [0, 1], where 1 makes sums of them (default (0.9, 0.999)).
        eps: added to the eigenvalues, > 0 (default 1e-12).
        weight_decay: decoupled decay (default 0).
        precondition_frequency: the roots are renewed once in so many steps, >= 1 (default 10).
        start_preconditioning_step: the first step with roots, >= 1; before it the grafted method
            takes the steps (default None: as precondition_frequency, at each step as that is
            then; give a number if you change the frequency in the course of a run).
        max_preconditioner_dim: longest side that has a root, >= 0 (default 4096). A longer one
            has the identity; with neither side a parameter is updated by the grafted method. For
            convolutions 2048 or so keeps memory and time within bounds.
        grafting: whose step lengths are taken, for each parameter: ``"adam"``, ``"sgd"`` (those of
            the averaged gradient) or ``"none"`` (the preconditioned gradient as it is; without
            root the averaged one). For the whole run: changed to ``"adam"`` in its course, v begins
            at 0 without correction for that, and the next steps are many times too long.
        exponent: of the inverse roots, > 0 (default None: 1/4 if both sides have roots, 1/2 if one
            has).
        graft_eps: added to the denominator of Adam's step, > 0 (default 1e-8).
        precondition_1d: give vectors a root as well, as the papers do (default False). A matrix of
            one row or one column counts as a vector.

    When to use: for training by large batches of what is mostly matrices, with AdamW's lr, whose
    step lengths it takes over. Beside AdamW's state it keeps 2 (rows^2 + columns^2) numbers a
    matrix, and each renewal decomposes two matrices, for large ones a second and more: raise
    precondition_frequency to 50 or 100 then.

    State: ``step`` (t), ``exp_avg`` (m), ``exp_avg_sq`` (v), ``left_gram``, ``right_gram`` (L and
    R), ``left_root``, ``right_root`` (PL and PR), these four in float32 at least.

    Raises:
        ValueError: an option out of its range.
        TypeError: a count that is no integer.
        RuntimeError: at the step, a complex parameter or a sparse gradient.

    Source: Gupta, Koren, Singer, "Shampoo: Preconditioned stochastic tensor optimization", 2018
    (betas=(0, 1), grafting="none"); grafting: Anil, Gupta, Koren, Regan, Singer, "Scalable second
    order optimization for deep learning", 2020. Averages and their bias correction are as in Meta's
    distributed Shampoo (Shi et al., 2023), betas, lr and eps as in its README's example for Adam
    grafting; its own defaults are betas (0.9, 1.0), lr 1e-2, sides up to 1024 and a renewal at each
    step. It cuts long sides into blocks, where here they go without root, and always preconditions
    vectors. ScalableShampoo of pytorch-optimizer
    has momentum of updates, not of gradients.
    """

    rule = shampoo

    def __init__(
        self,
        params: ParamsT,
        lr: Number = 1e-3,
        betas: tuple[Number, Number] = (0.9, 0.999),
        eps: Number = 1e-12,
        weight_decay: Number = 0,
        precondition_frequency: int = 10,
        start_preconditioning_step: int | None = None,
        max_preconditioner_dim: int = 4096,
        grafting: Literal["adam", "sgd", "none"] = "adam",
        exponent: float | None = None,
        graft_eps: Number = 1e-8,
        precondition_1d: bool = False,
        *,
        maximize: bool = False,
        engine: str = "auto",
        **shared: Unpack[SharedOptions],
    ) -> None:
        super().__init__(params, own_options(locals()), engine=engine)

    def _check_group(self, options: Mapping[str, Any], where: str) -> None:
        super()._check_group(options, where)
        check_count("precondition_frequency", options["precondition_frequency"], where, least=1)
        check_count("max_preconditioner_dim", options["max_preconditioner_dim"], where)
        start = options["start_preconditioning_step"]
        if start is not None:
            check_count("start_preconditioning_step", start, where, least=1)
        if options["grafting"] not in GRAFTINGS:
            raise ValueError(where + _GRAFTING.format(options["grafting"]))
        exponent = options["exponent"]
        if exponent is None:
            return
        number = checks.real_number(exponent)
        if number is None:
            raise TypeError(f"{where}exponent must be a number or None, got {exponent!r}")
        if not 0 < number < float("inf"):
            raise ValueError(f"{where}exponent must be a finite number > 0, got {exponent!r}")
