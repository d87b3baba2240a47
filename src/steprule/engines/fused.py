"""The fused engine: one compiled kernel for all parameters of a form, on the CPU.

A :class:`FusedRunner` keeps the addresses of everything that a kernel touches. Before each step
it looks again at all that may have moved (gradients, ``param.data``, replaced state), for a
stale address is not a wrong number but corrupted memory.
"""

from __future__ import annotations

import functools
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from operator import attrgetter, itemgetter
from typing import Any

import numpy as np
import torch
from torch import Tensor

from steprule.engines import Leaf
from steprule.engines.kernel_cache import Kernel, can_convert_half, kernel_for
from steprule.engines.kernel_source import Control, Layout, kernel_source, scalar_row
from steprule.engines.workers import workers
from steprule.formats import format_of
from steprule.formats.floating import FLOATING, compute_dtype
from steprule.rule import SUPPLIED
from steprule.shared_terms import Form

# Elements of one chunk: small enough to spread evenly, large enough to hide its set-up.
CHUNK = 8192
# Elements for each thread: below this a second thread costs more than it saves.
GRAIN = 1 << 19

_PLAIN = {Tensor, torch.nn.Parameter}
_data_ptr = Tensor.data_ptr
_numel = Tensor.numel
_is_contiguous = Tensor.is_contiguous
_grad_of = attrgetter("grad")
_dtype_of = attrgetter("dtype")


class FusedEngine:
    """Compiles a kernel for each layout; its runners are kept from step to step."""

    name = "fused"

    def refusal(self, leaf: Leaf, form: Form) -> str | None:
        """Refuses what can't be reached by address on the CPU, or is laid out otherwise."""
        if not form.rule.elementwise:
            return "the rule works on whole tensors, not on elements"
        if form.capturable:
            return "capturable=True keeps the step count on the device"
        param = leaf.param
        if type(param) not in _PLAIN or type(leaf.grad) not in _PLAIN:
            return f"{type(param).__name__} is a tensor subclass"
        if param.device.type != "cpu":
            return f"the parameter is on {param.device.type}; the kernel is for the CPU"
        if param.layout is not torch.strided:
            return f"the parameter's layout is {param.layout}"
        if param.dtype not in FLOATING or param.dtype is torch.complex32:
            return f"there is no kernel for {param.dtype}"
        if param.dtype is torch.float16 and not can_convert_half():
            return "this processor has no float16 conversions"
        if param.is_inference():
            return "the parameter was made in inference mode"
        if param.is_conj() or param.is_neg():
            return "the parameter is a lazy conjugate or negative view"
        if not _is_dense(param):
            return "the parameter is a strided view with gaps, or overlaps itself"
        if not _has_memory(param):
            return "the parameter has no memory of its own"
        return _state_refusal(leaf, form)


def _state_refusal(leaf: Leaf, form: Form) -> str | None:
    for name in form.array_slots:
        slot = leaf.state[name]
        if type(slot) not in _PLAIN or slot.device.type != "cpu" or slot.dtype not in FLOATING:
            return f"its state {name!r} is not a plain CPU tensor of a floating dtype"
        if slot.stride() != leaf.param.stride() and slot.numel() > 1:
            return f"its state {name!r} is laid out in memory otherwise than the parameter"
        if slot.is_conj() or slot.is_neg() or not _has_memory(slot):
            return f"its state {name!r} has no memory of its own"
    for name in _counts(form):
        count = leaf.state[name]
        if count.device.type != "cpu" or count.dtype not in (torch.float32, torch.float64):
            return f"its {name!r} is not a CPU tensor of float32 or float64"
    return None


def _has_memory(tensor: Tensor) -> bool:
    try:
        return tensor.data_ptr() != 0 or tensor.numel() == 0
    except RuntimeError:  # functorch wrappers, fake tensors
        return False


def _is_dense(tensor: Tensor) -> bool:
    """Whether the tensor's elements fill one block of memory, in whatever order of axes."""
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size > 1:
            if stride != expected:
                return False
            expected *= size
    return True


def _counts(form: Form) -> tuple[str, ...]:
    step = ("step",) if form.rule.counts_steps else ()
    return (*step, *form.scalar_slots)


def layout_key(form: Form, leaf: Leaf) -> Any:
    """Leaves with equal keys can be updated by one kernel."""
    return (
        form,
        leaf.param.dtype,
        leaf.grad.dtype,
        leaf.param.is_contiguous(),
        tuple(leaf.state[name].dtype for name in form.array_slots),
        tuple(leaf.state[name].dtype for name in _counts(form)),
    )


