"""Optimizers within differentiated and transformed code: `differentiable=True`, `torch.func`.

Meta-learning as `higher` does it: parameters that come from a computation, several steps of an
optimizer on them, and the gradient of what follows with respect to where they started and to the
options. A loss is taken of clones, as with torch: a step changes the parameter in place.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from client_runs import run_example
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp, stack_module_state, vmap

import steprule
from steprule.rules import OPTIMIZERS

PACKAGES = (torch.optim, steprule)


def takes_differentiable(name: str) -> bool:
    cls = OPTIMIZERS[name.lower()]
    try:
        cls([torch.ones(2, 2, dtype=torch.float64)], lr=0.1, differentiable=True)
    except TypeError:
        return False
    return True


NAMES = [
    cls.__name__
    for cls in OPTIMIZERS.values()
    if cls.rule is not None and not cls.needs_sparse and takes_differentiable(cls.__name__)
]
BOTH = [name for name in NAMES if hasattr(torch.optim, name)]
# Meta-gradients in float64. torch's differentiable Adam, AdamW and NAdam take bias corrections
# of a float32 step, of which 1 - 0.999 is 5e-5 wrong; ours are taken in float64.
EXACT = {"rtol": 1e-10, "atol": 1e-11}
BY_FLOAT32_STEPS = {"rtol": 2e-4, "atol": 2e-4}
TOLERANCES = dict.fromkeys(("Adam", "AdamW", "NAdam"), BY_FLOAT32_STEPS)
TARGET = torch.linspace(0.3, 1.2, 6, dtype=torch.float64).reshape(2, 3)


def inner_loss(param: Tensor, k: int) -> Tensor:
    return ((param * TARGET - 1) ** 2 * (k + 1)).sum() + 0.1 * (param**3).sum()


def adapted(package: Any, name: str, start: Tensor, steps: int = 3, **options: Any) -> Tensor:
    """Parameters after some steps from ``start``, through which gradients flow."""
    param = start * 1.0
    optimizer = getattr(package, name)([param], differentiable=True, **options)
    for k in range(steps):
        clone = param.clone()
        (param.grad,) = torch.autograd.grad(inner_loss(clone, k), clone, create_graph=True)
        optimizer.step()
    return param


def outer_loss(param: Tensor) -> Tensor:
    return ((param - 0.7) ** 2).sum()


def meta_start() -> Tensor:
    return torch.full((2, 3), 0.4, dtype=torch.float64, requires_grad=True)


def number(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64, requires_grad=True)


# Adamax and Rprop change state in place that their own backward needs: torch's raises.
@pytest.mark.parametrize("name", [name for name in BOTH if name not in ("Adamax", "Rprop")])
def test_gradients_through_three_steps_are_torchs(name: str) -> None:
    found = []
    for package in PACKAGES:
        start = meta_start()
        end = adapted(package, name, start, lr=0.05)
        found.append([end, *torch.autograd.grad(outer_loss(end), start)])
    torch.testing.assert_close(*found, **TOLERANCES.get(name, EXACT))


@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW", "RAdam"])
def test_a_learned_rate_and_betas_have_torchs_gradients(name: str) -> None:
    found = []
    for package in PACKAGES:
        learned = {"lr": number(0.05)}
        options: dict[str, Any] = {"lr": learned["lr"]}
        if name in ("Adam", "AdamW"):
            learned |= {"beta1": number(0.9), "beta2": number(0.95)}
            options["betas"] = (learned["beta1"], learned["beta2"])
        if name == "SGD":
            options["weight_decay"] = 0.1
        start = meta_start()
        # One step where betas are learned: torch multiplies its averages in place by them.
        end = adapted(package, name, start, steps=1 if "betas" in options else 3, **options)
        found.append(torch.autograd.grad(outer_loss(end), [start, *learned.values()]))
    torch.testing.assert_close(*found, **TOLERANCES.get(name, EXACT))


def slopes(f: Any, inputs: list[Tensor], eps: float = 1e-6) -> list[float]:
    """Central differences of a function of several tensors, all elements of each together."""
    found = []
    for i in range(len(inputs)):
        values = []
        for sign in (1, -1):
            moved = [x.detach() + sign * eps * (i == j) for j, x in enumerate(inputs)]
            values.append(float(f(*(x.requires_grad_() for x in moved)).detach()))
        found.append((values[0] - values[1]) / (2 * eps))
    return found


@pytest.mark.parametrize("name", NAMES)
def test_every_rules_meta_gradients_are_the_slopes(name: str) -> None:
    """With respect to start and rate, by differences: torch is right where it agrees, no more."""

    def ends(start: Tensor, lr: Tensor) -> Tensor:
        return outer_loss(adapted(steprule, name, start, lr=lr))

    start, lr = meta_start(), number(0.05)
    found = torch.autograd.grad(ends(start, lr), [start, lr], allow_unused=True)
    expected = slopes(ends, [start, lr])
    if name in ("ASGD", "Rprop"):  # lr is also a number of the state before the first step
        found, expected = found[:1], expected[:1]
    # differences of 1e-6 have 1e-10 of rounding over them, and terms of the third order
    for ours, slope in zip(found, expected, strict=True):
        assert float(ours.sum()) == pytest.approx(slope, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("Adam", {"betas": (0.9, 0.95), "weight_decay": 0.05}),
        ("AdamW", {"betas": (0.8, 0.9), "weight_decay": 0.1}),
        ("SGD", {"momentum": 0.9, "weight_decay": 0.1}),
        ("Lion", {"betas": (0.9, 0.95), "weight_decay": 0.1}),
        ("LAMB", {"betas": (0.9, 0.95), "weight_decay": 0.1}),
        ("QHAdam", {"betas": (0.9, 0.95), "weight_decay": 0.1}),
    ],
)
def test_any_number_may_be_learned_over_several_steps(name: str, options: dict[str, Any]) -> None:
    """Also where torch would want a float: decay, momentum; betas through three steps."""
    flat = [v for value in options.values() for v in (value if type(value) is tuple else [value])]

    def ends(*values: Tensor) -> Tensor:
        left = list(values)
        given = {
            key: (left.pop(0), left.pop(0)) if type(value) is tuple else left.pop(0)
            for key, value in options.items()
        }
        return outer_loss(adapted(steprule, name, meta_start(), lr=0.05, **given))

    learned = [number(value) for value in flat]
    found = torch.autograd.grad(ends(*learned), learned, allow_unused=True)
    for ours, slope in zip(found, slopes(ends, learned), strict=True):
        assert (0.0 if ours is None else float(ours)) == pytest.approx(slope, rel=1e-5, abs=1e-6)


def test_the_terms_of_every_rule_let_gradients_through() -> None:
    """Caution, clipping, decay of the other kind: they stand round the rule, differentiable too."""

    def ends(start: Tensor, lr: Tensor) -> Tensor:
        return outer_loss(
            adapted(
                *(steprule, "Adam", start),
                lr=lr,
                weight_decay=0.1,
                decoupled_weight_decay=True,
                clip_grad_norm=2.0,
                cautious=True,
            )
        )

    start, lr = meta_start(), number(0.05)
    found = torch.autograd.grad(ends(start, lr), [start, lr])
    for ours, slope in zip(found, slopes(ends, [start, lr]), strict=True):
        assert float(ours.sum()) == pytest.approx(slope, rel=1e-5, abs=1e-6)


def test_a_maml_loop_learns_as_with_torch() -> None:
    """Inner steps on each task from shared weights, an outer optimizer on these and the rate."""
    found = []
    for package in PACKAGES:
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 1)).double()
        rate = nn.Parameter(torch.tensor(-3.0, dtype=torch.float64))
        outer = package.Adam([*net.parameters(), rate], lr=0.01)
        losses = []
        for k in range(4):
            generator = torch.Generator().manual_seed(k)
            outer.zero_grad()
            total = torch.zeros((), dtype=torch.float64)
            for _ in range(2):  # tasks
                phase = torch.rand((), generator=generator, dtype=torch.float64)
                x = torch.linspace(-1, 1, 8, dtype=torch.float64).unsqueeze(1)
                y = torch.sin(3 * x + 6 * phase)
                fast = {name: param * 1.0 for name, param in net.named_parameters()}
                inner = package.SGD(fast.values(), lr=rate.exp(), differentiable=True)
                for _ in range(3):
                    clones = {name: param.clone() for name, param in fast.items()}
                    loss = (functional_call(net, clones, (x,)) - y).square().mean()
                    grads = torch.autograd.grad(loss, list(clones.values()), create_graph=True)
                    for param, gradient in zip(fast.values(), grads, strict=True):
                        param.grad = gradient
                    inner.step()
                total = total + (functional_call(net, fast, (x,)) - y).square().mean()
            total.backward()
            assert rate.grad is not None
            outer.step()
            losses.append(total.item())
        found.append((losses, rate.detach(), [param.detach() for param in net.parameters()]))
    torch.testing.assert_close(*found, **EXACT)


# ---- torch.func --------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # torch's own, for jvp
@pytest.mark.parametrize("name", BOTH)
def test_a_step_within_a_transform_is_torchs(name: str) -> None:
    """Adaptation inside `torch.func.grad` and `jvp`, on parameters made there."""
    start = torch.full((2, 3), 0.4, dtype=torch.float64)
    found = []
    for package in PACKAGES:

        def ends(weights: Tensor, package: Any = package) -> Tensor:
            param = weights * 1.0
            optimizer = getattr(package, name)([param], lr=0.05, differentiable=True)
            param.grad = param.clone() ** 2
            optimizer.step()
            return outer_loss(param)

        ones = torch.ones_like(start)
        found.append((grad(ends)(start), jvp(ends, (start,), (ones,))))
    torch.testing.assert_close(*found, **TOLERANCES.get(name, EXACT))


@pytest.mark.parametrize("name", ["SGD", "Adam", "RMSprop", "Lion", "AdEMAMix", "QHM"])
@pytest.mark.parametrize("engine", ["auto", "eager"])
def test_a_step_within_vmap_is_that_of_each(name: str, engine: str) -> None:
    starts = torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(4, 3)

    def trained(start: Tensor, how: str) -> Tensor:
        param = start * 1.0
        optimizer = getattr(steprule, name)([param], lr=0.05, engine=how)
        for k in range(2):
            param.grad = (k + 1) * param**2 + 1
            optimizer.step()
        return param

    expected = torch.stack([trained(start, "auto") for start in starts])
    torch.testing.assert_close(vmap(lambda x: trained(x, engine))(starts), expected, **EXACT)


@pytest.mark.parametrize("transform", ["grad", "vmap"])
@pytest.mark.parametrize("engine", ["eager", "foreach", "fused"])
@pytest.mark.parametrize("steps", [0, 3])
def test_what_is_outside_a_transform_does_not_change_within(
    transform: str, engine: str, steps: int
) -> None:
    """A gradient of the transform's for a parameter of the world's: refused by name, unchanged."""
    param = nn.Parameter(torch.ones(3))
    optimizer = steprule.Adam([("w", param)], lr=0.1, engine=engine)
    for _ in range(steps):
        param.grad = torch.ones(3)
        optimizer.step()
    before = param.detach().clone()

    def wrong(x: Tensor) -> Tensor:
        param.grad = x * 2
        optimizer.step()
        return (param * x).sum()

    with pytest.raises(
        RuntimeError, match=r"gradient of 'w' belongs to a transform of torch\.func"
    ):
        grad(wrong)(torch.ones(3)) if transform == "grad" else vmap(wrong)(torch.ones(2, 3))
    assert torch.equal(param, before)
    assert [float(entry["step"]) for entry in optimizer.state.values()] == [steps] * bool(steps)
    param.grad = torch.ones(3)
    optimizer.step()  # and afterwards all is as it was
    assert not torch.equal(param, before)


@pytest.mark.parametrize("engine", ["eager", "foreach", "fused"])
def test_gradients_by_torch_func(engine: str) -> None:
    """`grad` of `functional_call`, its result put into `.grad`."""
    found = []
    for package, more in ((torch.optim, {}), (steprule, {"engine": engine})):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()
        optimizer = package.AdamW(net.parameters(), lr=0.05, **more)

        def loss(params: dict[str, Tensor], x: Tensor, net: nn.Module = net) -> Tensor:
            return functional_call(net, params, (x,)).square().mean()  # type: ignore[no-any-return]

        for k in range(4):
            x = torch.randn(5, 3, generator=torch.Generator().manual_seed(k)).double()
            params = {name: param.detach() for name, param in net.named_parameters()}
            grads = grad(loss)(params, x)
            for name, param in net.named_parameters():
                param.grad = grads[name]
            optimizer.step()
        found.append([param.detach() for param in net.parameters()])
    torch.testing.assert_close(*found, **EXACT)


@pytest.mark.parametrize("engine", ["eager", "foreach", "fused"])
def test_clipped_per_sample_gradients(engine: str) -> None:
    """As for differential privacy: `vmap(grad)`, each sample's clipped, their mean in `.grad`."""
    found = []
    for package, more in ((torch.optim, {}), (steprule, {"engine": engine})):
        torch.manual_seed(0)
        net = nn.Linear(3, 2).double()
        optimizer = package.SGD(net.parameters(), lr=0.5, momentum=0.9, **more)

        def loss(params: dict[str, Tensor], x: Tensor, net: nn.Module = net) -> Tensor:
            return functional_call(net, params, (x.unsqueeze(0),)).square().sum()  # type: ignore[no-any-return]

        for k in range(3):
            x = torch.randn(6, 3, generator=torch.Generator().manual_seed(k)).double()
            params = {name: param.detach() for name, param in net.named_parameters()}
            each = vmap(grad(loss), in_dims=(None, 0))(params, x)
            squares = [g.flatten(1).square().sum(1) for g in each.values()]
            factor = (1.0 / torch.stack(squares).sum(0).sqrt()).clamp(max=1.0)
            for name, param in net.named_parameters():
                param.grad = torch.einsum("i,i...->...", factor, each[name]) / len(x)
            optimizer.step()
        found.append([param.detach() for param in net.parameters()])
    torch.testing.assert_close(*found, **EXACT)


