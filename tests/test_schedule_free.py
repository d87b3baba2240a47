"""Schedule-free optimizers: three sequences of which two are stored, and the two modes."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from formats import ROUNDINGS
from helpers import FAST_ENGINES
from processes import ranks
from rank_programs import modes
from torch import Tensor, nn

import steprule
from steprule.optimizer import train_eval

NAMES = ("ScheduleFreeSGD", "ScheduleFreeAdamW")
OPTIONS: dict[str, dict[str, Any]] = {
    "ScheduleFreeSGD": {"lr": 0.1, "warmup_steps": 3},
    "ScheduleFreeAdamW": {"lr": 0.02, "warmup_steps": 3},
}


def params_of(dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    wide = torch.complex128 if dtype.is_complex else torch.float64
    shapes = ((33, 130), (), (7,))
    return [
        torch.randn(shape, generator=generator, dtype=wide).to(dtype).requires_grad_()
        for shape in shapes
    ]


def made(name: str, params: list[Tensor], **options: Any) -> Any:
    return getattr(steprule, name)(params, **{**OPTIONS[name], **options})


def train(optimizer: Any, params: list[Tensor], first: int, last: int) -> None:
    for k in range(first, last):
        generator = torch.Generator().manual_seed(k)
        for p in params:
            wide = torch.complex128 if p.is_complex() else torch.float64
            p.grad = torch.randn(p.shape, generator=generator, dtype=wide).to(p.dtype)
        optimizer.step()


def values(params: list[Tensor]) -> list[Tensor]:
    return [p.detach().clone() for p in params]


def same(one: Any, other: Any) -> None:
    torch.testing.assert_close(one, other, rtol=0, atol=0)


def tensors_of(optimizer: Any, params: list[Tensor]) -> list[Any]:
    return [values(params), [dict(optimizer.state[p]) for p in params]]


@pytest.mark.parametrize("engine", FAST_ENGINES)
def test_it_is_three_sequences_even_while_momentum_changes(engine: str) -> None:
    """By hand: x and z are kept, y made of them. A one-cycle schedule moves momentum."""
    params = params_of(torch.float64)
    optimizer = made("ScheduleFreeSGD", params, engine=engine, r=0.5)
    scheduler = steprule.lr_scheduler.OneCycleLR(optimizer, max_lr=0.2, total_steps=12)
    x, z = values(params), values(params)
    weight_sum = lr_max = 0.0
    for t in range(1, 11):
        group = optimizer.param_groups[0]
        eta, momentum = group["lr"] * min(1, t / 3), group["momentum"]
        train(optimizer, params, t, t + 1)
        lr_max = max(lr_max, eta)
        weight = t**0.5 * lr_max**2
        weight_sum += weight
        for i, p in enumerate(params):
            z[i] = z[i] - eta * p.grad
            x[i] = x[i] + weight / weight_sum * (z[i] - x[i])
            y = (1 - momentum) * z[i] + momentum * x[i]
            # Ten steps of ten roundings each, of numbers near 1.
            torch.testing.assert_close(p.detach(), y, rtol=0, atol=1e-13)
        scheduler.step()
    assert momentum != 0.9
    optimizer.eval()
    torch.testing.assert_close([p.detach() for p in params], x, rtol=0, atol=1e-13)


FORMATS = [
    *((torch.float32, {}), (torch.float64, {}), (torch.complex64, {}), (torch.float16, {})),
    *((torch.bfloat16, {"param_rounding": rounding}) for rounding in ROUNDINGS),
    (torch.bfloat16, {"state_format": "int8", "ema_decay": 0.9}),
]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("dtype", "options"), FORMATS, ids=str)
def test_train_puts_back_bit_for_bit_what_eval_found(
    dtype: torch.dtype, options: dict[str, Any], name: str
) -> None:
    params, others = params_of(dtype), params_of(dtype)
    optimizer, other = made(name, params, **options), made(name, others, **options)
    train(optimizer, params, 0, 4)
    train(other, others, 0, 4)
    before = tensors_of(optimizer, params)
    versions = [p._version for p in params]
    optimizer.eval()
    assert not torch.equal(params[0], before[0][0])
    assert all(p._version > version for p, version in zip(params, versions, strict=True))
    optimizer.eval()  # is there already
    optimizer.train()
    same(tensors_of(optimizer, params), before)
    optimizer.train()
    train(optimizer, params, 4, 6)
    train(other, others, 4, 6)
    same(tensors_of(optimizer, params), tensors_of(other, others))


SIXTEEN_BITS = [
    *((torch.bfloat16, rounding, "ScheduleFreeSGD") for rounding in ROUNDINGS),
    (torch.float16, "stochastic", "ScheduleFreeAdamW"),
]


@pytest.mark.parametrize("engine", FAST_ENGINES)
@pytest.mark.parametrize(("dtype", "rounding", "name"), SIXTEEN_BITS, ids=str)
def test_steps_too_small_for_16_bits_are_taken(
    dtype: torch.dtype, rounding: str, name: str, engine: str
) -> None:
    """Of 1e-4, where numbers near 1 are 2**-8 apart: z has them all, and so has the average x."""
    param = params_of(dtype)[:1]
    wide = [p.detach().float().requires_grad_() for p in param]
    start = wide[0].detach().clone()
    options = {"lr": 1e-4, "warmup_steps": 0, "engine": engine}
    optimizer = made(name, param, param_rounding=rounding, **options)
    other = made(name, wide, **options)
    for _ in range(20):
        for p in (*param, *wide):
            p.grad = torch.ones_like(p)
        for one in (optimizer, other):
            one.step()
    z = optimizer.state[param[0]]["z"]
    assert z.dtype is torch.float32
    # AdamW's v is of 16 bits, to 2**-9 of itself: so are 20 steps of 1e-4.
    torch.testing.assert_close(z, other.state[wide[0]]["z"], rtol=0, atol=4e-6)
    if rounding == "nearest":
        return  # y is where it was, as that of any optimizer: docs/memory.md
    other.eval()
    entry = {**optimizer.state[param[0]], "param": param[0]}
    y = train_eval._read("param", entry, param[0])
    x = y + (1 - 1 / 0.9) * (z - y)
    wanted, found = (wide[0] - start).mean().item(), (x - start).mean().item()
    # 20 steps of 4290 elements, rounded at random by 2**-8 at most: to 1e-4 on average.
    assert abs(found - wanted) < 3e-4, (found, wanted)
    assert wanted < -9e-4


def test_z_of_16_bits_is_loaded_as_what_it_is_now(tmp_path: Path) -> None:
    param = params_of(torch.bfloat16)[0]
    optimizer = made("ScheduleFreeSGD", [param])
    train(optimizer, [param], 0, 2)
    rows = {row.slot: row for row in optimizer.state_bytes().rows}
    assert (rows["z"].format, rows["z"].bytes) == ("float32", 4 * param.numel())
    saved = copy.deepcopy(optimizer.state_dict())
    z = saved["state"][0]["z"]
    for old in (z, z.bfloat16()):
        saved["state"][0]["z"] = old
        other = made("ScheduleFreeSGD", [param.detach().clone().requires_grad_()])
        other.load_state_dict(saved)
        (entry,) = other.state.values()
        assert entry["z"].dtype is torch.float32
        same(entry["z"], old.float())
    optimizer.state[param]["z"] = z.bfloat16()
    train(optimizer, [param], 2, 3)
    assert optimizer.state[param]["z"].dtype is torch.float32


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("value", [0.0, 1.0, float("nan")])
def test_a_weight_of_x_that_loses_it_is_refused_at_the_step(name: str, value: float) -> None:
    params = params_of()
    optimizer = made(name, params)
    train(optimizer, params, 0, 2)
    before = tensors_of(optimizer, params)
    group = optimizer.param_groups[0]
    kept = {key: group[key] for key in ("momentum", "betas") if key in group}
    group.update({"momentum": value} if "momentum" in group else {"betas": (value, 0.9)})
    option = "momentum" if "momentum" in group else r"betas\[0\]"
    with pytest.raises(ValueError, match=rf"group 0: {option} must be in \(0, 1\), got"):
        train(optimizer, params, 2, 3)
    same(tensors_of(optimizer, params), before)
    group.update(kept)
    optimizer.eval()


def test_a_schedule_that_loses_x_is_refused_when_it_is_given() -> None:
    params, cosine = params_of(), steprule.schedules.cosine
    with pytest.raises(ValueError, match=r"momentum must be in .* is 0 at step 4 of its schedule"):
        made("ScheduleFreeSGD", params, momentum=cosine(0.9, 0.0, steps=4))
    with pytest.raises(ValueError, match=r"betas\[0\] must be in .* is 0 at step 2048"):
        made("ScheduleFreeAdamW", params, betas=(cosine(0.9, 0.0, steps=1100), 0.9))
    optimizer = made("ScheduleFreeSGD", params, momentum=cosine(0.9, 0.1, steps=4))
    train(optimizer, params, 0, 6)
    assert optimizer.param_groups[0]["momentum"] == 0.1
    saved = copy.deepcopy(optimizer.state_dict())
    saved["param_groups"][0]["schedules"]["momentum"] = cosine(0.9, 0.0, steps=4).to_json()
    with pytest.raises(ValueError, match="momentum must be in"):
        optimizer.load_state_dict(saved)


def test_a_new_optimizer_trains_and_its_average_is_where_it_is() -> None:
    params = params_of()
    optimizer = made("ScheduleFreeSGD", params)
    before = values(params)
    optimizer.eval()
    same(values(params), before)
    optimizer.init_state()
    optimizer.train()
    optimizer.eval()
    same(values(params), before)
    optimizer.train()
    train(optimizer, params, 0, 1)


@pytest.mark.parametrize("name", NAMES)
def test_eval_mode_takes_no_step_and_says_what_to_call(name: str) -> None:
    params = params_of()
    optimizer = made(name, params)
    train(optimizer, params, 0, 2)
    optimizer.eval()
    before = tensors_of(optimizer, params)
    called: list[int] = []
    for given in ((), (lambda: called.append(1),)):
        with pytest.raises(RuntimeError, match=r"call\s+optimizer.train\(\) first"):
            optimizer.step(*given)
    assert not called
    same(tensors_of(optimizer, params), before)
    optimizer.train()
    train(optimizer, params, 2, 3)


def saved_by_state_dict(optimizer: Any, _: Path) -> Callable[[Any], Any]:
    state = pickle.loads(pickle.dumps(optimizer.state_dict()))
    return lambda other: other.load_state_dict(state)


def saved_in_a_file(optimizer: Any, folder: Path) -> Callable[[Any], Any]:
    optimizer.save(folder / "state")
    return lambda other: other.load(folder / "state")


@pytest.mark.parametrize("save", [saved_by_state_dict, saved_in_a_file])
@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("name", NAMES)
def test_a_run_is_resumed_in_the_mode_in_which_it_was_saved(
    name: str, mode: str, save: Any, tmp_path: Path
) -> None:
    params, others = params_of(torch.bfloat16), params_of(torch.bfloat16)
    optimizer, other = made(name, params), made(name, others)
    train(optimizer, params, 0, 4)
    getattr(optimizer, mode)()
    load = save(optimizer, tmp_path)
    with torch.no_grad():
        for p, q in zip(params, others, strict=True):
            q.copy_(p)
    load(other)
    assert other.param_groups[0]["train_mode"] is (mode == "train")
    if mode == "eval":
        with pytest.raises(RuntimeError, match="saved in eval"):
            other.step()
    for one in (optimizer, other):
        one.train()
    train(optimizer, params, 4, 6)
    train(other, others, 4, 6)
    same(tensors_of(other, others), tensors_of(optimizer, params))


def test_a_copy_is_in_the_same_mode() -> None:
    model = nn.Linear(3, 2)
    optimizer = steprule.ScheduleFreeAdamW(model.parameters(), lr=0.1)
    train(optimizer, list(model.parameters()), 0, 3)
    before = values(list(model.parameters()))
    optimizer.eval()
    copied, its_model = copy.deepcopy((optimizer, model))
    copied.train()
    same(values(list(its_model.parameters())), before)


@pytest.mark.parametrize("rounding", ["nearest", "kahan", "split"])
def test_what_is_changed_in_eval_mode_is_the_new_average(rounding: str) -> None:
    param = torch.ones(5, dtype=torch.bfloat16, requires_grad=True)
    other = torch.ones(5, dtype=torch.bfloat16, requires_grad=True)
    optimizer = steprule.ScheduleFreeSGD([param, other], lr=0.1, param_rounding=rounding)
    train(optimizer, [param, other], 0, 3)
    y = other.detach().clone()
    optimizer.eval()
    with torch.no_grad():
        param.fill_(2.0)
    optimizer.train()
    assert torch.equal(other, y)
    z = optimizer.state[param]["z"]
    # What is kept beside the parameter may be all of its rounding, to 2**-8.
    torch.testing.assert_close(param.detach().float(), 0.1 * z + 0.9 * 2, rtol=0, atol=2**-7)
    assert "y" not in optimizer.state[param]


def test_an_eval_that_fails_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    params = params_of()
    optimizer = made("ScheduleFreeAdamW", params)
    train(optimizer, params, 0, 2)
    before = tensors_of(optimizer, params)
    find, calls = train_eval._average, []

    def failing(*args: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise MemoryError
        return find(*args)

    monkeypatch.setattr(train_eval, "_average", failing)
    with pytest.raises(MemoryError):
        optimizer.eval()
    same(tensors_of(optimizer, params), before)
    assert optimizer.param_groups[0]["train_mode"] is True
    monkeypatch.undo()
    optimizer.eval()
    at_average = tensors_of(optimizer, params)
    calls.clear()
    monkeypatch.setattr(train_eval, "_average", failing)
    with pytest.raises(MemoryError):
        optimizer.train()
    same(tensors_of(optimizer, params), at_average)
    assert optimizer.param_groups[0]["train_mode"] is False


def test_running_averages_stand_beside() -> None:
    """ema_decay is of y; its block and the modes do not mix."""
    params = params_of()
    optimizer = made("ScheduleFreeAdamW", params, ema_decay=0.9)
    train(optimizer, params, 0, 3)
    y = values(params)
    with optimizer.averaged():
        average = values(params)
        for mode in (optimizer.train, optimizer.eval):
            if mode == optimizer.eval:
                with pytest.raises(RuntimeError, match=r"after the block of optimizer.averaged"):
                    mode()
    optimizer.eval()
    x = values(params)
    with optimizer.averaged():
        same(values(params), average)
        with pytest.raises(RuntimeError, match=r"optimizer.train\(\) after the block"):
            optimizer.train()
    same(values(params), x)
    optimizer.train()
    same(values(params), y)


def test_groups_join_in_the_present_mode() -> None:
    params = params_of()
    optimizer = made("ScheduleFreeSGD", params)
    train(optimizer, params, 0, 2)
    optimizer.eval()
    more = torch.ones(3, requires_grad=True)
    optimizer.add_param_group({"params": [more]})
    assert optimizer.param_groups[1]["train_mode"] is False
    optimizer.train()
    assert optimizer.param_groups[1]["train_mode"] is True
    train(optimizer, [*params, more], 2, 3)
    with pytest.raises(TypeError, match="group 2: train_mode must be True or False"):
        optimizer.add_param_group({"params": [torch.ones(1)], "train_mode": "no"})
    schedule = steprule.schedules.constant(1.0)
    with pytest.raises(TypeError, match="train_mode is a flag"):
        optimizer.add_param_group({"params": [torch.ones(1)], "train_mode": schedule})


def test_a_combined_optimizer_has_the_modes_of_its_members() -> None:
    params, plain = params_of(), torch.ones(4, requires_grad=True)
    optimizer = steprule.combine(made("ScheduleFreeAdamW", params), steprule.SGD([plain], lr=0.1))
    alone = params_of()
    single = made("ScheduleFreeAdamW", alone)
    for k in range(3):
        plain.grad = torch.ones(4)
        train(optimizer, params, k, k + 1)
        train(single, alone, k, k + 1)
    before = plain.detach().clone()
    for one in (optimizer, single):
        one.eval()
    same(values(params), values(alone))
    assert torch.equal(plain, before)
    with pytest.raises(RuntimeError, match=r"optimizer.train\(\)"):
        optimizer.step()
    optimizer.add_param_group(
        {"params": [torch.ones(2, requires_grad=True)], "optimizer": "ScheduleFreeAdamW"}
    )
    assert optimizer.param_groups[-1]["train_mode"] is False
    optimizer.train()
    optimizer.step()
    none = steprule.combine(steprule.SGD([plain], lr=0.1))
    none.eval()
    none.train()
    none.step()


def test_steps_in_the_backward_pass_are_refused_as_well() -> None:
    model = nn.Linear(3, 1)
    optimizer: Any = steprule.step_in_backward(model, lambda p: steprule.ScheduleFreeSGD(p, lr=0.1))
    model(torch.ones(2, 3)).sum().backward()
    y = values(list(model.parameters()))
    optimizer.eval()
    with pytest.raises(RuntimeError, match=r"optimizer.train\(\)"):
        model(torch.ones(2, 3)).sum().backward()
    model.zero_grad()
    optimizer.train()
    same(values(list(model.parameters())), y)
    optimizer.param_groups[0]["momentum"] = 0.0
    with pytest.raises(ValueError, match="momentum must be in"):
        model(torch.ones(2, 3)).sum().backward()


def test_a_scaler_skips_a_step_and_goes_on() -> None:
    param = torch.ones(3, requires_grad=True)
    optimizer = steprule.ScheduleFreeSGD([param], lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    for factor in (1.0, float("inf"), 1.0):
        before = param.detach().clone()
        optimizer.zero_grad()
        scaler.scale((param * factor).sum()).backward()
        scaler.step(optimizer)
        scaler.update()
        assert torch.equal(param, before) is (factor != 1.0)
    assert optimizer.state[param]["step"] == 2


@pytest.mark.parametrize("name", NAMES)
def test_where_the_rate_is_0_nothing_is_averaged(name: str) -> None:
    """A schedule on top may begin at 0: the sum of the weights is 0 then."""
    params = params_of()
    optimizer = made(name, params, lr=steprule.schedules.linear(0.0, 0.1, steps=2))
    before = values(params)
    train(optimizer, params, 0, 1)
    same(values(params), before)
    train(optimizer, params, 1, 4)
    assert all(p.isfinite().all() for p in params)


def theirs(momentum: float, param: Tensor, mode: bool) -> dict[str, Any]:
    """A state dict as schedulefree 1.4.1 makes it, after a step of lr 0.1."""
    group = {
        "lr": 0.1,
        "momentum": momentum,
        "r": 0.0,
        "k": 1,
        "warmup_steps": 0,
        "train_mode": mode,
        "weight_sum": 0.01,
        "lr_max": 0.1,
        "scheduled_lr": 0.1,
        "weight_lr_power": 2,
        "weight_decay": 0,
        "foreach": True,
        "params": [0],
    }
    return {"state": {0: {"z": torch.full_like(param, 3.0)}}, "param_groups": [group]}


@pytest.mark.parametrize("mode", [True, False])
def test_state_dicts_of_the_authors_package_are_taken(mode: bool) -> None:
    param = torch.ones(3, requires_grad=True)
    optimizer = steprule.ScheduleFreeSGD([param], lr=0.5)
    saved = theirs(0.8, param, mode)
    optimizer.load_state_dict(saved)
    assert saved["param_groups"][0]["k"] == 1  # it is the caller's
    assert "k" not in optimizer.param_groups[0]
    assert optimizer.param_groups[0]["foreach"] is None  # theirs asks for no engine of ours
    optimizer.eval()
    x = 3 + (1 - 3) / 0.8 if mode else 1.0
    torch.testing.assert_close(param.detach(), torch.full((3,), x))
    optimizer.train()
    y = 1.0 if mode else 0.2 * 3 + 0.8 * 1
    torch.testing.assert_close(param.detach(), torch.full((3,), y))
    param.grad = torch.ones(3)
    optimizer.step()
    assert optimizer.state[param]["step"] == 2
    torch.testing.assert_close(optimizer.state[param]["z"], torch.full((3,), 2.9))


def test_another_optimizer_of_that_package_is_refused() -> None:
    param = torch.ones(3, requires_grad=True)
    saved = theirs(0.8, param, True)
    saved["param_groups"][0]["silent_sgd_phase"] = True
    optimizer = steprule.ScheduleFreeSGD([param], lr=0.5)
    with pytest.raises(ValueError, match="RAdamScheduleFree"):
        optimizer.load_state_dict(saved)
    assert not optimizer.state


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("ScheduleFreeSGD", {"momentum": 0.0}, r"momentum must be in \(0, 1\)"),
        ("ScheduleFreeSGD", {"momentum": 1.0}, r"momentum must be in \(0, 1\)"),
        ("ScheduleFreeAdamW", {"betas": (0.0, 0.9)}, r"betas\[0\] must be in \(0, 1\)"),
        ("ScheduleFreeAdamW", {"warmup_steps": -1}, "warmup_steps must be"),
        ("ScheduleFreeAdamW", {"r": -1.0}, "r must be"),
        ("ScheduleFreeAdamW", {"weight_lr_power": -1.0}, "weight_lr_power must be"),
    ],
)
def test_options_out_of_their_range_are_refused(
    name: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        made(name, params_of(), **options)


def test_eager_keeps_scalars_of_float64_in_float64() -> None:
    param = torch.ones(2, requires_grad=True)
    optimizer = steprule.ScheduleFreeSGD([param], lr=0.1, engine="eager")
    train(optimizer, [param], 0, 1)
    assert optimizer.state[param]["lr_max"].item() == 0.1


def test_ranks_with_parts_of_the_state_change_mode_together() -> None:
    y, x, again = modes.on_one_process()
    for found in ranks(2).run(modes.divided):
        same(found["y"], y)
        same(found["x"], x)
        same(found["again"], again)
        assert "optimizer.eval() must be called on every rank" in found["refused"]


def test_shards_are_averaged_where_they_are() -> None:
    _, x, again = modes.on_one_process()
    for found in ranks(2).run(modes.sharded):
        same(found["x"], x)
        same(found["again"], again)
