"""What the options of a parameter group come to: engine, form, numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from steprule.engines import registry
from steprule.engines.guards.identity import IdentityGuard
from steprule.formats.choices import STORING, StoringOptions, check_storing, storing_of
from steprule.language.averaging import DECAY, with_average
from steprule.language.caution import CAUTION, cautious_rule_of, check_caution
from steprule.language.decay import DECAYING, NUMBERS, check_decay
from steprule.language.form import Form, form_of
from steprule.language.guards import CLIP_RANGES, GUARDS, check_guards, guards_of
from steprule.language.rule import Rule, derived_rule
from steprule.planning.lagged_norms import LaggedNorms
from steprule.planning.owners import Owners
from steprule.planning.scaling import Scaling, kind_of
from steprule.planning.scheduled_values import check_scheduled_values, range_of
from steprule.planning.step_record import StepRecord
from steprule.schedules import checks
from steprule.state.labels import label_of

_ENGINE_OPTIONS = ("foreach", "fused", "capturable", "differentiable")
_SHARED_OPTIONS = ("maximize", "weight_decay", *CAUTION, *DECAYING)
_IMMUTABLE = {float, int, bool, type(None), tuple, str}
# Options of every optimizer that are on or off.
FLAGS = (
    *("maximize", "cautious", "decoupled_weight_decay", "cautious_weight_decay"),
    *_ENGINE_OPTIONS,
)


# The key under which a group of a combined optimizer says what it is updated by.
KIND = "optimizer"


@dataclass(frozen=True)
class Kind:
    """What updates a group: an optimizer class, as far as a plan has to know it.

    Attributes:
        name: the class's.
        rule: its rule.
        extras: options that torch has not, with their defaults.
    """

    name: str
    rule: Rule
    extras: Mapping[str, Any]

    def of(self, group: Mapping[str, Any]) -> Kind:
        """Return what updates a group that may be cautious, or keep running averages."""
        rule = cautious_rule_of(self.rule, self.options_of(group))
        # The average is of what the parameter becomes, and so made last.
        if group.get(DECAY) is not None and DECAY not in self.rule.options:
            rule = derived_rule(rule, with_average)
        return self if rule is self.rule else replace(self, rule=rule)

    def options_of(self, group: Mapping[str, Any]) -> dict[str, Any]:
        """Return a group's options, with those that torch has not at their defaults."""
        return {**self.extras, **group}


@dataclass(frozen=True)
class Place:
    """Where a parameter stands: in which group of an optimizer's, and where in it."""

    groups: Sequence[Mapping[str, Any]]
    group: int
    position: int

    @property
    def label(self) -> str:
        """The parameter's name in messages."""
        return label_of(self.groups[self.group], self.group, self.position)

    @property
    def identity(self) -> str:
        """What tells it from others for good: its name, or its index."""
        names = self.groups[self.group].get("param_names")
        if names is not None:
            return str(names[self.position])
        before = sum(len(group["params"]) for group in self.groups[: self.group])
        return str(before + self.position)


@dataclass
class Context:
    """What a plan is made of: the optimizer's parts, without the optimizer.

    ``kinds`` are those of a combined optimizer, by name, ``kind`` that of any other group. Where
    the only group has one parameter of a larger optimizer, ``origin`` is its place there, and
    ``norms`` are those that its gradients are clipped by. ``scaling`` is that of the step at hand.
    Where it ``calls_off_on_device``, steps are passed over without the host's knowing. ``owners``
    are those of the parameters whose state is divided among ranks.
    """

    kind: Kind
    groups: list[dict[str, Any]]
    state: dict[Tensor, dict[str, Any]]
    engine: str
    fresh: set[Tensor]
    takers_of_sparse: Sequence[str] = ()
    record: StepRecord = field(default_factory=StepRecord)
    kinds: Mapping[str, Kind] = field(default_factory=dict)
    origin: Place | None = None
    norms: LaggedNorms | None = None
    scaling: Scaling | None = None
    calls_off_on_device: bool = False
    owners: Owners | None = None

    def has(self, param: Tensor) -> bool:
        """Tell whether a parameter's state is kept, and the parameter updated, on this rank."""
        return self.owners is None or self.owners.has(param)

    def kind_of(self, group: Mapping[str, Any]) -> Kind:
        """Return what updates a group."""
        kind = self.kinds.get(group[KIND], self.kind) if self.kinds else self.kind
        return kind.of(group)

    def place_of(self, group: int, position: int) -> Place:
        """Return where a parameter stands among all of the optimizer."""
        return self.origin or Place(self.groups, group, position)


