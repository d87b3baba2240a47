"""Eigenvectors of symmetric matrices, and what is made of them, for many matrices at once.

What goes wrong with them in training is dealt with here. A matrix with an infinity or a nan in it,
of gradients that had one, makes nan, as any sum would, instead of LAPACK's error. One that float32
does not converge for (nearly equal eigenvalues, low rank) is tried in float64, then there on the
CPU; if nothing does, what was known before stays, and a warning names the parameter.
"""

from __future__ import annotations

import sys
import threading
import warnings
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.linalg import LinAlgError  # type: ignore[attr-defined]

from steprule.matrix_ops.stacks import over_stacks


class Labels(threading.local):
    """The names of the parameters that a thread's operations are on, in their order."""

    of: Sequence[str] = ()


LABELS = Labels()


def eigenbasis_list(
    grams: Sequence[Tensor], bases: Sequence[Tensor], anew: float, refined: float
) -> list[Tensor]:
    """Return the eigenvectors of each symmetric matrix, as columns.

    Args:
        grams: the matrices.
        bases: the eigenvectors as they were known; returned themselves if nothing is asked for.
        anew: whether to compute them from nothing.
        refined: whether to better those that are known, by one step of power iteration and a QR
            decomposition. The directions with the largest eigenvalues come first in that, by
            which the others are made orthogonal; each stays in the column where it was.
    """
    if anew:
        return [vectors for _, vectors in _decomposed(grams, bases)]
    return over_stacks([grams, bases], _refined) if refined else list(bases)


def inverse_root_list(
    grams: Sequence[Tensor],
    roots: Sequence[Tensor],
    weight: float,
    eps: float,
    is_due: float,
    exponent: float,
) -> list[Tensor]:
    """Return ``(gram / weight + eps I)`` to the power of ``-exponent``, of each.

    Args:
        grams: symmetric matrices without negative eigenvalues; what rounding made of these is
            shifted to 0.
        roots: as they were known; returned themselves if nothing is due.
        weight: by which the matrices are divided.
        eps: added to the eigenvalues.
        is_due: whether to compute them.
        exponent: see above.
    """
    if not is_due:
        return list(roots)
    found = []
    for values, vectors in _decomposed([gram / weight for gram in grams], roots):
        if values is None:  # then it is the root as it was known
            found.append(vectors)
            continue
        shifted = values - values.min().clamp(max=0.0) + eps
        found.append((vectors * shifted.pow(-exponent)) @ vectors.mT)
    return found


def _refined(grams: Tensor, bases: Tensor) -> Tensor:
    product = torch.bmm(grams, bases)
    order = (bases * product).sum(dim=1).argsort(dim=1, descending=True, stable=True)
    places = order.unsqueeze(1).expand_as(product)
    vectors = torch.linalg.qr(product.gather(2, places)).Q
    return torch.empty_like(vectors).scatter_(2, places, vectors)


def _decomposed(
    grams: Sequence[Tensor], known: Sequence[Tensor]
) -> list[tuple[Tensor | None, Tensor]]:
    """Return the eigenvalues and eigenvectors of each; None and what is known without any."""
    try:
        packed = over_stacks([grams], _packed_eigh)
    except LinAlgError:
        return [_by_itself(gram, known[i], i) for i, gram in enumerate(grams)]
    return [(both[0], both[1:]) for both in packed]


def _packed_eigh(stack: Tensor) -> Tensor:
    """Return the eigenvalues as a row above the eigenvectors."""
    # LAPACK raises for what is not finite: it is given zeros for that, and the result is made nan.
    is_finite = stack.isfinite().flatten(1).all(dim=1)[:, None, None]
    values, vectors = torch.linalg.eigh(torch.where(is_finite, stack, 0.0))
    packed = torch.cat([values.unsqueeze(1), vectors], dim=1)
    return torch.where(is_finite, packed, torch.nan)


def _by_itself(gram: Tensor, known: Tensor, place: int) -> tuple[Tensor | None, Tensor]:
    """Return the eigenvalues and eigenvectors of a matrix, in a wider dtype where need be."""
    wide = torch.float32 if gram.device.type == "mps" else torch.float64
    problem = ""
    for dtype, device in ((gram.dtype, gram.device), (wide, gram.device), (torch.float64, "cpu")):
        try:
            packed = _packed_eigh(gram.to(dtype=dtype, device=device).unsqueeze(0))[0].to(gram)
        except LinAlgError as error:
            problem = str(error)
            continue
        return packed[0], packed[1:]
    label = LABELS.of[place] if place < len(LABELS.of) else "a parameter"
    warnings.warn(
        f"{label}: no eigenvectors were found for the products of its gradients, in float64 "
        f"neither ({problem}): what it had before stays in use. If that comes again, lower the "
        "learning rate, or leave the parameter to another optimizer",
        RuntimeWarning,
        stacklevel=_frames_to_user(),
    )
    return None, known


def _frames_to_user() -> int:
    """Return how many frames above the caller the line stands that called a step."""
    # Engines, hooks and wrappers are of different depths.
    frame, count = sys._getframe(1), 1
    while frame.f_back is not None:
        if frame.f_globals.get("__name__", "").partition(".")[0] not in ("steprule", "torch"):
            break
        frame, count = frame.f_back, count + 1
    return count
