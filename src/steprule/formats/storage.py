"""How the arrays of one parameter are stored: a format for each, and what it is chosen by."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from steprule.cached import cached_property
from steprule.distributed.regions import Region
from steprule.formats import BlockFormat, ElementFormat, Format
from steprule.formats.floating import FloatingFormat
from steprule.formats.random_bits import array_key, random_words

#: Counts the updates of rules that do not, where random bits need it.
ROUNDING_STEP = "rounding_step"


@dataclass(frozen=True, eq=False)
class Storage:
    """The formats of a parameter and of its array slots; :func:`storage_of` makes each once.

    Attributes:
        formats: by name, ``"param"`` first.
        numbers: of each array, what its random bits know it by: 0 for the parameter, 1 for the
            rule's first slot…
        count: the key in the state of the count of updates that random bits depend on; None where
            nothing is rounded at random.
    """

    formats: tuple[tuple[str, Format], ...]
    numbers: tuple[int, ...]
    count: str | None = None

    @cached_property
    def _by_name(self) -> dict[str, Format]:
        return dict(self.formats)

    def __getitem__(self, name: str) -> Format:
        return self._by_name[name]

    @cached_property
    def is_plain(self) -> bool:
        """Whether each array is a tensor of numbers, rounded to nearest."""
        return all(isinstance(storage, FloatingFormat) for _, storage in self.formats)

    @cached_property
    def has_blocks(self) -> bool:
        """Whether the elements of any array share scales."""
        return any(isinstance(storage, BlockFormat) for _, storage in self.formats)

    @cached_property
    def without_text(self) -> str | None:
        """The first array whose format the kernels have no text for; None if there is none."""
        for name, storage in self.formats:
            if not isinstance(storage, (FloatingFormat, ElementFormat, BlockFormat)):
                return f"{name!r}, {storage.name}"
        return None

    @cached_property
    def keys(self) -> tuple[str, ...]:
        """The keys of the state that hold arrays, or what belongs to them and the parameter."""
        return tuple(key for name, _ in self.formats for key in self._keys_of(name))

    def _keys_of(self, name: str) -> Iterator[str]:
        for column in self[name].columns:
            if column.part or name != "param":
                yield key_of(name, column.part)

    def columns(self, name: str, param: Tensor, state: Mapping[str, Any]) -> list[Tensor]:
        """Return the tensors that hold an array."""
        found = [state[key] for key in self._keys_of(name)]
        return as_stored(self[name], [param, *found] if name == "param" else found)

    def read(
        self, name: str, param: Tensor, state: Mapping[str, Any], compute: torch.dtype
    ) -> Tensor:
        """Return an array's numbers."""
        return self[name].read(self.columns(name, param, state), compute, param.shape)

    def write(
        self,
        name: str,
        param: Tensor,
        state: Mapping[str, Any],
        value: Tensor,
        key: int,
        region: Region | None = None,
    ) -> None:
        """Store an array's numbers, of an update that is not yet counted.

        Args:
            key: of the parameter, for random bits.
            region: which elements these are of a parameter that is sharded.
        """
        storage = self[name]
        words = None
        if storage.is_random:
            assert self.count is not None
            step = int(state[self.count]) + 1
            number = self.numbers[list(self._by_name).index(name)]
            words = random_words(array_key(key, step, number), value.shape, value.device, region)
        storage.write(self.columns(name, param, state), value, words)


def as_stored(storage: Format, columns: Sequence[Tensor]) -> list[Tensor]:
    """Return an array's columns as its format knows them: of shared items in one axis."""
    return [
        tensor if column.elements == 1 or tensor.ndim == 1 else tensor.reshape(-1)
        for column, tensor in zip(storage.columns, columns, strict=True)
    ]


@functools.cache
def storage_of(
    formats: tuple[tuple[str, Format], ...], numbers: tuple[int, ...], count: str | None = None
) -> Storage:
    """Return the one storage that is so: what it finds out about itself is found out once."""
    return Storage(formats, numbers, count)


def key_of(name: str, part: str) -> str:
    """Return the state's key of a column."""
    return f"{name}:{part}" if part else name
