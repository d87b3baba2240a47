"""The engine for devices, without a device: interpreted, compiled for cards, refused.

That it agrees with the other engines is in the tests of those (``helpers.ENGINES`` has it).
"""

from __future__ import annotations

import copy
import ctypes
import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from formats import FULL, Run, check_same, made, trained
from gpu_kernels import Kernel, compiled_for, kernels_of, runner_of
from helpers import (
    HAS_TRITON,
    Case,
    flag_cases,
    has_reductions,
    needs_native_loops,
    recording_of,
    rule_optimizers,
    torch_cases,
)
from torch import Tensor

import steprule
from steprule.cli import main
from steprule.engines import registry
from steprule.engines.native.loops import can_hold_tensors

if not HAS_TRITON:
    pytest.skip("no triton, or an old one", allow_module_level=True)

ROOT = Path(__file__).parent.parent
NAMES = rule_optimizers(lambda rule: rule.is_recorded)
# As stated in docs/gpu.md: of 65,536 registers a multiprocessor, for 512 threads or 256.
REGISTERS, REGISTERS_IN_BITS = 128, 208


def is_exact(name: str) -> bool:
    """Whether a rule has no sums, so that its kernels leave the same bits everywhere."""
    recording = recording_of(name)
    return not (has_reductions(name) or recording.matrix_operations or recording.has_axes)


EXACT = [name for name in NAMES if is_exact(name)]


# -- the same bits as the CPU's kernel ------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("name", EXACT)
def test_its_bits_are_those_of_the_cpus_kernel(name: str, dtype: torch.dtype) -> None:
    runs = [trained(made(name, dtype, engine=engine), 0, 3) for engine in ("triton", "fused")]
    check_same(*runs)


CASES = [case for name in EXACT for case in (*torch_cases(name), *flag_cases(name))]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_option_leaves_the_bits_of_the_cpus_kernel(case: Case) -> None:
    tensors = [run_case(case, engine) for engine in ("triton", "fused")]
    torch.testing.assert_close(*tensors, rtol=0, atol=0, equal_nan=True)


def run_case(case: Case, engine: str) -> list[Tensor]:
    """Parameters and state after a few steps, one of them without a gradient."""
    generator = torch.Generator().manual_seed(0)
    params = [
        torch.randn(s, generator=generator).requires_grad_() for s in ((5, 7), (0,), (), (3,))
    ]
    optimizer: Any = case.ours(params, engine=engine, **case.options)  # type: ignore[call-arg]
    for k in range(3):
        for i, p in enumerate(params):
            grad = torch.randn(p.shape, generator=generator)
            p.grad = None if (k, i) == (1, 3) else grad
        optimizer.step()
    assert {row.engine for row in optimizer.explain().rows} == {engine}
    state = [torch.as_tensor(x) for p in params for x in optimizer.state.get(p, {}).values()]
    return [*(p.detach() for p in params), *state]


FORMATS: list[tuple[torch.dtype, dict[str, Any]]] = [
    (torch.float32, {"state_format": "bfloat16"}),
    (torch.float32, {"state_format": "int8"}),
    (torch.float32, {"state_format": "int4"}),
    (torch.float16, {"param_rounding": "stochastic"}),
    (torch.bfloat16, {"param_rounding": "kahan"}),
    (torch.bfloat16, {"param_rounding": "split", "state_format": "int8"}),
    (torch.bfloat16, {"param_rounding": "split24", "state_format": "int4"}),
]


@pytest.mark.parametrize(("dtype", "options"), FORMATS, ids=str)
@pytest.mark.parametrize("name", ["Adam", "SGD", "Rprop"])
def test_random_bits_are_the_cpus(name: str, dtype: torch.dtype, options: dict[str, Any]) -> None:
    runs = [
        trained(made(name, dtype, engine=engine, state_format_min_size=1, **options), 0, 3)
        for engine in ("triton", "fused")
    ]
    check_same(*runs)


