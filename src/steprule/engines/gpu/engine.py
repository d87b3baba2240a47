"""The engine ``triton``: what its kernels can take, and what can share one launch."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch

from steprule.engines.engine import Leaf, Runner, UnavailableError
from steprule.engines.gpu.programs.launching import why_unavailable
from steprule.engines.interpreting import is_interpreting
from steprule.engines.kernels.axis_operands import axis_refusal
from steprule.engines.kernels.matrix_operands import matrix_refusal
from steprule.engines.kernels.memory import counts_of
from steprule.engines.kernels.refusals import param_refusal, state_refusal
from steprule.engines.target import target
from steprule.language.form import Form


class TritonEngine:
    """Prints kernels for a device; one launch updates all tensors of a layout."""

    name = "triton"
    by_address = True

    def refusal(self, leaf: Leaf, form: Form) -> str | None:
        """Refuse what is on no device of Triton's, or laid out otherwise."""
        if not form.rule.is_recorded:
            return "the rule works on whole tensors, not on elements"
        if leaf.grad.is_sparse:
            return form.sparse_reason
        return (
            _device_refusal(leaf)
            or param_refusal(leaf)
            or state_refusal(leaf, form)
            or _count_refusal(leaf, form)
            or matrix_refusal(leaf, form)
            or axis_refusal(leaf, form)
        )

    def bucket_key(self, leaf: Leaf, form: Form) -> Hashable:
        counts = [leaf.state[name] for name in counts_of(form, leaf.storage)]
        return (
            leaf.storage,
            leaf.grad.dtype,
            leaf.param.device,
            leaf.param.is_contiguous(),
            tuple((count.dtype, count.device.type) for count in counts),
            leaf.param.shape if form.recording().matrix_operations else None,
        )

    def runner(self, form: Form, leaves: Sequence[Leaf]) -> Runner:
        reason = why_unavailable()
        if reason is not None:
            raise UnavailableError(reason)
        from steprule.engines.gpu.axis_runner import AxisTritonRunner
        from steprule.engines.gpu.matrix_runner import MatrixTritonRunner
        from steprule.engines.gpu.probe import why_not_usable
        from steprule.engines.gpu.runner import TritonRunner
        from steprule.engines.kernel_cache.cache import CompilationError

        recording = form.recording()
        try:
            reason = why_not_usable(leaves[0].param.device)
            if reason is not None:
                raise UnavailableError(reason)
            if recording.has_axes:
                return AxisTritonRunner(form, leaves)
            has_matrices = bool(recording.matrix_operations)
            return (MatrixTritonRunner if has_matrices else TritonRunner)(form, leaves)
        except CompilationError as error:
            raise UnavailableError(str(error)) from error


def _device_refusal(leaf: Leaf) -> str | None:
    device = leaf.param.device.type
    if device == "cpu" and target() is None and not is_interpreting():
        return "the parameter is on cpu (TRITON_INTERPRET=1 interprets kernels there, slowly)"
    if device not in ("cpu", "cuda", "xpu"):
        return f"the parameter is on {device}; Triton has no kernels there"
    return None


def _count_refusal(leaf: Leaf, form: Form) -> str | None:
    """Say why the step count and scalar slots can't be reached; None if they can."""
    counts = {name: leaf.state[name] for name in counts_of(form, leaf.storage)}
    devices = {count.device for count in counts.values()}
    on_host = torch.device("cpu") in devices and leaf.param.device.type != "cpu"
    if len(devices) > 1:
        return "its step count and other numbers are on several devices"
    if on_host and (form.capturable or form.may_be_called_off):
        return "its step count is on the host, where a step taken on the device does not reach it"
    if on_host and form.slots_of_sums:
        name = form.slots_of_sums[0]
        return f"its {name!r} follows from a sum on the device, but is kept on the host"
    return None