@dataclass(frozen=True)
class Outline:
    """What is known of a group without its numbers: enough to tell what ranks wait for."""

    group: Mapping[str, Any]
    kind: Kind
    params: Sequence[Tensor]
    form: Form
    on_nonfinite: str

    @property
    def clip_over(self) -> str | None:
        """As of :class:`Settings`."""
        return _clip_over(self.form)


@dataclass
class Settings:
    """What a group's options come to at this step."""

    group: dict[str, Any]
    kind: Kind
    params: list[Tensor]
    same_params: IdentityGuard
    keys: tuple[str, ...]
    signature: tuple[Any, ...]
    form: Form
    numbers: dict[str, Any]
    engine: str
    is_mutable: bool
    state_names: frozenset[str]
    on_nonfinite: str = "propagate"
    storing: StoringOptions = field(default_factory=StoringOptions)

    def is_as_planned(self, planned: Settings) -> bool:
        """Tell whether a plan made with other settings does for these: but for the numbers."""
        return (self.form, self.engine, self.storing) == (
            planned.form,
            planned.engine,
            planned.storing,
        )

    @property
    def clip_over(self) -> str | None:
        """Over what the norm is taken that clips this group, if that is not known to a rule."""
        return _clip_over(self.form)

    def without_params(self) -> Settings:
        """Return them as they may be kept when parameters are gone."""
        return replace(self, params=[], same_params=IdentityGuard(()))

    def take_numbers(self, now: tuple[Any, ...]) -> bool:
        """Take over new values if nothing but plain numbers has changed, as a schedule does.

        A weight decay of 0 is another form than one above, and so is whatever a slot depends on
        (momentum); pairs are taken apart elsewhere, what is out of its range is refused there.
        """
        if self.is_mutable:
            return False
        changed = {}
        for key, new, old in zip(self.keys, now, self.signature, strict=True):
            if new is not old:
                makes_form = key in self.form.switches
                if key not in self.numbers or makes_form or type(new) is not float:
                    return False
                if new not in range_of(self.kind.rule, key):
                    return False
                changed[key] = new
        self.numbers.update(changed)
        self.signature = now
        return True


def _clip_over(form: Form) -> str | None:
    return form.clip_norm if form.clip_norm in ("all", "group") else None


def outline_of(context: Context, index: int) -> Outline:
    """Return what is known of a group whose numbers may be none."""
    group = context.groups[index]
    kind = context.kind_of(group)
    options = kind.options_of(group)
    guards = guards_of(options, kind.rule.options)
    form = form_of(kind.rule, options)
    return Outline(group, kind, group["params"], form, guards["on_nonfinite"])


def requested_engine(engine: str, options: Mapping[str, Any]) -> str:
    """Return the engine that a group asks for, torch's own flags included: a name, or ``"auto"``.

    Raises:
        ValueError: an unknown engine, or flags that contradict each other.
        RuntimeError: a combination that torch refuses with this error too.
    """
    names = registry.public_names()
    if not isinstance(engine, str) or (engine != "auto" and engine not in names):
        raise ValueError(
            f"engine must be 'auto' or one of {', '.join(map(repr, names))}, got {engine!r}"
        )
    foreach, fused = options.get("foreach"), options.get("fused")
    if fused and options.get("differentiable"):
        raise RuntimeError("`fused` does not support `differentiable`: leave one of them out")
    if fused and foreach:
        raise RuntimeError("`fused` and `foreach` cannot be `True` together: leave one of them out")
    flagged = "auto"
    if fused or foreach:
        flagged = "fused" if fused else "foreach"
    elif fused is not None or foreach is not None:
        flagged = "eager"  # as in torch, a False asks for the plain loop
    if options.get("differentiable"):
        if "fused" in (engine, flagged) or "foreach" in (engine, flagged):
            raise ValueError(
                "differentiable=True needs engine='eager' (autograd cannot see into the others), "
                f"got {engine if engine != 'auto' else flagged!r}"
            )
        return "eager"
    if engine != "auto" and flagged not in ("auto", engine):
        raise ValueError(f"engine={engine!r} contradicts foreach={foreach} and fused={fused}")
    return flagged if engine == "auto" else engine


