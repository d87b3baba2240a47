"""Leaves reached by address: guards of all that is touched, and the tables that kernels read.

An :class:`AddressRunner` keeps the addresses of everything that a kernel touches. Before each step
it looks again at all that may have moved (gradients, ``param.data``, replaced state), for a
stale address is not a wrong number but corrupted memory.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from operator import attrgetter, is_
from typing import Any

import numpy as np
import torch
from torch import Tensor

from steprule.distributed.regions import Region
from steprule.engines.engine import Leaf, Numbers
from steprule.engines.guards.addresses import AddressGuard
from steprule.engines.guards.shards import shard_guard_of
from steprule.engines.guards.tensors import TensorGuard
from steprule.engines.kernels.layout import Layout, matrix_names
from steprule.engines.kernels.memory import (
    PLAIN,
    are_laid_out_alike,
    counts_of,
    has_memory,
)
from steprule.engines.kernels.prepare_text import row_length
from steprule.engines.kernels.printed_names import with_printed_names
from steprule.engines.native.address_guard import NativeAddressGuard, Watched
from steprule.engines.native.control_block import Control
from steprule.engines.native.loops import enable_native, is_native_enabled
from steprule.engines.stages import Stages, run_through
from steprule.engines.whole_step import Outcome
from steprule.formats.floating import FLOATING, compute_dtype, is_transformed
from steprule.language.form import Form
from steprule.language.passes import Pass, passes_of
from steprule.language.rule import OF_SHAPE, SUPPLIED, shape_numbers
from steprule.matrix_ops.orthogonalization import iteration_dtype

# Elements of one chunk: small enough to spread evenly, large enough to hide its set-up.
CHUNK = 8192
# Steps after which a run is one that the native loops are worth compiling for.
ENABLE_NATIVE_AFTER = 16
# How often in a row gradients of another kind than before are learned anew.
TRIES = 4

CHANGED = "the optimizer was changed by another thread in the midst of a step"
_grad_of = attrgetter("grad")


class AddressRunner:
    """The tables that a kernel reads, for the leaves of one layout, and what watches over them."""

    def __init__(self, form: Form, leaves: Sequence[Leaf]) -> None:
        self.form = form
        self.params = tuple(leaf.param for leaf in leaves)
        #: What has the gradients: the parameters, or the sharded ones that these are parts of.
        self.owners = tuple(leaf.owner for leaf in leaves)
        self._shards = [leaf.shard for leaf in leaves if leaf.shard is not None]
        self._shard_guard = shard_guard_of(leaves)
        self._entries = [leaf.state if leaf.entry is None else leaf.entry for leaf in leaves]
        self._shard_numbers = [leaf.number for leaf in leaves]
        self._whole = [leaf.elements for leaf in leaves]
        self.grad_dtype = leaves[0].grad.dtype
        self._states = [leaf.state for leaf in leaves]
        self.passes = self._passes()
        self.layout = self._layout_of(leaves[0])
        self._storage = leaves[0].storage
        self._shared_keys = form.recording().shared_keys
        self._groups = [leaf.group for leaf in leaves]
        self._make_guards()
        self._make_tables(leaves)
        self._grads: tuple[Any, ...] | None = None
        self._active: Sequence[Tensor] = ()
        self._addresses = array("q")
        self._steps = 0
        self.is_guarded = False

    def _passes(self) -> Sequence[Pass]:
        """Return what goes over the elements before they are updated."""
        return passes_of(self.form.recording())

    def _layout_of(self, leaf: Leaf) -> Layout:
        """Return what the kernel for leaves like this one is compiled for."""
        return layout_of(self.form, leaf, leaf.param.device)

    def _chunk_of(self, size: int) -> int:
        """Return how many elements make a chunk of a parameter of this size."""
        return CHUNK

    def _make_guards(self) -> None:
        """Keep what :meth:`collect` compares with."""
        params = self.params
        self._param_addresses = _addresses_of(params)
        self._sizes = [p.numel() for p in params]
        self._empty = [i for i, size in enumerate(self._sizes) if size == 0]
        # While these are alive, no other tensor can be given one of the addresses.
        self._kept = [p.detach() for p in params]
        self._names = (*self._storage.keys, *counts_of(self.form, self._storage))
        self._slots = [tuple(state[name] for state in self._states) for name in self._names]
        self._address_guard = AddressGuard(params, self._states, self._names)
        self._grads_guard: TensorGuard | None = None
        self._native_guard: NativeAddressGuard | None = None
        self._may_be_guarded = True
        self._tries = TRIES

    def _make_tables(self, leaves: Sequence[Leaf]) -> None:
        count = len(leaves)
        self._control = np.zeros(len(Control), dtype=np.int64)
        scale = 2 if leaves[0].param.is_complex() else 1
        sizes = [size * scale for size in self._sizes]
        is_random = self.layout.count is not None
        regions = [leaf.region if is_random else None for leaf in leaves]
        self._elements, self.elements = sizes, sum(sizes)
        arrays = len(self._storage.keys)
        columns = [self._param_addresses, *map(_addresses_of, self._slots[:arrays])]
        # What matrix operations work in is there only while it is needed.
        columns += [array("q", bytes(8 * count))] * len(self.form.recording().matrix_operations)
        self._columns = np.array(columns, dtype=np.int64)
        counts = [_addresses_of(tensors) for tensors in self._slots[arrays:]]
        self._counts = np.array(counts or [array("q", [0])], dtype=np.int64)
        groups = sorted({leaf.group for leaf in leaves})
        self._row_of = row_of = {group: i for i, group in enumerate(groups)}
        self._group_rows = np.array([row_of[leaf.group] for leaf in leaves], dtype=np.int64)
        self._hyperparameters = [n for n in self.form.scalars if n not in SUPPLIED]
        self._numbers = array("d", bytes(8 * max(1, len(groups) * len(self._hyperparameters))))
        self._first = np.array([float(leaf.is_first) for leaf in leaves])
        self._scalars = np.zeros((count, max(1, row_length(self.layout))))
        chunks = self._chunks_of(sizes, regions)
        self._chunks = np.array(chunks or [(0, 0, 0)], dtype=np.int64)
        self._chunk_count = len(chunks)
        per_tensor = Counter(i for i, _, _ in chunks)
        self._chunks_of_each = [per_tensor[i] for i in range(count)]
        # Random bits know an element by its number in the whole.
        known = ((regions[i], start) for i, start, _ in chunks)
        self._origins = array("q", [r.number_of(s) if r else s for r, s in known] or [0])
        self._reduction_tables: dict[Control, np.ndarray[Any, Any]] = {}
        if self.passes:
            self._make_tables_of_reductions(max(len(one.reductions) for one in self.passes))
        shapes = [shape_numbers(leaf.shape) for leaf in leaves]
        self._shapes = np.array([[shape[name] for shape in shapes] for name in OF_SHAPE])
        tables: Mapping[Control, np.ndarray[Any, Any]] = {
            Control.COLUMNS: self._columns,
            Control.COUNTS: self._counts,
            Control.GROUPS: self._group_rows,
            Control.FIRSTS: self._first,
            Control.SCALARS: self._scalars,
            Control.CHUNKS: self._chunks,
            Control.SHAPES: self._shapes,
        }
        for word, table in tables.items():
            self._control[word] = table.ctypes.data
        self._random_keys = array("q", [leaf.random_key for leaf in leaves])
        self._control[Control.KEYS] = self._random_keys.buffer_info()[0]
        self._control[Control.ORIGINS] = self._origins.buffer_info()[0]
        self._control[Control.NUMBERS] = self._numbers.buffer_info()[0]
        self._control[Control.TENSORS] = count
        self._address = self._control.ctypes.data

    def _chunks_of(
        self, sizes: Sequence[int], regions: Sequence[Region | None]
    ) -> list[tuple[int, int, int]]:
        """Return the chunks of all parameters: which one, the first element, how many."""
        return [
            (i, start, end - start)
            for i, size in enumerate(sizes)
            for start, end in pairwise(edges_of(size, self._chunk_of(size), regions[i]))
        ]

    def _make_tables_of_reductions(self, most: int) -> None:
        """Make the tables of sums over a tensor's chunks, up to so many at a time."""
        self._reduction_tables = {
            Control.PARTIALS: np.zeros(max(1, self._chunk_count * most)),
            Control.STARTS: np.cumsum([0, *self._chunks_of_each], dtype=np.int64),
            Control.ELEMENTS: np.maximum(np.array(self._whole, dtype=np.float64), 1.0),
        }
        if any(one.is_shared for one in self.passes):
            self._reduction_tables[Control.SUMS] = np.zeros((most, len(self.params)))
        for word, table in self._reduction_tables.items():
            self._control[word] = table.ctypes.data

    def set_numbers(self, group: int, numbers: Numbers) -> None:
        names = self._hyperparameters
        start = self._row_of[group] * len(names)
        self._numbers[start : start + len(names)] = array("d", [numbers[n] for n in names])

    def numbers_of(self, group: int) -> dict[str, float]:
        """Return a group's numbers by name."""
        names = self._hyperparameters
        start = self._row_of[group] * len(names)
        return dict(zip(names, self._numbers[start : start + len(names)], strict=True))

    def collect(self) -> bool:
        """Look at all that may have moved since the last step, and take this step's gradients.

        Returns:
            False if anything is no longer as it was planned: plan anew.
        """
        grads = tuple(map(_grad_of, self.owners))
        outcome = self._look(grads)
        self.is_guarded = outcome == Outcome.AS_PLANNED
        if self._native_guard is not None and self.is_guarded:
            found = self._native_guard.addresses
            self._addresses, self._grads = found, grads
            self._active = self.params if found[len(self.params)] else ()
            self._tries = TRIES
            return True
        return outcome == Outcome.GRADS_CHANGED and self._collect_grads(grads)

    def _look(self, grads: tuple[Any, ...]) -> int:
        """Tell whether all is as planned; without a guard, all but the gradients."""
        if self._native_guard is not None:
            return self._native_guard.check(grads)
        if not self._address_guard.holds():
            return Outcome.CHANGED
        if self._shard_guard is not None and not self._shard_guard.holds():
            return Outcome.CHANGED
        if self._may_be_guarded and is_native_enabled():
            self._may_be_guarded = False
            watched = Watched(self.params, self._states, self._names)
            if self._shard_guard is not None:
                watched = replace(
                    watched,
                    owners=self.owners,
                    entries=self._entries,
                    parts=self._shard_guard.parts,
                )
            if NativeAddressGuard.takes(watched):
                self._native_guard = NativeAddressGuard(watched)
        return Outcome.GRADS_CHANGED

    def _collect_grads(self, whole: tuple[Any, ...]) -> bool:
        grads = whole
        if self._shards:
            both = zip(self._shards, whole, strict=True)
            grads = tuple(g if g is None else shard.part_of(g) for shard, g in both)
        if self._grads_guard is not None and self._grads_guard.holds(grads):
            self._addresses = _addresses_of(grads)
            self._active = self.params
            self._grads = grads
        elif not self._collect_unusual(grads):
            return False
        taken = self._grads or ()
        if self._native_guard is not None and self._tries and all(map(is_, taken, grads)):
            self._tries -= 1
            self._native_guard.expect(grads, whole)
        grads = taken
        for i in self._empty:
            self._addresses[i] = grads[i] is not None
        found = np.count_nonzero(np.frombuffer(self._addresses, dtype=np.int64))
        return bool(found == len(self._active))

    def _collect_unusual(self, grads: tuple[Any, ...]) -> bool:
        """Take gradients one by one: some are missing, or must be copied to be read."""
        taken = []
        for i, grad in enumerate(grads):
            if grad is None or self._fits(i, grad):
                taken.append(grad)
                continue
            readable = (
                type(grad) in PLAIN and grad.layout is torch.strided and not is_transformed(grad)
            )
            is_planned = grad.dtype is self.grad_dtype and grad.shape == self.params[i].shape
            # A zero tensor reads as zeros from no memory at all; from freed memory nothing can be.
            if not (readable and is_planned and (has_memory(grad) or grad._is_zerotensor())):
                return False
            # A copy of what is expanded, permuted, lazily conjugated…
            like = torch.empty_like(self.params[i], dtype=self.grad_dtype)
            taken.append(like.copy_(grad))
        self._grads = tuple(taken)
        self._active = [p for p, g in zip(self.params, taken, strict=True) if g is not None]
        self._addresses = array("q", (0 if g is None else g.data_ptr() for g in taken))
        if all(map(is_, taken, grads)) and len(self._active) == len(self.params):
            self._grads_guard = TensorGuard(grads)
        return True

    def _fits(self, i: int, grad: Tensor) -> bool:
        """Tell whether a gradient can be read where it is."""
        param = self.params[i]
        return (
            type(grad) in PLAIN
            and grad.layout is torch.strided
            and grad.dtype is self.grad_dtype
            and grad.shape == param.shape
            and are_laid_out_alike(grad, param)
            and not grad.is_conj()
            and not grad.is_neg()
            and not grad._is_zerotensor()
            and not is_transformed(grad)
        )

    def run(self) -> None:
        """Update the parameters whose gradients :meth:`collect` took."""
        run_through(self.stages())

    def stages(self) -> Stages:
        """Update the parameters, by a rule that may have sums over several of them."""
        if self._grads is None and not self.collect():  # another thread's step has let go of them
            raise RuntimeError(CHANGED)
        # Kept alive here: another thread may step meanwhile.
        addresses, grads, active = self._addresses, self._grads, self._active
        try:
            if active or self._shared_keys:
                yield from self._update(addresses)
                self._count_change(active)
                self._steps += 1
                if self._steps == ENABLE_NATIVE_AFTER:
                    enable_native()
        finally:
            del grads
            self.let_go()

    def _update(self, addresses: array[int]) -> Stages:
        """Update all elements, given the address of each gradient, 0 for none."""
        raise NotImplementedError

    @contextmanager
    def counts_undone(self) -> Iterator[None]:
        """Put back counts and slots of one number if a step is broken off within the block.

        That is where other ranks' sums are waited for, and one of them refuses the step: no element
        is updated yet.
        """
        if not any(number >= 0 for number in self._shard_numbers) or not self._shared_keys:
            yield
            return
        arrays = len(self._storage.keys)
        before = [(tensors, torch.stack(tensors).unbind()) for tensors in self._slots[arrays:]]
        try:
            yield
        except GeneratorExit:
            for tensors, numbers in before:
                torch._foreach_copy_(tensors, numbers)
            raise

    def let_go(self) -> None:
        """Keep no gradient alive: the step is done, or will not be."""
        self._grads = None
        self._active = ()

    def _count_change(self, params: Sequence[Tensor]) -> None:
        """Let a graph that saved a parameter know of the change, as an in-place operation does."""
        if self._native_guard is not None and self.is_guarded:
            self._native_guard.bump_versions()
            return
        torch.autograd.graph.increment_version(params)
        if self._shards and params:
            torch.autograd.graph.increment_version([shard.owner for shard in self._shards])


