"""A whole step by one native call: when it is taken, and that it sees all that a plan rests on.

Every change is made after steps that were carried out so; the next ones are compared with torch's.
"""

from __future__ import annotations

import copy
import threading
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import NATIVE_LOOPS, Case, elementwise_optimizers, gradients, has_shared_reductions
from torch import nn

import steprule
from steprule.engines.native import whole_step

Pair = tuple[Any, Any]


def is_whole(optimizer: Any) -> bool:
    """Whether the next step is to be one native call."""
    return (
        optimizer._plan is not None
        and optimizer._plan._whole is not None
        and optimizer._plan._whole._whole is not None
    )


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """What each native step came to; 0 where it was carried out."""
    outcomes: list[int] = []
    original = whole_step.NativeStep.run

    def counted(self: whole_step.NativeStep, guards: Any) -> int:
        outcomes.append(int(original(self, guards)))
        return outcomes[-1]

    monkeypatch.setattr(whole_step.NativeStep, "run", counted)
    return outcomes


def pair_of(count: int = 4, size: int = 6, **options: Any) -> tuple[Pair, list[Any], list[Any]]:
    """Adam of ours and of torch over equal parameters, settled."""
    params = [nn.Parameter(torch.full((size,), 1.0 + i)) for i in range(count)]
    twins = [nn.Parameter(p.detach().clone()) for p in params]
    both = steprule.Adam(params, lr=0.1, **options), torch.optim.Adam(twins, lr=0.1, **options)
    take_steps(both)
    assert is_whole(both[0]) is NATIVE_LOOPS
    return both, params, twins


def take_steps(both: Pair, steps: int = 3, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        for mine, theirs in zip(all_params(both[0]), all_params(both[1]), strict=True):
            mine.grad = torch.randn(mine.shape, generator=generator)
            theirs.grad = mine.grad.clone()
        for optimizer in both:
            optimizer.step()


def all_params(optimizer: Any) -> list[Any]:
    return [param for group in optimizer.param_groups for param in group["params"]]


def compare(both: Pair) -> None:
    for mine, theirs in zip(all_params(both[0]), all_params(both[1]), strict=True):
        # 12 steps of size 0.1, each a dozen roundings of values below 10.
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "name", [n for n in elementwise_optimizers() if not has_shared_reductions(n)]
)
def test_plain_training_is_whole_steps(name: str, calls: list[int]) -> None:
    """The bits are those of the plain path."""
    cls: Any = Case(name, {}).ours
    shapes = [(5, 7), (3,), (), (100, 101), (300, 301)]
    results = []
    for whole in (True, False):
        generator = torch.Generator().manual_seed(0)
        params = [torch.randn(shape, generator=generator).requires_grad_() for shape in shapes]
        optimizer = cls(params)
        for _ in gradients(params, 8):
            if NATIVE_LOOPS and not whole and optimizer._plan is not None:
                optimizer._plan._whole._whole = None
            optimizer.step()
        results.append(params)
        assert bool(calls) is (whole and NATIVE_LOOPS)
        assert not any(calls)
        calls.clear()
    for mine, plain in zip(*results, strict=True):
        assert torch.equal(mine, plain)


def test_large_models_let_other_threads_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(whole_step, "MOST_ELEMENTS", 10)
    param = nn.Parameter(torch.zeros(11))
    optimizer = steprule.Adam([param])
    for _ in gradients([param], 4):
        optimizer.step()
    assert not is_whole(optimizer)


def append_parameter(both: Pair) -> None:
    for optimizer in both:
        optimizer.param_groups[0]["params"].append(nn.Parameter(torch.ones(3)))


def replace_parameters_by_a_list_that_grows(both: Pair) -> None:
    for optimizer in both:
        optimizer.param_groups[0]["params"] = list(optimizer.param_groups[0]["params"])
        optimizer.param_groups[0]["lr"] = 0.2
    take_steps(both)
    append_parameter(both)


def add_group(both: Pair) -> None:
    for optimizer in both:
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(3))], "lr": 0.3})


def remove_parameter(both: Pair) -> None:
    for optimizer in both:
        del optimizer.param_groups[0]["params"][1]


def decay_weights(both: Pair) -> None:
    for optimizer in both:
        optimizer.param_groups[0]["weight_decay"] = 0.1


