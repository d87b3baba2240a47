"""Whether a function that is being compiled has changed Python objects so far.

A compiled function makes such changes when its graph has run: a step within the graph would come
before them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch._dynamo import symbolic_convert


def has_changes_to_come(objects: Iterable[Any]) -> bool:
    """Tell whether any of these is changed by the function that is being compiled."""
    try:
        translator: Any = symbolic_convert.InstructionTranslator
        effects = translator.current_tx().output.side_effects
    except AttributeError:  # nothing is compiled at the moment
        return False
    found = (effects.id_to_variable.get(id(one)) for one in objects)
    return any(one is not None and effects.is_modified(one) for one in found)
