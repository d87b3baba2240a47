"""Doing the jobs, and what came of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from steprule.optimizer import Optimizer
from steprule.warming.jobs import Job
from steprule.warming.requests import jobs_for

if TYPE_CHECKING:  # it loads the compiler's back end: only when something is compiled
    from steprule.engines.kernel_cache.cache import Kept


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
    target: str | None = None,
    **options: Any,
) -> Warmed:
    """Compile now the kernels that optimizers will need, and keep them on disk.

    A process that finds its kernels there compiles nothing at its first step. They are kept for
    this kind of processor and these versions, in ``STEPRULE_CACHE_DIR`` or the user's cache.

    Args:
        optimizers: names as in ``steprule list``, or classes, your own included; by default all
            that have compiled kernels.
        dtypes: of the parameters.
        target: a card that need not be there, as ``"cuda:90"`` (its compute capability); by
            default this machine's processor. Needs triton.
        options: options of the optimizers' constructors: only this form is compiled. Without any,
            every combination of the options that torch's class has and that change the formula
            (momentum, nesterov, amsgrad, centered, weight decay on or off), for dense gradients
            and, where they are taken, for sparse ones.

    Returns:
        What was compiled and what was there already.

    Raises:
        ValueError: an unknown optimizer, dtype or target, an option out of its range.
        TypeError: an option that an optimizer has not.
        OSError: the folder cannot be written to.

    Example:
        >>> import steprule
        >>> warmed = steprule.warm("sgd", dtypes=["float32"], momentum=0.9)
        >>> len(warmed.compiled) + len(warmed.present) >= 1
        True
    """
    return run_jobs(jobs_for(optimizers, dtypes, [options] if options else (), target))


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
    from steprule.engines.kernel_cache.folder import kernel_folder

    remedy = "set STEPRULE_CACHE_DIR to a folder that can be written to"
    try:
        folder = kernel_folder().path
    except RuntimeError as error:
        raise OSError(f"there is no home folder to keep kernels in: {remedy}") from error
    try:
        return job.run()
    except OSError as error:
        raise OSError(
            f"{error.filename or folder}: {error.strerror or error}; kernels cannot be kept "
            f"there: {remedy}"
        ) from error
