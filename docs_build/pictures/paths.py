"""The paths that optimizers take on a surface, at the learning rate that serves them best there.

Nothing is tuned but lr: it is the one of a grid, the same grid for all, with which the largest
value of the last steps is least, among those that keep the path in the picture. All other options
are the class's defaults, except those named here, which a surface of two numbers asks for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from docs_build.pictures.surfaces import Surface
from steprule.rules import OPTIMIZERS

STEPS = 300
# So many of the last steps must be good, not only the very last one.
LAST = 10
RATES = tuple(float(f"{10 ** (k / 4):.1e}") for k in range(-20, 7))  # 1e-5 to 32, four a decade

# Whose steps take long: every second one is tried.
COARSELY = ("muon", "prodigy", "shampoo", "soap")

# Options that a surface of two numbers asks for.
OPTIONS: Mapping[str, dict[str, Any]] = {
    "adamw": {"weight_decay": 0.0},
    "stableadamw": {"weight_decay": 0.0},
    "grokadamw": {"weight_decay": 0.0},
    "sgd": {"momentum": 0.9},
    "muon": {"weight_decay": 0.0},
    "soap": {"weight_decay": 0.0, "precondition_1d": True},
    "shampoo": {"precondition_1d": True},
    "sophiag": {"weight_decay": 0.0, "bs": 1},
    "asgd": {"t0": 100},
}
# Whose gradients are sparse tensors, and who is told of the curvature every so many steps.
SPARSE = ("sparseadam",)
CURVATURE = {"sophiag": 10}


@dataclass(frozen=True)
class Path:
    """Where an optimizer came by.

    Attributes:
        lr: the learning rate.
        tried: of how many it is the best.
        points: the start, then where it was after each step; two columns.
        value: the surface's at the end.
    """

    lr: float
    tried: int
    points: NDArray[np.float64]
    value: float


def path_of(name: str, surface: Surface) -> Path:
    """Return the path of an optimizer, by its name in the registry."""
    if name == "lbfgs":
        return _lbfgs(surface)
    rates = RATES[:: 2 if name in COARSELY else 1]
    all_points = _all_paths(name, surface, STEPS)
    with np.errstate(over="ignore", invalid="ignore"):
        values = surface.value(all_points[..., 0], all_points[..., 1])
    last = np.nan_to_num(values[:, -LAST:], nan=np.inf).max(axis=1)
    stays = _is_inside(surface, all_points)
    if stays.any():
        last[~stays] = np.inf
    best = int(np.argmin(last))
    return Path(rates[best], len(rates), all_points[best], float(values[best, -1]))


def beginning_of(name: str, surface: Surface, steps: int = 12) -> NDArray[np.float64]:
    """Return the first points of all paths that are tried."""
    if name == "lbfgs":
        return _lbfgs(surface).points
    return _all_paths(name, surface, steps)


def _all_paths(name: str, surface: Surface, steps: int) -> NDArray[np.float64]:
    rates = RATES[:: 2 if name in COARSELY else 1]
    return _SPECIAL.get(name, _together)(name, surface, rates, steps)


def _is_inside(surface: Surface, points: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Tell of each path whether all of it is in the picture."""
    left, right, bottom, top = surface.window
    x, y = points[..., 0], points[..., 1]
    inside = (x > left) & (x < right) & (y > bottom) & (y < top)
    return np.asarray(inside.all(axis=1))


def _made(name: str, params: Any, **options: Any) -> Any:
    make: Callable[..., Any] = OPTIMIZERS[name]
    return make(params, **{**OPTIONS.get(name, {}), **options})


def _starts(surface: Surface, count: int, shape: Sequence[int] = (2,)) -> list[Tensor]:
    return [torch.tensor(surface.start).reshape(*shape).requires_grad_() for _ in range(count)]


def _at(params: Sequence[Tensor]) -> NDArray[np.float64]:
    with torch.no_grad():
        return torch.stack([p.reshape(2) for p in params]).double().numpy()


