"""Loading state: by name, in part, with options kept; never another optimizer's; never shared.

A refused load changes nothing: every refusal here is followed by a comparison.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import gradients, needs_torch
from nested_values import same
from torch import Tensor, nn

import steprule
from steprule.rules import OPTIMIZERS
from steprule.schedules import linear

NAMES = sorted(cls.__name__ for cls in OPTIMIZERS.values())
OF_RULES = [name for name in NAMES if OPTIMIZERS[name.lower()].rule is not None]


def matrices(seed: int = 0) -> dict[str, Tensor]:
    """Named parameters that every optimizer takes, two of one shape among them."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {"first": (3, 4), "twin": (3, 4), "head": (2, 3)}
    return {n: torch.randn(s, generator=generator).requires_grad_() for n, s in shapes.items()}


def stepped(optimizer: Any, params: list[Tensor], steps: int = 2, seed: int = 3) -> Any:
    for _ in gradients(params, steps, seed):
        if getattr(optimizer, "needs_sparse", False):
            for param in params:
                param.grad = param.grad.to_sparse(1) if param.grad is not None else None
        with contextlib.suppress(TypeError):  # LBFGS wants a closure
            optimizer.step()
    return optimizer


def trained(name: str, named: Any = None, **options: Any) -> tuple[Any, dict[str, Tensor]]:
    params = matrices()
    optimizer = OPTIMIZERS[name.lower()](list(params.items()), **options)
    if optimizer.needs_closure:
        optimizer.step(lambda: loss_of(params))
    else:
        stepped(optimizer, list(params.values()))
    return optimizer, params


def loss_of(params: dict[str, Tensor]) -> Tensor:
    for param in params.values():
        param.grad = None
    loss = torch.stack([(param**2).sum() for param in params.values()]).sum()
    loss.backward()
    return loss


@contextlib.contextmanager
def unchanged(optimizer: Any) -> Iterator[None]:
    objects = optimizer.param_groups, optimizer.state
    before = copy.deepcopy(optimizer.state_dict())
    yield
    assert (optimizer.param_groups, optimizer.state) == objects
    assert same(optimizer.state_dict(), before)


def entries(optimizer: Any, params: dict[str, Tensor]) -> dict[str, Any]:
    return {name: optimizer.state[param] for name, param in params.items()}


@pytest.mark.parametrize("name", OF_RULES)
def test_each_parameter_gets_its_own_state_whatever_the_order(name: str) -> None:
    saved, params = trained(name)
    other = matrices(1)
    order = ["head", "twin", "first"]
    optimizer = OPTIMIZERS[name.lower()]([(n, other[n]) for n in order])
    report = optimizer.load_state_dict(saved.state_dict())
    assert report.is_exact
    assert optimizer.param_groups[0]["param_names"] == order
    assert same(entries(optimizer, other), entries(saved, params))


def test_groups_follow_their_parameters() -> None:
    a, b, c = (torch.ones(2, requires_grad=True) for _ in "abc")
    saved = steprule.SGD(
        [{"params": [("a", a), ("b", b)], "lr": 0.1}, {"params": [("c", c)], "lr": 0.2}]
    )
    optimizer = steprule.SGD(
        [{"params": [("c", c)], "lr": 9.0}, {"params": [("b", b), ("a", a)], "lr": 9.0}]
    )
    optimizer.load_state_dict(saved.state_dict())
    assert [group["lr"] for group in optimizer.param_groups] == [0.2, 0.1]


def test_groups_that_were_made_otherwise() -> None:
    a, b = (torch.ones(2, requires_grad=True) for _ in "ab")
    saved = stepped(steprule.SGD([("a", a), ("b", b)], lr=0.1, momentum=0.5), [a, b])
    optimizer = steprule.SGD(
        [{"params": [("a", a)], "lr": 1.0}, {"params": [("b", b)], "lr": 2.0}], momentum=0.9
    )
    with (
        unchanged(optimizer),
        pytest.raises(ValueError, match=r"different number of parameter groups.*group 0, group 1"),
    ):
        optimizer.load_state_dict(saved.state_dict())
    report = optimizer.load_state_dict(saved.state_dict(), strict=False)
    assert report.regrouped == ("group 0", "group 1")
    assert [group["lr"] for group in optimizer.param_groups] == [1.0, 2.0]
    torch.testing.assert_close(optimizer.state[b], saved.state[b])
    # And the other way round: one group of what were two.
    joined = steprule.SGD([("b", b), ("a", a)], lr=3.0, momentum=0.9)
    with pytest.raises(ValueError, match="grouped otherwise: group 0"):
        joined.load_state_dict(optimizer.state_dict())
    assert joined.load_state_dict(optimizer.state_dict(), strict=False).regrouped == ("group 0",)
    assert joined.param_groups[0]["lr"] == 3.0


