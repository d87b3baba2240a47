"""Nested values as plain JSON and tensors: what a checkpoint holds.

JSON's own values stand for themselves, and its arrays for lists. An object has one key, which says
what it stands for: ``dict`` (keys that are strings), ``items`` (any keys), ``counter``, ``tuple``,
``float`` (what is not finite), ``tensor`` and ``array`` (of NumPy), which name a tensor, and
``complex``, a tensor of pairs. ``sharded`` names a tensor of which each rank has a part, and
``sharded_complex`` one of pairs.
"""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from steprule.checkpoints.errors import CheckpointError
from steprule.distributed.offsets import is_first_to_have, ranges_here
from steprule.distributed.pieces import Ranges
from steprule.distributed.shards import is_dtensor, is_sharded, local_of
from steprule.formats.floating import has_memory

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

#: How deep values may be nested; what is deeper is likely to contain itself.
DEPTH = 64
#: The dtypes that safetensors stores, by its names; complex ones are stored as pairs.
DTYPES: Mapping[torch.dtype, str] = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint64: "U64",
    torch.uint32: "U32",
    torch.uint16: "U16",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


@dataclass(frozen=True)
class Part:
    """What this rank has of a sharded tensor, and stores.

    Attributes:
        shape: of the whole.
        local: what is here.
        ranges: from where to where that is; None if this rank stores nothing of it.
    """

    shape: tuple[int, ...]
    local: Tensor
    ranges: Ranges | None


class Flattened:
    """A nested value, taken apart.

    Args:
        value: made of None, bools, numbers, strings, lists, tuples, dicts, tensors and arrays.

    Attributes:
        plain: what it is as JSON.
        tensors: the tensors in it, by the names under which ``plain`` refers to them. One that
            stands in several places is there once.
        parts: what is here of tensors that are sharded over several ranks, likewise.

    Raises:
        TypeError: something else is in it, named by its place.
    """

    def __init__(self, value: Any) -> None:
        self.tensors: dict[str, Tensor] = {}
        self.parts: dict[str, Part] = {}
        self._names: dict[tuple[Any, ...], str] = {}
        self.plain = self._plain(value, ())

    def _plain(self, value: Any, place: tuple[str, ...]) -> Any:
        if len(place) > DEPTH:
            raise TypeError(
                f"{_text(place[:4])}... is nested more than {DEPTH} deep: does it contain itself?"
            )
        if isinstance(value, np.generic):
            value = value.item()
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, str):
            return str.__str__(value)  # not what an Enum makes of it
        if isinstance(value, int):
            return int(value)
        if isinstance(value, float):
            return float(value) if math.isfinite(value) else {"float": repr(float(value))}
        if isinstance(value, Tensor):
            return self._tensor(value, place)
        if isinstance(value, np.ndarray):
            return {"array": self._name_of(_tensor_of(value, place), place)}
        if isinstance(value, (list, tuple)):
            items = [self._plain(x, (*place, str(i))) for i, x in enumerate(value)]
            return items if isinstance(value, list) else {"tuple": items}
        if isinstance(value, Mapping):
            return self._dict(value, place)
        raise TypeError(
            f"{_text(place)} is of type {type(value).__name__}, which a checkpoint can't hold: it "
            "has None, bools, numbers, strings, lists, tuples, dicts, tensors and NumPy arrays"
        )

    def _dict(self, value: Mapping[Any, Any], place: tuple[str, ...]) -> dict[str, Any]:
        is_counter = isinstance(value, Counter)  # as schedulers of torch and ours have
        if not is_counter and all(type(key) is str for key in value):
            return {"dict": {k: self._plain(x, (*place, k)) for k, x in value.items()}}
        return {
            "counter" if is_counter else "items": [
                [self._plain(key, (*place, "key")), self._plain(x, (*place, str(key)))]
                for key, x in value.items()
            ]
        }

    def _tensor(self, tensor: Tensor, place: tuple[str, ...]) -> dict[str, str]:
        if is_sharded(tensor):
            if tensor.device_mesh.size() > 1:
                return self._part(tensor, place)
            tensor = local_of(tensor)
        if type(tensor) not in (Tensor, torch.nn.Parameter, torch.nn.Buffer):
            hint = ", and sharded ones whose parts are such" * is_dtensor(tensor)
            raise TypeError(
                f"{_text(place)} is a {type(tensor).__name__}, a checkpoint holds plain tensors"
                f"{hint}"
            )
        self._check(tensor, place)
        if _is_of_pairs(tensor):
            return {"complex": self._name_of(_as_pairs(tensor), place)}
        return {"tensor": self._name_of(tensor.detach(), place)}

    def _check(self, tensor: Tensor, place: tuple[str, ...]) -> None:
        if tensor.is_meta or tensor.layout is not torch.strided or tensor.is_quantized:
            kind = "meta" if tensor.is_meta else str(tensor.layout)
            raise TypeError(f"{_text(place)} is a {kind} tensor: a checkpoint holds dense ones")
        if not has_memory(tensor):
            raise TypeError(
                f"{_text(place)} has no memory (its storage was freed): gather it before saving"
            )

    def _part(self, tensor: DTensor, place: tuple[str, ...]) -> dict[str, str]:
        local = local_of(tensor)
        self._check(local, place)
        try:
            ranges = ranges_here(tensor)
        except ValueError as problem:
            raise TypeError(f"{_text(place)} {problem}") from None
        shape, stored = tuple(tensor.shape), ranges if is_first_to_have(tensor) else None
        # Names must be the same on every rank: one that has nothing of it knows no address.
        storage = local.untyped_storage()._cdata
        seen = storage, local.storage_offset(), local.dtype, shape, str(tensor.placements)
        is_of_pairs = _is_of_pairs(local)
        if is_of_pairs:
            local, shape = _as_pairs(local), (*shape, 2)
            stored = None if stored is None else [*stored, (0, 2)]
        self._check_dtype(local, place)
        name = self._names.get(seen)
        if name is None:
            name = self._names[seen] = self._new_name(place)
            self.parts[name] = Part(shape, local.detach(), stored if local.numel() else None)
        return {"sharded_complex" if is_of_pairs else "sharded": name}

    def _check_dtype(self, tensor: Tensor, place: tuple[str, ...]) -> None:
        if tensor.dtype not in DTYPES:
            raise TypeError(f"{_text(place)} is {tensor.dtype}, which safetensors can't hold")

    def _name_of(self, tensor: Tensor, place: tuple[str, ...]) -> str:
        self._check_dtype(tensor, place)
        seen = (
            tensor.data_ptr(),
            tensor.device,
            tensor.dtype,
            tensor.shape,
            tensor.stride(),
            tensor.is_conj(),
            tensor.is_neg(),
        )
        if tensor.numel() and seen in self._names:
            return self._names[seen]
        name = self._names[seen] = self._new_name(place)
        self.tensors[name] = tensor
        return name

    def _new_name(self, place: tuple[str, ...]) -> str:
        # Names in the file are UTF-8, which strings of Python need not have a form in.
        stem = "/".join(filter(None, place)).encode(errors="replace").decode() or "value"
        name = stem
        count = 1
        while name in self.tensors or name in self.parts:
            count += 1
            name = f"{stem}#{count}"
        return name


