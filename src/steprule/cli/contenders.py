"""Who takes part in a comparison: names and learning rates, read from the command line."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from steprule.cli.errors import CommandError
from steprule.cli.labels import Label, check_engine, parse_label, split_labels
from steprule.cli.numbers import learning_rate
from steprule.optimizer import Optimizer
from steprule.optimizer.combined import combine
from steprule.optimizer.options import suggestion
from steprule.rules import OPTIMIZERS
from steprule.rules.adam import AdamW
from steprule.wrappers import SAM, Lookahead

FAVOURITES = (
    *("sgd", "adam", "adamw", "rmsprop", "adagrad", "nadam"),
    *("torch:adam", "torch:adam@fused"),
)

# Where a class's own default is no sensible start for this network. torch's SGD and ASGD start
# at steps so small that 20 epochs show nothing, and so do others whose defaults are of large
# models; RMSprop's 0.01 makes it bounce; without a line search, L-BFGS on mini-batches leaves for
# infinity.
STARTING_OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "sgd": {"lr": 0.05, "momentum": 0.9},
    "asgd": {"lr": 0.05},
    "rmsprop": {"lr": 1e-3},
    "lbfgs": {"line_search_fn": "strong_wolfe", "max_iter": 4},
    "muon": {"lr": 0.02},
    "qhm": {"lr": 0.05},
    "lion": {"lr": 3e-4},
    "sophiag": {"lr": 1e-3},
    "lamb": {"lr": 0.01},
    "lars": {"lr": 1.0},
}

TORCH_OPTIMIZERS: Mapping[str, type[torch.optim.Optimizer]] = {
    name.lower(): cls
    for name, cls in vars(torch.optim).items()
    if inspect.isclass(cls)
    and issubclass(cls, torch.optim.Optimizer)
    and cls is not torch.optim.Optimizer
}

WRAPPERS: Mapping[str, Callable[..., torch.optim.Optimizer]] = {"sam": SAM, "lookahead": Lookahead}

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
    """One optimizer of a comparison.

    Attributes:
        label: as the user wrote it.
        name: of the optimizer; torch's class and other engines share it.
        factory: makes it, given parameters and `options`.
        options: as it is built.
        is_torch: whether it is torch's own class.
        needs_closure: whether step() evaluates the loss itself.
        only_2d: whether it takes matrices only. AdamW with its defaults then updates the rest,
            beside one of ours; beside torch's, the rest stays as it began.
        wrappers: what goes round it, with options, the innermost first.
        fixed: the options that stand in its name: nobody searches over these.
        has_default_rate: whether nobody chose its lr.
    """

    label: str
    name: str
    factory: Callable[..., torch.optim.Optimizer]
    options: Mapping[str, Any]
    is_torch: bool
    needs_closure: bool
    only_2d: bool
    wrappers: tuple[tuple[Callable[..., torch.optim.Optimizer], Mapping[str, Any]], ...] = ()
    fixed: frozenset[str] = frozenset()
    has_default_rate: bool = False

    def build(self, model: torch.nn.Module) -> torch.optim.Optimizer:
        """Return the optimizer over `model`'s parameters, or say why it cannot be built."""
        named = [(name, param) for name, param in model.named_parameters() if param.requires_grad]
        taken = [one for one in named if one[1].ndim == 2] if self.only_2d else named
        if not taken:
            raise CommandError(f"{self.label}: takes matrices only, and the model has none")
        # torch takes names from 2.6 on; steprule's plan is easier to read with them.
        params = [param for _, param in taken] if self.is_torch else taken
        try:
            optimizer = self.factory(params, **self.options)
            if isinstance(optimizer, Optimizer) and len(taken) < len(named):
                rest = [one for one in named if one[1].ndim != 2]
                optimizer = combine(optimizer, AdamW(rest, engine=optimizer.engine))
            for wrap, options in self.wrappers:
                optimizer = wrap(optimizer, **options)
            return optimizer
        except (TypeError, ValueError, RuntimeError, NotImplementedError) as error:
            raise CommandError(f"{self.label}: {error}") from error

    def takes(self, option: str) -> bool:
        """Return whether it has an option of this name."""
        return option in inspect.signature(self.factory).parameters

    @property
    def lr(self) -> float | None:
        """The lr that it starts from; None where it has none, or one that is no number."""
        parameter = inspect.signature(self.factory).parameters.get("lr")
        found = self.options.get("lr", parameter.default if parameter else None)
        is_number = isinstance(found, (int, float)) and not isinstance(found, bool)
        return float(found) if is_number else None

    def having(self, **options: Any) -> Contender:
        """Return the contender with some options changed."""
        return replace(self, options={**self.options, **options})


def parse_contenders(
    optimizers: str | None, rates: Sequence[str], engine: str
) -> tuple[list[Contender], list[str]]:
    """Read `--optimizers`, `--lr` and `--engine`.

    Args:
        optimizers: names joined by commas, each
            `[WRAPPER:][torch:]NAME[+OPTION[=VALUE]]...[@ENGINE]`; `all` stands
            for the whole registry, None for a few favourites.
        rates: `NAME=VALUE` or one `VALUE` for everyone; a label beats a name beats a bare value.
        engine: for every steprule optimizer that does not name its own.

    Returns:
        The contenders in the order they were named, and notes about any that were left out.

    Raises:
        CommandError: for a name, an engine or a number that is not valid.
    """
    check_engine(engine)
    texts, notes = _expand(optimizers)
    labels = [parse_label(text) for text in texts]
    by_name = _parse_rates(rates, labels)
    return [_contender(label, engine, by_name) for label in labels], notes