def test_without_names_on_both_sides_the_order_counts() -> None:
    saved, params = trained("Adam")
    plain = steprule.Adam(list(matrices(1).values()))
    plain.load_state_dict(saved.state_dict())
    first = plain.param_groups[0]["params"][0]
    assert torch.equal(plain.state[first]["exp_avg"], saved.state[params["first"]]["exp_avg"])
    assert plain.param_groups[0]["param_names"] == ["first", "twin", "head"]  # as in torch


def test_names_that_tell_nothing_apart_are_not_used() -> None:
    params = list(matrices().values())[:2]
    optimizer = steprule.Adam([("weight", params[0]), ("weight", params[1])])
    stepped(optimizer, params)
    other = steprule.Adam([("weight", params[0]), ("weight", params[1])])
    other.load_state_dict(optimizer.state_dict())
    assert same(dict(other.state), dict(optimizer.state))


@pytest.mark.parametrize(
    "prefix", ["_orig_mod.", "module.", "module._orig_mod.", "_checkpoint_wrapped_module."]
)
def test_a_wrapped_models_names_are_found(prefix: str) -> None:
    saved, params = trained("Adam")
    other = matrices(1)
    wrapped = steprule.Adam([(prefix + n, p) for n, p in reversed(other.items())])
    assert wrapped.load_state_dict(saved.state_dict()).is_exact
    assert same(entries(wrapped, other), entries(saved, params))
    back = steprule.Adam(list(other.items()))
    assert back.load_state_dict(wrapped.state_dict()).is_exact
    assert same(entries(back, other), entries(saved, params))


def changed_model() -> dict[str, Tensor]:
    """`twin` is gone, `new` has come, `head` has another shape."""
    params = matrices(1)
    del params["twin"]
    return {
        "new": torch.ones(3, 4, requires_grad=True),
        **params,
        "head": torch.ones(5, 3, requires_grad=True),
    }


@pytest.mark.parametrize("name", OF_RULES)
def test_a_changed_model(name: str) -> None:
    saved, params = trained(name)
    now = changed_model()
    optimizer = OPTIMIZERS[name.lower()](list(now.items()))
    with (
        unchanged(optimizer),
        pytest.raises(ValueError, match=r"'new' of the optimizer not in.*'twin' in the state dict"),
    ):
        optimizer.load_state_dict(saved.state_dict())
    report = optimizer.load_state_dict(saved.state_dict(), strict=False)
    assert (report.missing, report.unexpected) == (("'new'",), ("'twin'",))
    assert len(report.reshaped) == (name != "SGD")  # which keeps nothing without momentum
    assert all("'head'" in text for text in report.reshaped)
    assert same(dict(optimizer.state[now["first"]]), dict(saved.state[params["first"]]))
    assert not optimizer.state.get(now["new"])
    stepped(optimizer, list(now.values()), 1)


def test_another_shape_is_named_and_refused() -> None:
    saved, _ = trained("Adam")
    now = {**matrices(), "head": torch.ones(5, 3, requires_grad=True)}
    optimizer = steprule.Adam(list(now.items()))
    with (
        unchanged(optimizer),
        pytest.raises(
            ValueError, match=r"of 'head' has shape \(2, 3\), the parameter has \(5, 3\)"
        ),
    ):
        optimizer.load_state_dict(saved.state_dict())


