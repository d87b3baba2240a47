"""Compiling ahead of time what optimizers need: for containers, clusters and demonstrations."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from steprule.formats.floating import FLOATING
from steprule.language.form import form_of
from steprule.optimizer.base import Optimizer
from steprule.quasi_newton import LBFGS
from steprule.rules import OPTIMIZERS
from steprule.spelling import suggestion

if TYPE_CHECKING:  # it loads the compiler's back end: only when something is compiled
    from steprule.engines.kernel_cache.cache import Kept

__all__ = ["DTYPES", "Job", "Warmed", "jobs_for", "run_jobs", "warm"]

#: The dtypes that parameters may have, by name (a complex one shares its real one's kernels).
DTYPES: Mapping[str, torch.dtype] = {
    storage.name: dtype for dtype, storage in FLOATING.items() if not dtype.is_complex
}


@dataclass(frozen=True)
class Warmed:
    """What :func:`warm` did; ``str()`` says it in a few lines.

    Attributes:
        compiled: what was compiled now.
        present: what was on disk already.
        left_out: what has no kernel to compile, and why.
        folders: where the kernels are.
    """

    compiled: tuple[str, ...]
    present: tuple[str, ...]
    left_out: tuple[str, ...]
    folders: tuple[Path, ...]

    def __str__(self) -> str:
        where = " and ".join(map(str, self.folders)) or "no folder"
        lines = [f"compiled    {label}" for label in self.compiled]
        lines += [f"there       {label}" for label in self.present]
        lines += [f"no kernel   {label}" for label in self.left_out]
        counts = f"{len(self.compiled)} compiled, {len(self.present)} there already"
        return "\n".join([*lines, f"{counts}, in {where}"])


def warm(
    *optimizers: str | type[Optimizer],
    dtypes: Iterable[str | torch.dtype] = ("float32",),
    **options: Any,
) -> Warmed:
    """Compile now the kernels that optimizers will need, and keep them on disk.

    A process that finds its kernels there compiles nothing at its first step. They are kept for
    this kind of processor and these versions, in ``STEPRULE_CACHE_DIR`` or the user's cache.

    Args:
        optimizers: names as in ``steprule list``, or classes, your own included; by default all
            that have compiled kernels.
        dtypes: of the parameters.
        options: options of the optimizers' constructors: only this form is compiled. Without any,
            every combination of the options that torch's class has and that change the formula
            (momentum, nesterov, amsgrad, centered, weight decay on or off), for dense gradients
            and, where they are taken, for sparse ones.

    Returns:
        What was compiled and what was there already.

    Raises:
        ValueError: an unknown optimizer or dtype, an option out of its range.
        TypeError: an option that an optimizer has not.
        OSError: the folder cannot be written to.

    Example:
        >>> import steprule
        >>> warmed = steprule.warm("sgd", dtypes=["float32"], momentum=0.9)
        >>> len(warmed.compiled) + len(warmed.present) >= 1
        True
    """
    return run_jobs(jobs_for(optimizers, dtypes, [options] if options else ()))


@dataclass
class Job:
    """One first step to be made fast, or the loops that all first steps share."""

    label: str
    run: Callable[[], list[Kept]]
    optimizer: str = ""
    reason: list[str] = field(default_factory=list)


def jobs_for(
    optimizers: Sequence[str | type[Optimizer]],
    dtypes: Iterable[str | torch.dtype],
    variants: Sequence[Mapping[str, Any]] = (),
) -> list[Job]:
    """What there is to do; everything that was asked for is checked before any of it is done.

    Args:
        optimizers: as for :func:`warm`.
        dtypes: as for :func:`warm`.
        variants: sets of options; if there are none, the common ones.

    Raises:
        ValueError, TypeError: as :func:`warm`.
    """
    classes = [_class_of(o) for o in optimizers] or list(filter(_is_compiled, OPTIMIZERS.values()))
    kinds = list(dict.fromkeys(map(_dtype_of, dtypes)))
    chosen = {cls: _checked(cls, variants) for cls in dict.fromkeys(classes)}
    jobs = [
        Job("the checks before a step, for all", _keep_checks),
        Job("the loop over a thread's share, for all", _keep_team),
    ]
    if any(issubclass(cls, LBFGS) for cls in chosen):
        jobs.append(Job("LBFGS's triangle", _keep_triangle))
    for kind, (cls, sets) in product(kinds, chosen.items()):
        for options in sets:
            jobs += _jobs_of(cls, options, kind)
    return jobs


def run_jobs(jobs: Iterable[Job]) -> Warmed:
    """Do the jobs in turn, and gather what came of them.

    Raises:
        OSError: the folder cannot be written to.
    """
    found: dict[Path, tuple[str, bool]] = {}
    left_out, folders = [], []
    for job in jobs:
        kept = _run(job)
        new = [one for one in kept if one.path not in found]
        found.update({one.path: (job.label, one.was_compiled) for one in new})
        folders += [one.path.parent for one in new]
        if not kept and job.reason:
            left_out.append(f"{job.label}: {job.reason[0]}")
    return Warmed(
        compiled=tuple(label for label, was_compiled in found.values() if was_compiled),
        present=tuple(label for label, was_compiled in found.values() if not was_compiled),
        left_out=tuple(left_out),
        folders=tuple(dict.fromkeys(folders)),
    )


def _run(job: Job) -> list[Kept]:
    from steprule.engines.kernel_cache.cache import cache_folder

    remedy = "set STEPRULE_CACHE_DIR to a folder that can be written to"
    try:
        folder = cache_folder()
    except RuntimeError as error:
        raise OSError(f"there is no home folder to keep kernels in: {remedy}") from error
    try:
        return job.run()
    except OSError as error:
        raise OSError(
            f"{error.filename or folder}: {error.strerror or error}; kernels cannot be kept "
            f"there: {remedy}"
        ) from error


# -- what was asked for -------------------------------------------------------------------


def _class_of(optimizer: str | type[Optimizer]) -> type[Optimizer]:
    if isinstance(optimizer, type) and issubclass(optimizer, Optimizer):
        return optimizer
    found = OPTIMIZERS.get(optimizer.lower()) if isinstance(optimizer, str) else None
    if found is None:
        raise ValueError(_unknown("optimizer", optimizer, OPTIMIZERS))
    return found


def _dtype_of(dtype: str | torch.dtype) -> torch.dtype:
    if isinstance(dtype, torch.dtype) and dtype.is_floating_point and dtype in DTYPES.values():
        return dtype
    name = str(dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise ValueError(_unknown("dtype", name, DTYPES))
    return DTYPES[name]


def _unknown(kind: str, given: object, known: Iterable[str]) -> str:
    names = list(known)
    meant = suggestion(str(given).lower(), names)
    return f"unknown {kind} {given!r}{meant}; valid: {', '.join(names)}"


def _is_compiled(cls: type[Optimizer]) -> bool:
    return issubclass(cls, LBFGS) or (cls.rule is not None and cls.rule.elementwise)


def _checked(
    cls: type[Optimizer], variants: Sequence[Mapping[str, Any]]
) -> Sequence[Mapping[str, Any]]:
    """The sets of options to compile for, all of which the class takes."""
    known = [name for name in inspect.signature(cls).parameters if name != "params"]
    for options in variants:
        for name in options:
            if name not in known:
                raise TypeError(f"{cls.__name__}: {_unknown('option', name, known)}")
        _made(cls, options, torch.float32)
    return list(variants) or (list(_common_variants(cls)) if _is_compiled(cls) else [{}])


def _common_variants(cls: type[Optimizer]) -> Iterator[dict[str, Any]]:
    """Combinations of what torch's class lets one switch on or off."""
    rule = cls.rule
    names = ["weight_decay"]
    if rule is not None:
        switched = [slot.when for slot in rule.slots.values() if slot.when is not None]
        names = [*dict.fromkeys([*switched, *rule.flags]), *names]
    defaults = {name: p.default for name, p in inspect.signature(cls).parameters.items()}
    switches = {
        name: (defaults[name], _other(defaults[name]))
        for name in names
        if isinstance(defaults.get(name), (bool, int, float)) and name not in cls.extras
    }
    for values in product(*switches.values()):
        changed = {n: v for n, v in zip(switches, values, strict=True) if v != defaults[n]}
        try:
            _made(cls, changed, torch.float32)
        except ValueError:  # options that do not go together: nesterov without momentum
            continue
        yield changed