@pytest.mark.parametrize("engine", ["eager", "foreach", "fused"])
def test_an_ensemble_in_one_optimizer_is_one_of_each(engine: str) -> None:
    """Stacked weights, one step for all; rules on elements can't tell the models apart."""

    def models() -> list[nn.Module]:
        torch.manual_seed(0)
        return [nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1)).double() for _ in "abc"]

    x = torch.randn(8, 3, generator=torch.Generator().manual_seed(0)).double()
    alone = models()
    optimizers = [steprule.AdamW(model.parameters(), lr=0.02, engine=engine) for model in alone]
    together = models()
    params, buffers = stack_module_state(together)
    optimizer = steprule.AdamW(params.values(), lr=0.02, engine=engine)
    skeleton = models()[0].to("meta")

    def one(params: dict[str, Tensor], buffers: dict[str, Tensor]) -> Tensor:
        return functional_call(skeleton, (params, buffers), (x,)).square().mean()  # type: ignore[no-any-return]

    for _ in range(4):
        for model, single in zip(alone, optimizers, strict=True):
            single.zero_grad()
            model(x).square().mean().backward()
            single.step()
        optimizer.zero_grad()
        vmap(one)(params, buffers).sum().backward()
        optimizer.step()
    for name, stacked in params.items():
        each = torch.stack([dict(model.named_parameters())[name] for model in alone])
        torch.testing.assert_close(stacked, each, **EXACT)


