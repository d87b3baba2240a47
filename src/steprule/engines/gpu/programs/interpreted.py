"""Kernels run by Triton's interpreter, on CPU tensors: slow, and as the compiler means them.

For tests and debugging (``TRITON_INTERPRET=1``), without a GPU.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import triton.language as tl
from triton.runtime import interpreter

from steprule.engines.gpu.programs import interpreted_words
from steprule.engines.gpu.programs.functions import function_of

# While it interprets, Triton's language means something else to all threads.
_lock = threading.Lock()


@functools.cache
def interpreted_program(source: str, name: str) -> Callable[[int, Sequence[Any]], None]:
    """Return what runs a kernel, given the number of programs and its arguments (tensors)."""
    with _lock:
        _mend_interpreter()
    kernel = interpreter.InterpretedFunction(function_of(source, name, interpreted_words))

    def launch(programs: int, arguments: Sequence[Any]) -> None:
        with _lock, np.errstate(all="ignore"):
            kernel[(programs,)](*arguments)

    return launch


@functools.cache
def _mend_interpreter() -> None:
    """Put right what Triton 3.6 interprets otherwise than a device, or not at all."""
    builder = interpreter.InterpreterBuilder
    plain_cast, plain_patch = builder.cast_impl, interpreter._patch_lang_tensor

    def cast_impl(self: Any, src: Any, dst_type: Any) -> Any:
        """Round to nearest, where the interpreter cuts off."""
        if (src.dtype.scalar, dst_type.scalar) != (tl.float32, tl.bfloat16):
            return plain_cast(self, src, dst_type)
        numbers = torch.from_numpy(np.array(src.data, dtype=np.float32))
        bits = numbers.to(torch.bfloat16).view(torch.int16).numpy().view(np.uint16)
        return interpreter.TensorHandle(bits.reshape(src.data.shape), tl.bfloat16)

    def create_fp_to_fp(self: Any, src: Any, dst_type: Any, _rounding: Any) -> Any:
        return cast_impl(self, src, dst_type)

    def patch_lang_tensor(tensor: Any, scope: Any) -> None:
        """Let loops have bounds that were computed: NumPy 2.4 converts no arrays of one number."""
        plain_patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.reshape(-1)[0]))

    def as_truths(compare: Callable[..., Any]) -> Callable[..., Any]:
        """Have a comparison give truth values, not numbers of the kind that it compared."""

        def create(self: Any, one: Any, other: Any) -> Any:
            return interpreter.TensorHandle(compare(self, one, other).data.astype(bool), tl.int1)

        return create

    for name, member in list(vars(builder).items()):
        if name.startswith(("create_fcmp", "create_icmp")):
            setattr(builder, name, as_truths(member))
    builder.cast_impl = cast_impl
    builder.create_fp_to_fp = create_fp_to_fp
    interpreter._patch_lang_tensor = patch_lang_tensor
