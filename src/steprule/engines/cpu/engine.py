"""The fused engine: what its kernels can take, and what can share one.

A kernel reaches everything by address on the CPU (runner.py runs it), so that this is also the
list of what must hold for that to be safe.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from steprule.engines.compiler import can_convert_half
from steprule.engines.engine import Leaf, Runner, UnavailableError
from steprule.engines.kernels.axis_operands import axis_refusal
from steprule.engines.kernels.matrix_operands import matrix_refusal
from steprule.engines.kernels.memory import PLAIN, counts_of, has_memory
from steprule.engines.whole_step import Contents, WholeStep
from steprule.formats.floating import FLOATING
from steprule.language.form import Form

if TYPE_CHECKING:
    from steprule.engines.cpu.runner import KernelRunner


class CpuEngine:
    """Compiles a kernel for each layout; its runners are kept from step to step."""

    name = "fused"
    by_address = True

    def refusal(self, leaf: Leaf, form: Form) -> str | None:
        """Refuse what can't be reached by address on the CPU, or is laid out otherwise."""
        if not form.rule.is_recorded:
            return "the rule works on whole tensors, not on elements"
        if form.capturable:
            return "capturable=True keeps the step count on the device"
        if leaf.grad.is_sparse:
            return form.sparse_reason
        return (
            _param_refusal(leaf)
            or _state_refusal(leaf, form)
            or matrix_refusal(leaf, form)
            or axis_refusal(leaf, form)
        )

    def bucket_key(self, leaf: Leaf, form: Form) -> Hashable:
        return (
            leaf.storage,
            leaf.grad.dtype,
            leaf.param.is_contiguous(),
            tuple(leaf.state[name].dtype for name in counts_of(form, leaf.storage)),
            leaf.param.shape if form.recording().matrix_operations else None,
        )

    def runner(self, form: Form, leaves: Sequence[Leaf]) -> Runner:
        from steprule.engines.cpu.axis_runner import AxisRunner
        from steprule.engines.cpu.matrix_runner import MatrixRunner
        from steprule.engines.cpu.runner import KernelRunner
        from steprule.engines.kernel_cache.cache import CompilationError

        try:
            recording = form.recording()
            if recording.has_axes:
                return AxisRunner(form, leaves)
            return (MatrixRunner if recording.matrix_operations else KernelRunner)(form, leaves)
        except CompilationError as error:
            raise UnavailableError(str(error)) from error

    def takes_whole_steps(self, runners: Sequence[Runner]) -> bool:
        from steprule.engines.native.whole_step import NativeStep

        kernels = cast("Sequence[KernelRunner]", runners)
        are_plain = all(kernel.is_guarded and kernel.takes_whole_steps for kernel in kernels)
        return are_plain and NativeStep.takes(kernels)

    def whole_step(
        self,
        groups: Sequence[Contents],
        state: Mapping[Any, Any],
        without_grad: Sequence[Tensor],
        runners: Sequence[Runner],
    ) -> WholeStep:
        """Make one native call of all kernels."""
        from steprule.engines.native.whole_step import NativeStep

        return NativeStep(groups, state, without_grad, cast("Sequence[KernelRunner]", runners))


def _param_refusal(leaf: Leaf) -> str | None:
    param = leaf.param
    if type(param) not in PLAIN or type(leaf.grad) not in PLAIN:
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
    if not has_memory(param):
        return "the parameter has no memory of its own"
    return None


def _state_refusal(leaf: Leaf, form: Form) -> str | None:
    storage = leaf.storage
    if storage.without_text is not None:
        return f"the format of {storage.without_text}, has no text for kernels"
    if not storage.is_plain and not leaf.param.is_contiguous():
        return "the parameter's elements are not in the order of its axes, as its format needs"
    if storage.has_blocks and form.recording().has_axes:
        return "the rule tells rows from columns, and its state is stored in blocks"
    for name in storage.keys:
        slot = leaf.state[name]
        if type(slot) not in PLAIN or slot.device.type != "cpu":
            return f"its state {name!r} is not a plain CPU tensor"
        is_laid_out = (
            slot.is_contiguous()
            if name in form.each_slots or slot.shape != leaf.param.shape
            else slot.stride() == leaf.param.stride() or slot.numel() < 2
        )
        if not is_laid_out:
            return f"its state {name!r} is laid out in memory otherwise than the parameter"
        if slot.is_conj() or slot.is_neg() or not has_memory(slot):
            return f"its state {name!r} has no memory of its own"
    for name in counts_of(form, storage):
        count = leaf.state[name]
        if type(count) not in PLAIN or count.layout is not torch.strided or not has_memory(count):
            return f"its {name!r} is not a plain tensor with memory of its own"
        if count.device.type != "cpu" or count.dtype not in (torch.float32, torch.float64):
            return f"its {name!r} is not a CPU tensor of float32 or float64"
    return None


def _is_dense(tensor: Tensor) -> bool:
    """Tell whether the tensor's elements fill one block of memory, in whatever order of axes."""
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size > 1:
            if stride != expected:
                return False
            expected *= size
    return True
