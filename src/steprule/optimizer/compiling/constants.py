"""A fault of torch's compiler, put right where it would lead steps astray.

torch 2.13 has one object for None in all that it compiles, and notes there which tensor's gradient
it was when a gradient that was set to None is asked for. From then on any None is taken from that
place: what a function returns, what another gradient is set to.
"""

from __future__ import annotations

from torch._dynamo.variables import constant

_SHARED = ("CONSTANT_VARIABLE_NONE", "CONSTANT_VARIABLE_TRUE", "CONSTANT_VARIABLE_FALSE")


def forget_where_constants_were() -> None:
    """Have the compiler's shared constants come from nowhere again."""
    for name in _SHARED:
        shared = getattr(constant, name, None)
        if shared is not None:
            shared.source = None