def climb(both: Pair) -> None:
    for optimizer in both:
        optimizer.param_groups[0]["maximize"] = True


def tensor_lr(both: Pair) -> None:
    for optimizer in both:
        optimizer.param_groups[0]["lr"] = torch.tensor(0.05)
    take_steps(both, 2)
    for optimizer in both:
        optimizer.param_groups[0]["lr"].mul_(0.5)


def betas_in_a_list(both: Pair) -> None:
    for optimizer in both:
        optimizer.param_groups[0]["betas"] = [0.5, 0.9]
    take_steps(both, 2)
    for optimizer in both:
        optimizer.param_groups[0]["betas"][0] = 0.1


def forget_state(both: Pair) -> None:
    for optimizer in both:
        del optimizer.state[all_params(optimizer)[2]]


def replace_entry(both: Pair) -> None:
    for optimizer in both:
        param = all_params(optimizer)[0]
        entry = optimizer.state[param]
        optimizer.state[param] = {key: value.clone() for key, value in entry.items()}
        optimizer.state[param]["exp_avg"].mul_(3)


def replace_tensor(both: Pair) -> None:
    for optimizer in both:
        entry = optimizer.state[all_params(optimizer)[0]]
        entry["exp_avg_sq"] = entry["exp_avg_sq"] * 2


def move_state(both: Pair) -> None:
    for optimizer in both:
        slot = optimizer.state[all_params(optimizer)[3]]["exp_avg"]
        slot.data = slot.data.clone()


def move_parameter(both: Pair) -> None:
    for optimizer in both:
        param = all_params(optimizer)[1]
        param.data = param.data * 2


def count_of_ones_own(both: Pair) -> None:
    for optimizer in both:
        optimizer.state[all_params(optimizer)[0]]["note"] = "mine"
        optimizer.param_groups[0]["name"] = "first"


def load(both: Pair) -> None:
    saved = copy.deepcopy(both[1].state_dict())
    take_steps(both, 2, seed=5)
    for optimizer in both:
        optimizer.load_state_dict(copy.deepcopy(saved))


