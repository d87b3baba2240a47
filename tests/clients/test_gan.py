"""Adversarial networks: two optimizers whose losses share forward passes, in turns.

Each loop is run with torch's optimizers and with ours, from the same weights and noise, in float64:
adversarial training amplifies roundings, which float32 would show after a few dozen steps.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits as bce

import steprule

PACKAGES = (torch.optim, steprule)
ENGINES = ("eager", "foreach", "fused")
# float64, a dozen steps of each network, roundings amplified by what each makes of the other
CLOSE = {"rtol": 1e-9, "atol": 1e-11}
BATCH, NOISE = 4, 5


class Nets(NamedTuple):
    generator: nn.Sequential
    critic: nn.Sequential


def dcgan() -> Nets:
    """Transposed convolutions with batch norm, and convolutions with leaky rectifiers; 8 x 8."""
    torch.manual_seed(0)
    generator = nn.Sequential(
        nn.ConvTranspose2d(NOISE, 6, 4, 1, 0, bias=False),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.ConvTranspose2d(6, 1, 4, 2, 1, bias=False),
        nn.Tanh(),
    )
    critic = nn.Sequential(
        nn.Conv2d(1, 4, 4, 2, 1, bias=False),
        nn.LeakyReLU(0.2),
        nn.Conv2d(4, 1, 4, 1, 0, bias=False),
        nn.Flatten(0),
    )
    return Nets(generator.double(), critic.double())


def fully_connected() -> Nets:
    torch.manual_seed(0)
    generator = nn.Sequential(nn.Linear(NOISE, 12), nn.ReLU(), nn.Linear(12, 3))
    critic = nn.Sequential(
        nn.Linear(3, 12), nn.LayerNorm(12), nn.LeakyReLU(0.2), nn.Linear(12, 1), nn.Flatten(0)
    )
    return Nets(generator.double(), critic.double())


def drawn(k: int, *shape: int) -> Tensor:
    """Numbers of iteration ``k``."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(k), dtype=torch.float64)


def weights(nets: Nets) -> list[Tensor]:
    tensors = itertools.chain(*(net.state_dict().values() for net in nets))
    return [tensor.detach().clone() for tensor in tensors]


def dcgan_iteration(nets: Nets, optimizers: Any, k: int, set_to_none: bool) -> None:
    """As in PyTorch's DCGAN example: one forward of the generator for both losses."""
    for_generator, for_critic = optimizers
    ones, zeros = torch.ones(BATCH).double(), torch.zeros(BATCH).double()
    for_critic.zero_grad(set_to_none=set_to_none)
    bce(nets.critic(drawn(2 * k, BATCH, 1, 8, 8).tanh()), ones).backward()
    fake = nets.generator(drawn(2 * k + 1, BATCH, NOISE, 1, 1))
    bce(nets.critic(fake.detach()), zeros).backward()
    for_critic.step()
    for_generator.zero_grad(set_to_none=set_to_none)
    # through the critic as it is now, which gets gradients that the next zero_grad clears
    bce(nets.critic(fake), ones).backward()
    for_generator.step()


def wgan_iteration(nets: Nets, optimizers: Any, k: int, set_to_none: bool) -> None:
    """WGAN-GP: three steps of the critic, each with a gradient penalty, then the generator."""
    for_generator, for_critic = optimizers
    n_critic = 3
    for param in nets.critic.parameters():
        param.requires_grad_(True)
    for i in range(n_critic):
        for_critic.zero_grad(set_to_none=set_to_none)
        real = drawn(100 * k + i, BATCH, 3)
        with torch.no_grad():
            fake = nets.generator(drawn(100 * k + i + 10, BATCH, NOISE))
        share = drawn(100 * k + i + 20, BATCH, 1).sigmoid()
        between = (share * real + (1 - share) * fake).requires_grad_(True)
        (slope,) = torch.autograd.grad(nets.critic(between).sum(), between, create_graph=True)
        penalty = 10.0 * (slope.norm(dim=1) - 1).square().mean()
        (nets.critic(fake).mean() - nets.critic(real).mean() + penalty).backward()
        for_critic.step()
    for param in nets.critic.parameters():
        param.requires_grad_(False)
    for_generator.zero_grad(set_to_none=set_to_none)
    (-nets.critic(nets.generator(drawn(100 * k + 30, BATCH, NOISE))).mean()).backward()
    for_generator.step()


def one_forward_iteration(nets: Nets, optimizers: Any, k: int, set_to_none: bool) -> None:
    """Both losses of one graph, kept for the second: both backwards before both steps."""
    for_generator, for_critic = optimizers
    fake = nets.generator(drawn(2 * k, BATCH, NOISE))
    seen, real = nets.critic(fake), nets.critic(drawn(2 * k + 1, BATCH, 3))
    ones, zeros = torch.ones(BATCH).double(), torch.zeros(BATCH).double()
    of_critic = bce(seen, zeros) + bce(real, ones)
    for_critic.zero_grad(set_to_none=set_to_none)
    of_critic.backward(retain_graph=True, inputs=list(nets.critic.parameters()))
    for_generator.zero_grad(set_to_none=set_to_none)
    bce(seen, ones).backward(inputs=list(nets.generator.parameters()))
    for_critic.step()
    for_generator.step()