def test_in_part_by_position() -> None:
    saved, _ = trained("Adam")
    longer = [*matrices(1).values(), torch.ones(7, requires_grad=True)]
    optimizer = steprule.Adam(longer)
    report = optimizer.load_state_dict(saved.state_dict(), strict=False)
    assert report.missing == ("parameter 3 of group 0",)
    shorter = steprule.Adam(longer[:1])
    report = shorter.load_state_dict(saved.state_dict(), strict=False)
    assert report.unexpected == ("'twin'", "'head'")
    assert len(shorter.state) == 1
    grouped = steprule.Adam([{"params": longer[:3]}, {"params": longer[3:], "lr": 5.0}])
    report = grouped.load_state_dict(saved.state_dict(), strict=False)
    assert report.regrouped == ("group 1",)
    assert grouped.param_groups[1]["lr"] == 5.0
    assert "not saved, left as new: parameter 0 of group 1" in str(report)


RENAMES: list[Any] = [
    {"first": "body.0", "twin": "body.1", "head": "body.2"},
    lambda name: f"body.{['first', 'twin', 'head'].index(name)}",
]


@pytest.mark.parametrize("rename", RENAMES, ids=["dict", "function"])
def test_parameters_that_were_renamed(rename: Any) -> None:
    saved, params = trained("Adam")
    now = {f"body.{i}": p for i, p in enumerate(matrices(1).values())}
    optimizer = steprule.Adam(list(reversed(now.items())))
    assert optimizer.load_state_dict(saved.state_dict(), rename=rename).is_exact
    before = list(entries(saved, params).values())
    assert same(list(entries(optimizer, now).values()), before)


@pytest.mark.parametrize(
    ("rename", "error", "message"),
    [
        ({"fist": "first"}, ValueError, "no parameter 'fist' in the state dict; it has 'first'"),
        ({"first": "twin"}, ValueError, "several saved parameters became 'twin'"),
        (lambda _: 3, TypeError, "rename must return strings"),
        (["first"], TypeError, "a dict of old names to new ones, or a function"),
    ],
)
def test_renaming_that_makes_no_sense(rename: Any, error: type[Exception], message: str) -> None:
    saved, _ = trained("Adam")
    optimizer = steprule.Adam(list(matrices(1).items()))
    with unchanged(optimizer), pytest.raises(error, match=message):
        optimizer.load_state_dict(saved.state_dict(), rename=rename)


def test_nothing_can_be_renamed_where_there_are_no_names() -> None:
    saved = steprule.Adam(list(matrices().values()))
    optimizer = steprule.Adam(list(matrices(1).items()))
    with pytest.raises(ValueError, match="has no names of parameters"):
        optimizer.load_state_dict(saved.state_dict(), rename={"a": "b"})


def test_options_that_are_kept() -> None:
    saved, _ = trained("Adam", lr=0.1, betas=(0.8, 0.99), weight_decay=0.1)
    steprule.lr_scheduler.StepLR(saved, 2)
    optimizer = steprule.Adam(list(matrices(1).items()), lr=0.5, weight_decay=0.3)
    steprule.lr_scheduler.StepLR(optimizer, 2)
    optimizer.load_state_dict(saved.state_dict(), keep=("lr", "weight_decay"))
    group = optimizer.param_groups[0]
    assert (group["lr"], group["initial_lr"], group["weight_decay"]) == (0.5, 0.5, 0.3)
    assert group["betas"] == (0.8, 0.99)
    optimizer.load_state_dict(saved.state_dict(), keep="betas")
    assert (group["lr"], group["initial_lr"]) == (0.1, 0.1)


def test_a_schedule_is_kept_at_the_step_that_was_saved() -> None:
    params = list(matrices().values())
    saved = steprule.SGD(params, lr=linear(1.0, 0.0, steps=10), weight_decay=linear(0, 1, steps=10))
    stepped(saved, params, 4)
    optimizer = steprule.SGD(params, lr=linear(10.0, 0.0, steps=10))
    optimizer.load_state_dict(saved.state_dict(), keep=["lr"])
    assert optimizer.param_groups[0]["lr"] == pytest.approx(6.0)
    assert optimizer.param_groups[0]["weight_decay"] == pytest.approx(0.4)
    fixed = steprule.SGD(params, lr=7.0)
    fixed.load_state_dict(saved.state_dict(), keep=["lr"])
    stepped(fixed, params, 1)
    assert fixed.param_groups[0]["lr"] == 7.0
    assert fixed.param_groups[0]["weight_decay"] == pytest.approx(0.5)


