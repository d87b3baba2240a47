"""One launch for all tensors of a bucket, kept from step to step.

Where step counts are on the host, the host computes the scalars (``prepare``, the CPU's) and sends
them; where they are on the device, a kernel does. Either way nothing waits for the device.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from steprule.cached import cached_property
from steprule.engines.engine import Leaf, Numbers
from steprule.engines.gpu.device_tables import DeviceTables
from steprule.engines.gpu.programs.launching import Program, program_for
from steprule.engines.gpu.programs.streams import is_capturing, on_device
from steprule.engines.gpu.reduction_text import (
    finish_source,
    gather_source,
    prepare_source,
    reduce_source,
    square_sums_source,
    square_totals_source,
)
from steprule.engines.gpu.tiles import TILE, Variant
from steprule.engines.gpu.update_text import update_source
from steprule.engines.kernel_cache.cache import Library, library_for
from steprule.engines.kernels import prepare_text
from steprule.engines.kernels.address_runner import CHANGED, AddressRunner, layout_of
from steprule.engines.kernels.layout import Layout
from steprule.engines.kernels.memory import counts_of
from steprule.engines.native.control_block import Control
from steprule.engines.native.loops import can_hold_tensors
from steprule.engines.stages import Share, Stages
from steprule.engines.target import target
from steprule.engines.whole_step import Outcome
from steprule.formats.floating import FLOATING
from steprule.language.form import Form
from steprule.language.passes import Pass
from steprule.language.recording import OVER_SHARDS

# A number of a group that follows from gradients, so that only the device has it.
_CLIP_FACTOR = "clip_factor"
# Elements of a chunk, and of one where there are too few to keep a device busy.
_CHUNK, _SMALL_CHUNK = 8 * TILE, 2 * TILE
_FEW = 1 << 22


class TritonRunner(AddressRunner):
    """The kernels of a form, and the tables of some leaves on their device."""

    def __init__(self, form: Form, leaves: Sequence[Leaf]) -> None:
        self.device = leaves[0].param.device
        counts = counts_of(form, leaves[0].storage)
        #: Whether step counts are on the device, so that scalars are computed there.
        self.prepares_on_device = (
            form.capturable
            or form.may_be_called_off
            or any(leaves[0].state[name].device.type != "cpu" for name in counts)
            or (target() is not None and bool(form.slots_of_sums))
        )
        super().__init__(form, leaves)
        self._make_variant()
        self._make_device_tables()
        self._prepare = self._prepare_library()
        self._device_numbers: dict[tuple[int, int], Tensor] = {}
        self._has_sent_grads = self._is_holding = False
        self._programs: dict[str, Program] = {}
        with on_device(self.device):
            for name in self._kernel_names():
                self._program(name)

    def _kernel_names(self) -> list[str]:
        """Return the names of the kernels that a step takes."""
        # Ahead of time it is not known where step counts will be.
        names = ["prepare"] if self.prepares_on_device or target() is not None else []
        names += [] if target() is None else ["square_sums", "square_totals"]
        for k, one in enumerate(self.passes):
            names += [f"reduce_{k}", *([f"gather_{k}"] if one.is_shared else []), f"finish_{k}"]
        return [*names, "update"]

    def _layout_of(self, leaf: Leaf) -> Layout:
        layout = layout_of(self.form, leaf, _eventual_device(leaf))
        return replace(layout, has_step_in_row=layout.count is not None)

    def _chunk_of(self, size: int) -> int:
        return self._chunk

    @cached_property
    def _chunk(self) -> int:
        return _CHUNK if sum(self._sizes) > _FEW else _SMALL_CHUNK

    def _make_variant(self) -> None:
        is_lone = not self.prepares_on_device and _CLIP_FACTOR in self.form.scalars
        of_device = (_CLIP_FACTOR,) if is_lone else ()
        self.variant = Variant(self.layout, of_device, self.form.may_be_called_off)

    def _make_device_tables(self) -> None:
        count = len(self.params)
        sizes = {
            "grads": count,
            "scalars": self._scalars.size,
            "numbers": len(self._numbers),
            "square_sums": count,
        }
        contents: dict[str, Any] = {
            "columns": self._columns,
            "groups": self._group_rows,
            "chunks": self._chunks,
            "keys": np.array(self._random_keys, dtype=np.int64),
            "origins": np.array(self._origins, dtype=np.int64),
        }
        if self.prepares_on_device or self.passes or self.form.recording().has_axes:
            contents |= {"counts": self._counts, "firsts": self._first, "shapes": self._shapes}
        self._tables = DeviceTables(self.device, contents, sizes)
        #: Of each gradient, on the device.
        self.square_sums = self._tables["square_sums"]
        if self.passes:
            most = max(len(one.reductions) for one in self.passes)
            self._make_tables_of_passes(most)
            if self._shared_keys:
                self._tables.add("sums", most * len(self.params))

    def _make_tables_of_passes(self, most: int) -> None:
        """Have tables of sums over a tensor's chunks, so many at a time."""
        if "starts" not in self._tables:
            self._make_tables_of_reductions(1)
            for name in ("starts", "elements"):
                self._tables.put(name, self._reduction_tables[Control[name.upper()]])
        if "partials" not in self._tables or len(self._tables["partials"]) < (
            self._chunk_count * most
        ):
            self._tables.add("partials", self._chunk_count * most)

    def _prepare_library(self) -> Library | None:
        if self.prepares_on_device:
            return None
        title = f"what the rule {self.form.rule.name!r} needs once a step"
        source = prepare_text.prepare_source(self.layout) + "\n"
        return library_for(source, ("prepare",), arity=3, title=title)

    def note(self) -> str:
        """Say how much memory the tables take."""
        count, size = len(self.params), self._tables.bytes / 1024
        return f"{count} parameters in one launch on {self.device}: tables of {size:.1f} KiB there"

    # Numbers

    def set_numbers(self, group: int, numbers: Numbers) -> None:
        """Put a group's numbers in force; tensors are read on the device, at each step."""
        row = self._row_of[group] * len(self._hyperparameters)
        for i, name in enumerate(self._hyperparameters):
            number = numbers[name]
            if self._device_numbers.pop((row, i), None) is not None:
                self._tables.forget_numbers()
            if isinstance(number, Tensor):
                self._device_numbers[row, i] = number.detach()
            else:
                self._numbers[row + i] = float(number)

    def call_off_by(self, found_inf: Tensor) -> None:
        """Take no step where a number is not 0."""
        if "found_inf" not in self._tables:
            self._tables.add("found_inf", 1)
        with torch.no_grad(), on_device(self.device):
            self._tables["found_inf"].copy_(found_inf.reshape(1), non_blocking=True)

    def _send_grads(self, addresses: array[int]) -> None:
        """Have the device know where this step's gradients are, once."""
        if not self._has_sent_grads:
            self._tables.used_on_this_stream()
            self._tables.send_grads(addresses)
            self._has_sent_grads = True

    def collect(self) -> bool:
        self._drop_held()
        guard = self._native_guard
        if guard is None or not can_hold_tensors() or guard.hold() != Outcome.AS_PLANNED:
            return super().collect()
        self._is_holding = self.is_guarded = True
        self._addresses, self._grads = guard.addresses, ()
        self._active = self.params if guard.addresses[len(self.params)] else ()
        return True

    def let_go(self) -> None:
        # What a kernel reads may be given back before it runs: memory is used again in the order of
        # the stream.
        self._drop_held()
        super().let_go()
        self._has_sent_grads = False

    def _drop_held(self) -> None:
        if self._is_holding and self._native_guard is not None:
            self._is_holding = False
            self._native_guard.let_go()

    def _send_numbers(self) -> None:
        """Have the device know the groups' numbers, if its kernels read them."""
        if not (self.prepares_on_device or self.variant.device_numbers):
            return
        table = self._tables["numbers"]
        self._tables.send_numbers(self._numbers)
        for (row, i), number in self._device_numbers.items():
            table[row + i].copy_(number.reshape(()), non_blocking=True)

    @property
    def is_in_a_graph(self) -> bool:
        """Whether a step was captured: the graph's kernels use the tables as long as it lives."""
        return self._tables.is_in_a_graph

    def first_updates_left(self) -> list[Tensor] | None:
        """Return the parameters that were never updated, where only the device knows; else None.

        Waits for the device.
        """
        if not (self.form.may_be_called_off and "first" in self.form.scalars):
            return None
        flags = self._tables["firsts"].tolist()
        return [p for p, flag in zip(self.owners, flags, strict=True) if flag]

    # A step

    def _update(self, addresses: array[int]) -> Stages:
        with self.counts_undone():
            with torch.no_grad(), on_device(self.device):
                self._begin(addresses)
            yield from self._run_passes(addresses)

    def _begin(self, addresses: array[int]) -> None:
        """Send what the kernels need to know of this step, and prepare it."""
        if self._prepare is not None and is_capturing(self.device):
            raise RuntimeError(
                f"a CUDA graph is captured, but the rule {self.form.rule.name!r} counts its steps "
                "on the host: give the optimizer capturable=True"
            )
        self._send_grads(addresses)
        self._send_numbers()
        if self._prepare is None:
            self._launch("prepare", len(self.params))
            return
        scalars = self._tables.scalars_buffer()
        self._control[Control.GRADS] = addresses.buffer_info()[0]
        self._control[Control.SCALARS] = scalars.data_ptr()
        self._prepare.functions[0](self._address, 0, 0)
        self._tables.send_scalars(scalars)

    def _run_passes(self, addresses: Sequence[int]) -> Stages:
        for k, one in enumerate(self.passes):
            with torch.no_grad(), on_device(self.device):
                self._launch(f"reduce_{k}", self._chunk_count)
                if one.is_shared:
                    self._launch(f"gather_{k}", len(self.params))
            if one.is_shared:
                yield from self._share(one, addresses)
            with torch.no_grad(), on_device(self.device):
                self._launch(f"finish_{k}", len(self.params))
        with torch.no_grad(), on_device(self.device):
            self._launch("update", self._chunk_count)

    def _share(self, one: Pass, addresses: Sequence[int]) -> Stages:
        """Put in a pass's table of sums the totals of those over several parameters."""
        sums = self._tables["sums"].view(-1, len(self.params))
        keys = {
            j: self._shared_keys[reduction.result]
            for j, reduction in enumerate(one.reductions)
            if reduction.is_shared
        }
        shards = {j for j in keys if one.reductions[j].over == OVER_SHARDS}
        totals = yield [
            Share(key, *values)
            for j, key in keys.items()
            for values in (
                [self._each(sums[j], addresses)]
                if self._shards
                else [
                    (self._of_group(sums[j], group), *self._found(group, addresses))
                    for group in self._row_of
                ]
            )
        ]
        with torch.no_grad():
            for j, key in keys.items():
                if j in shards:
                    sums[j].copy_(totals[key][self._shard_numbers])
                    continue
                for group, total in totals[key].items():
                    if group in self._row_of:
                        self._put_total(sums[j], group, total)

    def _each(
        self, sums: Tensor, addresses: Sequence[int]
    ) -> tuple[Tensor, list[int], list[int], list[int]]:
        """Return what each leaf adds that has a gradient; group, elements and number of each."""
        found = [i for i in range(len(self.params)) if addresses[i]]
        values = sums if len(found) == len(self.params) else sums[found]
        return values, *self._found(None, addresses)

    def _found(
        self, group: int | None, addresses: Sequence[int]
    ) -> tuple[list[int], list[int], list[int]]:
        """Return group, elements and number of each leaf of a group (any) that has a gradient."""
        found = [i for i, g in enumerate(self._groups) if group in (g, None) and addresses[i]]
        return (
            [self._groups[i] for i in found],
            [self._whole[i] for i in found],
            [self._shard_numbers[i] for i in found],
        )

    def _of_group(self, sums: Tensor, group: int) -> Tensor:
        """Return what a group's leaves add; 0 for others, and for those without a gradient."""
        if len(self._row_of) == 1:
            return sums
        return torch.where(self._tables["groups"] == self._row_of[group], sums, 0.0)

    def _put_total(self, sums: Tensor, group: int, total: Any) -> None:
        value = torch.as_tensor(total, dtype=sums.dtype).to(sums.device, non_blocking=True)
        if len(self._row_of) == 1:
            sums.copy_(value.expand_as(sums))
        else:
            rows = self._tables["groups"] == self._row_of[group]
            sums.copy_(torch.where(rows, value, sums))

    # Guards

    def sum_squares(self) -> None:
        """Leave in :attr:`square_sums` those of the gradients that :meth:`collect` took."""
        if self._grads is None and not self.collect():
            raise RuntimeError(CHANGED)
        self._make_tables_of_passes(1)
        with torch.no_grad(), on_device(self.device):
            self._send_grads(self._addresses)
            self._launch("square_sums", self._chunk_count)
            self._launch("square_totals", len(self.params))

    # Programs

    def _launch(self, name: str, programs: int, first_chunk: int = 0) -> None:
        if programs:
            self._program(name).launch(programs, len(self.params), first_chunk, self._tables)

    def _program(self, name: str) -> Program:
        program = self._programs.get(name)
        if program is None:
            title = f"the rule {self.form.rule.name!r} for {self.device}"
            source = self._source(name)
            program = self._programs[name] = program_for(source, name, self.device, title)
        return program

    def _source(self, name: str) -> str:
        kind, _, number = name.rpartition("_")
        passes = {"reduce": reduce_source, "gather": gather_source, "finish": finish_source}
        if kind in passes:
            return passes[kind](self.variant, int(number))
        # Gradients are looked at before anything is known of them.
        before = replace(self.variant, asks_found_inf=False)
        if name == "square_sums":
            return square_sums_source(before, FLOATING[self.grad_dtype])
        if name == "square_totals":
            return square_totals_source(before)
        return {"prepare": prepare_source, "update": update_source}[name](self.variant)


def _eventual_device(leaf: Leaf) -> torch.device:
    """Return where the kernels will run."""
    return leaf.param.device if target() is None else torch.device("cuda")
