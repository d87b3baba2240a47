"""LLVM for this processor: optimising, object code, and running it."""

from __future__ import annotations

import contextlib
import functools
from typing import Any

import llvmlite.binding as llvm

from steprule.engines.compiler.lock import compiler_lock


@functools.cache
def _target_machine() -> Any:
    # llvmlite initialises itself from 0.45 on, and refuses to be told to.
    with contextlib.suppress(Exception):
        llvm.initialize()
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    target = llvm.Target.from_default_triple()
    return target.create_target_machine(
        cpu=llvm.get_host_cpu_name(),
        features=llvm.get_host_cpu_features().flatten(),
        opt=3,
        reloc="pic",
        codemodel="jitdefault",
        jit=True,
    )


def object_code_of(text: str) -> bytes:
    """LLVM's text, optimised and compiled."""
    machine = _target_machine()
    module = llvm.parse_assembly(text)
    module.triple = llvm.get_process_triple()
    module.data_layout = str(machine.target_data)
    module.verify()
    options = llvm.create_pipeline_tuning_options(speed_level=3)
    options.loop_vectorization = True
    options.loop_unrolling = True
    options.slp_vectorization = True
    builder = llvm.create_pass_builder(machine, options)
    builder.getModulePassManager().run(module, builder)
    return bytes(machine.emit_object(module))


def execution_engine(object_code: bytes) -> Any:
    """Return an engine with this code, linked and ready to run."""
    _target_machine()
    # An execution engine takes ownership of its target machine: give each one of its own.
    machine = llvm.Target.from_default_triple().create_target_machine(jit=True)
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), machine)
    engine.add_object_file(llvm.ObjectFileRef.from_data(object_code))
    engine.finalize_object()
    return engine


@functools.cache
def can_convert_half() -> bool:
    """Tell whether this processor converts float16 (else LLVM calls a library we may lack)."""
    with compiler_lock:
        features = llvm.get_host_cpu_features()
        return bool(features.get("f16c", False) or features.get("fullfp16", False) or _is_arm64())


def _is_arm64() -> bool:
    return str(llvm.get_process_triple()).startswith(("aarch64", "arm64"))


def symbol_of(name: str) -> str:
    """Return what a function is called in object code, where C's own names are met as well."""
    return f"steprule_{name}"