def _expand(optimizers: str | None) -> tuple[list[str], list[str]]:
    if optimizers is None:
        return [name for name in FAVOURITES if ":" in name or name in OPTIMIZERS], []
    labels: list[str] = []
    notes: list[str] = []
    named = split_labels(optimizers)
    if len(named) > 1 and not named[-1]:  # a comma at the end
        named.pop()
    for label in named:
        if label != "all":
            labels.append(label)
            continue
        for name, cls in OPTIMIZERS.items():
            if name in named:
                continue
            if getattr(cls, "needs_sparse", False):
                notes.append(f"{name} was left out: it takes sparse gradients only.")
            else:
                labels.append(name)
    for label in labels:
        if labels.count(label) > 1:
            raise CommandError(f"--optimizers: {label!r} is named more than once")
    return labels, notes


def _contender(label: Label, engine: str, rates: Mapping[str, float]) -> Contender:
    known: Mapping[str, Any] = TORCH_OPTIMIZERS if label.is_torch else OPTIMIZERS
    if label.name not in known:
        raise CommandError(_unknown(label, known))
    name, cls = label.name, known[label.name]
    accepted = inspect.signature(cls).parameters

    def has(trait: str) -> bool:
        of_torch = TORCH_TRAITS.get(name) == trait
        return of_torch if label.is_torch else bool(getattr(cls, trait, False))

    if has("needs_sparse"):
        raise CommandError(
            f"--optimizers: {label.text!r} takes sparse gradients only, and this network has none"
        )
    own, wrappers = _shared_out(label, accepted)
    options = {**STARTING_OPTIONS.get(name, {}), **own}
    has_default_rate = "lr" not in own
    for key in (*label.keys, ""):
        if key in rates:
            options["lr"] = rates[key]
            has_default_rate = False
            break
    if label.is_torch:
        options |= _torch_mode(label, accepted)
    elif "engine" in accepted:
        options["engine"] = label.engine or engine
    elif label.engine:
        raise CommandError(f"--optimizers: {label.text!r}: {name} has no engines to choose from")
    return Contender(
        label=label.text,
        name=name,
        factory=cls,
        options=options,
        has_default_rate=has_default_rate,
        is_torch=label.is_torch,
        needs_closure=has("needs_closure") or "sam" in label.wrappers,
        only_2d=has("only_2d"),
        wrappers=wrappers,
        fixed=frozenset(own),
    )


def _shared_out(
    label: Label, accepted: Mapping[str, Any]
) -> tuple[dict[str, Any], tuple[tuple[Callable[..., torch.optim.Optimizer], dict[str, Any]], ...]]:
    """Return the optimizer's own options, and its wrappers with those that are theirs."""
    own = dict(label.options)
    found = []
    for name in reversed(label.wrappers):
        if name not in WRAPPERS:
            meant = suggestion(name, WRAPPERS)
            raise CommandError(
                f"--optimizers: unknown wrapper {name!r} in {label.text!r}{meant}; valid: "
                f"{', '.join(WRAPPERS)}, and torch before a name"
            )
        takes = inspect.signature(WRAPPERS[name]).parameters.keys() - accepted.keys()
        found.append((WRAPPERS[name], {key: own.pop(key) for key in takes & own.keys()}))
        for key in own.keys() - accepted.keys():
            close = difflib.get_close_matches(key, takes - {"optimizer"}, 1, 0.8)
            if close:
                raise CommandError(
                    f"--optimizers: {label.text!r}: unknown option {key!r}; did you mean "
                    f"{close[0]!r} of {name}?"
                )
    return own, tuple(found)


def _torch_mode(label: Label, accepted: Mapping[str, Any]) -> Mapping[str, bool]:
    mode = TORCH_MODES[label.engine or "auto"]
    if not mode.keys() <= accepted.keys():
        raise CommandError(
            f"--optimizers: {label.text!r}: torch's class has no {label.engine} mode"
        )
    return mode


def _unknown(label: Label, known: Mapping[str, Any]) -> str:
    meant = suggestion(label.name, known)
    whose = "torch's" if label.is_torch else "steprule's"
    text = f"unknown optimizer {label.text!r}{meant}; {whose} are {', '.join(known)}"
    more = "" if label.is_torch else "; 'all' takes every one, 'torch:NAME' torch's own class"
    return f"--optimizers: {text}{more}"


def _parse_rates(rates: Sequence[str], labels: Sequence[Label]) -> dict[str, float]:
    names = {key for label in labels for key in label.keys}
    by_name: dict[str, float] = {}
    for text in rates:
        key, equals, value = text.rpartition("=")
        key = key.strip().lower()
        if equals and key not in names:
            raise CommandError(
                f"--lr {text}: {key!r} is not among the optimizers compared: "
                f"{', '.join(label.text for label in labels)}"
            )
        if key in by_name:
            raise CommandError(f"--lr {text}: a learning rate for {key or 'all'} is given twice")
        try:
            by_name[key] = learning_rate(value)
        except ValueError as error:
            raise CommandError(f"--lr {text}: {error}") from error
    return by_name