def settings_of(context: Context, index: int) -> Settings:
    """Return what group ``index`` asks for now.

    Raises:
        TypeError, ValueError: a number that is none.
    """
    group = context.groups[index]
    kind = context.kind_of(group)
    rule, own = kind.rule, (KIND,) if context.kinds else ()
    shared = (*_SHARED_OPTIONS, DECAY, *_ENGINE_OPTIONS, *GUARDS, *STORING)
    keys = tuple(dict.fromkeys((*own, *rule.options, *rule.flags, *shared)))
    options = kind.options_of(group)
    storing = storing_of(options, rule.options)
    check_storing(storing, options, f"group {index}: ")
    check_scheduled_values(rule, group, context.origin.group if context.origin else index)
    guards = guards_of(options, rule.options)
    check_guards(guards, f"group {index}: ")
    for name in CAUTION:
        checks.switch(f"group {index}: {name}", options[name])
    check_decay(kind.name, rule.root, options, f"group {index}: ")
    check_caution(kind.name, rule.root, options, f"group {index}: ")
    form = form_of(rule, options)
    may_be_called_off, is_scaled = kind_of(context.scaling)
    # A step is passed over in all groups, if it is in one.
    skips_on_device = context.calls_off_on_device and any(
        g.get("on_nonfinite") == "skip" for g in context.groups
    )
    if may_be_called_off or skips_on_device:
        form = replace(form, may_be_called_off=True, is_scaled=is_scaled)
    as_tensors = bool(options.get("differentiable") or options.get("capturable"))
    is_mutable = False
    numbers: dict[str, Any] = {}
    values = rule.scalar_values(options)
    for name in NUMBERS[form.decay]:
        values[name] = options[name]
    for name in CLIP_RANGES:
        if guards[name] is not None:
            values[name] = guards[name]
    for name, value in values.items():
        is_mutable |= isinstance(value, Tensor)
        if value is None and name in rule.optional:
            numbers[name] = math.nan
        else:
            numbers[name] = _number(value, as_tensors, f"{name} of group {index}")
    signature = tuple(map(group.get, keys))
    # What can be changed in place (a tensor, a list, an array) is looked at anew at every step.
    is_mutable |= not all(type(x) in _IMMUTABLE for x in signature)
    return Settings(
        group=group,
        kind=kind,
        params=list(group["params"]),
        same_params=IdentityGuard(group["params"]),
        keys=keys,
        signature=signature,
        form=form,
        numbers=numbers,
        engine=requested_engine(context.engine, options),
        is_mutable=is_mutable,
        state_names=frozenset((*(["step"] * rule.counts_steps), *form.present_slots)),
        on_nonfinite=guards["on_nonfinite"],
        storing=storing,
    )


def differ(values: tuple[Any, ...], known: tuple[Any, ...]) -> bool:
    """Tell whether option values are others than they were; tensors count as others."""
    try:
        return values != known
    except RuntimeError:  # a tensor of several elements has no truth value
        return True


def _number(value: Any, as_tensors: bool, label: str) -> Any:
    if isinstance(value, Tensor):
        if value.numel() != 1:
            raise ValueError(f"Tensor {label} must be 1-element, got shape {tuple(value.shape)}")
        return value.reshape(()) if as_tensors else value.item()
    try:
        return float(value)
    except (TypeError, ValueError):
        raise TypeError(f"{label} must be a number, got {type(value).__name__} {value!r}") from None
