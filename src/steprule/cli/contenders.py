"""Who takes part in a comparison: names and learning rates, read from the command line."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from steprule.cli.errors import CommandError
from steprule.cli.numbers import learning_rate
from steprule.engines import registry
from steprule.optimizer.options import suggestion
from steprule.rules import OPTIMIZERS

ENGINES = ("auto", *registry.public_names())

FAVOURITES = (
    *("sgd", "adam", "adamw", "rmsprop", "adagrad", "nadam"),
    *("torch:adam", "torch:adam@fused"),
)

# Where a class's own default is no sensible start for this network. torch's SGD and ASGD start
# at steps so small that 20 epochs show nothing; RMSprop's 0.01 makes it bounce; without a line
# search, L-BFGS on mini-batches leaves for infinity.
STARTING_OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "sgd": {"lr": 0.05, "momentum": 0.9},
    "asgd": {"lr": 0.05},
    "rmsprop": {"lr": 1e-3},
    "lbfgs": {"line_search_fn": "strong_wolfe", "max_iter": 4},
    "muon": {"lr": 0.02},
}

TORCH_OPTIMIZERS: Mapping[str, type[torch.optim.Optimizer]] = {
    name.lower(): cls
    for name, cls in vars(torch.optim).items()
    if inspect.isclass(cls)
    and issubclass(cls, torch.optim.Optimizer)
    and cls is not torch.optim.Optimizer
}

# What steprule's classes say of themselves, said here of torch's.
TORCH_TRAITS: Mapping[str, str] = {
    "lbfgs": "needs_closure",
    "sparseadam": "needs_sparse",
    "muon": "only_2d",
}
TORCH_MODES: Mapping[str, Mapping[str, bool]] = {
    "auto": {},
    "eager": {"foreach": False},
    "foreach": {"foreach": True},
    "fused": {"fused": True},
}


@dataclass(frozen=True)
class Contender:
    """One optimizer of a comparison: `label` as the user wrote it, `options` as it is built."""

    label: str
    name: str
    factory: Callable[..., torch.optim.Optimizer]
    options: Mapping[str, Any]
    is_torch: bool
    needs_closure: bool
    only_2d: bool

    def build(self, model: torch.nn.Module) -> torch.optim.Optimizer:
        """Return the optimizer over `model`'s parameters, or say why it cannot be built."""
        named = [
            (name, param)
            for name, param in model.named_parameters()
            if param.ndim == 2 or not self.only_2d
        ]
        # torch takes names from 2.6 on; steprule's plan is easier to read with them.
        params = [param for _, param in named] if self.is_torch else named
        try:
            return self.factory(params, **self.options)
        except (TypeError, ValueError, RuntimeError, NotImplementedError) as error:
            raise CommandError(f"{self.label}: {error}") from error


def parse_contenders(
    optimizers: str | None, rates: Sequence[str], engine: str
) -> tuple[list[Contender], list[str]]:
    """Read `--optimizers`, `--lr` and `--engine`.

    Args:
        optimizers: names joined by commas, each `[torch:]NAME[@ENGINE]`; `all` stands for the
            whole registry, None for a few favourites.
        rates: `NAME=VALUE` or one `VALUE` for everyone; a label beats a name beats a bare value.
        engine: for every steprule optimizer that does not name its own.

    Returns:
        The contenders in the order they were named, and notes about any that were left out.

    Raises:
        CommandError: for a name, an engine or a number that is not valid.
    """
    _check_engine(engine)
    labels, notes = _expand(optimizers)
    by_name = _parse_rates(rates, labels)
    return [_contender(label, engine, by_name) for label in labels], notes


def _expand(optimizers: str | None) -> tuple[list[str], list[str]]:
    if optimizers is None:
        return [name for name in FAVOURITES if ":" in name or name in OPTIMIZERS], []
    labels: list[str] = []
    notes: list[str] = []
    for label in (part.strip().lower() for part in optimizers.split(",")):
        if label != "all":
            labels.append(label)
            continue
        for name, cls in OPTIMIZERS.items():
            if getattr(cls, "needs_sparse", False):
                notes.append(f"{name} was left out: it takes sparse gradients only.")
            else:
                labels.append(name)
    for label in labels:
        if labels.count(label) > 1:
            raise CommandError(f"--optimizers: {label!r} is named more than once")
    return labels, notes


def _contender(label: str, engine: str, rates: Mapping[str, float]) -> Contender:
    name, is_torch, own_engine = _split(label)
    known: Mapping[str, Any] = TORCH_OPTIMIZERS if is_torch else OPTIMIZERS
    if name not in known:
        raise CommandError(_unknown(label, name, known, is_torch))
    cls = known[name]

    def has(trait: str) -> bool:
        return TORCH_TRAITS.get(name) == trait if is_torch else bool(getattr(cls, trait, False))

    if has("needs_sparse"):
        raise CommandError(
            f"--optimizers: {label!r} takes sparse gradients only, and this network has none"
        )
    options = dict(STARTING_OPTIONS.get(name, {}))
    for key in (label, f"torch:{name}" if is_torch else name, name, ""):
        if key in rates:
            options["lr"] = rates[key]
            break
    if is_torch:
        options |= _torch_mode(label, cls, own_engine or "auto")
    elif "engine" in inspect.signature(cls).parameters:
        options["engine"] = own_engine or engine
    elif own_engine:
        raise CommandError(f"--optimizers: {label!r}: {name} has no engines to choose from")
    return Contender(label, name, cls, options, is_torch, has("needs_closure"), has("only_2d"))


def _split(label: str) -> tuple[str, bool, str]:
    name, _, engine = label.partition("@")
    if "@" in label:
        _check_engine(engine)
    return name.removeprefix("torch:"), name.startswith("torch:"), engine


def _check_engine(engine: str) -> None:
    if engine not in ENGINES:
        raise CommandError(f"unknown engine {engine!r}; valid: {', '.join(ENGINES)}")


def _torch_mode(
    label: str, cls: Callable[..., torch.optim.Optimizer], engine: str
) -> Mapping[str, bool]:
    mode = TORCH_MODES[engine]
    if not mode.keys() <= inspect.signature(cls).parameters.keys():
        raise CommandError(f"--optimizers: {label!r}: torch's class has no {engine} mode")
    return mode


def _unknown(label: str, name: str, known: Mapping[str, Any], is_torch: bool) -> str:
    meant = suggestion(name, known)
    whose = "torch's" if is_torch else "steprule's"
    return f"--optimizers: unknown optimizer {label!r}{meant}; {whose} are {', '.join(known)}" + (
        "" if is_torch else "; 'all' takes every one, 'torch:NAME' torch's own class"
    )


def _parse_rates(rates: Sequence[str], labels: Sequence[str]) -> dict[str, float]:
    names = {name for label in labels for name in _keys(label)}
    by_name: dict[str, float] = {}
    for text in rates:
        key, equals, value = text.rpartition("=")
        key = key.strip().lower()
        if equals and key not in names:
            raise CommandError(
                f"--lr {text}: {key!r} is not among the optimizers compared: {', '.join(labels)}"
            )
        if key in by_name:
            raise CommandError(f"--lr {text}: a learning rate for {key or 'all'} is given twice")
        try:
            by_name[key] = learning_rate(value)
        except ValueError as error:
            raise CommandError(f"--lr {text}: {error}") from error
    return by_name


def _keys(label: str) -> set[str]:
    plain = label.partition("@")[0]
    return {label, plain, plain.removeprefix("torch:")}