CHANGES: list[Callable[[Pair], None]] = [
    append_parameter,
    replace_parameters_by_a_list_that_grows,
    add_group,
    remove_parameter,
    decay_weights,
    climb,
    tensor_lr,
    betas_in_a_list,
    forget_state,
    replace_entry,
    replace_tensor,
    move_state,
    move_parameter,
    count_of_ones_own,
    load,
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_change_is_seen(change: Callable[[Pair], None]) -> None:
    both, *_ = pair_of()
    change(both)
    take_steps(both, 4, seed=1)
    compare(both)


def test_numbers_at_the_addresses_of_old_ones_are_seen() -> None:
    """A float that is dropped leaves its place to the next one: identity must be of what lives."""
    both, *_ = pair_of()
    for step in range(30):
        for _ in range(3):
            both[0].param_groups[0]["lr"] = 1.0 / (2 + step)
        both[1].param_groups[0]["lr"] = 1.0 / (2 + step)
        take_steps(both, 1, seed=step)
    compare(both)


def test_a_parameter_that_was_frozen_takes_part_when_it_has_a_gradient() -> None:
    params = [nn.Parameter(torch.ones(3)) for _ in range(3)]
    optimizer = steprule.SGD(params, lr=1.0)
    for _ in range(3):
        params[0].grad = torch.ones(3)
        optimizer.step()
    assert is_whole(optimizer) is NATIVE_LOOPS
    params[0].grad = None
    params[2].grad = torch.ones(3)
    optimizer.step()
    assert [param[0].item() for param in params] == [-2.0, 1.0, 0.0]


def test_no_gradients_change_nothing(calls: list[int]) -> None:
    both, params, _ = pair_of()
    both[0].zero_grad()
    calls.clear()
    before = [param.detach().clone() for param in params]
    both[0].step()
    assert calls == [0] * NATIVE_LOOPS
    assert all(map(torch.equal, before, params))
    assert both[0].state[params[0]]["step"] == 3


@pytest.mark.parametrize("kind", ["expanded", "sliced", "conjugate", "float64", "empty storage"])
def test_a_gradient_of_another_kind_is_left_to_the_plain_path(kind: str) -> None:
    if kind == "float64" and not hasattr(torch.Tensor, "grad_dtype"):
        return  # torch before 2.10 refuses such a gradient itself
    both, params, twins = pair_of()
    for param in (params[1], twins[1]):
        if kind == "expanded":
            param.grad = torch.tensor(2.0).expand(6)
        elif kind == "sliced":
            param.grad = torch.arange(12.0)[::2]
        elif kind == "conjugate":
            param.grad = torch.full((6,), 1.0 + 2.0j).conj().imag
        elif kind == "float64":
            param.grad = None
            param.grad_dtype = None  # type: ignore[attr-defined]
            param.grad = torch.full((6,), 2.0, dtype=torch.float64)
    if kind == "empty storage":
        assert params[1].grad is not None
        params[1].grad.untyped_storage().resize_(0)
        before = [param.detach().clone() for param in params]
        with pytest.raises(RuntimeError, match="memory"):
            both[0].step()
        assert all(map(torch.equal, before, params))
        return
    if kind == "float64":  # torch's own does not take it
        twins[1].grad = None
        twins[1].grad_dtype = None  # type: ignore[attr-defined]
        twins[1].grad = torch.full((6,), 2.0)
    for optimizer in both:
        optimizer.step()
    compare(both)


def test_an_lr_that_cannot_be_used_is_refused_and_nothing_changes() -> None:
    both, params, _ = pair_of()
    before = [param.detach().clone() for param in params]
    both[0].param_groups[0]["lr"] = "fast"
    with pytest.raises(TypeError, match="lr of group 0"):
        both[0].step()
    assert all(map(torch.equal, before, params))
    both[0].param_groups[0]["lr"] = 0.1
    take_steps(both)
    compare(both)


def test_graphs_that_saved_a_parameter_complain() -> None:
    both, params, _ = pair_of()
    product = (params[0] * params[0]).sum()
    assert is_whole(both[0]) is NATIVE_LOOPS
    both[0].step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.backward()


@pytest.mark.parametrize("threads", [1, 2])
def test_threads_may_change(threads: int) -> None:
    before = torch.get_num_threads()
    try:
        both, *_ = pair_of(count=2, size=200_000)
        torch.set_num_threads(threads)
        take_steps(both)
        assert is_whole(both[0]) is NATIVE_LOOPS
        torch.set_num_threads(before)
        take_steps(both)
    finally:
        torch.set_num_threads(before)
    compare(both)


def test_gradients_replaced_by_another_thread_are_never_read() -> None:
    """Results may be anything between the old and the new; memory must be sound.

    (Not ``param.grad = None``: torch drops the gradient before it forgets it, and lets other
    threads run in between. Whoever asks for the gradient then, torch's optimizers too, may crash.)
    """
    params = [nn.Parameter(torch.zeros(500)) for _ in range(200)]
    optimizer = steprule.SGD(params, lr=1.0)
    for _ in range(3):
        for param in params:
            param.grad = torch.zeros(500)
        optimizer.step()
    assert is_whole(optimizer) is NATIVE_LOOPS
    is_done = threading.Event()

    def churn() -> None:
        while not is_done.is_set():
            for param in params:
                param.grad = torch.ones(500)
            torch.full((500,), float("nan"))  # whoever reads what was dropped gets this

    thread = threading.Thread(target=churn)
    thread.start()
    try:
        for _ in range(300):
            optimizer.step()
    finally:
        is_done.set()
        thread.join()
    for param in params:
        values = param.detach()
        assert torch.equal(values, values.round())
        assert values.max() <= 0


def test_state_from_init_state_is_that_of_a_first_step() -> None:
    results = []
    for early in (True, False):
        params = [nn.Parameter(torch.ones(3)) for _ in range(2)]
        optimizer = steprule.SGD(params, lr=0.1, momentum=0.9, dampening=0.5)
        if early:
            optimizer.init_state()
        for step in range(6):
            params[0].grad = torch.ones(3)
            params[1].grad = torch.ones(3) if step > 2 else None
            optimizer.step()
        results.append(params)
    for early, late in zip(*results, strict=True):
        assert torch.equal(early, late)


def test_lr_schedulers_and_schedules_keep_steps_whole(calls: list[int]) -> None:
    param, twin = (nn.Parameter(torch.ones(4)) for _ in range(2))
    ours = steprule.AdamW([param], lr=steprule.schedules.cosine(0.1, 0.0, steps=20))
    theirs = torch.optim.AdamW([twin], lr=0.1)
    shape = steprule.schedules.cosine(0.1, 0.0, steps=20)
    for step in range(15):
        param.grad = torch.full((4,), 0.5)
        twin.grad = param.grad.clone()
        theirs.param_groups[0]["lr"] = shape(step)
        ours.step()
        theirs.step()
    assert calls.count(0) >= 10 * NATIVE_LOOPS
    torch.testing.assert_close(param, twin, rtol=1e-5, atol=1e-6)


def test_numbers_that_a_look_took_over_are_not_kept() -> None:
    """``explain()`` tells the kernels of an lr; the old one, the very same object, comes back."""
    both, *_ = pair_of()
    group = both[0].param_groups[0]
    before = group["lr"]
    group["lr"] = 0.9
    both[0].explain()
    group["lr"] = before
    take_steps(both, 3, seed=1)
    assert is_whole(both[0]) is NATIVE_LOOPS
    compare(both)


def test_numbers_of_a_step_refused_half_way_are_not_kept() -> None:
    params, twins = ([nn.Parameter(torch.ones(3)) for _ in range(2)] for _ in range(2))
    both = tuple(
        cls([{"params": [one]} for one in some], lr=0.1)
        for cls, some in ((steprule.Adam, params), (torch.optim.Adam, twins))
    )
    take_steps(both)
    assert is_whole(both[0]) is NATIVE_LOOPS
    first, second = both[0].param_groups
    before = first["lr"], second["lr"]
    first["lr"], second["lr"] = 0.9, "fast"
    with pytest.raises(TypeError, match="lr of group 1"):
        both[0].step()
    first["lr"], second["lr"] = before
    take_steps(both, 3, seed=1)
    compare(both)


def test_numbers_are_those_of_now_beside_other_engines() -> None:
    """An lr that cycles between the same two objects, and steps that only some have a part in."""
    params, twins = ([nn.Parameter(torch.ones(3)) for _ in range(2)] for _ in range(2))
    loose, loose_twin = (nn.Parameter(torch.ones(4, 4)[:, :2]) for _ in range(2))
    low, high = 0.1, 0.9
    both = (
        steprule.Adam([*params, loose], lr=low),
        torch.optim.Adam([*twins, loose_twin], lr=low),
    )
    take_steps(both, 5)
    assert is_whole(both[0]) is NATIVE_LOOPS
    for lr, has_all in ((high, False), (high, True), (low, True), (high, True), (low, True)):
        for optimizer in both:
            optimizer.param_groups[0]["lr"] = lr
        if has_all:
            take_steps(both, 1, seed=2)
        else:
            loose.grad = loose_twin.grad = None
            for optimizer in both:
                optimizer.step()
    compare(both)


def test_a_look_keeps_no_gradient_alive() -> None:
    both, params, _ = pair_of()
    assert params[0].grad is not None
    seen = weakref.ref(params[0].grad)
    both[0].explain()
    both[0].zero_grad()
    assert seen() is None


class Twice(torch.Tensor):
    """What is done with it is done with twice as much."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        with torch._C.DisableTorchFunctionSubclass():
            args = [a.as_subclass(torch.Tensor) * 2 if isinstance(a, cls) else a for a in args]
            return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("most_elements", [1 << 22, 0], ids=["whole", "large"])
def test_a_gradient_of_a_class_of_its_own_is_seen(
    monkeypatch: pytest.MonkeyPatch, most_elements: int
) -> None:
    monkeypatch.setattr(whole_step, "MOST_ELEMENTS", most_elements)
    param = nn.Parameter(torch.zeros(3))
    optimizer = steprule.SGD([param], lr=1.0)
    for _ in range(5):
        param.grad = torch.ones(3)
        optimizer.step()
    param.grad = torch.ones(3).as_subclass(Twice)  # type: ignore[assignment]
    optimizer.step()
    assert param.tolist() == [-7.0] * 3


def test_memory_shared_until_written_is_not_written() -> None:
    """A lazy clone has the address of what it is a clone of."""
    both, params, _ = pair_of()
    clone = torch._lazy_clone(params[0].detach())
    before = params[0].detach().clone()
    take_steps(both, 2, seed=1)
    assert torch.equal(clone, before)
    compare(both)
