"""SOAP."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from typing_extensions import Unpack

from steprule.language.rule import Range, Slot, rule
from steprule.matrix_ops import Side, eigenbasis, gram, sandwiched
from steprule.matrix_ops.kept import is_multiple, slots_of_sides
from steprule.ops import maximum, mean_of, sqrt, where
from steprule.optimizer import Number, Optimizer, ParamsT, SharedOptions, own_options
from steprule.optimizer.counts import check_count

LEFT, RIGHT, LEFT_BASIS, RIGHT_BASIS = slots_of_sides(
    "max_precond_dim", "its eigenvectors turn with every rounding"
)


@rule(
    exp_avg_sq=Slot(signed=False),
    left_gram=LEFT,
    right_gram=RIGHT,
    left_basis=LEFT_BASIS,
    right_basis=RIGHT_BASIS,
    ranges={
        "eps": Range(low=0.0, low_included=False),
        "shampoo_beta": Range(low=-1.0, high=1.0, high_included=False),
    },
    elementwise=False,
    batched=True,
    takes_complex=False,
    source="Vyas et al.: SOAP: Improving and stabilizing Shampoo using Adam, 2024",
)
def soap(
    param: Any,
    grad: Any,
    exp_avg: Any,
    exp_avg_sq: Any,
    left_gram: Any,
    right_gram: Any,
    left_basis: Any,
    right_basis: Any,
    *,
    step: Any,
    lr: Any,
    beta1: Any,
    beta2: Any,
    shampoo_beta: Any,
    eps: Any,
    weight_decay: Any,
    precondition_frequency: int,
    max_precond_dim: int,
    precondition_1d: bool,
    normalize_grads: bool,
    correct_bias: bool,
) -> Any:
    """Return the update of :class:`SOAP`."""
    del max_precond_dim, precondition_1d  # a side without matrices is given as None
    updates = step - 1  # the first step makes the bases, and no more
    gram_beta = where(shampoo_beta >= 0, shampoo_beta, beta2)
    step_size = lr
    if correct_bias:
        count = maximum(updates, 1)
        step_size = lr * sqrt(1 - beta2**count) / (1 - beta1**count)
    lr = where(updates > 0, lr, 0.0)
    step_size = where(updates > 0, step_size, 0.0)
    beta1 = where(updates > 0, beta1, 1.0)
    beta2 = where(updates > 0, beta2, 1.0)

    projected = sandwiched(left_basis, grad, right_basis, transposed="left")
    exp_avg = beta1 * exp_avg + (1 - beta1) * grad
    # In this order what overflows in a square is still 0 at first, where beta2 is 1.
    exp_avg_sq = beta2 * exp_avg_sq + (1 - beta2) * projected * projected

    update = sandwiched(left_basis, exp_avg, right_basis, transposed="left")
    update = update / (sqrt(exp_avg_sq) + eps)
    update = sandwiched(left_basis, update, right_basis, transposed="right")
    if normalize_grads:
        update = update / (1e-30 + sqrt(mean_of(update * update)))
    param = param - step_size * update
    param = param - lr * weight_decay * param

    is_due = is_multiple(updates, precondition_frequency)

    def turned(gram_then: Any, basis: Any, side: Side) -> Any:
        if basis is None:
            return None, None
        gram_now = gram_beta * gram_then + (1 - gram_beta) * gram(grad, side)
        return gram_now, eigenbasis(gram_now, basis, anew=updates < 1, refined=is_due)

    left_gram, left_basis = turned(left_gram, left_basis, "left")
    right_gram, right_basis = turned(right_gram, right_basis, "right")
    return param, exp_avg, exp_avg_sq, left_gram, right_gram, left_basis, right_basis


class SOAP(Optimizer):
    """SOAP: Adam in the eigenbasis of Shampoo's preconditioner.

    ::

        G = QL^T grad QR                                    (of a matrix; see below for others)
        m = beta1 * m + (1 - beta1) * grad
        v = beta2 * v + (1 - beta2) * G**2
        U = QL (QL^T m QR / (sqrt(v) + eps)) QR^T
        param = param - lr * sqrt(1 - beta2**k) / (1 - beta1**k) * U
        param = param - lr * weight_decay * param
        L = beta * L + (1 - beta) * grad grad^T;  R likewise of grad^T grad
        every precondition_frequency updates:  QL = QR-decomposition(L QL).Q;  QR likewise

    t counts steps, and k = t - 1 updates. The first step makes none: it sets L and R, and QL and
    QR to their eigenvectors, so that no gradient is projected on a basis that it has made itself.

    Args:
        params: tensors, named tensors or groups, see :class:`~steprule.Optimizer`, which has
            the arguments not listed here. What has more than two axes is taken as the matrix of
            its first axis and all others: a convolution of 512 x 512 x 3 x 3 then has a right side
            of 4608, whose two matrices are nine times as large as the parameter each; see
            max_precond_dim.
        lr: learning rate (default 3e-3).
        betas: decay of m and v per step, each in [0, 1) (default (0.95, 0.95)).
        shampoo_beta: decay of L and R per step, in [0, 1); below 0 that of v (default -1).
        eps: added to the denominator, > 0 (default 1e-8).
        weight_decay: decoupled decay, of the updated parameter (default 1e-2).
        precondition_frequency: the bases are renewed once in so many updates, >= 1 (default 10).
        max_precond_dim: longest side that has a basis, >= 0 (default 10000). A longer one, as of
            an embedding, has the identity; with neither side a parameter is updated as by Adam.
            For convolutions 2048 or so keeps memory and time within bounds.
        precondition_1d: give vectors a basis as well (default False: they are updated as by Adam).
            A matrix of one row or one column counts as a vector.
        normalize_grads: divide U by the root of the mean of its squares (default False).
        correct_bias: the roots and powers of beta1 and beta2 above (default True).

    When to use: for training by large batches of what is mostly matrices, where fewer steps are
    worth longer ones. Beside AdamW's state it keeps 2 (rows^2 + columns^2) numbers a matrix, and
    a step has up to ten matrix products; start from lr 3e-3 and AdamW's weight decay. AdamW's lr is
    usually too small: where gradients are of low rank, steps are shorter than AdamW's.

    State: ``step`` (t), ``exp_avg`` (m), ``exp_avg_sq`` (v), ``left_gram``, ``right_gram``
    (L and R), ``left_basis``, ``right_basis`` (QL and QR), these four in float32 at least.

    Raises:
        ValueError: an option out of its range.
        TypeError: a count that is no integer.
        RuntimeError: at the step, a complex parameter or a sparse gradient.

    Source: Vyas, Morwani, Zhao, Kwun, Shapira, Brandfonbrener, Janson, Kakade, "SOAP: Improving
    and stabilizing Shampoo using Adam", 2024, algorithm 3, and the authors' soap.py. Unlike that,
    columns of a basis stay where they are (it sorts them, and v with them, by eigenvalue, which
    changes no update); more than two axes are flattened (it has a basis for each, or merges them);
    L, R and the bases of half-precision parameters stay in float32.
    """

    rule = soap

    def __init__(
        self,
        params: ParamsT,
        lr: Number = 3e-3,
        betas: tuple[Number, Number] = (0.95, 0.95),
        shampoo_beta: Number = -1.0,
        eps: Number = 1e-8,
        weight_decay: Number = 1e-2,
        precondition_frequency: int = 10,
        max_precond_dim: int = 10000,
        precondition_1d: bool = False,
        normalize_grads: bool = False,
        correct_bias: bool = True,
        *,
        maximize: bool = False,
        engine: str = "auto",
        **shared: Unpack[SharedOptions],
    ) -> None:
        super().__init__(params, own_options(locals()), engine=engine)

    def _check_group(self, options: Mapping[str, Any], where: str) -> None:
        super()._check_group(options, where)
        check_count("precondition_frequency", options["precondition_frequency"], where, least=1)
        check_count("max_precond_dim", options["max_precond_dim"], where)
        for name in ("precondition_1d", "normalize_grads", "correct_bias"):
            if options[name] is None:
                raise TypeError(f"{where}{name} must be True or False, got None")