def test_an_option_turned_on_starts_its_state_fresh() -> None:
    params = list(matrices().values())
    saved = stepped(steprule.SGD(params, lr=0.1), params)
    optimizer = steprule.SGD(params, lr=0.1, momentum=0.9)
    optimizer.load_state_dict(saved.state_dict(), keep=["momentum"])
    stepped(optimizer, params, 1)
    assert all("momentum_buffer" in optimizer.state[param] for param in params)
    saved = stepped(steprule.Adam(params), params)
    amsgrad = steprule.Adam(params, amsgrad=True)
    amsgrad.load_state_dict(saved.state_dict(), keep=["amsgrad"])
    stepped(amsgrad, params, 1)
    assert amsgrad.state[params[0]]["step"] == 3


@pytest.mark.parametrize(
    ("keep", "error", "message"),
    [
        (["lrate"], ValueError, "keep: no option 'lrate' here; there are amsgrad"),
        (["params"], ValueError, "no option 'params'"),
        ([3], TypeError, "names of options"),
    ],
)
def test_keeping_what_there_is_not(keep: Any, error: type[Exception], message: str) -> None:
    saved, _ = trained("Adam")
    with unchanged(saved), pytest.raises(error, match=message):
        saved.load_state_dict(saved.state_dict(), keep=keep)


def marks(name: str) -> Any:
    """What a state dict of this optimizer can be told by."""
    cls = OPTIMIZERS[name.lower()]
    if cls.rule is None:
        return name
    common = ("lr", "weight_decay")
    optimizer, params = trained(name)
    options = [x for x in cls.rule.options if x not in common and x not in cls.extras]
    return sorted(optimizer.state[params["first"]]), sorted(options)


@pytest.mark.parametrize("name", NAMES)
def test_the_state_of_every_other_optimizer_is_refused_by_name(name: str) -> None:
    optimizer, _ = trained(name)
    own_state, own_options = marks(name) if optimizer.rule else (None, None)
    refused = 0
    for other in NAMES:
        saved = trained(other)[0].state_dict()
        if other == name or (optimizer.rule and marks(other) == (own_state, own_options)):
            optimizer.load_state_dict(saved)  # Adam's and its kin's: slots and options are the same
            continue
        with unchanged(optimizer), pytest.raises(ValueError, match=f"is not one of {name}: "):
            optimizer.load_state_dict(saved)
        with unchanged(optimizer), pytest.raises(ValueError, match=f"is not one of {name}: "):
            optimizer.load_state_dict(saved, strict=False)
        refused += 1
    assert refused > 10


@pytest.mark.parametrize("name", [n for n in OF_RULES if n not in ("SGD", "LARS")])
def test_torchs_state_of_others_is_refused_too(name: str) -> None:
    params = list(matrices().values())
    theirs = torch.optim.SGD(params, lr=0.1, momentum=0.9)
    for param in params:
        param.grad = torch.ones_like(param)
    theirs.step()
    optimizer = OPTIMIZERS[name.lower()](params)
    with unchanged(optimizer), pytest.raises(ValueError, match="looks like one of SGD"):
        optimizer.load_state_dict(theirs.state_dict())


def test_adam_and_adamw_go_both_ways() -> None:
    for one, other in (("Adam", "AdamW"), ("AdamW", "Adam")):
        saved, params = trained(one)
        optimizer, now = trained(other)
        optimizer.load_state_dict(saved.state_dict())
        torch.testing.assert_close(entries(optimizer, now), entries(saved, params))


def shares(one: Any, other: Any) -> bool:
    """Whether any tensor in one is memory of any in the other."""

    def storages(value: Any) -> set[int]:
        if isinstance(value, Tensor):
            return {value.untyped_storage().data_ptr()} - {0}
        if isinstance(value, dict):
            return set().union(*map(storages, value.values()))
        if isinstance(value, (list, tuple)):
            return set().union(*map(storages, value))
        return set()

    return bool(storages(one) & storages(other))


