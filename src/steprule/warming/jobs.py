"""First steps to be made fast: each job sees to it that what such a step needs is on disk."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from steprule.engines.target import compiling_for
from steprule.formats.floating import FLOATING
from steprule.language.form import form_of
from steprule.optimizer import Optimizer
from steprule.quasi_newton import LBFGS

if TYPE_CHECKING:  # it loads the compiler's back end: only when something is compiled
    from steprule.engines.kernel_cache.cache import Kept

#: The dtypes that parameters may have, by name (a complex one shares its real one's kernels).
DTYPES: Mapping[str, torch.dtype] = {
    storage.name: dtype for dtype, storage in FLOATING.items() if not dtype.is_complex
}


@dataclass
class Job:
    """One first step to be made fast, or the loops that all first steps share."""

    label: str
    run: Callable[[], list[Kept]]
    optimizer: str = ""
    reason: list[str] = field(default_factory=list)


def shared_jobs() -> list[Job]:
    """Return what all optimizers need."""
    return [
        Job("the checks before a step, for all", _keep_checks),
        Job("the loop over a thread's share, for all", _keep_team),
    ]


def lbfgs_jobs() -> list[Job]:
    """Return what LBFGS needs whatever its options."""
    return [Job("LBFGS's triangle", _keep_triangle)]


def made(cls: type[Optimizer], options: Mapping[str, Any], dtype: torch.dtype) -> Optimizer:
    """Make an optimizer over one small parameter, however the caller makes tensors."""
    with torch.inference_mode(False):
        param = torch.zeros(2, 2, dtype=dtype, device="cpu", requires_grad=True)
        make: Callable[..., Optimizer] = cls
        # The formats that large parameters will have.
        sized = {"state_format_min_size": 0} if "state_format" in options else {}
        return make([param], **{**options, **sized})


def jobs_of(cls: type[Optimizer], options: Mapping[str, Any], dtype: torch.dtype) -> list[Job]:
    """Return what one optimizer needs with these options for this dtype."""
    words = ", ".join(f"{name}={value}" for name, value in options.items())
    kind = str(dtype).removeprefix("torch.")
    label = f"{cls.__name__}({words}) {kind}" if words else f"{cls.__name__} {kind}"

    def job(more: str, **how: bool) -> Job:
        reason: list[str] = []
        run = _keep_step(cls, options, dtype, reason, **how)
        return Job(label + more, run, cls.__name__, reason)

    if issubclass(cls, LBFGS):
        return [Job(label, lambda: _keep_passes(options, dtype), cls.__name__)]
    if cls.rule is None:
        return [Job(label, list, cls.__name__, ["it has no rule"])]
    jobs = []
    if cls.rule.sparse != "only":
        jobs.append(job(""))
        # Under torch.set_default_dtype(torch.float64) step counts are float64 too.
        if dtype is torch.float64 and cls.rule.counts_steps and cls.rule.is_recorded:
            jobs.append(job(", default dtype float64", counts_in_double=True))
    group = {**cls.extras, **made(cls, options, dtype).param_groups[0]}
    if cls.rule.sparse != "refused" and form_of(cls.rule, group).decay == "none":
        jobs.append(job(", sparse gradients", is_sparse=True))
    return jobs


def job_for_card(
    cls: type[Optimizer], options: Mapping[str, Any], dtype: torch.dtype, capability: int
) -> Job:
    """Return what one optimizer needs on a card of a compute capability."""
    (label, *_) = [job.label for job in jobs_of(cls, options, dtype)]
    reason: list[str] = []

    def run() -> list[Kept]:
        if issubclass(cls, LBFGS) or cls.rule is None or cls.rule.sparse == "only":
            reason.append("it has no kernels for cards")
            return []
        asked = {name: x for name, x in options.items() if name not in ("fused", "foreach")}
        with compiling_for(capability), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what another engine would take is told as a reason
            return _keep_step(cls, {**asked, "engine": "triton"}, dtype, reason)()

    return Job(f"{label}, cuda:{capability}", run, cls.__name__, reason)


def _keep_step(
    cls: type[Optimizer],
    options: Mapping[str, Any],
    dtype: torch.dtype,
    reason: list[str],
    *,
    is_sparse: bool = False,
    counts_in_double: bool = False,
) -> Callable[[], list[Kept]]:
    """Return a function that takes a first step, and says what it needed (or why nothing)."""

    def run() -> list[Kept]:
        from steprule.engines.kernel_cache.cache import keeping

        optimizer = made(cls, options, dtype)
        param = optimizer.param_groups[0]["params"][0]
        with torch.inference_mode(False):
            param.grad = _gradient(param, is_sparse)
        if counts_in_double:
            optimizer.init_state()
            _count_in_double(optimizer.state[param])
        with keeping() as kept:
            optimizer._step()  # without the hooks that the user may have set for all optimizers
        if not kept and not is_sparse:
            reason.append(optimizer.explain().rows[0].reason)
        return kept

    return run


def _gradient(param: Tensor, is_sparse: bool) -> Tensor:
    if is_sparse:
        return torch.sparse_coo_tensor(
            torch.zeros(1, 1, dtype=torch.int64, device="cpu"),
            torch.zeros_like(param[:1].detach()),
            param.shape,
            check_invariants=False,  # said, or torch warns that nobody has
        )
    return torch.zeros_like(param)


def _count_in_double(entry: dict[str, Any]) -> None:
    for name, value in entry.items():
        if isinstance(value, Tensor) and value.dim() == 0:
            entry[name] = value.double()


def _keep_checks() -> list[Kept]:
    from steprule.engines.kernel_cache.cache import keeping
    from steprule.engines.native import loops
    from steprule.engines.native.tensor_layout import tensor_layout

    with keeping() as kept:
        if tensor_layout() is not None:
            loops.native()
    return kept


def _keep_team() -> list[Kept]:
    from steprule.engines.kernel_cache.cache import keeping
    from steprule.engines.threads.team import team

    threads = team()
    with keeping() as kept:
        if threads is not None:
            threads.native()
    return kept


def _keep_triangle() -> list[Kept]:
    from steprule.engines.kernel_cache.cache import keeping
    from steprule.quasi_newton import triangle

    with keeping() as kept:
        triangle.native()
    return kept


def _keep_passes(options: Mapping[str, Any], dtype: torch.dtype) -> list[Kept]:
    """Return what LBFGS needs for a large history."""
    from steprule.engines.kernel_cache.cache import keeping
    from steprule.quasi_newton.kernels import library_of

    vector = dtype if dtype is torch.float64 else torch.float32
    stored = DTYPES[str(options.get("history_dtype") or vector).removeprefix("torch.")]
    with keeping() as kept:
        library_of(stored, vector)
    return kept
