"""What is asked to be compiled ahead of time, as jobs."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import product
from typing import Any

import torch

from steprule.engines.target import capability_of
from steprule.optimizer import SHARED, Optimizer
from steprule.optimizer.options import suggestion, switches_of
from steprule.quasi_newton import LBFGS
from steprule.rules import OPTIMIZERS
from steprule.warming.jobs import (
    DTYPES,
    Job,
    job_for_card,
    jobs_of,
    lbfgs_jobs,
    made,
    shared_jobs,
)


def jobs_for(
    optimizers: Sequence[str | type[Optimizer]],
    dtypes: Iterable[str | torch.dtype],
    variants: Sequence[Mapping[str, Any]] = (),
    target: str | None = None,
) -> list[Job]:
    """Return what there is to do; all that was asked for is checked before any of it is done.

    Args:
        optimizers: as for :func:`warm`.
        dtypes: as for :func:`warm`.
        variants: sets of options; if there are none, the common ones.
        target: as for :func:`warm`.

    Raises:
        ValueError, TypeError: as :func:`warm`.
    """
    if isinstance(dtypes, (str, torch.dtype)) or not isinstance(dtypes, Iterable):
        raise TypeError(f"dtypes must be a list of dtypes, got {dtypes!r}: [{dtypes!r}]")
    if target is not None and not isinstance(target, str):
        raise TypeError(f"target must be a card's name, as 'cuda:90', got {target!r}")
    classes = [_class_of(o) for o in optimizers] or list(filter(_is_compiled, OPTIMIZERS.values()))
    kinds = list(dict.fromkeys(map(_dtype_of, dtypes)))
    chosen = {cls: _checked(cls, variants) for cls in dict.fromkeys(classes)}
    forms = [
        (cls, options, kind)
        for kind, (cls, sets) in product(kinds, chosen.items())
        for options in sets
    ]
    if target is not None:
        capability = capability_of(target)
        return [job_for_card(*form, capability) for form in forms]
    jobs = shared_jobs()
    if any(issubclass(cls, LBFGS) for cls in chosen):
        jobs += lbfgs_jobs()
    return [*jobs, *(job for form in forms for job in jobs_of(*form))]


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
    return issubclass(cls, LBFGS) or (cls.rule is not None and cls.rule.is_recorded)


def _checked(
    cls: type[Optimizer], variants: Sequence[Mapping[str, Any]]
) -> Sequence[Mapping[str, Any]]:
    """Return the sets of options to compile for, all of which the class takes."""
    given = inspect.signature(cls).parameters.values()
    known = [p.name for p in given if p.name != "params" and p.kind is not p.VAR_KEYWORD]
    known += [name for name in SHARED if name not in known and name in cls.extras]
    for options in variants:
        for name in options:
            if name not in known:
                raise TypeError(f"{cls.__name__}: {_unknown('option', name, known)}")
        made(cls, options, torch.float32)
    return list(variants) or (list(_common_variants(cls)) if _is_compiled(cls) else [{}])


def _common_variants(cls: type[Optimizer]) -> Iterator[dict[str, Any]]:
    """Combine what torch's class lets one switch on or off."""
    rule = cls.rule
    names = ["weight_decay"]
    if rule is not None:
        switched = [slot.when for slot in rule.slots.values() if slot.when is not None]
        flags = [name for name in rule.flags if name in switches_of(rule)]
        names = [*dict.fromkeys([*switched, *flags]), *names]
    defaults = {name: p.default for name, p in inspect.signature(cls).parameters.items()}
    switches = {
        name: (defaults[name], _other(defaults[name]))
        for name in names
        if isinstance(defaults.get(name), (bool, int, float)) and name not in cls.extras
    }
    for values in product(*switches.values()):
        changed = {n: v for n, v in zip(switches, values, strict=True) if v != defaults[n]}
        try:
            made(cls, changed, torch.float32)
        except ValueError:  # options that do not go together: nesterov without momentum
            continue
        yield changed


def _other(default: bool | float) -> bool | float:
    """On for what is off and off for what is on; any number but 0 compiles to the same."""
    return not default if isinstance(default, bool) else 0.0 if default else 0.1
