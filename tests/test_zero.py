"""ZeRO-1: state divided among ranks, by ``steprule.shard_state`` and by torch's own wrapper.

With the same gradients, what comes out must be one process's bit for bit: parameters, state dicts,
norms, which steps are skipped. Each test is a batch of runs in processes that are up already.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import rule_optimizers, torch_cases
from processes import ranks
from rank_programs import zero
from test_ranks import WELL_DEFINED, tolerance_of

from steprule.distributed.byte_exchange import buckets_of
from steprule.distributed.ownership import owners_of
from steprule.rules import OPTIMIZERS

NAMES = rule_optimizers()  # all but LBFGS and SparseAdam
Call = tuple[str, tuple[Any, ...], dict[str, Any]]


def equal(a: Any, b: Any, where: str) -> None:
    """Nested values are the same, tensors bit for bit."""
    if isinstance(a, torch.Tensor):
        assert isinstance(b, torch.Tensor), where
        assert (a.dtype, a.shape) == (b.dtype, b.shape), where
        assert torch.equal(a.nan_to_num(7.5), b.nan_to_num(7.5)), where
    elif isinstance(a, Mapping):
        assert sorted(map(str, a)) == sorted(map(str, b)), where
        for key, value in a.items():
            equal(value, b[key], f"{where}[{key!r}]")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), where
        for i, pair in enumerate(zip(a, b, strict=True)):
            equal(*pair, f"{where}[{i}]")
    else:
        assert a == b or (a != a and b != b), where  # nan


def check(world: int, calls: Sequence[Call], seconds: float = 60) -> list[list[Any]]:
    """Every rank has what one process gets of these calls; and each parameter one owner."""
    found = ranks(world).run(zero.each, calls, seconds=seconds)
    for i, call in enumerate(calls):
        expected = getattr(zero, call[0])(*call[1], **call[2])
        of_ranks = [of_rank[i] for of_rank in found]
        for rank, result in enumerate(of_ranks):
            where = f"rank {rank}, {call}"
            assert not isinstance(result, str), f"{where}:\n{result}"
            for key in expected.keys() - {"own", "bytes", "explained", "raised", "is_unchanged"}:
                equal(result[key], expected[key], f"{where}: {key}")
        owned = sorted(index for result in of_ranks for index in result["own"])
        assert owned == expected["own"], call
        assert sum(result["bytes"] for result in of_ranks) == expected["bytes"], call
    return found


def cases_of(name: str) -> list[Call]:
    lr = {"lr": 0.01}
    options = [{}, {"clip_grad_norm": 0.5, "on_nonfinite": "skip"}, {"ema_decay": 0.9, **lr}]
    if OPTIMIZERS[name.lower()].needs_sparse:
        options = [{}, {"clip_grad_norm": 0.5}]
    return [("run", (name, each), {}) for each in options]


def test_every_optimizer_on_two_ranks() -> None:
    check(2, [call for name in (*NAMES, "SparseAdam") for call in cases_of(name)])


def test_torchs_table_of_options() -> None:
    few = [case for name in ("AdamW", "SGD", "NAdam", "Rprop") for case in torch_cases(name)]
    kept = [case for case in few if not case.options.get("differentiable")]
    check(2, [("run", (case.name, case.options), {}) for case in kept])


GUARDS: list[dict[str, Any]] = [
    {"clip_grad_norm": 0.5},
    {"clip_grad_norm": 0.5, "clip_grad_norm_over": "group"},
    {"clip_grad_norm": 0.5, "clip_grad_norm_over": "param"},
    {"clip_grad_value": 0.1},
    {"on_nonfinite": "skip"},
    {"on_nonfinite": "raise"},
    {"clip_grad_norm": 0.5, "on_nonfinite": "skip", "clip_grad_norm_over": "group"},
]


def test_guards_see_all_gradients() -> None:
    check(
        2,
        [
            ("run", (name, {"lr": 0.01, **options}), {"groups": True, "grads": "not finite once"})
            for name in ("AdamW", "LAMB", "Prodigy")
            for options in GUARDS
            if name == "AdamW" or len(options) > 1 or "on_nonfinite" in options
        ],
    )


def test_gradients_that_come_and_go() -> None:
    check(
        2,
        [
            ("run", (name, options), {"grads": grads})
            for name in ("AdamW", "SGD", "Prodigy")
            for options in ({}, {"clip_grad_norm": 0.5})
            for grads in ("now and then", "one is frozen")
        ],
    )


@pytest.mark.parametrize("engine", ["eager", "foreach", "fused"])
def test_every_engine(engine: str) -> None:
    names = ("SGD", "AdamW", "LAMB", "Adafactor", "Prodigy", "Muon")
    guarded = {"engine": engine, "clip_grad_norm": 0.5}
    check(2, [("run", (name, guarded), {}) for name in names])


FORMATS: list[dict[str, Any]] = [
    {"state_format": "int8", "state_format_min_size": 1},
    {"state_format": "int4", "state_format_min_size": 1},
    {"state_format": "bfloat16", "ema_decay": 0.9, "ema_format": "int8"},
]
ROUNDINGS = ("stochastic", "kahan", "split", "split24")


def test_formats_have_the_bits_of_one_process() -> None:
    calls: list[Call] = [
        ("run", ("AdamW", options), {"shapes": "large", "groups": groups})
        for options in FORMATS
        for groups in (True, False)
    ]
    for rounding in ROUNDINGS:
        named = {"dtype": torch.bfloat16, "groups": True}
        calls.append(("run", ("SGD", {"momentum": 0.9, "param_rounding": rounding}), named))
        calls.append(("run", ("AdamW", {"param_rounding": rounding}), named))
    check(2, calls)


def test_uneven_sizes_and_more_ranks_than_parameters() -> None:
    options = {"clip_grad_norm": 0.5}
    calls: list[Call] = [
        ("run", (name, options), {"shapes": shapes})
        for name in ("AdamW", "Prodigy", "Muon")
        for shapes in ("usual", "one large", "few")
    ]
    check(4, [*calls, ("added", (), {}), ("averages", (), {}), ("resumed", ("AdamW", {}), {})])


@pytest.mark.parametrize(
    "how",
    [
        "combined",
        "added",
        "tied",
        "in_layouts",
        "scheduled_and_hooked",
        "scaled",
        "loaded_then_divided",
        "averages",
        "state_made",
        "by_torchs_checkpoints",
    ],
)
def test_ways_to_use_it(how: str) -> None:
    check(2, [(how, (), {})])


def test_several_rounds_of_messages() -> None:
    check(2, [("in_small_messages", (shapes,), {}) for shapes in zero.SHAPES])


@pytest.mark.parametrize("how", ["save", "save_training"])
def test_one_file_of_all_state(how: str, tmp_path: Path) -> None:
    Path(tmp_path, "one").mkdir()
    found = ranks(2).run(zero.each, [("in_file", (str(tmp_path), how), {})])
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["checkpoint"]
    expected = zero.in_file(str(tmp_path / "one"), how)
    for (result,) in found:
        assert not isinstance(result, str), result
        equal(result["params"], expected["params"], "params")
        equal(result["dict"], expected["dict"], "dict")
    # To be loaded by one process.
    params = zero.params_of("AdamW", "usual")
    optimizer = OPTIMIZERS["adamw"](params, ema_decay=0.9)
    if how == "save":
        optimizer.load(tmp_path / "checkpoint")
        assert len(optimizer.state) == len(params)


def test_a_file_that_cannot_be_written_is_an_error_on_all(tmp_path: Path) -> None:
    assert ranks(2).run(zero.each, [("not_written", (str(tmp_path),), {})]) == [
        ["FileNotFoundError"],
        ["FileNotFoundError"],
    ]


def test_under_distributed_data_parallel() -> None:
    guards = {"clip_grad_norm": 0.1, "on_nonfinite": "skip"}
    own = {"SOAP": WELL_DEFINED["even"]}
    cases = [(name, {**options, **own.get(name, {})}) for name in NAMES for options in ({}, guards)]
    found = ranks(2).run(zero.each, [("trained", case, {}) for case in cases])
    for i, (name, options) in enumerate(cases):
        first, second = found[0][i], found[1][i]
        for result in (first, second):
            assert not isinstance(result, str), f"{name}: {result}"
        equal(first["params"], second["params"], name)
        equal(first["dict"], second["dict"], name)
        # Gradients are averaged over ranks: in another order than one process adds them up.
        expected = zero.trained(name, options)
        for a, b in zip(first["params"], expected["params"], strict=True):
            message = lambda text, name=name: f"{name}: {text}"  # noqa: E731
            torch.testing.assert_close(a, b, **tolerance_of(name), msg=message)


RESUMED: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("AdamW", {}, {}),
    ("SGD", {"lr": 0.1, "momentum": 0.9, "dampening": 0.5}, {}),
    ("Prodigy", {"clip_grad_norm": 0.5}, {"groups": False}),
    ("NAdam", {"ema_decay": 0.9}, {}),
    ("AdamW", {"state_format": "int8", "state_format_min_size": 1}, {"shapes": "large"}),
    ("AdamW", {"param_rounding": "split"}, {"dtype": torch.bfloat16}),
    ("SparseAdam", {}, {}),
    ("Muon", {}, {}),
    ("SOAP", {}, {}),
]


def test_saved_on_two_loaded_on_one_and_the_reverse() -> None:
    def on_two(calls: Sequence[Call]) -> list[Any]:
        first, second = ranks(2).run(zero.each, calls)
        for a, b in zip(first, second, strict=True):
            assert not isinstance(a, str), a
            equal(a["dict"], b["dict"], "ranks differ")
        return first

    def call(i: int, saved: Any, first: int) -> Call:
        name, options, more = RESUMED[i]
        return "resumed", (name, options, saved), {"first": first, **more}

    def on_one(calls: Sequence[Call]) -> list[Any]:
        return [getattr(zero, name)(*given, **named) for name, given, named in calls]

    count = range(len(RESUMED))
    ways = {"2 1 2": (on_two, on_one, on_two), "1 2 1": (on_one, on_two, on_one)}
    alone: list[Any] = [None for _ in count]
    for first in (0, 2, 4):
        alone = on_one([call(i, alone[i], first) for i in count])
    for way, places in ways.items():
        results: list[Any] = [None for _ in count]
        for first, place in zip((0, 2, 4), places, strict=True):
            results = place([call(i, results[i], first) for i in count])
        for i in count:
            equal(results[i]["params"], alone[i]["params"], f"{way}, {RESUMED[i]}")
            equal(results[i]["dict"], alone[i]["dict"], f"{way}, {RESUMED[i]}")


@pytest.mark.parametrize("options", [{}, {"clip_grad_norm": 0.5}], ids=["plain", "guarded"])
def test_a_step_that_one_rank_refuses_is_refused_by_all(options: dict[str, Any]) -> None:
    calls: list[Call] = [
        ("one_refuses", (how, at, options, name), {})
        for name in ("AdamW", "Prodigy")
        for how in ("option", "gradient", "hook", "closure")
        for at in (0, 2)
    ]
    found = check(2, calls, seconds=40)
    for i, call in enumerate(calls):
        first, second = found[0][i], found[1][i]
        (own,), (others,) = first["raised"], second["raised"]
        assert own, call
        assert "another process" not in own, call
        assert "another process of this job refused the step" in others, call
        assert first["is_unchanged"], call
        assert second["is_unchanged"], call


def test_a_rank_that_stops_in_the_midst_tells_the_others() -> None:
    (first,), (second,) = ranks(2).run(zero.each, [("one_stops_in_the_midst", (), {})], seconds=40)
    assert first["raised"] == ["ValueError: no memory left"]
    assert "rank 0 of the group stopped in the midst of an update" in second["raised"][0]


def test_what_all_must_call_is_an_error_where_one_calls_it() -> None:
    (first,), (second,) = ranks(2).run(zero.each, [("only_first_saves", (), {})], seconds=40)
    for alone, errand in zip(first, ("state_dict()", "averaged()"), strict=False):
        assert f"optimizer.{errand} must be called on every rank" in alone
    for stepping, errand in zip(second, ("state_dict()", "averaged()"), strict=False):
        assert f"calls optimizer.{errand}" in stepping
        assert "Nothing was changed" in stepping
    assert "optimizer.averaged() must be called on every rank" in first[2]
    assert "optimizer.state_dict() must be called on every rank" in second[2]


def test_what_is_refused_says_why() -> None:
    (first,), (second,) = ranks(2).run(zero.each, [("refused", (), {})], seconds=30)
    assert not isinstance(first, str), first
    told = {
        "LBFGS": "TypeError: shard_state: LBFGS has no rule",
        "torch's": "TypeError: shard_state needs an optimizer of steprule, got AdamW",
        "twice": "ValueError: shard_state: the optimizer's state is divided among ranks already",
        "differentiable": "ValueError: shard_state: group 0 has differentiable=True",
        "DTensor": "ValueError: shard_state: parameter 0 of group 0 is a DTensor",
        "meta": "ValueError: shard_state: parameter 0 of group 0 is on meta",
        "in backward": "RuntimeError: shard_state: the optimizer steps in the backward pass",
        "then in backward": "TypeError: step_in_backward: the optimizer's state is divided",
        "combined after": "TypeError: combine() takes optimizers that have all of their state",
        "other parameters": "rank 1 has 3 parameters, rank 0 has 2",
        "another shape": "rank 1 has parameter 0 of shape (4,)",
        "copied": "it can't be copied or pickled",
        "pickled": "it can't be copied or pickled",
        "added": "ValueError: shard_state: parameter 0 of group 1 is a DTensor",
    }
    for found in (first, second):
        for what, message in told.items():
            assert message in found[what], found[what]
    assert first["another group"] == "was taken"  # a group of one, where nothing is divided
    assert "this process is none of the group's" in second["another group"]


def test_what_a_step_sends() -> None:
    """One small vector before it, and the parameters' bytes once around."""
    shapes = [torch.Size(shape) for shape in zero.SHAPES["usual"]]
    sizes = [-(-shape.numel() * 4 // 16) * 16 for shape in shapes]
    # Of each parameter whether it has a gradient and a sum of squares; refusals, and a number.
    vector = (2 * len(shapes) + 2) * 8
    calls: list[Call] = [
        ("messages", ({}, "usual"), {}),
        ("messages", ({"clip_grad_norm": 1.0}, "usual"), {}),
        ("messages", ({}, "usual", "one is frozen"), {}),
        ("messages", ({}, "usual"), {"name": "Prodigy"}),
        ("messages", ({}, "one large"), {}),
    ]
    found = ranks(2).run(zero.each, calls)
    for plain, guarded, frozen, prodigy, large in found:
        for step in (*plain, *guarded):
            assert [call for call, _ in step] == ["all_reduce", "all_gather_single"]
            assert step[0][1] == vector
            # Each rank's half, padded to the larger one, with a mark.
            assert sum(sizes) / 2 <= step[1][1] - 16 <= sum(sizes) * 1.25 / 2
        for step in frozen:  # what has no gradient is not sent
            assert sum(size for _, size in step[1:]) < plain[0][1][1] - 16 + sizes[0] / 2
        for step in prodigy:  # what its sum needs is a vector of its own
            assert [call for call, _ in step] == ["all_reduce"] * 2 + ["all_gather_single"]
        for step in large:  # padding would double it: each sends its own
            calls_made = [call for call, _ in step]
            assert calls_made == ["all_reduce", "all_gather_single", *["broadcast"] * 2]
            whole = sum(-(-torch.Size(s).numel() * 4 // 16) * 16 for s in zero.SHAPES["one large"])
            assert sum(size for call, size in step if call == "broadcast") == whole
            assert step[1][1] == 1


def test_nothing_is_left_behind() -> None:
    assert ranks(2).run(zero.each, [("leaks", (), {})]) == [[0], [0]]


def test_explain_says_who_has_what() -> None:
    ((first,), (second,)) = ranks(2).run(zero.each, [("run", ("AdamW", {}), {})])
    assert "rank 1" in first["explained"]
    assert "its state is there" in first["explained"]
    for rank, found in enumerate((first, second)):
        own = f"state is divided among 2 ranks: this one, {rank}, has that of {len(found['own'])}"
        assert f"{own} of 7 parameters" in found["explained"]
        assert "in 1 message of all ranks" in found["explained"]


# Who owns what.


def test_owners_are_balanced_and_stay() -> None:
    sizes = [70, 10, 30, 30, 20, 5, 5]
    params = [torch.zeros(size, requires_grad=True) for size in sizes]
    found = owners_of(params, 2)
    loads = [sum(s for s, r in zip(sizes, found, strict=True) if r == rank) for rank in (0, 1)]
    assert loads == [85, 85]
    more = [*params, torch.zeros(40, requires_grad=True), torch.zeros(40, requires_grad=True)]
    assert owners_of(more, 2, found)[: len(found)] == found
    assert sorted(owners_of(more, 2, found)[len(found) :]) == [0, 1]
    # Frozen ones are no load to those that are updated.
    frozen = [torch.zeros(1000), *params]
    assert owners_of(frozen, 2)[1:] == found


def test_parameters_that_share_memory_have_one_owner() -> None:
    whole = torch.zeros(100)
    params = [whole[:60], torch.zeros(90), whole[50:], whole[:0], torch.zeros(30)]
    found = owners_of(params, 2)
    assert found[0] == found[2]
    assert found[1] != found[0]
    known = owners_of([*params, whole[90:]], 2, [1, 0, 1, 0, 0])
    assert known[5] == 1


def test_buckets_hold_whole_tensors() -> None:
    found = buckets_of([16, 16, 1, 100, 0, 7], 48)
    assert [(one.first, one.starts, one.size) for one in found] == [
        (0, (0, 16, 32), 48),
        (3, (0,), 112),
        (4, (0, 0), 16),
    ]
    assert buckets_of([0, 0], 48) == []


# torch's wrapper.


WRAPPED = ("Adam", "AdamW", "SGD", "NAdam", "RMSprop", "Adagrad", "Adafactor", "Muon")


@pytest.mark.parametrize("buckets", [False, True], ids=["each", "buckets"])
def test_zero_redundancy_optimizer_takes_ours(buckets: bool) -> None:
    options: dict[str, dict[str, Any]] = {"SGD": {"lr": 0.1, "momentum": 0.9}}
    calls: list[Call] = [
        (
            "in_torchs_wrapper",
            (name, options.get(name, {"lr": 0.01})),
            {"ours": ours, "buckets": buckets},
        )
        for name in WRAPPED
        for ours in (True, False)
        if ours or hasattr(torch.optim, name)
    ]
    found = ranks(2).run(zero.each, calls)
    for i, call in enumerate(calls):
        for rank in (0, 1):
            assert not isinstance(found[rank][i], str), f"{call}: {found[rank][i]}"
        equal(found[0][i]["params"], found[1][i]["params"], str(call))
    by_call = {(call[1][0], call[2]["ours"]): found[0][i] for i, call in enumerate(calls)}
    for (name, ours), result in by_call.items():
        other = by_call.get((name, False))
        if not ours or other is None:
            continue
        loose = {"rtol": 1e-5, "atol": 1e-6}
        for a, b in zip(result["params"], other["params"], strict=True):
            torch.testing.assert_close(a, b, **loose, msg=lambda text, name=name: f"{name}: {text}")
        mine, theirs = result["dict"]["state"], other["dict"]["state"]
        assert mine.keys() == theirs.keys(), name
        for key, entry in theirs.items():
            assert mine[key].keys() == entry.keys(), name


def test_zero_redundancy_optimizer_is_not_for_what_must_see_all() -> None:
    cases: list[tuple[str, dict[str, Any], str]] = [
        ("AdamW", {"clip_grad_norm": 0.5}, "clip_grad_norm would be of that part alone"),
        ("AdamW", {"on_nonfinite": "skip"}, "on_nonfinite='skip' would look at that part alone"),
        ("Prodigy", {}, "Prodigy sums over several parameters"),
    ]
    found = ranks(2).run(
        zero.each,
        [("in_torchs_wrapper", (name, options), {"ours": True}) for name, options, _ in cases],
    )
    for of_rank in found:
        for text, (name, _, reason) in zip(of_rank, cases, strict=True):
            assert "ValueError: ZeroRedundancyOptimizer shows each rank a part of" in text
            assert reason in text
            assert f"steprule.shard_state({name}(...))" in text


def test_zero_redundancy_optimizer_takes_what_each_parameter_has_of_its_own() -> None:
    schedule = {"schedule": True, "clip_grad_norm": 0.5, "clip_grad_norm_over": "param"}
    first, second = ranks(2).run(
        zero.each, [("in_torchs_wrapper", ("AdamW", schedule), {"ours": True})]
    )
    assert not isinstance(first[0], str), first[0]
    equal(first[0]["params"], second[0]["params"], "params")


def test_zero_redundancy_optimizer_takes_all_of_ours() -> None:
    own = [name for name in NAMES if name not in (*WRAPPED, "Prodigy")]
    found = ranks(2).run(
        zero.each, [("in_torchs_wrapper", (name, {}), {"ours": True}) for name in own]
    )
    for name, first, second in zip(own, *found, strict=True):
        assert not isinstance(first, str), f"{name}: {first}"
        equal(first["params"], second["params"], name)
