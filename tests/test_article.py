"""The article's six hand-written updates, each matched by a class with the right options."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import ENGINES, gradients

import steprule as optim

Params = list[torch.Tensor]


def sgd_update(parameters: Params, lr: float) -> None:
    for param in parameters:
        param.data = param.data - lr * param.grad.data


def sgd_momentum(parameters: Params, vs: Params, lr: float, gamma: float) -> None:
    for param, v in zip(parameters, vs, strict=True):
        v[:] = gamma * v + lr * param.grad.data
        param.data = param.data - v


def sgd_adagrad(parameters: Params, sqrs: Params, lr: float) -> None:
    eps = 1e-10
    for param, sqr in zip(parameters, sqrs, strict=True):
        sqr[:] = sqr + param.grad.data**2
        div = lr / torch.sqrt(sqr + eps) * param.grad.data
        param.data = param.data - div


def adadelta(parameters: Params, sqrs: Params, deltas: Params, rho: float) -> None:
    eps = 1e-6
    for param, sqr, delta in zip(parameters, sqrs, deltas, strict=True):
        sqr[:] = rho * sqr + (1 - rho) * param.grad.data**2
        cur_delta = torch.sqrt(delta + eps) / torch.sqrt(sqr + eps) * param.grad.data
        delta[:] = rho * delta + (1 - rho) * cur_delta**2
        param.data = param.data - cur_delta


def rmsprop(parameters: Params, sqrs: Params, lr: float, alpha: float) -> None:
    eps = 1e-10
    for param, sqr in zip(parameters, sqrs, strict=True):
        sqr[:] = alpha * sqr + (1 - alpha) * param.grad.data**2
        div = lr / torch.sqrt(sqr + eps) * param.grad.data
        param.data = param.data - div


def adam(parameters: Params, vs: Params, sqrs: Params, lr: float, t: int) -> None:
    beta1, beta2, eps = 0.9, 0.999, 1e-8
    for param, v, sqr in zip(parameters, vs, sqrs, strict=True):
        v[:] = beta1 * v + (1 - beta1) * param.grad.data
        sqr[:] = beta2 * sqr + (1 - beta2) * param.grad.data**2
        v_hat = v / (1 - beta1**t)
        s_hat = sqr / (1 - beta2**t)
        param.data = param.data - lr * v_hat / torch.sqrt(s_hat + eps)


HAND_WRITTEN: dict[str, tuple[Callable[..., None], Callable[..., Any]]] = {
    "sgd_update": (
        lambda p, _a, _b, _t: sgd_update(p, 1e-2),
        lambda p, e: optim.SGD(p, lr=1e-2, engine=e),
    ),
    "sgd_momentum": (
        lambda p, a, _b, _t: sgd_momentum(p, a, 1e-2, 0.9),
        lambda p, e: optim.SGD(p, lr=1e-2, momentum=0.9, classic_momentum=True, engine=e),
    ),
    "sgd_adagrad": (
        lambda p, a, _b, _t: sgd_adagrad(p, a, 1e-2),
        lambda p, e: optim.Adagrad(p, lr=1e-2, eps=1e-10, eps_inside_sqrt=True, engine=e),
    ),
    "adadelta": (
        lambda p, a, b, _t: adadelta(p, a, b, 0.9),
        lambda p, e: optim.Adadelta(p, rho=0.9, eps=1e-6, engine=e),
    ),
    "rmsprop": (
        lambda p, a, _b, _t: rmsprop(p, a, 1e-3, 0.9),
        lambda p, e: optim.RMSprop(
            p, lr=1e-3, alpha=0.9, eps=1e-10, eps_inside_sqrt=True, engine=e
        ),
    ),
    "adam": (
        lambda p, a, b, t: adam(p, a, b, 1e-3, t),
        lambda p, e: optim.Adam(p, lr=1e-3, eps_inside_sqrt=True, engine=e),
    ),
}


def network() -> torch.nn.Module:
    """The article's network, on random data of its shape."""
    torch.manual_seed(0)
    layers = [torch.nn.Linear(784, 200), torch.nn.ReLU(), torch.nn.Linear(200, 10)]
    return torch.nn.Sequential(*layers)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", HAND_WRITTEN)
def test_class_matches_the_hand_written_update(name: str, engine: str) -> None:
    update, make = HAND_WRITTEN[name]
    by_hand = [p.detach().double().requires_grad_() for p in network().parameters()]
    by_class = [p.detach().clone().requires_grad_() for p in by_hand]
    first, second = ([torch.zeros_like(p) for p in by_hand] for _ in range(2))
    optimizer = make(by_class, engine)
    steps = 3 if engine == "triton" else 20  # interpreted
    for t, _ in enumerate(gradients(by_hand, steps), start=1):
        for mine, theirs in zip(by_class, by_hand, strict=True):
            mine.grad = theirs.grad
        update(by_hand, first, second, t)
        optimizer.step()
    torch.testing.assert_close(by_class, by_hand, rtol=1e-12, atol=1e-14)


def test_classic_momentum_differs_only_when_lr_changes() -> None:
    finals = []
    for classic in (False, True):
        param = torch.ones(3, dtype=torch.float64, requires_grad=True)
        optimizer = optim.SGD([param], lr=0.1, momentum=0.9, classic_momentum=classic)
        values = []
        for i, _ in enumerate(gradients([param], 6)):
            if i == 3:
                optimizer.param_groups[0]["lr"] = 0.01
            optimizer.step()
            values.append(param.detach().clone())
        finals.append(values)
    torch.testing.assert_close(finals[0][:3], finals[1][:3])
    assert not torch.allclose(finals[0][3], finals[1][3])


def test_the_articles_training_loop_runs_as_written() -> None:
    net, criterion = network(), torch.nn.CrossEntropyLoss()
    optimizer = optim.SGD(net.parameters(), lr=0.01, momentum=0.9)
    dataset = [(torch.randn(8, 784), torch.randint(10, (8,))) for _ in range(3)]
    losses = []
    for im, label in dataset * 10:

        def closure(im: Any = im, label: Any = label) -> torch.Tensor:
            optimizer.zero_grad()
            loss: torch.Tensor = criterion(net(im), label)
            loss.backward()
            return loss

        losses.append(optimizer.step(closure).item())
    assert losses[-1] < losses[0] / 2
