"""What ranks tell each other in an iteration is what docs/distributed.md says of it.

The model of ``benchmarks/distributed.py`` is compared with what 2 and 4 processes were seen to
send, and its table with the page.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from processes import ranks
from rank_programs import messages

ROOT = Path(__file__).parents[1]


def _model() -> ModuleType:
    path = ROOT / "benchmarks" / "distributed.py"
    spec = spec_from_file_location("benchmarks_distributed", path)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look themselves up
    spec.loader.exec_module(module)
    return module


model = _model()
LAYERS = model.Layers(count=4, width=8, tokens=6, itemsize=4)

NOTHING: dict[str, Any] = {}
ON_ELEMENTS: list[tuple[str, dict[str, Any]]] = [
    ("SGD", {"momentum": 0.9}),
    ("AdamW", {}),
    ("AdamW", {"state_format": "int8", "state_format_min_size": 1}),
    ("AdamW", {"clip_grad_value": 0.1, "ema_decay": 0.9}),
]
GUARDED: list[tuple[str, dict[str, Any]]] = [
    ("AdamW", {"clip_grad_norm": 1.0}),
    ("AdamW", {"on_nonfinite": "skip"}),
    ("AdamW", {"clip_grad_norm": 1.0, "on_nonfinite": "skip"}),
    ("StableAdamW", {}),
]
# Of these rules, two sums at once.
SUMMING: list[tuple[str, dict[str, Any]]] = [("LAMB", {}), ("LARS", {}), ("Prodigy", {})]
ADAFACTOR: list[tuple[str, dict[str, Any]]] = [("Adafactor", {})]


def counted(expected: Iterable[Any]) -> Mapping[tuple[str, int], int]:
    """The model's messages as they are seen: by kind and elements."""
    found: Counter[tuple[str, int]] = Counter()
    for one in expected:
        found[one.kind, one.elements] += one.count
    return found


def check(world: int, strategy: str, cases: list[tuple[str, dict[str, Any]]], step: Any) -> None:
    """Every rank was seen to send what the model says, and in the step what is given."""
    passes = {
        "DDP": model.ddp,
        "FSDP2": model.fsdp2,
        "TP": model.tensor_parallel,
        "HSDP": lambda layers, n: model.hsdp(layers, n, shards=n // 2),
        "ZeRO-1": model.ddp,
    }[strategy]
    arguments = LAYERS.count, LAYERS.width, LAYERS.tokens
    for of_rank in ranks(world).run(messages.iteration, strategy, *arguments, cases):
        for case, (in_passes, in_step) in zip(cases, of_rank, strict=True):
            assert in_passes == counted(passes(LAYERS, world)), case
            assert in_step == counted(step), case


@pytest.mark.parametrize(("world", "strategy"), [(2, "FSDP2"), (2, "TP"), (4, "FSDP2")])
def test_messages_of_shards(world: int, strategy: str) -> None:
    check(world, strategy, ON_ELEMENTS, [])
    check(world, strategy, GUARDED, model.sums(LAYERS.count, world))
    check(world, strategy, SUMMING, model.sums(LAYERS.count, world, rows=2))
    both = [(name, {**options, "clip_grad_norm": 1.0}) for name, options in SUMMING]
    check(world, strategy, both, model.sums(LAYERS.count, world, rows=2, levels=2))
    of_matrices = [*model.sums(LAYERS.count, world), *model.matrices(LAYERS, world)]
    check(world, strategy, [("Muon", {})], of_matrices)


def test_messages_of_distributed_data_parallel() -> None:
    check(2, "DDP", [*ON_ELEMENTS, *GUARDED, *SUMMING, ("Muon", {})], [])
    check(4, "DDP", [("AdamW", {})], [])


def test_messages_of_shards_with_replicas() -> None:
    check(4, "HSDP", ON_ELEMENTS, [])
    check(4, "HSDP", GUARDED, model.sums(LAYERS.count, 2, replicas=2))
    check(4, "HSDP", SUMMING, model.sums(LAYERS.count, 2, rows=2, replicas=2))


@pytest.mark.parametrize("world", [2, 4])
def test_messages_of_divided_state(world: int) -> None:
    given = [one for one in model.zero1(LAYERS, world) if one not in model.ddp(LAYERS, world)]
    check(world, "ZeRO-1", [*ON_ELEMENTS[:2], *GUARDED], given)


def test_the_messages_of_rows_and_columns_are_as_many_for_any_number_of_layers() -> None:
    few, many = (
        ranks(2).run(messages.iteration, "FSDP2", count, LAYERS.width, LAYERS.tokens, ADAFACTOR)
        for count in (2, 6)
    )
    for (_, in_few), (_, in_many) in zip(few[0], many[0], strict=True):
        assert sum(in_few.values()) == sum(in_many.values()) == 5


def test_buckets_are_full_at_their_bounds() -> None:
    layers = model.Layers(count=10, width=512, tokens=1, itemsize=4)  # 1 MiB each
    assert model.buckets(layers) == [1, 9]
    assert model.buckets(layers, others=4 << 20) == [1, 4, 4, 1]
    assert model.buckets(LAYERS) == [4]


def test_the_page_has_the_models_table() -> None:
    page = (ROOT / "docs" / "distributed.md").read_text(encoding="utf-8")
    assert model.traffic() in page