@pytest.mark.parametrize("state_format", ["param", "float32", "bfloat16", "int8"])
@pytest.mark.parametrize("name", OF_RULES)
def test_loaded_tensors_share_no_memory(name: str, state_format: str) -> None:
    options = {} if name == "SparseAdam" else {"state_format": state_format}
    saved, params = trained(name, lr=torch.tensor(0.01), **options)
    saved.state[params["first"]]["mine"] = {"deep": [torch.ones(2)]}
    saved.state["global"] = {"counts": torch.ones(2)}
    state_dict = saved.state_dict()
    before = copy.deepcopy(state_dict)
    one = OPTIMIZERS[name.lower()](list(matrices(1).items()), **options)
    other = OPTIMIZERS[name.lower()](list(matrices(2).items()), **options)
    for optimizer in (one, other):
        optimizer.load_state_dict(state_dict)
        assert not shares(dict(optimizer.state), state_dict["state"])
        assert not shares(optimizer.param_groups[0]["lr"], state_dict["param_groups"])
    stepped(one, one.param_groups[0]["params"])
    assert same(state_dict, before)
    assert same(other.state_dict()["state"], before["state"])


def test_lbfgs_shares_nothing_and_knows_its_order() -> None:
    saved, _ = trained("LBFGS")
    state_dict = saved.state_dict()
    other = matrices(1)
    optimizer = steprule.LBFGS(list(other.items()))
    optimizer.load_state_dict(state_dict)
    assert not shares(dict(optimizer.state), state_dict["state"])
    turned = steprule.LBFGS(list(reversed(other.items())))
    with unchanged(turned), pytest.raises(ValueError, match="in another order, or others"):
        turned.load_state_dict(state_dict)


def test_state_lies_in_memory_as_its_parameter() -> None:
    saved, _ = trained("Adam")
    turned = {n: p.detach().t().contiguous().t().requires_grad_() for n, p in matrices(1).items()}
    optimizer = steprule.Adam(list(turned.items()))
    optimizer.load_state_dict(saved.state_dict())
    for param in turned.values():
        assert optimizer.state[param]["exp_avg"].stride() == param.stride()
    stepped(optimizer, list(turned.values()), 1)
    assert {row.engine for row in optimizer.explain().rows} == {"fused"}


SPOILT: list[tuple[str, Callable[[dict[str, Any]], Any], str]] = [
    ("state is a list", lambda d: d.update(state=[]), "'state'"),
    ("groups are a dict", lambda d: d.update(param_groups={}), "param_groups"),
    ("params is a number", lambda d: d["param_groups"][0].update(params=3), "param_groups"),
    ("params holds lists", lambda d: d["param_groups"][0].update(params=[[], [], []]), "indices"),
    ("an entry is a number", lambda d: d["state"].update({0: 3}), "'first' must be a dict"),
    (
        "an entry is empty of steps",
        lambda d: d["state"][0].pop("step"),
        "'first' has.*lacks 'step'",
    ),
    ("exp_avg is missing", lambda d: d["state"][1].pop("exp_avg"), "'twin' has.*lacks 'exp_avg'"),
    ("exp_avg is a number", lambda d: d["state"][1].update(exp_avg=3.0), "'exp_avg' of 'twin' is"),
    (
        "step has two",
        lambda d: d["state"][1].update(step=torch.ones(2)),
        "'step' of 'twin'.*one num",
    ),
    ("step is a word", lambda d: d["state"][1].update(step="3"), "'step' of 'twin'.*one number"),
    (
        "a whole number array",
        lambda d: d["state"][1].update(exp_avg=torch.ones(3, 4).int()),
        "int32",
    ),
    ("lr is a word", lambda d: d["param_groups"][0].update(lr="0.1"), "lr must be a number"),
    ("lr is nan", lambda d: d["param_groups"][0].update(lr=float("nan")), "learning rate: nan"),
    ("betas is one", lambda d: d["param_groups"][0].update(betas=[0.9]), "betas must be 2 numbers"),
    ("schedules lie", lambda d: d["param_groups"][0].update(schedules={"lr": 3}), "schedule"),
    ("schedules are none", lambda d: d["param_groups"][0].update(schedules=3), "schedule"),
    (
        "a schedule of nothing",
        lambda d: d["param_groups"][0].update(schedules={"x": linear(0, 1, steps=2).to_json()}),
        "schedule",
    ),
]