@pytest.mark.parametrize("engine", ["eager", "foreach", "fused"])
@pytest.mark.parametrize("steps", [0, 3])
@pytest.mark.filterwarnings("ignore:Adam. parameter 0 of group 0 runs on engine 'eager'")
def test_a_gradient_that_outlived_its_transform_is_taken(engine: str, steps: int) -> None:
    """`.grad` set from within, `step()` called afterwards: a wrapper without memory of its own."""
    found = []
    for package, more in ((torch.optim, {}), (steprule, {"engine": engine})):
        param = nn.Parameter(torch.ones(3, dtype=torch.float64))
        optimizer = package.Adam([param], lr=0.1, **more)
        for _ in range(steps):
            param.grad = torch.ones_like(param)
            optimizer.step()

        def sets(x: Tensor, param: nn.Parameter = param) -> Tensor:
            param.grad = x * 2
            return (x * 2).sum()

        grad(sets)(torch.ones(3, dtype=torch.float64))
        for _ in range(2):
            optimizer.step()
        found.append(param.detach())
    torch.testing.assert_close(*found, **EXACT)


def test_a_learned_rate_that_starts_a_slot_gives_no_warning() -> None:
    """Rprop's step sizes and ASGD's eta begin at lr: a number, whatever it requires."""
    for name in ("Rprop", "ASGD"):
        param = torch.ones(2, dtype=torch.float64) * 1
        optimizer = getattr(steprule, name)([param], lr=number(0.1), differentiable=True)
        param.grad = torch.ones(2, dtype=torch.float64)
        optimizer.step()
        assert math.isfinite(float(param.detach().sum()))


def test_the_example_of_the_docs() -> None:
    run_example("Gradients through a step, and torch.func")