def _is_of_pairs(tensor: Tensor) -> bool:
    return tensor.is_complex() and tensor.dtype is not torch.complex32


def _as_pairs(tensor: Tensor) -> Tensor:
    return torch.view_as_real(tensor.detach().resolve_conj())


def _tensor_of(array: np.ndarray[Any, Any], place: tuple[str, ...]) -> Tensor:
    try:
        return torch.from_numpy(np.array(array))  # a copy: arrays may be read-only, or reversed
    except (TypeError, ValueError):
        raise TypeError(
            f"{_text(place)} is an array of {array.dtype}, which a checkpoint can't hold"
        ) from None


def _text(place: tuple[str, ...]) -> str:
    return "the value" if not place else place[0] + "".join(f"[{key!r}]" for key in place[1:])


class Rebuilder:
    """Makes the value again that :class:`Flattened` took apart.

    Args:
        tensor_named: gives the tensors by name; it is asked once for each.
        sharded_named: likewise those that ranks have stored in parts.
    """

    def __init__(
        self,
        tensor_named: Callable[[str], Tensor],
        sharded_named: Callable[[str], Tensor] | None = None,
    ) -> None:
        self._tensor_named = functools.cache(tensor_named)
        self._sharded_named = functools.cache(sharded_named or _no_sharded)
        self._depth = 0

    def value(self, plain: Any) -> Any:
        """Return the value of some JSON.

        Raises:
            CheckpointError: it was not made by :class:`Flattened`.
        """
        is_plain = plain is None or isinstance(plain, (bool, str, int))
        if is_plain or (isinstance(plain, float) and math.isfinite(plain)):
            return plain
        self._depth += 1
        try:
            if self._depth > 2 * DEPTH:
                raise CheckpointError("its content is nested too deep")
            if isinstance(plain, list):
                return [self.value(x) for x in plain]
            if isinstance(plain, dict) and len(plain) == 1:
                ((kind, value),) = plain.items()
                return _BUILDERS[kind](self, value)
        except CheckpointError:
            raise
        except (LookupError, TypeError, ValueError, RuntimeError):
            pass
        finally:
            self._depth -= 1
        raise CheckpointError(f"its content has an entry that stands for nothing: {plain!r:.80}")

    def _dict(self, value: Any) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise TypeError
        return {key: self.value(x) for key, x in value.items()}

    def _items(self, value: Any) -> dict[Any, Any]:
        return {self.value(key): self.value(x) for key, x in _list(value)}

    def _counter(self, value: Any) -> Counter[Any]:
        return Counter({self.value(key): int(x) for key, x in _list(value)})

    def _tuple(self, value: Any) -> tuple[Any, ...]:
        return tuple(map(self.value, _list(value)))

    def _float(self, value: Any) -> float:
        return {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}[value]

    def _tensor(self, name: Any) -> Tensor:
        if not isinstance(name, str):
            raise TypeError
        return self._tensor_named(name)

    def _sharded(self, name: Any) -> Tensor:
        if not isinstance(name, str):
            raise TypeError
        return self._sharded_named(name)

    def _sharded_complex(self, name: Any) -> Tensor:
        return torch.view_as_complex(self._sharded(name))

    def _array(self, name: Any) -> Any:
        return self._tensor(name).numpy().copy()

    def _complex(self, name: Any) -> Tensor:
        return torch.view_as_complex(self._tensor(name))


# On the class, so that nothing which is mapped from a file is in a cycle of references.
_BUILDERS: Mapping[str, Callable[[Rebuilder, Any], Any]] = {
    "dict": Rebuilder._dict,
    "items": Rebuilder._items,
    "counter": Rebuilder._counter,
    "tuple": Rebuilder._tuple,
    "float": Rebuilder._float,
    "tensor": Rebuilder._tensor,
    "array": Rebuilder._array,
    "complex": Rebuilder._complex,
    "sharded": Rebuilder._sharded,
    "sharded_complex": Rebuilder._sharded_complex,
}


def _no_sharded(name: str) -> Tensor:
    raise CheckpointError(f"its tensor {name!r} is in parts, and no files of parts are named")


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError
    return value
