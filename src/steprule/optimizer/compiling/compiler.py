"""What is asked of torch's compiler beside its interface, in one place, for it may change.

A version of torch in which something of this is not found has every step left out of graphs.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

try:
    from torch._dynamo import exc, symbolic_convert
    from torch._dynamo.variables import constant
    from torch._dynamo.variables.optimizer import OptimizerVariable
    from torch._dynamo.variables.user_defined import UserDefinedObjectVariable

    _own_getattr: Any = OptimizerVariable.var_getattr
    _plain_getattr: Any = UserDefinedObjectVariable.var_getattr
    _RESTART: Any = exc.UnspecializeRestartAnalysis
    _LOCAL: Any = symbolic_convert.tls
except (ImportError, AttributeError) as error:
    #: Why the compiler is not known; empty if it is.
    UNKNOWN = f"this version of torch's compiler is not known ({error})"
else:
    UNKNOWN = ""

_SHARED = ("CONSTANT_VARIABLE_NONE", "CONSTANT_VARIABLE_TRUE", "CONSTANT_VARIABLE_FALSE")
# An attribute of tensors. All parameters that a compiler has seen are marked as "unguarded".
_MARK, _IS_STATIC = "_dynamo_static_input_type", "guarded"
_is_mended = False


def forget_where_constants_were() -> None:
    """Have the compiler's shared constants come from nowhere again.

    torch 2.13 has one object for None in all that it compiles, and notes there which tensor's
    gradient it was when a gradient that was set to None is asked for. From then on any None is
    taken from that place: what a function returns, what another gradient is set to.
    """
    for name in _SHARED:
        shared = getattr(constant, name, None)
        if shared is not None:
            shared.source = None


def has_changes_to_come(objects: Iterable[Any]) -> bool:
    """Tell whether any of these is changed by the function that is being compiled.

    A compiled function changes Python objects when its graph has run: a step within the graph
    would come before that.
    """
    translator = _translator()
    if translator is None:
        return False
    effects = translator.output.side_effects
    found = (effects.id_to_variable.get(id(one)) for one in objects)
    return any(one is not None and effects.is_modified(one) for one in found)


def has_tensors_to_come(tensors: Iterable[Tensor]) -> bool:
    """Tell whether any of these is changed in place by the graph that is being made.

    Some backends hand an input's changes over when the whole graph has run.
    """
    translator = _translator()
    if translator is None:
        return False
    known = translator.output.side_effects.id_to_variable
    found = (known.get(id(tensor)) for tensor in tensors)
    return any(
        one.proxy.node.meta["example_value"]._version > 0 for one in found if one is not None
    )


def mend(groups: Iterable[dict[str, Any]], ours: type) -> str:
    """Keep from our optimizers what the compiler does to those of torch.

    Where a function that is compiled reads ``optimizer.param_groups``, torch 2.13 has
    ``capturable`` be True in every group, which then stands there if the function changes any
    option; and it marks all parameters for good as tensors that stay where they are. Gradients
    that a traced backward pass gives to marked parameters are lost.

    If anything of it has been done by now, the function is traced from its beginning again.

    Args:
        groups: those of an optimizer whose gradients are cleared, or whose step is taken.
        ours: the class whose instances are spared.

    Returns:
        Why a backward pass may not be traced here; empty if it may.
    """
    was_mended = _spare(ours)
    # A mark that somebody has made for CUDA graphs does no harm elsewhere.
    is_traced = getattr(torch._dynamo.config, "trace_autograd_ops", False)
    had_marks = is_traced and _unmark(p for group in groups for p in group["params"])
    translator = _translator()
    if translator is None or not (was_mended or had_marks):
        return ""
    log = translator.speculation_log  # one for all attempts at a function
    if getattr(log, "is_mended_for_steprule", False):
        return "the function marks parameters as static, whose gradients are then lost"
    log.is_mended_for_steprule = True
    raise _RESTART(restart_reason="steprule: the compiler had treated an optimizer as torch's own")


def _translator() -> Any:
    """Return what traces the present function; None where nothing is compiled."""
    return getattr(_LOCAL, "current_tx", None)


def _spare(ours: type) -> bool:
    """Have the compiler read our optimizers as any object; tell whether it did not before."""
    global _is_mended
    if _is_mended:
        return False

    def var_getattr(self: Any, tx: Any, name: str) -> Any:
        is_plain = name == "param_groups" and isinstance(self.value, ours)
        return (_plain_getattr if is_plain else _own_getattr)(self, tx, name)

    OptimizerVariable.var_getattr = var_getattr  # type: ignore[method-assign]
    _is_mended = True
    return True


def _unmark(params: Iterable[Tensor]) -> bool:
    """Take the marks from parameters; tell whether any had one."""
    marked = [param for param in params if getattr(param, _MARK, None) == _IS_STATIC]
    for param in marked:
        delattr(param, _MARK)
    return bool(marked)