def test_numbers_that_are_not_finite_keep_to_themselves_in_blocks() -> None:
    runs = []
    for engine in ("triton", "fused"):
        for state_format in ("int8", "int4"):
            run = made("Adam", engine=engine, state_format=state_format, state_format_min_size=1)
            for k in range(3):
                trained(run, k, k)
                for i, p in enumerate(run.params):
                    p.grad = torch.linspace(-1, 1, p.numel()).view(p.shape)
                    p.grad.view(-1)[k + i] = (torch.inf, torch.nan, -torch.inf)[k]
                run.optimizer.step()
            runs.append(run)
    check_same(runs[0], runs[2])
    check_same(runs[1], runs[3])


@pytest.mark.parametrize("name", EXACT)
def test_step_counts_on_the_device_change_no_bit(name: str) -> None:
    cls: Any = made(name).optimizer.__class__
    if "capturable" not in cls([torch.zeros(1)]).defaults:
        pytest.skip(f"{name} has no capturable")
    ours = trained(made(name, engine="triton", capturable=True), 0, 3)
    check_same(ours, trained(made(name, engine="fused"), 0, 3))


def test_numbers_of_a_group_may_be_tensors() -> None:
    lr = torch.tensor(0.1)
    run = made("Adam", engine="triton", lr=lr, capturable=True)
    twin = made("Adam", engine="fused", lr=0.1)
    for k in range(4):
        trained(run, k, k + 1)
        trained(twin, k, k + 1)
        lr.mul_(0.5)
        twin.optimizer.param_groups[0]["lr"] = float(lr)
    torch.testing.assert_close(run.params, twin.params)


# -- steps of a gradient scaler ---------------------------------------------------------------


def scaled(name: str, engine: str, **options: Any) -> Run:
    """A run of four steps whose second one overflows."""
    run = made(name, engine=engine, **options)
    for k in range(4):
        generator = torch.Generator().manual_seed(k)
        for p in run.params:
            p.grad = 512 * torch.randn(p.shape, generator=generator)
        run.optimizer.grad_scale = torch.tensor(512.0)
        run.optimizer.found_inf = torch.tensor(float(k == 1))
        run.optimizer.step()
        del run.optimizer.grad_scale, run.optimizer.found_inf
    return run


@pytest.mark.parametrize("engine", ["triton", "fused", "foreach", "eager"])
@pytest.mark.parametrize("name", ["Adam", "SGD", "LAMB", "Prodigy"])
def test_a_scaler_divides_gradients_and_calls_steps_off(name: str, engine: str) -> None:
    options = {**FULL.get(name, {}), "clip_grad_norm": 3.0}
    run = scaled(name, engine, **options)
    twin = made(name, engine="eager", **options)
    for k in (0, 2, 3):
        trained(twin, k, k + 1)
    for one, other in zip(run.params, twin.params, strict=True):
        torch.testing.assert_close(one, other, rtol=2e-5, atol=1e-5)
    for p, q in zip(run.params, twin.params, strict=True):
        assert run.optimizer.state[p].get("step") == twin.optimizer.state[q].get("step")
    assert run.optimizer.last_step.grad_norm == pytest.approx(twin.optimizer.last_step.grad_norm)


def test_steps_with_and_without_a_scaler_take_turns() -> None:
    run = scaled("Adam", "triton")
    trained(run, 4, 6)
    twin = made("Adam", engine="fused")
    for k in (0, 2, 3, 4, 5):
        trained(twin, k, k + 1)
    check_same(run, twin)


def test_a_scaler_leaves_it_to_the_step_on_devices_alone() -> None:
    on_cpu = made("Adam").optimizer
    assert not on_cpu._step_supports_amp_scaling
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    param = torch.ones(3, requires_grad=True)
    twin = torch.ones(3, requires_grad=True)
    ours, theirs = steprule.Adam([param]), torch.optim.Adam([twin])
    for p, optimizer in ((param, ours), (twin, theirs)):
        p.grad = 4 * torch.linspace(0.1, 1, 3)
        scaler.scale(torch.zeros(()))
        scaler.step(optimizer)
    torch.testing.assert_close(param, twin)