def overlapping(leaves: Sequence[Leaf], form: Form) -> set[int]:
    """Indices of leaves that share written memory: threads must not race for it."""
    spans = []
    for i, leaf in enumerate(leaves):
        for tensor in (leaf.param, *(leaf.state[name] for name in form.array_slots)):
            if tensor.numel():
                start = tensor.data_ptr()
                spans.append((start, start + tensor.numel() * tensor.element_size(), i))
    spans.sort()
    found: set[int] = set()
    furthest, owner = 0, -1
    for start, end, i in spans:
        if start < furthest:
            found.update((i, owner))
        if end > furthest:
            furthest, owner = end, i
    return found


class FusedRunner:
    """One kernel and the tables it reads, for the leaves of one layout."""

    def __init__(self, form: Form, leaves: Sequence[Leaf]) -> None:
        self.form = form
        self.params = [leaf.param for leaf in leaves]
        self.labels = [leaf.label for leaf in leaves]
        self.groups = sorted({leaf.group for leaf in leaves})
        self.grad_dtype = leaves[0].grad.dtype
        self._states = [leaf.state for leaf in leaves]
        self._kernel, row_length = _kernel_of(form, leaves[0])
        self._memorise()
        self._make_tables(leaves, row_length)
        self._grads: list[Tensor | None] = []
        self._active: Sequence[Tensor] = ()
        self._pointers = array("q")
        self._shares: dict[int, list[tuple[int, int]]] = {}

    def _memorise(self) -> None:
        """Keep what :meth:`collect` compares with."""
        params = self.params
        self._param_pointers = list(map(_data_ptr, params))
        self._sizes = list(map(_numel, params))
        self._contiguous = params[0].is_contiguous()
        self._strides = None if self._contiguous else [p.stride() for p in params]
        # A lazy conjugate or negation hides in a complex tensor, or in one with one element.
        self._may_be_lazy = [i for i, p in enumerate(params) if p.is_complex() or p.numel() == 1]
        self._empty = [i for i, p in enumerate(params) if p.numel() == 0]
        names = (*self.form.array_slots, *_counts(self.form))
        # While these are alive, no other tensor can be given one of the addresses.
        self._kept = [p.detach() for p in params]
        self._kept += [state[name] for name in names for state in self._states]
        self._slots: list[tuple[Callable[[dict[str, Any]], Tensor], list[int]]] = [
            (itemgetter(name), [state[name].data_ptr() for state in self._states]) for name in names
        ]

    def _make_tables(self, leaves: Sequence[Leaf], row_length: int) -> None:
        count = len(leaves)
        scale = 2 if leaves[0].param.is_complex() else 1
        sizes = [size * scale for size in self._sizes]
        arrays = len(self.form.array_slots)
        columns = [self._param_pointers, *(pointers for _, pointers in self._slots[:arrays])]
        self._columns = np.array(columns, dtype=np.int64)
        self._counts = np.array([p for _, p in self._slots[arrays:]] or [[0]], dtype=np.int64)
        row_of = {group: i for i, group in enumerate(self.groups)}
        self._row_of = row_of
        self._group_rows = np.array([row_of[leaf.group] for leaf in leaves], dtype=np.int64)
        hyperparameters = [n for n in self.form.scalars if n not in SUPPLIED]
        self._numbers = np.zeros((len(self.groups), max(1, len(hyperparameters))))
        self._first = np.array([float(leaf.is_first) for leaf in leaves])
        self._scalars = np.zeros((count, max(1, row_length)))
        chunks = [
            (i, start, min(CHUNK, size - start))
            for i, size in enumerate(sizes)
            for start in range(0, size, CHUNK)
        ]
        self._chunks = np.array(chunks or [(0, 0, 0)], dtype=np.int64)
        self._chunk_count = len(chunks)
        self._elements = sum(sizes)
        self._control = np.zeros(len(Control), dtype=np.int64)
        tables: Mapping[Control, np.ndarray[Any, Any]] = {
            Control.COLUMNS: self._columns,
            Control.COUNTS: self._counts,
            Control.GROUPS: self._group_rows,
            Control.NUMBERS: self._numbers,
            Control.FIRST: self._first,
            Control.SCALARS: self._scalars,
            Control.CHUNKS: self._chunks,
        }
        for word, table in tables.items():
            self._control[word] = table.ctypes.data
        self._control[Control.TENSORS] = count
        self._address = self._control.ctypes.data

    def set_numbers(self, group: int, numbers: Iterable[float]) -> None:
        """Put a group's hyperparameters in force from the next step on."""
        for i, number in enumerate(numbers):
            self._numbers[self._row_of[group], i] = number

    def collect(self) -> bool:
        """Look at all that may have moved since the last step, and take this step's gradients.

        Returns:
            False if anything is no longer as it was planned: plan anew.
        """
        params = self.params
        if list(map(_data_ptr, params)) != self._param_pointers:
            return False
        try:
            for slot_of, pointers in self._slots:
                if list(map(_data_ptr, map(slot_of, self._states))) != pointers:
                    return False
            return self._collect_grads()
        except (KeyError, TypeError, RuntimeError):  # gone, no tensor, or without memory
            return False

    def _collect_grads(self) -> bool:
        grads = list(map(_grad_of, self.params))
        kinds = set(map(type, grads))
        if (
            kinds == {Tensor}
            and self._contiguous
            and set(map(_dtype_of, grads)) == {self.grad_dtype}
            and list(map(_numel, grads)) == self._sizes
            and all(map(_is_contiguous, grads))
            and not any(grads[i].is_conj() or grads[i].is_neg() for i in self._may_be_lazy)
        ):
            self._pointers = array("q", map(_data_ptr, grads))
            self._active = self.params
        else:
            if not kinds <= {*_PLAIN, type(None)}:
                return False
            for i, grad in enumerate(grads):
                if grad is not None and not self._fits(i, grad):
                    if grad.layout is not torch.strided or grad.shape != self.params[i].shape:
                        return False
                    grads[i] = self._conforming(i, grad)
            self._pointers = array("q", (0 if g is None else g.data_ptr() for g in grads))
            self._active = [p for p, g in zip(self.params, grads, strict=True) if g is not None]
        for i in self._empty:
            self._pointers[i] = grads[i] is not None
        self._grads = grads
        return self._pointers.count(0) == len(self.params) - len(self._active)

    def _fits(self, i: int, grad: Tensor) -> bool:
        """Whether a gradient can be read where it is."""
        same_layout = (
            grad.is_contiguous()
            if self._strides is None
            else grad.layout is torch.strided and grad.stride() == self._strides[i]
        )
        return (
            grad.layout is torch.strided
            and grad.dtype is self.grad_dtype
            and grad.shape == self.params[i].shape
            and same_layout
            and not grad.is_conj()
            and not grad.is_neg()
        )

    def _conforming(self, i: int, grad: Tensor) -> Tensor:
        """A copy of an expanded, permuted, lazily conjugated… gradient that the kernel can read."""
        return torch.empty_like(self.params[i], dtype=self.grad_dtype).copy_(grad)

    def run(self) -> None:
        """Update the parameters whose gradients :meth:`collect` took."""
        try:
            if self._active:
                self._control[Control.GRADS] = self._pointers.buffer_info()[0]
                self._kernel.prepare(self._address, 0, 0)
                threads = min(torch.get_num_threads(), 1 + self._elements // GRAIN)
                if threads == 1:
                    self._kernel.update(self._address, 0, self._chunk_count)
                else:
                    update = functools.partial(self._kernel.update, self._address)
                    shares = self._shares_for(threads)
                    workers().run([functools.partial(update, *share) for share in shares])
                _bump_versions(self._active)
        finally:
            self._grads = []
            self._active = ()

    def _shares_for(self, threads: int) -> list[tuple[int, int]]:
        """Ranges of chunks with about equal numbers of elements, one for each thread."""
        if threads not in self._shares:
            ends = np.cumsum(self._chunks[:, 2])
            cuts = np.searchsorted(ends, np.linspace(0, ends[-1], threads + 1)[1:-1]) + 1
            edges = [0, *map(int, cuts), self._chunk_count]
            self._shares[threads] = list(zip(edges[:-1], edges[1:], strict=True))
        return self._shares[threads]


def _kernel_of(form: Form, leaf: Leaf) -> tuple[Kernel, int]:
    stored = [("param", leaf.param), ("grad", leaf.grad)]
    stored += [(name, leaf.state[name]) for name in form.array_slots]
    layout = Layout(
        form=form,
        formats=tuple((name, format_of(tensor)) for name, tensor in stored),
        count_dtypes=tuple(
            (name, str(leaf.state[name].dtype).removeprefix("torch.")) for name in _counts(form)
        ),
        compute=str(compute_dtype(leaf.param)).removeprefix("torch."),
    )
    return kernel_for(_source_of(layout)), len(scalar_row(form.recording()))


@functools.cache
def _source_of(layout: Layout) -> str:
    return kernel_source(layout)


def _bump_versions(params: Sequence[Tensor]) -> None:
    """Let a graph that saved a parameter know that it has changed, as an in-place operation does."""
    torch.autograd.graph.increment_version(params)
