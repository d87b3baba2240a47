"""Operations on whole matrices, for rules: products, means over an axis, orthogonalization.

:func:`orthogonalized`, :func:`sandwiched`, :func:`gram`, :func:`eigenbasis` and
:func:`inverse_root` can be recorded: the engine ``foreach`` then carries them out for many
matrices at once. The others are for rules that are not elementwise, on the eager engine alone.

The last four are about the square matrices of a parameter's sides: *left* ones, of its rows by its
rows, and *right* ones, of its columns by its columns (its first axis, and all others together). A
rule keeps them in slots of that shape; for a parameter that has no such slot it is given None.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, get_args

from torch import Tensor

from steprule.language.recording import Symbol
from steprule.matrix_ops.eigen import eigenbasis_list, inverse_root_list
from steprule.matrix_ops.orthogonalization import METHODS as METHODS
from steprule.matrix_ops.orthogonalization import orthogonalized_list
from steprule.matrix_ops.sides import Side as Side
from steprule.matrix_ops.sides import gram_list, sandwiched_list

SIDES = get_args(Side)


class Spread(threading.local):
    """What is asked in the place of an operation on whole matrices, given a part of one.

    It is also given what the operation is told beside its matrix.
    """

    ask: Callable[[Tensor, tuple[Any, ...]], Tensor] | None = None


SPREAD = Spread()


def mean_square(x: Tensor, axis: int | None = None) -> Any:
    """Mean of the squares over one axis (kept, with length 1), or over all elements."""
    if axis is None:
        return x.square().mean() if x.numel() else x.new_zeros(())
    return x.square().mean(dim=axis, keepdim=True)


def mean(x: Tensor, axis: int) -> Tensor:
    """Mean over one axis, which is kept with length 1."""
    return x.mean(dim=axis, keepdim=True)


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """Matrix product over the last two axes."""
    return a @ b


def orthogonalized(
    x: Any,
    coefficients: tuple[Any, Any, Any],
    steps: int,
    eps: Any,
    method: str = "standard",
) -> Any:
    """Return ``x`` with its singular values drawn towards 1: U V^T, roughly, where x = U S V^T.

    See :mod:`steprule.matrix_ops.orthogonalization`. What has more than two axes is taken as the
    matrix of its first axis and all others.

    Args:
        x: a matrix.
        coefficients: of the iteration.
        steps: how many iterations.
        eps: smallest norm that is divided by.
        method: ``"standard"``, ``"gram"``, or ``"auto"``.
    """
    if isinstance(x, Symbol):
        operands = (x, *coefficients, eps)
        return x.tape.record("orthogonalized", *operands, settings=(steps, method))
    if SPREAD.ask is not None:
        return SPREAD.ask(x, (*coefficients, eps, steps, method))
    return orthogonalized_list([x], *coefficients, eps, steps, method)[0]


def sandwiched(left: Any, x: Any, right: Any, transposed: Side | None = None) -> Any:
    """Return ``left @ x @ right``, in the shape of ``x``.

    Args:
        left: of the rows; None for none.
        x: of the parameter's shape.
        right: of the columns; None for none.
        transposed: the side whose matrix is transposed first.
    """
    present: dict[Side, Any] = {}
    if left is not None:
        present["left"] = left
    if right is not None:
        present["right"] = right
    if not present:
        return x
    if transposed not in (None, *SIDES):
        raise ValueError(f"sandwiched: transposed must be 'left', 'right' or None: {transposed!r}")
    _check_array("sandwiched", x)
    for side, square in present.items():
        _check_square("sandwiched", square, side)
    settings = (tuple(present), transposed)
    if isinstance(x, Symbol):
        return x.tape.record("sandwiched", x, *present.values(), settings=settings)
    return sandwiched_list([x], *([square] for square in present.values()), *settings)[0]


def gram(x: Any, side: Side) -> Any:
    """Return ``x @ x.T``, of the left side, or ``x.T @ x``, of the right one.

    Args:
        x: of the parameter's shape.
        side: which.
    """
    if side not in SIDES:
        raise ValueError(f"gram: side must be 'left' or 'right', got {side!r}")
    _check_array("gram", x)
    if isinstance(x, Symbol):
        return x.tape.record("gram", x, settings=(side,), side=side)
    return gram_list([x], side)[0]


def eigenbasis(gram: Any, basis: Any, *, anew: Any, refined: Any) -> Any:
    """Return the eigenvectors of a symmetric matrix as columns, or an approximation.

    Args:
        gram: the matrix, of one side.
        basis: the eigenvectors as they were known, which are returned if neither is asked for.
        anew: a condition on numbers: whether to compute them from nothing.
        refined: likewise: whether to better those that are known, by one step of power iteration
            and a QR decomposition. Each stays in its column.
    """
    side = _side_of("eigenbasis", gram, basis)
    if isinstance(gram, Symbol):
        return gram.tape.record("eigenbasis", gram, basis, anew, refined, side=side)
    return eigenbasis_list([gram], [basis], anew, refined)[0]


def inverse_root(
    gram: Any, root: Any, exponent: float, *, weight: Any, eps: Any, is_due: Any
) -> Any:
    """Return ``(gram / weight + eps I)`` to the power of ``-exponent``.

    Args:
        gram: a symmetric matrix of one side, without negative eigenvalues.
        root: as it was known, which is returned if nothing is due.
        exponent: see above.
        weight: by which the matrix is divided.
        eps: added to the eigenvalues.
        is_due: a condition on numbers: whether to compute it.
    """
    if isinstance(exponent, Symbol):
        raise TypeError(
            "inverse_root: exponent must be a plain number, which no schedule changes: annotate "
            "the rule's argument for it by something else than float (exponent: float | None)"
        )
    side = _side_of("inverse_root", gram, root)
    if isinstance(gram, Symbol):
        operands = (gram, root, weight, eps, is_due)
        return gram.tape.record("inverse_root", *operands, settings=(exponent,), side=side)
    return inverse_root_list([gram], [root], weight, eps, is_due, exponent)[0]


def _side_of(operation: str, gram: Any, known: Any) -> Side | None:
    """Return the side that both are of, where that is known: of symbols.

    Raises:
        TypeError: one is no square matrix, or one of the other side.
    """
    side = gram.value.side if isinstance(gram, Symbol) else None
    _check_square(operation, gram, side)
    if known is not None:  # it isn't asked for where nothing is kept
        _check_square(operation, known, side)
    return side


def _check_square(operation: str, square: Any, side: Side | None) -> None:
    if square is None:
        raise TypeError(
            f"{operation} got None for a square matrix: for a parameter that has none of a side "
            "the rule must pass over what is made of it, and return None"
        )
    if isinstance(square, Symbol) and (square.value.side is None or square.value.side != side):
        of = square.value.side
        what = "what is no square matrix of a side" if of is None else f"a {of} square matrix"
        wanted = "one" if side is None else f"one of the {side} side"
        raise TypeError(f"{operation} got {what} where {wanted} belongs")


def _check_array(operation: str, x: Any) -> None:
    if isinstance(x, Symbol) and x.value.side is not None:
        raise TypeError(
            f"{operation} got a {x.value.side} square matrix where an array of the parameter's "
            "shape belongs: matrices of a side can't be multiplied by each other"
        )
