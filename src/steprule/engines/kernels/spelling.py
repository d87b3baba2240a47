"""How operations are written in the language of the CPU's kernels (compiler/ lowers it)."""

from __future__ import annotations

from steprule.engines.printing import Spelling

_INFIX = {
    "add": "+",
    "sub": "-",
    "mul": "*",
    "div": "/",
    "lt": "<",
    "le": "<=",
    "gt": ">",
    "ge": ">=",
    "eq": "==",
    "ne": "!=",
    "and": "&",
    "or": "|",
}
_FUNCTIONS = ("sqrt", "exp", "expm1", "log", "log1p", "tanh", "floor", "abs")
_TEMPLATES = {
    **{name: f"({{0}} {sign} {{1}})" for name, sign in _INFIX.items()},
    **{name: f"{name}({{0}})" for name in _FUNCTIONS},
    "pow": "{number}({0} ** {1})",
    "neg": "(-{0})",
    "not": "(not {0})",
    # A comparison with nan is false, so nan in either operand comes through.
    "maximum": "({0} if ({0} > {1}) | ({0} != {0}) else {1})",
    "minimum": "({0} if ({0} < {1}) | ({0} != {0}) else {1})",
    "sign": "({one} if {0} > {zero} else (-{one} if {0} < {zero} else {zero}))",
    "where": "({1} if {0} else {2})",
}


def _literal(x: float, number: str) -> str:
    # A bare literal is float64, and operands are of one kind.
    text = repr(float(x))
    return f"{number}({text})" if text[-1].isdigit() else f"{number}({text.replace('-', 'neg_')})"


KERNEL_SPELLING = Spelling(_TEMPLATES, _literal)
