"""A whole training run in one file."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from torch import Tensor

from steprule.checkpoints.errors import CheckpointError
from steprule.checkpoints.file import opened
from steprule.checkpoints.on_ranks import save
from steprule.checkpoints.random_states import of_this_rank, random_states, set_random_states
from steprule.distributed.placing import placed
from steprule.lr_scheduler.base import LRScheduler
from steprule.optimizer import Optimizer
from steprule.optimizer.checkpoint_parts import MODEL, OPTIMIZER, SCHEDULERS, parts_of
from steprule.optimizer.scheduled import kept_options, names_in, with_kept
from steprule.planning.owners import saved_by_first
from steprule.schedules import checks
from steprule.state.copying import own_copy
from steprule.state.load_plan import check_form
from steprule.state.pairing import LoadReport, Rename, paired
from steprule.state.recognition import KNOWN
from steprule.training.undoing import undone_if_refused
from steprule.training.weights import checked_weights, load_weights

RANDOM = "random_state"
Several = Any  # one object, a list of them, or a dict of them by name


@dataclass(frozen=True)
class Training:
    """What :func:`load_training` returns beside what it loads.

    Attributes:
        step: the number that was saved with the run; None if none was.
        extra: what else was saved.
        reports: what did not fit, by what it is: ``"model"``, ``"optimizer"``, or with a name or
            index where there are several (``"optimizer.critic"``).
    """

    step: int | None = None
    extra: Any = None
    reports: Mapping[str, LoadReport] = field(default_factory=dict)


def save_training(
    path: str | os.PathLike[str],
    *,
    model: Several = None,
    optimizer: Several = None,
    schedulers: Several = None,
    step: int | None = None,
    extra: Any = None,
    random_state: bool = False,
) -> None:
    """Save a training run to one file, or leave the file as it is.

    The file is safetensors, without pickle. It is written beside ``path``, flushed and renamed, so
    that a kill at any moment leaves the old file or the new one; a digest of every byte finds
    damage. State is stored in the formats that it has in memory, one tensor after the other.
    Where anything is sharded over ranks, every rank must call it; each writes its own part beside
    the file, and what is not sharded is that of the first. Where an optimizer's state is divided
    among ranks (:func:`steprule.shard_state`), every rank must call it, too; the first writes.

    Args:
        path: the file; its folder must exist, on every rank the same one.
        model: what has parameters and buffers; like the next two, one object, a list of them, or a
            dict of them by name.
        optimizer: of any kind, torch's included.
        schedulers: of any kind.
        step: how far the run is, in whatever unit (steps or epochs).
        extra: anything made of None, bools, numbers, strings, lists, tuples, dicts, tensors and
            NumPy arrays, such as ``{"best": 0.93, "scaler": scaler.state_dict()}``.
        random_state: whether to save the states of torch's, NumPy's and Python's global random
            generators; of each rank its own.

    Raises:
        TypeError: something that a checkpoint can't hold, named by its place.
        OSError: the file can't be written. Both are raised on every rank if on any.
        RuntimeError: another rank is gone.
    """
    if step is not None and (isinstance(step, bool) or not isinstance(step, int)):
        raise TypeError(f"step must be an integer, got {step!r}")
    random_state = checks.switch("random_state", random_state)
    optimizers = _by_name(optimizer, OPTIMIZER)
    if model is not None and any(getattr(x, "_is_averaged", False) for x in optimizers.values()):
        raise RuntimeError(
            "the parameters are at their running averages, which the optimizer's state does not "
            "belong to: within optimizer.averaged() save the model alone"
        )
    models, runs = _by_name(model, MODEL), _by_name(schedulers, SCHEDULERS)
    with saved_by_first(optimizers.values()) as group:
        content = {
            MODEL: {name: _model_entry(each) for name, each in models.items()},
            OPTIMIZER: {name: _entry(each) for name, each in optimizers.items()},
            SCHEDULERS: {name: _entry(each) for name, each in runs.items()},
            "step": step,
            "extra": extra,
            RANDOM: random_states() if random_state else None,
        }
    classes = ", ".join(type(each).__name__ for each in optimizers.values())
    save(path, content, {"optimizer": classes}, own=[RANDOM], group=group)


def load_training(
    path: str | os.PathLike[str],
    *,
    model: Several = None,
    optimizer: Several = None,
    schedulers: Several = None,
    strict: bool = True,
    keep: Iterable[str] = (),
    rename: Rename | None = None,
    random_state: bool = False,
) -> Training:
    """Go on from a file that :func:`save_training` wrote.

    What is not asked for is left in the file. It is mapped into memory: tensors are copied from it
    one after the other. All is checked before anything is changed.

    Args:
        path: the file.
        model: what to load into, in the form in which it was saved.
        optimizer: likewise.
        schedulers: likewise; built in any order.
        strict: as of ``Module.load_state_dict`` and of :meth:`steprule.Optimizer.load_state_dict`;
            with False a model's parameters of other names or shapes are left as they are.
        keep: options that keep the new run's values, such as ``("lr", "weight_decay")``; names that
            a scheduler knows (``"T_max"``) are kept there.
        rename: what parameters are called now, as of ``Optimizer.load_state_dict``; the model's
            parameters and buffers too.
        random_state: whether to set the random generators as they were. Where ranks have saved
            them, each takes its own, and there may be fewer ranks now, but not more.

    Raises:
        CheckpointError: no checkpoint, damaged, or without what was asked for.
        TypeError, ValueError: what was saved does not fit.
        OSError: the file can't be read.
    """
    random_state = checks.switch("random_state", random_state)
    strict = checks.switch("strict", strict)
    names = names_in(keep)
    with opened(path) as checkpoint:
        content = checkpoint.content
        models = _pairs(content, path, MODEL, model)
        optimizers = _pairs(content, path, OPTIMIZER, optimizer)
        runs = _pairs(content, path, SCHEDULERS, schedulers)
        _check_keep(names, [x for x, _ in optimizers.values()], [x for x, _ in runs.values()])
        states = content.get(RANDOM)
        if random_state and states is None:
            raise CheckpointError(f"{path} has no random states: it was saved without them")
        states = of_this_rank(states) if random_state else None
        new_name = _renaming(
            rename, [saved for _, saved in (*models.values(), *optimizers.values())]
        )
        weights = {
            label: checked_weights(
                each, _state_of(saved), saved.get("versions"), label, strict, new_name
            )
            for label, (each, saved) in models.items()
        }
        plans = {
            label: each._prepared_load(
                _state_of(saved),
                strict=strict,
                keep=_known(each, names),
                rename=_where_named(saved, new_name),
            )
            for label, (each, saved) in optimizers.items()
            if _is_ours(each)
        }
        others = {
            label: (each, _for_other(each, saved, label, names, strict, new_name))
            for label, (each, saved) in optimizers.items()
            if label not in plans
        }
        with undone_if_refused(
            [x for x, _ in runs.values()], [x for x, _ in others.values()], is_random=random_state
        ):
            for each, saved in runs.values():
                _load_scheduler(each, _state_of(saved), names)
            for each, state in others.values():
                each.load_state_dict(state)
            if random_state:
                set_random_states(states)
            for label, (each, _) in models.items():
                load_weights(each, weights[label])
            # After the models: what is kept beside a parameter belongs to its present value.
            for label, plan in plans.items():
                optimizers[label][0]._carry_out(plan)
            # Again, for the lr that follows from what they kept: the optimizer has brought its own.
            for each, saved in runs.values():
                if isinstance(each, LRScheduler) and names:
                    _load_scheduler(each, _state_of(saved), names)
        reports = {label: found.report for label, found in weights.items()}
        reports |= {label: plan.report for label, plan in plans.items()}
        return Training(content.get("step"), own_copy(content.get("extra")), reports)


def _by_name(value: Several, what: str) -> dict[str, Any]:
    """Return one object or several by their names: ``""``, indices, or keys."""
    if value is None:
        return {}
    if hasattr(value, "state_dict"):
        found = {"": value}
    elif isinstance(value, Mapping):
        found = {str(key): each for key, each in value.items()}
    elif isinstance(value, (list, tuple)):
        found = {str(i): each for i, each in enumerate(value)}
    else:
        found = {"": value}
    for name, each in found.items():
        if not (hasattr(each, "state_dict") and hasattr(each, "load_state_dict")):
            raise TypeError(
                f"{what}{f'[{name!r}]' if name else ''} must have state_dict and load_state_dict, "
                f"got {type(each).__name__}: pass the object itself, a list or a dict of such"
            )
    return found


def _entry(each: Any) -> dict[str, Any]:
    return {"class": type(each).__name__, "state_dict": each.state_dict()}


def _model_entry(model: Any) -> dict[str, Any]:
    state = model.state_dict()
    # torch's modules look at the version of what they load, which it keeps beside the dict.
    return {**_entry(model), "state_dict": state, "versions": getattr(state, "_metadata", None)}


def _pairs(
    content: Any, path: str | os.PathLike[str], what: str, value: Several
) -> dict[str, tuple[Any, Mapping[str, Any]]]:
    """Return each object with what was saved of it, by a label for messages.

    Raises:
        CheckpointError: something was not saved, or saved with others.
    """
    wanted = _by_name(value, what)
    saved = parts_of(content, what, path)
    if wanted.keys() - saved.keys() or (
        wanted and "" not in wanted and saved.keys() - wanted.keys()
    ):
        has = ", ".join(map(repr, saved)) if saved else "none"
        raise CheckpointError(
            f"{path} has other parts than asked for as {what}: it has "
            f"{'one' if list(saved) == [''] else has}, asked for were "
            f"{'one' if list(wanted) == [''] else ', '.join(map(repr, wanted))}. Pass what was "
            "saved in the same form: one object, a list or a dict"
        )
    return {
        f"{what}.{name}" if name else what: (each, saved[name]) for name, each in wanted.items()
    }


def _state_of(saved: Mapping[str, Any]) -> dict[str, Any]:
    state = saved.get("state_dict")
    if not isinstance(state, dict):
        raise CheckpointError("a part of the checkpoint has no state dict")
    return state


def _is_ours(optimizer: Any) -> bool:
    """Tell whether an optimizer loads as ours do: it can be asked before anything is changed."""
    own = getattr(type(optimizer), "load_state_dict", None)
    return isinstance(optimizer, Optimizer) and own is Optimizer.load_state_dict


def _known(optimizer: Any, names: Iterable[str]) -> list[str]:
    own = optimizer._known_options() if isinstance(optimizer, Optimizer) else ()
    there = {*own}.union(*optimizer.param_groups)
    return [name for name in names if name in there]


def _check_keep(names: Iterable[str], optimizers: Iterable[Any], schedulers: Iterable[Any]) -> None:
    """Refuse a name that nobody knows.

    Raises:
        ValueError: saying which.
    """
    everyone = list(optimizers)
    known = {name for each in schedulers if isinstance(each, LRScheduler) for name in vars(each)}
    for name in names:
        if name not in known and not any(_known(each, [name]) for each in everyone):
            raise ValueError(f"keep: neither an optimizer nor a scheduler here has {name!r}")


def _where_named(
    saved: Mapping[str, Any], new_name: Callable[[str], str] | None
) -> Callable[[str], str] | None:
    """Return what renames parameters, where they were saved with names: else they are in order."""
    groups = _state_of(saved).get("param_groups")
    is_list = isinstance(groups, list) and all(isinstance(group, dict) for group in groups)
    named = is_list and groups and all("param_names" in group for group in groups or ())
    return new_name if named else None


def _for_other(
    optimizer: Any,
    saved: Mapping[str, Any],
    label: str,
    names: Iterable[str],
    strict: bool,
    new_name: Callable[[str], str] | None,
) -> dict[str, Any]:
    """Return a state dict for an optimizer that is not ours, its parameters in their order now.

    Raises:
        ValueError: of another optimizer; or parameters that one side lacks, for such an optimizer
            takes all or nothing.
    """
    state = _state_of(saved)
    check_form(state)
    name, before = type(optimizer).__name__, str(saved.get("class"))
    marks = KNOWN.get(before)
    if name in KNOWN and marks is not None and KNOWN[name] != marks:
        raise ValueError(f"{label}: the state dict is one of {before}, not of {name}")
    groups, old = optimizer.param_groups, state["param_groups"]
    pairing = paired(groups, old, strict=True, rename=_where_named(saved, new_name))
    if not strict and not pairing.report.is_exact:
        raise ValueError(f"{label}: {name} can't be loaded in part:\n{pairing.report}")
    kept = kept_options(_known(optimizer, names), groups, ())
    made = []
    entries = {**state["state"]}
    for group, keys, source in zip(groups, pairing.keys, pairing.sources, strict=True):
        for param, key in zip(group["params"], keys, strict=True):
            if key in entries:
                entries[key] = _beside(entries[key], param)
        loaded = {**old[cast("int", source)], "params": list(keys)}
        if "param_names" in group:
            loaded["param_names"] = group["param_names"]
        made.append(with_kept(loaded, group, kept))
    return cast("dict[str, Any]", own_copy({**state, "state": entries, "param_groups": made}))


def _beside(entry: Any, param: Any) -> Any:
    """Return a saved entry, spread over ranks as its parameter is."""
    if not isinstance(entry, dict):
        return entry
    return {k: placed(x, param) if isinstance(x, Tensor) else x for k, x in entry.items()}


def _renaming(
    rename: Rename | None, saved: Iterable[Mapping[str, Any]]
) -> Callable[[str], str] | None:
    """Return a function that renames, for all parts.

    Raises:
        ValueError: an old name that no part has.
        TypeError: neither a dict nor a function.
    """
    if not isinstance(rename, Mapping):
        if rename is not None and not callable(rename):
            raise TypeError(
                f"rename must be a dict of old names to new ones, or a function, got {rename!r}"
            )
        return rename
    table = dict(rename)
    states = [_state_of(part) for part in saved]
    known = {str(key) for state in states for key in state}
    for state in states:
        for group in state.get("param_groups") or ():
            known.update(group.get("param_names", ()) if isinstance(group, dict) else ())
    unknown = [old for old in table if old not in known]
    if unknown:
        raise ValueError(f"rename: nothing of the name {', '.join(map(repr, unknown))} was saved")
    return lambda name: table.get(name, name)


def _load_scheduler(scheduler: Any, state: dict[str, Any], names: Iterable[str]) -> None:
    if not isinstance(scheduler, LRScheduler):
        scheduler.load_state_dict(own_copy(state))
        return
    kept = [name for name in names if name in vars(scheduler) or name == "lr"]
    scheduler.load_state_dict(own_copy(state), keep=kept)