def edges_of(size: int, chunk: int, region: Region | None) -> list[int]:
    """Return where the chunks of a parameter begin, and where the last one ends.

    Those of a sharded one end where a row does, and where the whole's would: what is rounded at
    random has one origin a chunk.
    """
    if region is None or size == 0:
        return [*range(0, size, chunk), size]
    edges, start = [0], 0
    while start < size:
        number = region.number_of(start)
        to_grid = chunk - number % chunk
        to_row = size if region.is_one_row else region.length - start % region.length
        start = min(size, start + min(to_grid, to_row))
        edges.append(start)
    return edges


def layout_of(form: Form, leaf: Leaf, device: torch.device) -> Layout:
    """Return what a kernel for leaves like this one is compiled for, to run on a device."""
    storage = leaf.storage
    formats = [*storage.formats, ("grad", FLOATING[leaf.grad.dtype])]
    matrix_format = FLOATING[iteration_dtype(device)]
    formats += [(name, matrix_format) for name in matrix_names(form.recording()).values()]
    layout = Layout(
        form=form,
        formats=tuple(formats),
        count_dtypes=tuple(
            (name, str(leaf.state[name].dtype).removeprefix("torch."))
            for name in counts_of(form, storage)
        ),
        compute=str(compute_dtype(leaf.param)).removeprefix("torch."),
        numbers=tuple(
            (name, number)
            for (name, _), number in zip(storage.formats, storage.numbers, strict=True)
            if storage[name].is_random
        ),
        count=storage.count,
        is_cut=leaf.region is not None,
    )
    return with_printed_names(layout)


def _addresses_of(tensors: tuple[Tensor, ...]) -> array[int]:
    return array("q", map(Tensor.data_ptr, tensors))
