"""Loops whose iterations touch no memory of each other's: LLVM need not check before it vectorizes.

It is told so by metadata: each access belongs to a group, and the loop's branch names the group. A
loop's identity is a node that contains itself, which llvmlite can't write: branches and accesses
are marked by attributes here, and the nodes are written into the text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from llvmlite import ir

# Nodes of our own have numbers above all of llvmlite's.
_FIRST = 1_000_000


def mark_accesses(blocks: Iterable[ir.Block]) -> None:
    """Put the loads and stores of a loop's blocks into the group of independent accesses."""
    for block in blocks:
        for instruction in block.instructions:
            if instruction.opname in ("load", "store") and not _is_variable(instruction):
                _mark(instruction, "llvm.access.group", "steprule.access")


def _is_variable(access: ir.Instruction) -> bool:
    """Tell whether an access is to a variable's own cell: a sum is handed on in one."""
    place = access.operands[0 if access.opname == "load" else 1]
    return getattr(place, "opname", "") == "alloca"


def mark_loop(branch: ir.Instruction) -> None:
    """Say of the branch that closes a loop that its accesses are independent."""
    _mark(branch, "llvm.loop", "steprule.loop")


def _mark(instruction: ir.Instruction, name: str, text: str) -> None:
    module = instruction.module
    node = module.add_metadata([ir.MetaDataString(module, text)])
    instruction.set_metadata(name, node)


def with_independent_loops(text: str) -> str:
    """Return a module's text with the nodes that the marks stand for."""
    node = r'^!(\d+) = !{ !"steprule\.%s" }$'
    access = re.search(node % "access", text, re.MULTILINE)
    loop = re.search(node % "loop", text, re.MULTILINE)
    if access is None or loop is None:
        return text
    group, mark = access[1], loop[1]
    count = 0

    def own_node(_: re.Match[str]) -> str:
        nonlocal count
        count += 1
        return f"!llvm.loop !{_FIRST + count}"

    text = text.replace(access[0], f"!{group} = distinct !{{}}")
    text = re.sub(rf"!llvm\.loop !{mark}\b", own_node, text)
    nodes = [
        f"!{_FIRST + i} = distinct !{{!{_FIRST + i}, "
        f'!{{!"llvm.loop.parallel_accesses", !{group}}}, '
        '!{!"llvm.loop.vectorize.enable", i1 true}}'
        for i in range(1, count + 1)
    ]
    return "\n".join([text, *nodes, ""])
