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
from steprule.engines.kernels.memory import counts_of
from steprule.engines.kernels.refusals import param_refusal, state_refusal
from steprule.engines.whole_step import Contents, WholeStep
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
            _device_refusal(leaf)
            or param_refusal(leaf)
            or state_refusal(leaf, form)
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


def _device_refusal(leaf: Leaf) -> str | None:
    if leaf.param.device.type != "cpu":
        return f"the parameter is on {leaf.param.device.type}; the kernel is for the CPU"
    if leaf.param.dtype is torch.float16 and not can_convert_half():
        return "this processor has no float16 conversions"
    return None