def _other(default: bool | float) -> bool | float:
    """On for what is off and off for what is on; any number but 0 compiles to the same."""
    return not default if isinstance(default, bool) else 0.0 if default else 0.1


# -- doing it -----------------------------------------------------------------------------


def _made(cls: type[Optimizer], options: Mapping[str, Any], dtype: torch.dtype) -> Optimizer:
    """An optimizer over one small parameter, wherever and however the caller makes tensors."""
    with torch.inference_mode(False):
        param = torch.zeros(2, 2, dtype=dtype, device="cpu", requires_grad=True)
        make: Callable[..., Optimizer] = cls
        return make([param], **options)


def _jobs_of(cls: type[Optimizer], options: Mapping[str, Any], dtype: torch.dtype) -> list[Job]:
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
        if dtype is torch.float64 and cls.rule.counts_steps and cls.rule.elementwise:
            jobs.append(job(", default dtype float64", counts_in_double=True))
    group = {**cls.extras, **_made(cls, options, dtype).param_groups[0]}
    if cls.rule.sparse != "refused" and form_of(cls.rule, group).decay == "none":
        jobs.append(job(", sparse gradients", is_sparse=True))
    return jobs


def _keep_step(
    cls: type[Optimizer],
    options: Mapping[str, Any],
    dtype: torch.dtype,
    reason: list[str],
    *,
    is_sparse: bool = False,
    counts_in_double: bool = False,
) -> Callable[[], list[Kept]]:
    """A function that takes a first step, and says what it needed (or why nothing)."""

    def run() -> list[Kept]:
        from steprule.engines.kernel_cache.cache import keeping

        optimizer = _made(cls, options, dtype)
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
    from steprule.engines.native.tensor_layout import tensor_words

    with keeping() as kept:
        if tensor_words() is not None:
            loops.native()
    return kept


def _keep_team() -> list[Kept]:
    from steprule.engines.kernel_cache.cache import keeping
    from steprule.engines.threads import openmp_team as team

    with keeping() as kept:
        team.native()
    return kept


def _keep_triangle() -> list[Kept]:
    from steprule.engines.kernel_cache.cache import keeping
    from steprule.quasi_newton import triangle

    with keeping() as kept:
        triangle.native()
    return kept


def _keep_passes(options: Mapping[str, Any], dtype: torch.dtype) -> list[Kept]:
    """What LBFGS needs for a large history."""
    from steprule.engines.kernel_cache.cache import keeping
    from steprule.quasi_newton.kernels import library_of

    vector = dtype if dtype is torch.float64 else torch.float32
    stored = DTYPES[str(options.get("history_dtype") or vector).removeprefix("torch.")]
    with keeping() as kept:
        library_of(stored, vector)
    return kept
