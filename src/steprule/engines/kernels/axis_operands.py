"""What rules that tell rows from columns the fused engine has kernels for."""

from __future__ import annotations

from steprule.engines.engine import Leaf
from steprule.language.form import Form
from steprule.language.recording import TRUTHS


def axis_refusal(leaf: Leaf, form: Form) -> str | None:
    """Say why the kernel can't tell a parameter's rows from its columns; None if it need not."""
    recording = form.recording()
    if not recording.has_axes:
        return None
    if form.is_sharded:
        return "its rows or columns are spread over ranks"
    param = leaf.param
    if param.ndim != 2 or not param.is_contiguous() or param.is_complex():
        return "the rule is of rows and columns, the parameter no matrix in the order of its rows"
    if not param.numel():
        return "the parameter is empty: it has no rows or columns"
    if recording.shared_reductions or recording.matrix_operations:
        return "the rule has sums over several parameters, or products, beside those of rows"
    if any(x.name in TRUTHS and x.result.each for x in recording.tensor_operations):
        return "the rule compares numbers of rows or columns"
    return None