@pytest.fixture
def as_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parameters on the CPU are treated as if they were on a device that has kernels."""
    monkeypatch.setattr(registry, "kernel_devices", lambda: frozenset(["cpu"]))


def test_steps_that_are_not_finite_are_passed_over_on_the_device(
    as_a_device: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = made("Adam", engine="triton", on_nonfinite="skip")
    twin = made("Adam", engine="fused")
    with monkeypatch.context() as patch:
        patch.setattr(Tensor, "__float__", None)  # nobody asks what a tensor holds
        patch.setattr(Tensor, "item", None)
        for k in range(4):
            trained(run, k, k)
            generator = torch.Generator().manual_seed(k)
            for p in run.params:
                p.grad = torch.randn(p.shape, generator=generator)
            if k == 2:
                run.params[1].grad[3] = torch.nan  # type: ignore[index]
            run.optimizer.step()
            assert isinstance(run.optimizer._record.skipped, Tensor)
    for k in (0, 1, 3):
        trained(twin, k, k + 1)
    check_same(run, twin)
    seen = run.optimizer.last_step
    assert (seen.skipped, seen.skipped_so_far) == (False, 1)


def test_torchs_scaler_leaves_a_step_to_the_device(as_a_device: None) -> None:
    results = []
    for cls in (steprule.AdamW, torch.optim.AdamW):
        param = torch.linspace(-1, 1, 40).requires_grad_()
        options: dict[str, Any] = {"engine": "triton"} if cls is steprule.AdamW else {}
        optimizer = cls([param], lr=0.1, **options)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=2)
        for k in range(5):
            optimizer.zero_grad()
            loss = (param**2).sum() * (torch.inf if k == 2 else 1.0)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
        assert not hasattr(optimizer, "found_inf")
        results.append((param, optimizer.state[param]["step"], scaler.get_scale()))
    torch.testing.assert_close(*results)
    assert results[0][1] == 4


def test_schedules_are_refused_in_a_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    from steprule.optimizer import scheduled

    run = made("Adam", lr=steprule.schedules.linear(0.1, 0.0, steps=5), capturable=True)
    trained(run, 0, 1)
    monkeypatch.setattr(scheduled, "_is_captured", lambda: True)
    with pytest.raises(RuntimeError, match="group 0: lr is a schedule, which a CUDA graph"):
        trained(run, 1, 2)


# -- what it takes and refuses ----------------------------------------------------------------


def test_parameters_anywhere_in_memory_are_taken() -> None:
    generator = torch.Generator().manual_seed(0)
    flat = torch.randn(3001, generator=generator)
    parts = [flat[1:], torch.randn(40, 30, generator=generator).t()]
    last = torch.randn(2, 3, 8, 8, generator=generator).to(memory_format=torch.channels_last)
    runs = []
    for engine in ("triton", "fused"):
        params = [p.clone(memory_format=torch.preserve_format) for p in (*parts, last)]
        params[0] = flat.clone()[1:]
        for p in params:
            p.requires_grad_()
        run = Run(steprule.Adam(params, engine=engine), params)
        for k in range(3):
            for p in params:
                p.grad = torch.empty_like(p).copy_(p.detach() * (k + 1))
            run.optimizer.step()
        runs.append(run)
    assert {row.engine for row in runs[0].optimizer.explain().rows} == {"triton"}
    check_same(*runs)


def reason_of(param: Tensor, **options: Any) -> str:
    optimizer = steprule.Adam([param], **options)
    param.grad = torch.zeros_like(param)
    with pytest.warns(UserWarning, match="runs on engine"):
        optimizer.step()
    (row,) = optimizer.explain().rows
    assert row.engine != "triton"
    return row.reason


def test_what_is_on_no_device_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET")
    assert "on cpu (TRITON_INTERPRET=1" in reason_of(
        torch.zeros(3, requires_grad=True), engine="triton"
    )
    meta = torch.zeros(3, device="meta", requires_grad=True)
    assert "on meta" in reason_of(meta, engine="triton")


def test_without_triton_another_engine_takes_over(monkeypatch: pytest.MonkeyPatch) -> None:
    from steprule.engines.gpu import engine

    monkeypatch.setattr(engine, "why_unavailable", lambda: "triton is not installed (…)")
    reason = reason_of(torch.zeros(3, requires_grad=True), engine="triton")
    assert reason.startswith("triton is not installed")


def test_tritons_of_other_names_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    from steprule.engines.gpu.programs import version

    def version_of(name: str) -> str:
        if name == "pytorch-triton":
            return "3.7.0+git"
        raise version.importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(version.importlib.metadata, "version", version_of)
    assert version.triton_version.__wrapped__() == "3.7.0+git"


def test_an_old_triton_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from steprule.engines.gpu.programs import launching

    monkeypatch.setattr(launching, "triton_version", lambda: "3.1.0")
    assert launching.why_unavailable.__wrapped__() == (
        "triton 3.1.0 is older than 3.6, for which kernels are written"
    )


def test_a_kernel_that_does_not_compile_is_left_to_another_engine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from steprule.engines.gpu import runner
    from steprule.engines.kernel_cache.cache import CompilationError

    def refuse(*_: object) -> None:
        raise CompilationError("its kernel could not be compiled (…)")

    monkeypatch.setattr(runner, "program_for", refuse)
    reason = reason_of(torch.zeros(3, requires_grad=True), engine="triton")
    assert "could not be compiled" in reason


def test_a_first_launch_that_goes_wrong_leaves_all_to_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from steprule.engines.gpu import probe

    plain = probe.program_for
    param = torch.zeros(3, requires_grad=True)

    class Swapped:
        """Passes the first two arguments the wrong way round."""

        def __init__(self, *how: Any) -> None:
            self._program = plain(*how)

        def launch(self, programs: int, tensors: int, first_chunk: int, tables: Any) -> None:
            self._program.launch(programs, tensors, 2 * first_chunk, tables)

    class Failing(Swapped):
        def launch(self, *_: Any) -> None:
            raise RuntimeError("CUDA's driver says: no")

    for wrong, said in ((Swapped, "gave .* instead of"), (Failing, "failed .*driver says: no")):
        probe._known.clear()
        monkeypatch.setattr(probe, "program_for", wrong)
        assert re.search(f"a first launch on cpu {said}", reason_of(param, engine="triton"))
    probe._known.clear()


def test_on_devices_it_is_the_default_and_what_fused_means() -> None:
    assert registry.candidates("auto", "cuda")[:2] == ("triton", "foreach")
    assert registry.candidates("fused", "cuda")[0] == "triton"
    assert registry.candidates("fused", "cpu")[0] == "fused"
    assert "triton" not in registry.candidates("auto", "cpu")
    assert registry.asked_for("fused", "cuda") == "triton"
    assert registry.asked_for("fused", "cpu") == "fused"


# -- numbers on their way ---------------------------------------------------------------------


@pytest.fixture
def runner() -> Any:
    run = trained(made("Adam", engine="triton"), 0, 1)
    return runner_of(run.optimizer), run


def test_a_graph_has_buffers_of_its_own(runner: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was sent while a graph was captured is not written to again."""
    from steprule.engines.gpu import device_tables

    monkeypatch.setattr(
        device_tables.Staging, "_buffers", lambda self, n: torch.zeros(n, *self._table.shape)
    )
    capturing = False
    monkeypatch.setattr(device_tables, "is_capturing", lambda _: capturing)
    monkeypatch.setattr(device_tables, "mark", lambda _: None)
    table = torch.zeros(3)
    staging = device_tables.Staging(table)
    staging._is_pinned, staging._slots = True, torch.zeros(8, 3)
    staging._spare = torch.zeros(1, 3)
    ring = {staging.buffer().data_ptr()}
    for _ in range(20):
        buffer = staging.buffer()
        ring.add(buffer.data_ptr())
        staging.send(buffer)
    assert len(ring) == 8
    assert not staging.is_written_by_graphs
    capturing = True
    own = staging.buffer()
    assert own.data_ptr() not in ring
    with pytest.raises(RuntimeError, match=r"one optimizer.step\(\) before each capture"):
        staging.buffer()
    # The same once more, as by two steps in one graph, needs no other.
    staging._captured_content = bytes(12)
    staging.put(bytes(12))
    capturing = False
    assert staging.is_written_by_graphs
    for _ in range(20):
        buffer = staging.buffer()
        assert buffer.data_ptr() != own.data_ptr()
        staging.send(buffer)


