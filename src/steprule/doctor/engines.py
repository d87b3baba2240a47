"""Each engine: whether it updates parameters here, rightly, and why one does not."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import torch

from steprule.doctor import compiling, trials
from steprule.doctor.finding import Finding, note, problem
from steprule.doctor.hardware import devices
from steprule.doctor.trials import Trial, start, trial_of
from steprule.engines import registry
from steprule.engines.registry import Entry
from steprule.rules import Adam, SparseAdam

SECTION = "engines"
_BETAS = (trials.BETA1, trials.BETA2)


def engines() -> Iterator[Finding]:
    """Yield what came of a few steps on each engine, on each type of device that is here."""
    here = devices()
    for entry in registry.entries():
        takes = [d for d in here if entry.devices is None or d.type in entry.devices]
        if not takes:
            kinds = " or ".join(entry.devices or ())
            yield Finding(SECTION, entry.name, f"off: there is no {kinds} device here")
        for device in takes:
            name = entry.name if len(takes) == 1 else f"{entry.name} {device.type}"
            yield _finding(name, entry, device)


def _finding(name: str, entry: Entry, device: torch.device) -> Finding:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what they say is in the finding
            trial = _dense(entry, device) if entry.has_public_name else _sparse(device)
    except Exception as error:  # noqa: BLE001  # whatever it is, it is what was looked for
        first_line = (str(error).splitlines() or [""])[0]
        return problem(
            SECTION, name, f"fails: {type(error).__name__}: {first_line}", "please report this"
        )
    if trial.engine != entry.name:
        return _off(name, entry, trial)
    if not trial.is_right:
        return problem(
            SECTION,
            name,
            f"wrong: {trials.STEPS} steps of Adam differ from the formula by {trial.error:.1e}",
            f"please report this; another engine is asked for by engine={_other(entry)!r}",
        )
    return Finding(SECTION, name, f"on, right within {trial.error:.0e}")


def _off(name: str, entry: Entry, trial: Trial) -> Finding:
    value = f"off: {trial.reason or 'not offered the parameter'} ({trial.engine} runs instead)"
    if entry.devices is None or not entry.has_public_name:
        return note(SECTION, name, value, "steps are right, and slower")
    if "cpu" in entry.devices and compiling.is_failing():
        return note(SECTION, name, value, compiling.SLOWER_BY_IT)
    return problem(SECTION, name, value, "steps are right, and slower; please report what is off")


def _other(entry: Entry) -> str:
    reference = registry.reference_name()
    return reference if entry.name != reference else "foreach"


def _dense(entry: Entry, device: torch.device) -> Trial:
    param = start(device)
    adam = Adam([param], lr=trials.LR, betas=_BETAS, eps=trials.EPS, engine=entry.name)
    return trial_of(adam, param)


def _sparse(device: torch.device) -> Trial:
    """Try the engine for rows, which users do not ask for, by a gradient that has all rows.

    SparseAdam has eps under its bias correction, which is far below what is looked at.
    """
    param = start(device)
    adam = SparseAdam([param], lr=trials.LR, betas=_BETAS, eps=trials.EPS)
    return trial_of(adam, param, sparse=True)