def _together(
    name: str, surface: Surface, rates: Sequence[float], steps: int, shape: Sequence[int] = (2,)
) -> NDArray[np.float64]:
    """Return a path for each lr: one optimizer takes all of them, each in a group of its own."""
    params = _starts(surface, len(rates), shape)
    groups = [{"params": [p], "lr": lr} for p, lr in zip(params, rates, strict=True)]
    optimizer = _made(name, groups)
    return _walked(name, surface, params, [optimizer], steps)


def _apart(name: str, surface: Surface, rates: Sequence[float], steps: int) -> NDArray[np.float64]:
    """Return the same, where sums are taken over all parameters of an optimizer."""
    params = _starts(surface, len(rates))
    optimizers = [_made(name, [p], lr=lr) for p, lr in zip(params, rates, strict=True)]
    return _walked(name, surface, params, optimizers, steps)


def _as_matrices(
    name: str, surface: Surface, rates: Sequence[float], steps: int
) -> NDArray[np.float64]:
    return _together(name, surface, rates, steps, (1, 2))


def _walked(
    name: str,
    surface: Surface,
    params: Sequence[Tensor],
    optimizers: Sequence[Any],
    steps: int,
) -> NDArray[np.float64]:
    averages = hasattr(optimizers[0], "eval")
    at = _at(params)
    seen = [at]
    for step in range(steps):
        if name in CURVATURE and step % CURVATURE[name] == 0:
            with np.errstate(all="ignore"):
                bends = surface.curvature(at[:, 0], at[:, 1])
            _set_gradients(params, np.sqrt(np.maximum(np.stack(bends, axis=1), 0.0)))
            optimizers[0].update_hessian()
        with np.errstate(all="ignore"):
            gradient = np.stack(surface.gradient(at[:, 0], at[:, 1]), axis=1)
        _set_gradients(params, gradient, is_sparse=name in SPARSE)
        for optimizer in optimizers:
            optimizer.step()
        at = _at(params)
        seen.append(_average(optimizers[0], params, at) if averages else at)
    return np.stack(seen, axis=1)


def _average(optimizer: Any, params: Sequence[Tensor], at: NDArray[np.float64]) -> Any:
    """Return what ``eval()`` puts in the parameters' place: y = (1 - weight) z + weight x."""
    states = [optimizer.state[p] for p in params]
    z = _at([state["z"] for state in states])
    weights = np.array([float(state["x_weight"]) for state in states])[:, None]
    with np.errstate(invalid="ignore"):
        return z + (at - z) / weights


def _set_gradients(
    params: Sequence[Tensor], gradient: NDArray[np.float64], *, is_sparse: bool = False
) -> None:
    bounded = np.nan_to_num(gradient, nan=0.0, posinf=3e38, neginf=-3e38)
    rows = torch.from_numpy(bounded).float()
    for param, row in zip(params, rows, strict=True):
        grad = row.reshape(param.shape)
        param.grad = grad.to_sparse() if is_sparse else grad


def _lbfgs(surface: Surface) -> Path:
    (param,) = _starts(surface, 1)
    lr = 1.0
    optimizer = _made(
        "lbfgs", [param], lr=lr, max_iter=1, max_eval=25, line_search_fn="more_thuente"
    )

    def closure() -> Tensor:
        x, y = param.detach().double().numpy()
        _set_gradients([param], np.array([surface.gradient(x, y)]))
        return torch.tensor(float(surface.value(x, y)))

    seen = [_at([param])[0]]
    for _ in range(60):
        optimizer.step(closure)
        seen.append(_at([param])[0])
        if np.array_equal(seen[-1], seen[-2]):
            seen.pop()
            break
    points = np.stack(seen)
    return Path(lr, 1, points, float(surface.value(points[-1, 0], points[-1, 1])))


_SPECIAL: Mapping[str, Callable[[str, Surface, Sequence[float], int], NDArray[np.float64]]] = {
    "prodigy": _apart,
    "muon": _as_matrices,
}