def test_a_buffer_is_written_again_only_when_its_copy_has_arrived(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from steprule.engines.gpu import device_tables

    log: list[str] = []

    class Mark:
        def __init__(self, number: int) -> None:
            self.number = number

        def wait(self) -> None:
            log.append(f"wait {self.number}")

    sent = 0
    monkeypatch.setattr(device_tables, "mark", lambda _: Mark(sent))
    monkeypatch.setattr(device_tables, "is_capturing", lambda _: False)
    staging = device_tables.Staging(torch.zeros(2))
    staging._is_pinned, staging._slots = True, torch.zeros(8, 2)
    staging._spare = torch.zeros(1, 2)
    for _ in range(24):
        buffer = staging.buffer()
        sent += 1
        staging.send(buffer)
    # Before slots 0 and 4 of a later round, the mark behind the copies from 0-3, or 4-7, is there.
    assert log == ["wait 4", "wait 8", "wait 12", "wait 16"]


def test_addresses_are_sent_when_they_have_changed(runner: Any) -> None:
    found, run = runner
    table = found._tables["grads"]
    assert table.tolist() == [p.grad.data_ptr() for p in run.params]
    table.zero_()
    run.optimizer.step()  # the same gradients: nothing is sent, nothing updated
    assert table.tolist() == [0, 0]
    trained(run, 1, 2)
    assert table.tolist() == [p.grad.data_ptr() for p in run.params]


def test_tables_are_small_beside_what_they_are_of() -> None:
    param = torch.zeros(1 << 20, requires_grad=True)
    optimizer = steprule.Adam([param], engine="triton")
    param.grad = torch.zeros_like(param)
    optimizer.step()
    assert runner_of(optimizer)._tables.bytes < 0.01 * param.nbytes
    assert "tables" in str(optimizer.explain())


def test_the_driver_is_given_what_the_kernel_declares(
    runner: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A launch without a card: the driver is one that writes down what it is called with."""
    from steprule.engines.gpu.arguments import ARGUMENTS
    from steprule.engines.gpu.programs import cuda
    from steprule.engines.gpu.programs.compiled import Compiled, compiled

    found, _ = runner
    kernel = compiled(found._source("update"), "update", 90)
    assert Compiled.from_bytes(kernel.to_bytes()) == kernel
    assert kernel.parameters >= len(ARGUMENTS)
    assert kernel.threads == 128
    assert kernel.cubin[:4] == b"\x7fELF"
    calls: list[Any] = []

    errors = [0]

    def load(module: Any, code: bytes) -> int:
        assert code == kernel.cubin
        return 0

    def function_of(function: Any, module: Any, name: bytes) -> int:
        assert name == kernel.symbol.encode()
        return 0

    def launch(function: Any, *rest: Any) -> int:
        *sizes, _, places, extra = rest
        values = [ctypes.c_int64.from_address(place).value for place in places]
        calls.append((sizes, values))
        assert extra is None
        return errors.pop() if len(errors) > 1 else errors[0]

    names = {
        "cuModuleLoadData": load,
        "cuModuleGetFunction": function_of,
        "cuLaunchKernel": launch,
        "cuGetErrorString": lambda *_: 0,
    }
    driver = SimpleNamespace(**names)
    monkeypatch.setattr(cuda, "driver", lambda: driver)
    program = cuda.CudaProgram(kernel, torch.device("cpu"))
    program.launch(7, 2, 3, found._tables)
    (sizes, values) = calls[0]
    assert sizes == [7, 1, 1, 128, 1, 1, kernel.shared]
    tables = [table.data_ptr() for table in found._tables.arguments()]
    assert values[: len(ARGUMENTS)] == [2, 3, *tables]
    assert not any(values[len(ARGUMENTS) :])
    errors[:] = [0, 201]  # a thread without a context: once more
    program.launch(1, 2, 0, found._tables)
    errors[:] = [700]
    with pytest.raises(cuda.CudaError, match=r"CUDA's driver says: unknown error \(error 700\)"):
        program.launch(1, 2, 0, found._tables)


# -- compiled for cards that are not there ----------------------------------------------------


def check_machine_code(kernel: Kernel, capability: int, registers: int) -> str:
    machine = compiled_for(kernel, capability)
    assert machine.local == 0, f"{kernel.name}: {machine.local} bytes of local memory"
    assert machine.registers <= registers, f"{kernel.name}: {machine.registers} registers"
    assert ".local" not in machine.ptx
    return machine.ptx


@pytest.mark.parametrize("name", NAMES)
def test_every_rule_compiles(name: str) -> None:
    for kernel in kernels_of(name, **FULL.get(name, {})):
        ptx = check_machine_code(kernel, 90, REGISTERS)
        if kernel.name != "update" or recording_of(name).has_axes:
            continue
        assert "ld.global.v4.b32" in ptx
        assert "st.global.v4.b32" in ptx
        # Products and sums are rounded apart, quotients and roots as IEEE 754 says.
        assert "fma.rn.f32" not in ptx
        assert not re.search(r"div\.(full|approx)|sqrt\.approx|rcp\.approx", ptx)


@pytest.mark.parametrize("capability", [80, 100])
def test_other_cards_are_compiled_for(capability: int) -> None:
    options: dict[str, Any] = {"state_format": "int8", "state_format_min_size": 1}
    for kernel in [*kernels_of("LAMB"), *kernels_of("Adam", torch.bfloat16, **options)]:
        check_machine_code(kernel, capability, REGISTERS_IN_BITS)


@pytest.mark.parametrize(("dtype", "options"), FORMATS, ids=str)
def test_every_format_compiles(dtype: torch.dtype, options: dict[str, Any]) -> None:
    for kernel in kernels_of("Adam", dtype, state_format_min_size=1, **options):
        ptx = check_machine_code(kernel, 90, REGISTERS_IN_BITS)
        # A thread has 8 elements: 16 bytes of those of 16 bits, 8 of those of 8 bits.
        widths = set(re.findall(r"ld\.global\.(v[24]\.b\d+)", ptx))
        assert widths & {"v4.b32", "v2.b32"}, widths


def test_no_element_is_divided_by_a_scalar() -> None:
    """Of Adam's two quotients one is by a scalar: a product with its reciprocal, once a tensor."""
    (kernel,) = kernels_of("Adam")
    loops = compiled_for(kernel, 90).ptx.split("div.rn.f64")
    assert len(loops) == 2  # the reciprocal, before the elements
    # Two loops, whole tiles and others, over 8 elements a thread.
    assert loops[1].count("div.rn.f32") == 16


def test_kernels_for_step_counts_on_the_device_compile() -> None:
    names = set()
    for name in ("Adam", "NAdam"):
        for kernel in kernels_of(name, capturable=True, clip_grad_norm=1.0):
            check_machine_code(kernel, 90, REGISTERS)
            names.add(kernel.name)
    assert names == {"prepare", "update", "square_sums", "square_totals"}


def test_warming_for_a_card_that_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("STEPRULE_CACHE_DIR", str(tmp_path))
    monkeypatch.delenv("TRITON_INTERPRET")
    options = ["--options", "weight_decay=0.0"]
    assert not main(["warm", "adam", "--target", "cuda:90", *options])
    first = capsys.readouterr().out
    assert "compiled    Adam(weight_decay=0.0) float32, cuda:90" in first
    assert any(b"ELF" in path.read_bytes() for path in tmp_path.rglob("*.kernel"))
    again = steprule.warm("adam", target="cuda:90", weight_decay=0.0)
    assert not again.compiled
    assert again.present
    assert "no kernels for cards" in steprule.warm("lbfgs", target="cuda:90").left_out[0]
    with pytest.raises(ValueError, match="unknown target 'cuda:9'"):
        steprule.warm("adam", target="cuda:9")


def test_the_gpu_script_runs_without_a_card(tmp_path: Path) -> None:
    done = subprocess.run(
        [
            *(sys.executable, str(ROOT / "benchmarks" / "gpu"), "--device", "cpu"),
            *("--out", str(tmp_path), "--only", "groups,guards,odd,scaler,products,replays"),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    report = json.loads((tmp_path / "gpu.json").read_text())
    assert done.returncode == 0, done.stdout + done.stderr
    outcomes = {row["name"]: row["outcome"] for row in report["checks"]}
    assert outcomes.pop("a_graph_replays_steps") == "needs a card"
    assert outcomes.pop("torchs_own_scaler") == "needs a card"
    assert set(outcomes.values()) == {"passed"}


# -- what a review found ----------------------------------------------------------------------


def test_a_number_may_turn_from_a_tensor_into_what_it_was() -> None:
    runs = [made("Adam", engine=engine, capturable=True) for engine in ("triton", "eager")]
    for k, lr in enumerate((0.1, torch.tensor(0.001), 0.1, 0.1)):
        for run in runs:
            run.optimizer.param_groups[0]["lr"] = lr
            trained(run, k, k + 1)
    torch.testing.assert_close(runs[0].params, runs[1].params)


def skipping(name: str, engine: str, **options: Any) -> Run:
    run = made(name, engine=engine, **options)
    groups = [
        {"params": run.params[:1], "on_nonfinite": "skip"},
        {"params": run.params[1:]},
    ]
    return Run(type(run.optimizer)(groups, engine=engine, **options), run.params)


def give(run: Run, k: int, bad: int | None = None, missing: int | None = None) -> None:
    generator = torch.Generator().manual_seed(k)
    for i, p in enumerate(run.params):
        grad = torch.randn(p.shape, generator=generator)
        if i == bad:
            grad.view(-1)[0] = torch.nan
        p.grad = None if i == missing else grad


def test_a_step_is_passed_over_in_all_groups(as_a_device: None) -> None:
    runs = [skipping("Adam", engine) for engine in ("triton", "eager")]
    for k in range(4):
        for run in runs:
            give(run, k, bad=0 if k == 1 else None)
            run.optimizer.step()
    torch.testing.assert_close(runs[0].params, runs[1].params)
    for p, q in zip(runs[0].params, runs[1].params, strict=True):
        assert runs[0].optimizer.state[p]["step"] == runs[1].optimizer.state[q]["step"] == 3


def test_without_gradients_there_is_nothing_to_pass_over(as_a_device: None) -> None:
    optimizer = steprule.Adam([torch.zeros(3, requires_grad=True)], on_nonfinite="skip")
    optimizer.step()
    assert not optimizer.last_step.skipped


def test_a_first_step_that_was_passed_over_was_none(as_a_device: None) -> None:
    options = {"momentum": 0.9, "dampening": 0.5, "lr": 0.1}
    runs = [skipping("SGD", engine, **options) for engine in ("triton", "eager")]
    for run in runs:
        give(run, 0, bad=0, missing=1)
        run.optimizer.step()
        for k in (1, 2):  # another parameter joins: planned anew
            give(run, k)
            run.optimizer.step()
    torch.testing.assert_close(runs[0].params, runs[1].params)


@steprule.rule(elementwise=False, batched=True)
def projected(param, grad, *, lr, eps):  # type: ignore[no-untyped-def]
    """Takes a step along the nearest orthogonal matrix."""
    from steprule.matrix_ops import orthogonalized

    return param - lr * orthogonalized(grad, (3.4445, -4.775, 2.0315), 5, eps=eps)


def test_what_products_are_told_may_be_a_tensor() -> None:
    cls: Any = steprule.make_optimizer(projected, name="Projected", lr=0.1, eps=1e-7)
    params = []
    for eps in (100.0, torch.tensor(100.0)):
        param = torch.eye(6, 8).requires_grad_()
        optimizer = cls([param], eps=eps, engine="triton")
        param.grad = torch.linspace(-1, 1, 48).view(6, 8)
        optimizer.step()
        assert optimizer.explain().rows[0].engine == "triton"
        params.append(param)
    torch.testing.assert_close(*params)


def test_numbers_too_large_to_square_are_looked_at(as_a_device: None) -> None:
    param = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    optimizer = steprule.SGD([param], lr=1e-160, on_nonfinite="skip", engine="triton")
    param.grad = torch.full((3,), 1e160, dtype=torch.float64)
    optimizer.step()
    assert not optimizer.last_step.skipped
    torch.testing.assert_close(param.detach(), torch.full((3,), -1.0, dtype=torch.float64))


def test_a_schedule_that_comes_later_counts_the_steps_that_were_taken(as_a_device: None) -> None:
    run = made("Adam", engine="triton", on_nonfinite="skip")
    give(run, 0)
    run.optimizer.step()
    steprule.set_learning_rate(run.optimizer, steprule.schedules.linear(1.0, 0.0, steps=10))
    for k in range(3):
        give(run, k, bad=0)
        run.optimizer.step()
    assert run.optimizer.param_groups[0]["lr"] == 1.0


def test_scalar_slots_follow_the_step_count(as_a_device: None) -> None:
    from steprule.formats.choices import StoringOptions
    from steprule.state.making import ensure_state

    for name in ("NAdam", "ASGD", "Prodigy"):
        run = trained(made(name), 0, 1)
        (group,) = run.optimizer.param_groups
        cls: Any = type(run.optimizer)
        param = run.params[1]
        moved = param.detach().to("meta")
        state = {moved: dict(run.optimizer.state[param])}
        options = {**cls.extras, **group}
        ensure_state(
            cls.rule, options, moved, state, set(), StoringOptions(), counts_on_device=True
        )
        scalars = [x for x in state[moved].values() if x.dim() == 0]
        assert {x.device.type for x in scalars} == {"meta"}, name


def test_steps_in_the_backward_pass_leave_a_scaler_to_itself(as_a_device: None) -> None:
    model = torch.nn.Linear(2, 2)
    assert steprule.SGD(model.parameters(), lr=0.1)._step_supports_amp_scaling
    optimizer = steprule.step_in_backward(model, lambda params: steprule.SGD(params, lr=0.1))
    assert not optimizer._step_supports_amp_scaling


def test_combined_optimizers_are_called_off_on_the_device(as_a_device: None) -> None:
    p, q = (torch.ones(4).requires_grad_() for _ in range(2))
    both = steprule.combine(
        steprule.Adam([p], engine="triton"), steprule.SGD([q], lr=0.1, engine="triton")
    )
    assert both._step_supports_amp_scaling
    p.grad, q.grad = torch.full((4,), 2.0), torch.full((4,), torch.inf)
    both.grad_scale, both.found_inf = torch.tensor(2.0), torch.tensor(1.0)
    both.step()
    del both.grad_scale, both.found_inf
    assert torch.equal(p, torch.ones(4))
    assert both.state[p]["step"] == 0


def test_what_a_graph_reads_is_kept(runner: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    found, run = runner
    assert not run.optimizer._in_graphs
    monkeypatch.setattr(type(found), "is_in_a_graph", True)
    run.optimizer.load_state_dict(run.optimizer.state_dict())
    assert run.optimizer._in_graphs == [found]


def test_everything_of_a_step_is_warmed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STEPRULE_CACHE_DIR", str(tmp_path))
    steprule.warm("sgd", target="cuda:90", momentum=0.9)
    texts = [path.read_text() for path in tmp_path.rglob("*.py")]
    for name in ("probe", "prepare", "update", "square_sums", "square_totals"):
        assert any(f"def {name}(tensors, first_chunk" in text for text in texts), name


def test_gradients_are_found_and_held_without_objects_for_them() -> None:
    needs_native_loops()
    if not can_hold_tensors():
        pytest.skip("this torch has no handles of tensors")
    run = trained(made("Adam", engine="triton"), 0, 2)
    found = runner_of(run.optimizer)
    counts = []
    for _ in range(3):
        for p in run.params:
            (p**2).sum().backward()  # gradients that Python has never seen
        assert found.collect()
        assert found._is_holding
        assert found._addresses[: len(run.params)].tolist() == [
            p.grad.data_ptr() for p in run.params
        ]
        found.let_go()
        assert not found._is_holding
        grads = [p.grad for p in run.params]
        counts.append([sys.getrefcount(grad) for grad in grads])
        del grads
    assert counts[0] == counts[1] == counts[2]
    twin = made("Adam", engine="fused")
    with torch.no_grad():
        for p, q in zip(twin.params, run.params, strict=True):
            p.copy_(q)
    twin.optimizer.load_state_dict(copy.deepcopy(run.optimizer.state_dict()))
    check_same(trained(run, 2, 5), trained(twin, 2, 5))


def test_what_is_held_is_let_go_with_the_plan() -> None:
    needs_native_loops()
    run = trained(made("Adam", engine="triton"), 0, 2)
    found = runner_of(run.optimizer)
    assert found.collect()
    run.optimizer.load_state_dict(run.optimizer.state_dict())
    assert not found._is_holding
