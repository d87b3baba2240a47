"""One compiled kernel for all parameters of a form, kept from step to step."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

import numpy as np
import torch

from steprule.engines.cpu.kernel_text import source_of
from steprule.engines.cpu.reduction_text import (
    finish_names,
    finishes_source_of,
    reductions_source_of,
)
from steprule.engines.cpu.square_sums import square_sums_library, totals_library
from steprule.engines.engine import Leaf
from steprule.engines.kernel_cache.cache import Library, library_for
from steprule.engines.kernels.address_runner import CHANGED, CHUNK, AddressRunner
from steprule.engines.kernels.layout import Layout
from steprule.engines.native.control_block import Control
from steprule.engines.native.loops_text import GuardWord
from steprule.engines.stages import Share, Stages
from steprule.engines.threads.work_split import WorkSplit
from steprule.formats.floating import FLOATING
from steprule.language.form import Form
from steprule.language.passes import Pass
from steprule.language.recording import OVER_SHARDS

# Elements for each thread: with fewer, another thread costs more than it saves.
GRAIN = 1 << 16
# Where a kernel's library has `update`.
UPDATE = 1


class KernelRunner(AddressRunner):
    """One kernel for the leaves of one layout."""

    def __init__(self, form: Form, leaves: Sequence[Leaf]) -> None:
        super().__init__(form, leaves)
        self._library, self._reductions = self._compile(leaves[0])
        self._grad_format = FLOATING[leaves[0].grad.dtype]
        self._splits: dict[tuple[Library, int, int, int, int], WorkSplit] = {}
        self._pass_calls = array("q")
        self.square_sums = array("d", bytes(8 * len(leaves)))
        self._control[Control.SQUARE_SUMS] = self.square_sums.buffer_info()[0]

    def _compile(self, leaf: Leaf) -> tuple[Library, Library]:
        """Return the kernel, and what reduces before it updates (itself if nothing does)."""
        return _libraries_of(self.layout, self.passes)

    def _update(self, addresses: array[int]) -> Stages:
        self._control[Control.GRADS] = addresses.buffer_info()[0]
        with self.counts_undone():
            self._library.functions[0](self._address, 0, 0)
            yield from self._run_passes(addresses)

    def _run_passes(self, addresses: Sequence[int]) -> Stages:
        """Update all elements, scalars being prepared; with reductions first, if there are any."""
        over_tensors = iter(self._library.functions[2:])
        for i, one in enumerate(self.passes):
            self._over_chunks(self._reductions, i)
            if one.is_shared:
                next(over_tensors)(self._address, 0, 0)
                yield from self._share(one, addresses)
            next(over_tensors)(self._address, 0, 0)
        self._over_chunks(self._library, UPDATE)

    def _share(self, one: Pass, addresses: Sequence[int]) -> Stages:
        """Put in a pass's table of sums the totals of those over several parameters."""
        found = [i for i in range(len(self.params)) if addresses[i]]
        groups, elements = [self._groups[i] for i in found], [self._whole[i] for i in found]
        numbers = [self._shard_numbers[i] for i in found]
        sums = self._reduction_tables[Control.SUMS]
        asked = {
            j: self._shared_keys[reduction.result]
            for j, reduction in enumerate(one.reductions)
            if reduction.is_shared
        }
        totals = yield [
            Share(key, sums[j, found].tolist(), groups, elements, numbers)
            for j, key in asked.items()
        ]
        for j, key in asked.items():
            whose = numbers if one.reductions[j].over == OVER_SHARDS else groups
            sums[j, found] = [totals[key][who] for who in whose]

    def sum_squares(self) -> None:
        """Leave in :attr:`square_sums` those of the gradients that :meth:`collect` took."""
        if self._grads is None and not self.collect():
            raise RuntimeError(CHANGED)
        addresses, grads = self._addresses, self._grads
        self._make_ready_for_squares()
        self._control[Control.GRADS] = addresses.buffer_info()[0]
        self._over_chunks(square_sums_library(self._grad_format), 0)
        totals_library().functions[0](self._address, 0, 0)
        del grads

    def _make_ready_for_squares(self) -> None:
        if not self._reduction_tables:
            self._make_tables_of_reductions(1)

    def _over_chunks(
        self, library: Library, index: int, first: int = 0, last: int | None = None
    ) -> None:
        """Run a function of a library over some chunks (all), on as many threads as it is worth."""
        last = self._chunk_count if last is None else last
        is_all = last - first == self._chunk_count
        threads = self.threads() if is_all else self._threads_for((last - first) * CHUNK)
        if threads == 1:
            library.functions[index](self._address, first, last)
        else:
            self._split_for(threads, library, index, first, last).run()

    def threads(self) -> int:
        """Return how many threads the kernel is worth now."""
        return self._threads_for(self.elements)

    @staticmethod
    def _threads_for(elements: int) -> int:
        return min(torch.get_num_threads(), 1 + elements // GRAIN)

    def is_sound(self) -> bool:
        """Audit the native guard; False if what it reads may not be relied on."""
        return self._native_guard is not None and self._native_guard.is_sound()

    def guard_block(self, threads: int, *, sums_squares: bool = False) -> array[int] | None:
        """Tell the native guard of kernel and threads; None if it can't be used, else its block.

        Args:
            threads: how many the kernel runs on.
            sums_squares: whether a step's sums of squares are taken as well.
        """
        guard = self._native_guard
        if guard is None or not self.is_guarded:
            return None
        prepare, update = self._library.addresses[:2]
        words = {
            GuardWord.CONTROL: self._address,
            GuardWord.PREPARE: prepare,
            GuardWord.UPDATE: update,
            GuardWord.CHUNKS: self._chunk_count,
            GuardWord.TASK: self._task(threads, self._library, UPDATE),
            GuardWord.THREADS: threads,
        }
        # A block's tables are kept as long as a step may use them.
        self._pass_calls = self._calls_of_passes(threads)
        words[GuardWord.PASSES] = len(self.passes)
        words[GuardWord.PASS_CALLS] = self._pass_calls.buffer_info()[0]
        if sums_squares:
            self._make_ready_for_squares()
            squares = square_sums_library(self._grad_format)
            words[GuardWord.SQUARES] = squares.addresses[0]
            words[GuardWord.SQUARES_TASK] = self._task(threads, squares, 0)
            words[GuardWord.TOTALS] = totals_library().addresses[0]
        if threads > 1 and not words[GuardWord.TASK]:
            return None
        guard.tell(words)
        return guard.block

    @property
    def takes_whole_steps(self) -> bool:
        """Whether its kernel needs nothing of Python in the midst of a step."""
        return not any(one.is_shared or one.matrix_operations for one in self.passes)

    def _calls_of_passes(self, threads: int) -> array[int]:
        """Return what a native step calls for each pass, in the order of PassWord."""
        calls = array("q")
        for k in range(len(self.passes)):
            calls.append(self._reductions.addresses[k])
            calls.append(self._task(threads, self._reductions, k))
            calls.append(self._library.addresses[UPDATE + 1 + k])
        return calls

    def _task(self, threads: int, library: Library, index: int) -> int:
        """Return what a team of threads is told to run a function; 0 where this thread does."""
        if threads == 1:
            return 0
        return self._split_for(threads, library, index, 0, self._chunk_count).task

    def _split_for(
        self, threads: int, library: Library, index: int, first: int, last: int
    ) -> WorkSplit:
        key = (library, index, threads, first, last)
        split = self._splits.get(key)
        if split is None:
            edges = self._edges(threads, first, last)
            split = self._splits[key] = WorkSplit(library, index, self._address, edges)
        return split

    def _edges(self, threads: int, first: int, last: int) -> list[int]:
        """Return where each thread's chunks begin (and the last one's end): about equal work."""
        ends = np.cumsum(self._chunks[first:last, 2])
        cuts = np.searchsorted(ends, np.linspace(0, ends[-1], threads + 1)[1:-1]) + 1 + first
        return [first, *cuts.tolist(), last]


def _libraries_of(layout: Layout, passes: Sequence[Pass]) -> tuple[Library, Library]:
    """Return the kernel, and what reduces before it updates (the kernel again if nothing does)."""
    title = f"the rule {layout.form.rule.name!r}"
    names = ("prepare", "update", *finish_names(passes))
    source = source_of(layout) + finishes_source_of(layout)
    library = library_for(source, names, arity=3, title=title)
    if not passes:
        return library, library
    source, names = reductions_source_of(layout), tuple(f"reduce_{i}" for i in range(len(passes)))
    title = f"the sums of {title}"
    return library, library_for(source, names, arity=3, reorders_sums=True, title=title)