@pytest.mark.parametrize(("spoil", "message"), [x[1:] for x in SPOILT], ids=[x[0] for x in SPOILT])
def test_a_spoilt_state_dict_is_refused_and_changes_nothing(
    spoil: Callable[[dict[str, Any]], Any], message: str
) -> None:
    optimizer, _ = trained("Adam")
    bad = copy.deepcopy(optimizer.state_dict())
    spoil(bad)
    with unchanged(optimizer), pytest.raises((TypeError, ValueError), match=message):
        optimizer.load_state_dict(bad)


@pytest.mark.parametrize("name", NAMES)
def test_a_file_gives_what_was_saved(name: str, tmp_path: Path) -> None:
    saved, _ = trained(name)
    saved.save(tmp_path / "file")
    now = matrices(1)
    optimizer = OPTIMIZERS[name.lower()](list(now.items()))
    assert optimizer.load(tmp_path / "file").is_exact
    assert same(optimizer.state_dict(), saved.state_dict())


def test_a_file_of_another_optimizer_is_refused(tmp_path: Path) -> None:
    trained("Adam")[0].save(tmp_path / "file")
    optimizer, _ = trained("Adamax")
    with unchanged(optimizer), pytest.raises(ValueError, match="is not one of Adamax"):
        optimizer.load(tmp_path / "file")


def test_state_from_torch_by_name() -> None:
    needs_torch("2.6", "its optimizers know no names")
    net = nn.Linear(2, 3)
    theirs = torch.optim.Adam(net.named_parameters())
    for param in net.parameters():
        param.grad = torch.ones_like(param)
    theirs.step()
    ours = steprule.Adam(reversed(list(net.named_parameters())))
    ours.load_state_dict(theirs.state_dict())
    for param in net.parameters():
        assert torch.equal(ours.state[param]["exp_avg"], theirs.state[param]["exp_avg"])


def test_what_users_keep_in_the_state_goes_through() -> None:
    saved, params = trained("Adam")
    for name, value in (("prev", torch.ones(3, 4)), ("momentum_buffer", torch.ones(2))):
        saved.state[params["first"]][name] = value
    optimizer = steprule.Adam(list(matrices(1).items()))
    assert optimizer.load_state_dict(saved.state_dict()).is_exact
    before_any_step = steprule.SGD(list(params.items()), lr=0.1, momentum=0.9)
    before_any_step.state[params["first"]]["swa_buffer"] = torch.ones(3, 4)
    other = steprule.SGD(list(matrices(1).items()), lr=0.1, momentum=0.9)
    other.load_state_dict(before_any_step.state_dict())
    stepped(other, other.param_groups[0]["params"])


class Renamed(steprule.Optimizer):
    """A step of its own, whose options had other names in older versions."""

    def __init__(self, params: Any, inertia: float = 0.9) -> None:
        super().__init__(params, {"lr": 0.1, "inertia": inertia})

    def step(self, closure: Any = None) -> None:
        pass


def test_a_subclass_without_a_rule_loads_what_it_likes() -> None:
    optimizer = Renamed(list(matrices().values()))
    saved = optimizer.state_dict()
    group = saved["param_groups"][0]
    group["momentum"] = group.pop("inertia")
    optimizer.load_state_dict(saved)
    assert optimizer.param_groups[0]["inertia"] == 0.9


class OfTorchsSignature(steprule.Adam):
    def load_state_dict(self, state_dict: Any) -> None:  # type: ignore[override]
        super().load_state_dict(state_dict)


def test_a_subclass_that_knows_torchs_arguments_alone_loads_files(tmp_path: Path) -> None:
    trained("Adam")[0].save(tmp_path / "file")
    optimizer = OfTorchsSignature(list(matrices(1).items()))
    optimizer.load(tmp_path / "file")
    assert len(optimizer.state) == 3


def test_torchs_sparse_momentum_is_made_dense() -> None:
    table = torch.nn.Embedding(6, 2, sparse=True)
    theirs = torch.optim.SGD(table.parameters(), lr=0.1, momentum=0.9)
    table(torch.tensor([1, 4])).sum().backward()
    theirs.step()
    assert theirs.state[table.weight]["momentum_buffer"].is_sparse
    ours = steprule.SGD(table.parameters(), lr=0.1, momentum=0.9)
    ours.load_state_dict(theirs.state_dict())
    wanted = theirs.state[table.weight]["momentum_buffer"].to_dense()
    assert torch.equal(ours.state[table.weight]["momentum_buffer"], wanted)
    ours.step()