LOOPS: dict[str, tuple[Callable[[], Nets], Any, tuple[str, dict[str, Any]]]] = {
    "DCGAN": (dcgan, dcgan_iteration, ("Adam", {"lr": 2e-3, "betas": (0.5, 0.999)})),
    "WGAN-GP": (fully_connected, wgan_iteration, ("Adam", {"lr": 1e-3, "betas": (0.0, 0.9)})),
    "one forward": (fully_connected, one_forward_iteration, ("RMSprop", {"lr": 1e-3})),
}


def started(loop: str, package: Any, **more: Any) -> tuple[Nets, Any]:
    make, _, (name, options) = LOOPS[loop]
    nets = make()
    return nets, [getattr(package, name)(net.parameters(), **options, **more) for net in nets]


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("set_to_none", [True, False])
@pytest.mark.parametrize("engine", ENGINES)
def test_a_loop_takes_torchs_steps(loop: str, set_to_none: bool, engine: str) -> None:
    found = []
    for package, more in ((torch.optim, {}), (steprule, {"engine": engine})):
        nets, optimizers = started(loop, package, **more)
        before = weights(nets)
        for k in range(5):
            LOOPS[loop][1](nets, optimizers, k, set_to_none)
        found.append(weights(nets))
        assert not torch.equal(before[0], found[-1][0])
    torch.testing.assert_close(*reversed(found), **CLOSE)


@pytest.mark.parametrize("loop", LOOPS)
def test_a_resumed_loop_is_the_uninterrupted_one_bit_for_bit(loop: str) -> None:
    iteration = LOOPS[loop][1]
    whole, half, resumed = (started(loop, steprule) for _ in range(3))
    for k in range(6):
        iteration(*whole, k, True)
    for k in range(3):
        iteration(*half, k, True)
    for new, old in zip((*resumed[0], *resumed[1]), (*half[0], *half[1]), strict=True):
        new.load_state_dict(copy.deepcopy(old.state_dict()))
    for k in range(3, 6):
        iteration(*resumed, k, True)
    assert all(map(torch.equal, weights(whole[0]), weights(resumed[0])))


def test_a_step_before_the_second_backward_is_an_error_as_with_torch() -> None:
    """The critic was changed in place after the forward that the second backward goes through."""
    for package in PACKAGES:
        nets, (_, for_critic) = started("one forward", package)
        seen = nets.critic(nets.generator(drawn(0, BATCH, NOISE)))
        bce(seen, torch.zeros(BATCH).double()).backward(retain_graph=True)
        for_critic.step()
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            bce(seen, torch.ones(BATCH).double()).backward()


@pytest.mark.parametrize("frozen_by", ["requires_grad", "eval and detach"])
def test_frozen_networks_stay_as_they_are(frozen_by: str) -> None:
    """Momentum and decay of a network whose turn it is not must not move it."""
    found = []
    for package in PACKAGES:
        nets = fully_connected()
        options = {"lr": 0.01, "momentum": 0.9, "weight_decay": 0.1}
        optimizers = [package.SGD(net.parameters(), **options) for net in nets]
        for k in range(6):
            turn = k % 2  # whose turn it is: 0 the generator's, 1 the critic's
            for i, net in enumerate(nets):
                for param in net.parameters():
                    param.requires_grad_(frozen_by != "requires_grad" or i == turn)
            optimizers[0].zero_grad()
            optimizers[1].zero_grad()
            fake = nets.generator(drawn(k, BATCH, NOISE))
            seen = nets.critic(fake.detach() if turn else fake)
            bce(seen, torch.full((BATCH,), float(1 - turn)).double()).backward()
            before = weights(nets)
            if frozen_by == "requires_grad":
                for optimizer in optimizers:  # those without gradients are passed over
                    optimizer.step()
            else:
                optimizers[turn].step()
            count = len(weights(Nets(nets.generator, nn.Sequential())))
            now = weights(nets)
            still = slice(0, count) if turn else slice(count, None)
            assert all(map(torch.equal, before[still], now[still]))
        found.append(weights(nets))
    torch.testing.assert_close(*reversed(found), **CLOSE)


def test_one_optimizer_object_a_network_with_a_scheduler_each() -> None:
    found = []
    for package in PACKAGES:
        nets, optimizers = started("DCGAN", package)
        schedulers = [
            package.lr_scheduler.LambdaLR(optimizer, lambda k: 1 - k / 10)
            for optimizer in optimizers
        ]
        for k in range(4):
            dcgan_iteration(nets, optimizers, k, True)
            for scheduler in schedulers:
                scheduler.step()
        found.append((weights(nets), [s.get_last_lr() for s in schedulers]))
    torch.testing.assert_close(*reversed(found), **CLOSE)


def test_the_average_of_the_generators_weights() -> None:
    """`ema_decay` on one of two optimizers, as generators are evaluated."""
    nets = dcgan()
    for_generator = steprule.Adam(nets.generator.parameters(), lr=2e-3, ema_decay=0.9)
    for_critic = steprule.Adam(nets.critic.parameters(), lr=2e-3)
    averages = [param.detach().clone() for param in nets.generator.parameters()]
    for k in range(5):
        dcgan_iteration(nets, (for_generator, for_critic), k, True)
        for average, param in zip(averages, nets.generator.parameters(), strict=True):
            average.lerp_(param.detach(), 0.1)
    kept = weights(nets)
    with for_generator.averaged():
        torch.testing.assert_close(
            [param.detach() for param in nets.generator.parameters()], averages, **CLOSE
        )
    assert all(map(torch.equal, kept, weights(nets)))
