"""Problems for unconstrained minimisation, written from the paper.

Source: J. J. More, B. S. Garbow, K. E. Hillstrom, "Testing unconstrained optimization software",
ACM Transactions on Mathematical Software 7 (1981); numbers in brackets are the paper's. Each is a
sum of squares of the paper's f_i at its standard starting point. Three more kinds follow that the
set lacks: ill-conditioned quadratics, and objectives that are nan beyond an edge.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Function = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Problem:
    """An objective, where to start, and the least value where the paper (or algebra) gives one.

    ``least`` holds all values of known minima: the paper lists several for some problems.
    """

    name: str
    loss: Function
    start: tuple[float, ...]
    least: tuple[float, ...] = (0.0,)


def _squares(*parts: Tensor) -> Tensor:
    return sum((part**2).sum() for part in parts)  # type: ignore[return-value]


def _like(x: Tensor, values: list[float] | range) -> Tensor:
    return torch.tensor(list(values), dtype=x.dtype)


def rosenbrock(x: Tensor) -> Tensor:
    return _squares(10 * (x[1::2] - x[::2] ** 2), 1 - x[::2])


def freudenstein_roth(x: Tensor) -> Tensor:
    a, b = x
    return _squares(-13 + a + ((5 - b) * b - 2) * b, -29 + a + ((b + 1) * b - 14) * b)


def powell_badly_scaled(x: Tensor) -> Tensor:
    a, b = x
    return _squares(1e4 * a * b - 1, torch.exp(-a) + torch.exp(-b) - 1.0001)


def brown_badly_scaled(x: Tensor) -> Tensor:
    a, b = x
    return _squares(a - 1e6, b - 2e-6, a * b - 2)


def beale(x: Tensor) -> Tensor:
    a, b = x
    return _squares(1.5 - a * (1 - b), 2.25 - a * (1 - b**2), 2.625 - a * (1 - b**3))


def jennrich_sampson(x: Tensor) -> Tensor:
    i = _like(x, range(1, 11))
    return _squares(2 + 2 * i - (torch.exp(i * x[0]) + torch.exp(i * x[1])))


def helical_valley(x: Tensor) -> Tensor:
    a, b, c = x
    theta = torch.atan(b / a) / (2 * math.pi) + (0.5 if a < 0 else 0.0)
    return _squares(10 * (c - 10 * theta), 10 * (torch.sqrt(a**2 + b**2) - 1), c)


BARD = [0.14, 0.18, 0.22, 0.25, 0.29, 0.32, 0.35, 0.39, 0.37, 0.58, 0.73, 0.96, 1.34, 2.10, 4.39]


def bard(x: Tensor) -> Tensor:
    u = _like(x, range(1, 16))
    v = 16 - u
    return _squares(_like(x, BARD) - (x[0] + u / (v * x[1] + torch.minimum(u, v) * x[2])))


GAUSSIAN = [0.0009, 0.0044, 0.0175, 0.0540, 0.1295, 0.2420, 0.3521, 0.3989]


def gaussian(x: Tensor) -> Tensor:
    y = _like(x, GAUSSIAN + GAUSSIAN[-2::-1])
    t = (8 - _like(x, range(1, 16))) / 2
    return _squares(x[0] * torch.exp(-x[1] * (t - x[2]) ** 2 / 2) - y)


MEYER = [
    34780, 28610, 23650, 19630, 16370, 13720, 11540, 9744, 8261, 7030, 6005, 5147, 4427, 3820,
    3307, 2872,
]  # fmt: skip


def meyer(x: Tensor) -> Tensor:
    t = 45 + 5 * _like(x, range(1, 17))
    return _squares(x[0] * torch.exp(x[1] / (t + x[2])) - _like(x, MEYER))


def gulf(x: Tensor) -> Tensor:
    t = _like(x, range(1, 100)) / 100
    y = 25 + (-50 * torch.log(t)) ** (2 / 3)
    return _squares(torch.exp(-((y - x[1]).abs() ** x[2]) / x[0]) - t)


def box(x: Tensor) -> Tensor:
    t = _like(x, range(1, 11)) / 10
    model = torch.exp(-t * x[0]) - torch.exp(-t * x[1])
    return _squares(model - x[2] * (torch.exp(-t) - torch.exp(-10 * t)))


def powell_singular(x: Tensor) -> Tensor:
    a, b, c, d = x[::4], x[1::4], x[2::4], x[3::4]
    return _squares(a + 10 * b, 5**0.5 * (c - d), (b - 2 * c) ** 2, 10**0.5 * (a - d) ** 2)


def wood(x: Tensor) -> Tensor:
    a, b, c, d = x
    near = _squares(10 * (b - a**2), 1 - a, 90**0.5 * (d - c**2), 1 - c)
    return near + _squares(10**0.5 * (b + d - 2), (b - d) / 10**0.5)


KOWALIK_Y = [
    0.1957, 0.1947, 0.1735, 0.1600, 0.0844, 0.0627, 0.0456, 0.0342, 0.0323, 0.0235, 0.0246,
]  # fmt: skip
KOWALIK_U = [4.0, 2.0, 1.0, 0.5, 0.25, 0.167, 0.125, 0.1, 0.0833, 0.0714, 0.0625]


def kowalik_osborne(x: Tensor) -> Tensor:
    u = _like(x, KOWALIK_U)
    return _squares(_like(x, KOWALIK_Y) - x[0] * (u**2 + u * x[1]) / (u**2 + u * x[2] + x[3]))


def brown_dennis(x: Tensor) -> Tensor:
    t = _like(x, range(1, 21)) / 5
    first = (x[0] + t * x[1] - torch.exp(t)) ** 2
    return _squares(first + (x[2] + x[3] * torch.sin(t) - torch.cos(t)) ** 2)


OSBORNE_ONE = [
    0.844, 0.908, 0.932, 0.936, 0.925, 0.908, 0.881, 0.850, 0.818, 0.784, 0.751, 0.718, 0.685,
    0.658, 0.628, 0.603, 0.580, 0.558, 0.538, 0.522, 0.506, 0.490, 0.478, 0.467, 0.457, 0.448,
    0.438, 0.431, 0.424, 0.420, 0.414, 0.411, 0.406,
]  # fmt: skip


def osborne_one(x: Tensor) -> Tensor:
    t = 10 * _like(x, range(33))
    model = x[0] + x[1] * torch.exp(-t * x[3]) + x[2] * torch.exp(-t * x[4])
    return _squares(_like(x, OSBORNE_ONE) - model)


OSBORNE_TWO = [
    1.366, 1.191, 1.112, 1.013, 0.991, 0.885, 0.831, 0.847, 0.786, 0.725, 0.746, 0.679, 0.608,
    0.655, 0.616, 0.606, 0.602, 0.626, 0.651, 0.724, 0.649, 0.649, 0.694, 0.644, 0.624, 0.661,
    0.612, 0.558, 0.533, 0.495, 0.500, 0.423, 0.395, 0.375, 0.372, 0.391, 0.396, 0.405, 0.428,
    0.429, 0.523, 0.562, 0.607, 0.653, 0.672, 0.708, 0.633, 0.668, 0.645, 0.632, 0.591, 0.559,
    0.597, 0.625, 0.739, 0.710, 0.729, 0.720, 0.636, 0.581, 0.428, 0.292, 0.162, 0.098, 0.054,
]  # fmt: skip


def osborne_two(x: Tensor) -> Tensor:
    t = _like(x, range(65)) / 10
    bells = x[1:4] * torch.exp(-x[5:8] * (t[:, None] - x[8:11]) ** 2)
    return _squares(_like(x, OSBORNE_TWO) - x[0] * torch.exp(-t * x[4]) - bells.sum(1))


def biggs_exp6(x: Tensor) -> Tensor:
    t = _like(x, range(1, 14)) / 10
    y = torch.exp(-t) - 5 * torch.exp(-10 * t) + 3 * torch.exp(-4 * t)
    model = x[2] * torch.exp(-t * x[0]) - x[3] * torch.exp(-t * x[1])
    return _squares(model + x[5] * torch.exp(-t * x[4]) - y)


def watson(x: Tensor) -> Tensor:
    t = _like(x, range(1, 30))[:, None] / 29
    j = _like(x, range(len(x)))
    value = (x * t**j).sum(1)
    slope = (j[1:] * x[1:] * t ** (j[1:] - 1)).sum(1)
    return _squares(slope - value**2 - 1, x[0], x[1] - x[0] ** 2 - 1)


def penalty_one(x: Tensor) -> Tensor:
    return _squares(1e-5**0.5 * (x - 1), (x**2).sum() - 0.25)


def penalty_two(x: Tensor) -> Tensor:
    n = len(x)
    i = _like(x, range(2, n + 1))
    y = torch.exp(i / 10) + torch.exp((i - 1) / 10)
    smooth = torch.exp(x[1:] / 10) + torch.exp(x[:-1] / 10) - y
    small = torch.exp(x[1:] / 10) - math.exp(-0.1)
    weights = _like(x, range(n, 0, -1))
    first = x[0] - 0.2
    return _squares(first, 1e-5**0.5 * smooth, 1e-5**0.5 * small, (weights * x**2).sum() - 1)


def variably_dimensioned(x: Tensor) -> Tensor:
    moment = (_like(x, range(1, len(x) + 1)) * (x - 1)).sum()
    return _squares(x - 1, moment, moment**2)


def trigonometric(x: Tensor) -> Tensor:
    n = len(x)
    i = _like(x, range(1, n + 1))
    return _squares(n - torch.cos(x).sum() + i * (1 - torch.cos(x)) - torch.sin(x))


def brown_almost_linear(x: Tensor) -> Tensor:
    n = len(x)
    return _squares(x[:-1] + x.sum() - (n + 1), x.prod() - 1)


def discrete_boundary(x: Tensor) -> Tensor:
    n = len(x)
    h = 1 / (n + 1)
    t = _like(x, range(1, n + 1)) * h
    zero = x.new_zeros(1)
    left, right = torch.cat([zero, x[:-1]]), torch.cat([x[1:], zero])
    return _squares(2 * x - left - right + h**2 * (x + t + 1) ** 3 / 2)


def discrete_integral(x: Tensor) -> Tensor:
    n = len(x)
    h = 1 / (n + 1)
    t = _like(x, range(1, n + 1)) * h
    cubes = (x + t + 1) ** 3
    below = torch.cumsum(t * cubes, 0)
    above = torch.cumsum(((1 - t) * cubes).flip(0), 0).flip(0) - (1 - t) * cubes
    return _squares(x + h * ((1 - t) * below + t * above) / 2)


def broyden_tridiagonal(x: Tensor) -> Tensor:
    zero = x.new_zeros(1)
    left, right = torch.cat([zero, x[:-1]]), torch.cat([x[1:], zero])
    return _squares((3 - 2 * x) * x - left - 2 * right + 1)


def broyden_banded(x: Tensor) -> Tensor:
    n = len(x)
    i = torch.arange(n)
    gap = i[None, :] - i[:, None]
    band = (gap >= -5) & (gap <= 1) & (gap != 0)
    return _squares(x * (2 + 5 * x**2) + 1 - band.to(x.dtype) @ (x * (1 + x)))


def linear_full_rank(x: Tensor) -> Tensor:
    m, n = 2 * len(x), len(x)
    mean = 2 * x.sum() / m
    return _squares(x - mean - 1, (-mean - 1).expand(m - n))


def linear_rank_one(x: Tensor) -> Tensor:
    n = len(x)
    i = _like(x, range(1, 2 * n + 1))
    return _squares(i * (i[:n] * x).sum() - 1)


def linear_rank_one_zeros(x: Tensor) -> Tensor:
    n = len(x)
    i = _like(x, range(2 * n - 1))  # the first part is -1 and so is the last
    inside = (_like(x, range(2, n)) * x[1:-1]).sum()
    return _squares(i * inside - 1) + 1


def chebyquad(x: Tensor) -> Tensor:
    n = len(x)
    shifted = 2 * x - 1
    before, now, parts = torch.ones_like(x), shifted, []
    for i in range(1, n + 1):
        integral = -1 / (i * i - 1) if i % 2 == 0 else 0.0
        parts.append(now.mean() - integral)
        before, now = now, 2 * shifted * now - before
    return _squares(torch.stack(parts))


def quadratic(condition: float) -> Function:
    """Half the sum of w x^2 - with a rotation, so that no axis is special."""

    def loss(x: Tensor) -> Tensor:
        n = len(x)
        weights = torch.logspace(0, math.log10(condition), n, dtype=x.dtype)
        u = torch.cos(_like(x, range(1, n + 1)))
        turned = x - 2 * u * (u @ x) / (u @ u)
        return 0.5 * (weights * (turned - 1) ** 2).sum()

    return loss


def log_barrier(x: Tensor) -> Tensor:
    """Nan where any x >= 1 (log of a negative number); the minimum is at x = 0."""
    return (-torch.log(1 - x) - x).sum()


def edge_near_solution(x: Tensor) -> Tensor:
    """Nan where x[0] <= 0, and the minimum, at x[0] = 1e-3, is close to that edge."""
    return x[0] - 1e-3 * torch.log(x[0]) + 10 * (x[1] - x[0]) ** 2


def root_of_sum(x: Tensor) -> Tensor:
    """Nan outside a disc: sqrt of a negative number; the minimum is inside it."""
    return -torch.sqrt(4 - (x**2).sum()) + 0.5 * (x[0] - x[1]) ** 2 + 0.3 * x[0]


def _ramp(n: int) -> tuple[float, ...]:
    return tuple(i / (n + 1) for i in range(1, n + 1))


def _boundary_start(n: int) -> tuple[float, ...]:
    return tuple(t * (t - 1) for t in _ramp(n))


PAPER: list[Problem] = [
    Problem("rosenbrock [1]", rosenbrock, (-1.2, 1.0)),
    Problem("freudenstein-roth [2]", freudenstein_roth, (0.5, -2.0), (0.0, 48.98425)),
    Problem("powell badly scaled [3]", powell_badly_scaled, (0.0, 1.0)),
    Problem("brown badly scaled [4]", brown_badly_scaled, (1.0, 1.0)),
    Problem("beale [5]", beale, (1.0, 1.0)),
    Problem("jennrich-sampson [6]", jennrich_sampson, (0.3, 0.4), (124.3622,)),
    Problem("helical valley [7]", helical_valley, (-1.0, 0.0, 0.0)),
    Problem("bard [8]", bard, (1.0, 1.0, 1.0), (8.21487e-3, 17.4286)),
    Problem("gaussian [9]", gaussian, (0.4, 1.0, 0.0), (1.12793e-8,)),
    Problem("meyer [10]", meyer, (0.02, 4000.0, 250.0), (87.9458,)),
    Problem("gulf [11]", gulf, (5.0, 2.5, 0.15), (0.0, 0.038)),
    Problem("box [12]", box, (0.0, 10.0, 20.0)),
    Problem("powell singular [13]", powell_singular, (3.0, -1.0, 0.0, 1.0)),
    Problem("wood [14]", wood, (-3.0, -1.0, -3.0, -1.0)),
    Problem(
        "kowalik-osborne [15]",
        kowalik_osborne,
        (0.25, 0.39, 0.415, 0.39),
        (3.07505e-4, 1.02734e-3),
    ),
    Problem("brown-dennis [16]", brown_dennis, (25.0, 5.0, -5.0, -1.0), (85822.2,)),
    Problem("osborne 1 [17]", osborne_one, (0.5, 1.5, -1.0, 0.01, 0.02), (5.46489e-5,)),
    Problem("biggs exp6 [18]", biggs_exp6, (1.0, 2.0, 1.0, 1.0, 1.0, 1.0), (0.0, 5.65565e-3)),
    Problem(
        "osborne 2 [19]",
        osborne_two,
        (1.3, 0.65, 0.65, 0.7, 0.6, 3.0, 5.0, 7.0, 2.0, 4.5, 5.5),
        (4.01377e-2,),
    ),
    Problem("watson [20]", watson, (0.0,) * 6, (2.28767e-3,)),
    Problem("extended rosenbrock [21]", rosenbrock, (-1.2, 1.0) * 50),
    Problem("extended powell [22]", powell_singular, (3.0, -1.0, 0.0, 1.0) * 25),
    Problem("penalty I [23]", penalty_one, tuple(range(1, 11)), (7.08765e-5,)),
    Problem("penalty II [24]", penalty_two, (0.5,) * 10, (2.93660e-4,)),
    Problem(
        "variably dimensioned [25]", variably_dimensioned, tuple(1 - i / 10 for i in range(1, 11))
    ),
    Problem("trigonometric [26]", trigonometric, (0.1,) * 10, (0.0, 2.79506e-5)),
    Problem("brown almost-linear [27]", brown_almost_linear, (0.5,) * 10, (0.0, 1.0)),
    Problem("discrete boundary value [28]", discrete_boundary, _boundary_start(10)),
    Problem("discrete integral equation [29]", discrete_integral, _boundary_start(10)),
    Problem("broyden tridiagonal [30]", broyden_tridiagonal, (-1.0,) * 10),
    Problem("broyden banded [31]", broyden_banded, (-1.0,) * 10),
    Problem("linear, full rank [32]", linear_full_rank, (1.0,) * 10, (10.0,)),
    Problem("linear, rank 1 [33]", linear_rank_one, (1.0,) * 10, (190 / 41,)),
    Problem("linear, rank 1 with zeros [34]", linear_rank_one_zeros, (1.0,) * 10, (227 / 37,)),
    Problem("chebyquad [35]", chebyquad, _ramp(8), (3.51687e-3,)),
]

HARD: list[Problem] = [
    Problem("quadratic, condition 1e4", quadratic(1e4), (0.0,) * 50),
    Problem("quadratic, condition 1e6", quadratic(1e6), (0.0,) * 50),
    Problem("log barrier, nan beyond", log_barrier, (0.9, -5.0, 0.5, 0.99)),
    Problem("edge near the solution, nan beyond", edge_near_solution, (5.0, -5.0), (7.9e-3,)),
    Problem("root of a sum, nan beyond", root_of_sum, (-1.9, 0.5), (-2.03,)),
]

ALL: list[Problem] = PAPER + HARD
