"""Checkpoint files of an author who means no good: digest right, content wrong.

Each input is a good file with a few changes: to its JSON (values replaced, keys renamed, entries
dropped, doubled or nested), to the header's entries, or to single bytes. Loading it either works or
raises one of the documented errors; then nothing has changed.
"""

from __future__ import annotations

import contextlib
import copy
import json
import random
import struct
from pathlib import Path
from typing import Any

import torch
from forged_checkpoints import forged
from nested_values import same

import steprule
from steprule.lr_scheduler import StepLR
from steprule.schedules import linear

ODD: list[Any] = [
    *(None, True, 0, -1, 3, 2**70, 0.5, -0.0, "", "lr", "exp_avg", "\ud800", [], {}, [[]]),
    *({"dict": {}}, {"tuple": []}, {"float": "nan"}, {"float": "inf"}, {"tensor": "x"}),
    *({"items": []}, {"dict": {"x": 1}}, {"tuple": [0.9, 0.999]}, {"items": [[0, 1]]}),
]


class Target:
    """A run, its file taken apart, and what it is loaded into."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "fuzzed"
        optimizer = self._made()
        self._step(optimizer)
        scheduler = StepLR(optimizer, 2)
        steprule.save_training(
            self._path, optimizer=optimizer, schedulers=scheduler, step=1, random_state=True
        )
        self._whole = self._path.read_bytes()
        (length,) = struct.unpack("<Q", self._whole[:8])
        header = json.loads(self._whole[8 : 8 + length])
        self._content = json.loads(header.pop("__metadata__")["content"])
        self._entries, self._data = header, self._whole[8 + length :]
        self._optimizer = self._made()
        self._scheduler = StepLR(self._optimizer, 3)
        self._before = self._state()

    def _made(self) -> Any:
        params = {"a": torch.ones(3, 2), "b": torch.ones(200)}
        named = [(name, param.requires_grad_()) for name, param in params.items()]
        options = {"state_format": "int8", "state_format_min_size": 100, "ema_decay": 0.9}
        return steprule.AdamW(named, weight_decay=linear(0.1, 0.0, steps=9), **options)

    def _state(self) -> Any:
        return copy.deepcopy([self._optimizer.state_dict(), self._scheduler.state_dict()])

    def run(self, chance: random.Random) -> bool:
        """Load a changed file; tell whether it was taken.

        Raises:
            AssertionError: something changed though it was refused.
            Exception: any other than the documented ones.
        """
        self._write(chance)
        is_alone = chance.random() < 0.5
        strict = chance.random() < 0.5
        try:
            if is_alone:
                self._optimizer.load(self._path, strict=strict)
            else:
                steprule.load_training(
                    self._path,
                    optimizer=self._optimizer,
                    schedulers=self._scheduler,
                    strict=strict,
                    random_state=chance.random() < 0.3,
                )
        except (steprule.CheckpointError, TypeError, ValueError):
            assert same(self._state(), self._before)
            return False
        with contextlib.suppress(TypeError, ValueError, RuntimeError):  # numbers that make no sense
            self._step(self._optimizer)
        # A scheduler's attributes are whatever its class has: what they come to is seen in use.
        with contextlib.suppress(Exception):
            self._scheduler.step()
        self._optimizer = self._made()
        self._scheduler = StepLR(self._optimizer, 3)
        return True

    def _step(self, optimizer: Any) -> None:
        for param in optimizer.param_groups[0]["params"]:
            param.grad = torch.ones_like(param)
        optimizer.step()

    def _write(self, chance: random.Random) -> None:
        kind = chance.random()
        if kind < 0.15:
            data = bytearray(self._whole)
            for _ in range(chance.randint(1, 3)):
                data[chance.randrange(len(data))] = chance.randrange(256)
            self._path.write_bytes(data[: chance.choice([len(data), chance.randrange(len(data))])])
            return
        content, entries = copy.deepcopy(self._content), copy.deepcopy(self._entries)
        for _ in range(chance.choice([1, 1, 2, 5])):
            _change(entries if kind < 0.3 else content, chance)
        forged(self._path, content, entries, self._data)


def _change(value: Any, chance: random.Random) -> None:
    """Change one thing, somewhere in nested JSON."""
    places = list(_places(value))
    if not places:
        return
    holder, key = chance.choice(places)
    how = chance.randrange(6)
    if how == 0:
        holder[key] = copy.deepcopy(chance.choice(ODD))
    elif how == 1:
        del holder[key]
    elif how == 2:
        holder[key] = copy.deepcopy(chance.choice(places)[0])
    elif how == 3:
        holder[key] = [holder[key]]
    elif how == 4 and isinstance(holder, dict):
        holder[chance.choice(["x", "lr", "step", "params", key + "0"])] = holder.pop(key)
    elif isinstance(holder, list):
        holder.insert(key, copy.deepcopy(holder[key]))
    else:
        other, at = chance.choice(places)
        holder[key] = copy.deepcopy(other[at])


def _places(value: Any) -> Any:
    """Every entry of nested lists and dicts, as what holds it and where it is there."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in list(items):
        yield value, key
        if isinstance(inner, (dict, list)):
            yield from _places(inner)
