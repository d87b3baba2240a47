"""What a rule is: the formula, and beside it what cannot be read off the formula."""

from __future__ import annotations

import functools
import importlib
import inspect
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from numbers import Real
from typing import Any, Literal, get_args, overload

from steprule.language.names import SUPPLIED as SUPPLIED
from steprule.language.names import check_names

__all__ = ["Range", "Rule", "Slot", "rule"]

# Those that a parameter's shape gives.
OF_SHAPE = ("rows", "columns")

Shape = Literal["param", "scalar", "row", "column", "vector", "left", "right"]
Sparse = Literal["refused", "rows", "only"]


def _check_bools(what: str, record: Any, *names: str) -> None:
    for name in names:
        value = getattr(record, name)
        if not isinstance(value, bool):
            raise TypeError(f"{what}: {name} must be True or False, got {value!r}")


@dataclass(frozen=True)
class Range:
    """The values that a numeric option may take, as data: one place for check and message."""

    low: float = -math.inf
    high: float = math.inf
    low_included: bool = True
    high_included: bool = True
    is_finite: bool = True

    def __post_init__(self) -> None:
        for name in ("low", "high"):
            end = getattr(self, name)
            if isinstance(end, bool) or not isinstance(end, Real) or math.isnan(end):
                raise TypeError(f"Range: {name} must be a number, got {end!r}")
        _check_bools("Range", self, "low_included", "high_included", "is_finite")
        if self.low > self.high:
            raise ValueError(f"Range: low must not be above high, got {self.low} and {self.high}")

    def __contains__(self, x: float) -> bool:
        above = x >= self.low if self.low_included else x > self.low
        below = x <= self.high if self.high_included else x < self.high
        return above and below and not (self.is_finite and math.isinf(x))

    def __str__(self) -> str:
        if self.high == math.inf:
            kind = "a finite number" if self.is_finite else "a number"
            if self.low == -math.inf:
                return kind
            return f"{kind} {'>=' if self.low_included else '>'} {self.low:g}"
        left, right = "[("[not self.low_included], "])"[not self.high_included]
        return f"in {left}{self.low:g}, {self.high:g}{right}"


FINITE = Range()
NON_NEGATIVE = Range(low=0.0)
FRACTION = Range(low=0.0, high=1.0, high_included=False)

# The field's standard options. A rule may override a range, or add one for a name of its own.
RANGES: Mapping[str, Range] = {
    "lr": NON_NEGATIVE,
    "weight_decay": NON_NEGATIVE,
    "eps": NON_NEGATIVE,
    "betas": FRACTION,
    "momentum": NON_NEGATIVE,
}
_BETA = re.compile(r"beta([1-9]\d*)")


@dataclass(frozen=True)
class Slot:
    """One piece of state that a rule keeps for each parameter.

    Attributes:
        signed: False if it never goes below zero (a format may then use all its codes above).
        init: value before the first step: a number, or the name of the option that holds it. That
            of a square matrix is on its diagonal: with 1 it starts as the identity, which leaves
            alone what it is multiplied by until it is made of something.
        when: name of an option; the slot exists only where that option is on (or not 0).
        when_is: where the option ``when`` is a word, the one that the slot exists for.
        full_precision: true if a format of low precision must leave it alone: best the reason, for
            the docs.
        precise_when: name of an option; only where that is on is ``full_precision`` meant.
        shape: ``"param"``, one number for each element; ``"scalar"``, one for the whole
            parameter; and for rules that are not elementwise ``"row"`` and ``"column"`` (the last,
            or last but one, axis reduced to 1; matrices only), ``"vector"`` (the parameter's
            shape, but only if it has fewer than two axes), and ``"left"`` and ``"right"`` (square
            matrices of the parameter's rows by rows and columns by columns, kept in full
            precision; ``columns`` are all axes but the first together).
        longest: name of the option that says up to which length of its side a square one exists.
        of_vectors: name of the option that is on where a vector has the left one, too. A matrix of
            one row or column then counts as a vector, and has none of its side of length 1. Without
            a name every vector has the left one, every matrix both.
        needs_every_step: it changes even where the gradient is 0, so that a sparse gradient must
            be made dense.
        is_float64: a scalar slot is kept in float64 (others are as torch's step counts: float32,
            unless float64 is torch's default dtype).
        is_wide: where no format is asked for, it is stored in the dtype in which the rule computes
            (float32 for parameters of 16 bits), not in the parameter's own.
        is_average: it is the parameter's running average: it starts at the parameter, and is stored
            as the option ``ema_format`` says.
    """

    signed: bool = True
    init: float | str = 0.0
    when: str | None = None
    when_is: str | None = None
    full_precision: bool | str = False
    precise_when: str | None = None
    shape: Shape = "param"
    longest: str | None = None
    of_vectors: str | None = None
    needs_every_step: bool = False
    is_float64: bool = False
    is_wide: bool = False
    is_average: bool = False

    def __post_init__(self) -> None:
        if self.shape not in get_args(Shape):
            known = ", ".join(map(repr, get_args(Shape)))
            raise ValueError(f"Slot: shape must be one of {known}, got {self.shape!r}")
        if isinstance(self.init, bool) or not isinstance(self.init, (Real, str)):
            raise TypeError(
                f"Slot: init must be a number or the name of an option, got {self.init!r}"
            )
        for name in ("when", "when_is", "precise_when", "longest", "of_vectors"):
            option = getattr(self, name)
            if option is not None and not isinstance(option, str):
                what = "a word" if name == "when_is" else "the name of an option"
                raise TypeError(f"Slot: {name} must be {what}, got {option!r}")
        if not isinstance(self.full_precision, (bool, str)):
            raise TypeError(
                f"Slot: full_precision must be True, False or a reason, got {self.full_precision!r}"
            )
        flags = [f.name for f in fields(self) if isinstance(f.default, bool)]
        _check_bools("Slot", self, *(name for name in flags if name != "full_precision"))

    @property
    def is_scalar(self) -> bool:
        """Whether it is one number for the whole parameter."""
        return self.shape == "scalar"

    @property
    def is_square(self) -> bool:
        """Whether it is a square matrix of one of the parameter's sides."""
        return self.shape in ("left", "right")

    def shape_for(
        self, param_shape: Sequence[int], options: Mapping[str, Any] | None = None
    ) -> tuple[int, ...] | None:
        """Return the slot's shape for a parameter of this shape; None if that has no such slot.

        Args:
            param_shape: the parameter's.
            options: those that bound a square slot, if it is asked whether there is one.
        """
        if self.is_square:
            return self._square_for(param_shape, options or {})
        is_matrix = len(param_shape) > 1
        if self.shape == "scalar":
            return ()
        if self.shape in ("row", "column") and is_matrix:
            axis = len(param_shape) - (1 if self.shape == "row" else 2)
            return tuple(1 if i == axis else n for i, n in enumerate(param_shape))
        if self.shape == "param" or (self.shape == "vector" and not is_matrix):
            return tuple(param_shape)
        return None

    def _square_for(
        self, param_shape: Sequence[int], options: Mapping[str, Any]
    ) -> tuple[int, int] | None:
        if not param_shape or not math.prod(param_shape):
            return None
        sides = param_shape[0], math.prod(param_shape[1:])
        side = sides[self.shape == "right"]
        if len(param_shape) == 1 and self.shape == "right":
            return None
        if self.of_vectors and 1 in sides and (side == 1 or not options.get(self.of_vectors, True)):
            return None
        longest = options.get(self.longest or "", math.inf)
        if isinstance(longest, bool) or not isinstance(longest, Real):
            raise TypeError(f"{self.longest} must be a number, got {longest!r}")
        return None if side > longest else (side, side)

    def is_present(self, options: Mapping[str, Any]) -> bool:
        """Tell whether a group with these options keeps this slot."""
        if self.when is None:
            return True
        value = options[self.when]
        return bool(value) if self.when_is is None else bool(value == self.when_is)

    def is_precise(self, options: Mapping[str, Any]) -> bool:
        """Tell whether formats of low precision must leave it alone in such a group."""
        is_meant = self.precise_when is None or bool(options[self.precise_when])
        return self.shape != "param" or (bool(self.full_precision) and is_meant)

    def initial_value(self, options: Mapping[str, Any]) -> float:
        """Return what every element holds before the first step."""
        if not isinstance(self.init, str):
            return self.init
        value = options[self.init]
        return float(value.detach() if hasattr(value, "detach") else value)


@dataclass(frozen=True, eq=False)
class Rule:
    """An update rule: see :func:`rule`, which makes one from a function. Equal only to itself."""

    function: Callable[..., Any]
    slots: Mapping[str, Slot]
    options: tuple[str, ...]
    flags: tuple[str, ...]
    needs: tuple[str, ...]
    counts_steps: bool
    ranges: Mapping[str, Range] = field(default_factory=dict)
    parts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    source: str = ""
    sparse: Sparse = "refused"
    elementwise: bool = True
    batched: bool = False
    decoupled: bool = False
    takes_complex: bool = True
    keeps_denormals: bool = False
    averages_param: bool = False
    optional: tuple[str, ...] = ()
    # A rule made of another: by what, and of which.
    made_by: tuple[Callable[..., Rule], tuple[Any, ...]] | None = None
    base: Rule | None = None

    @property
    def is_recorded(self) -> bool:
        """Whether it can be run once on symbols, for others than the eager engine."""
        return self.elementwise or self.batched

    @property
    def name(self) -> str:
        """The function's name."""
        return self.function.__name__

    @property
    def root(self) -> Rule:
        """The rule that this one was made of, without a running average or caution."""
        return self if self.base is None else self.base.root

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Apply the formula itself to whatever it is given."""
        return self.function(*args, **kwargs)

    def __reduce__(self) -> tuple[Any, ...]:
        if self.base is not None and self.made_by is not None:
            return derived_rule, (self.base, self.made_by[0], *self.made_by[1])
        # The module-level name holds the rule, not the function: pickle it by that name.
        return _rule_named, (self.function.__module__, self.function.__qualname__)

    def scalar_values(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Return the rule's numeric arguments by name, pairs taken apart."""
        values: dict[str, Any] = {}
        for option in self.options:
            if option in self.parts:
                values.update(zip(self.parts[option], options[option], strict=True))
            else:
                values[option] = options[option]
        return values


# How a keyword argument is annotated that holds a number; any other annotation makes a flag.
_NUMBERS = (inspect.Parameter.empty, Any, float, "Any", "float")


def shape_numbers(shape: Sequence[int]) -> dict[str, float]:
    """Return what a parameter's shape gives a rule that asks for it."""
    rows = shape[0] if len(shape) else 1
    return {"rows": float(rows), "columns": float(math.prod(shape[1:]))}


def derived_rule(base: Rule, make: Callable[..., Rule], *args: Any) -> Rule:
    """Return ``make(base, *args)``; the same one each time, so that plans and kernels find it."""
    known: dict[Any, Rule] = base.__dict__.setdefault("_derived", {})
    key = (make, args)
    if key not in known:
        known[key] = replace(make(base, *args), base=base, made_by=key)
    return known[key]


def named_after(base: Rule, function: Callable[..., Any], what: str) -> Callable[..., Any]:
    """Return the function of a rule made of another, named and looked at as the other's."""
    function.__wrapped__ = base.function  # type: ignore[attr-defined]  # for its signature
    function.__name__ = function.__qualname__ = f"{base.name}_{what}"
    return function


def listed(result: Any) -> tuple[Any, ...]:
    """Return what a rule's function has returned: the new param, and slots where it has some."""
    return result if isinstance(result, tuple) else (result,)


def _rule_named(module: str, name: str) -> Any:
    return getattr(importlib.import_module(module), name)


@overload
def rule(function: Callable[..., Any], /) -> Rule: ...


@overload
def rule(
    *,
    ranges: Mapping[str, Range] | None = None,
    parts: Mapping[str, tuple[str, ...]] | None = None,
    counts_steps: bool | None = None,
    source: str = "",
    sparse: Sparse = "refused",
    elementwise: bool = True,
    batched: bool = False,
    decoupled: bool = False,
    takes_complex: bool = True,
    keeps_denormals: bool = False,
    averages_param: bool = False,
    optional: tuple[str, ...] = (),
    **slots: Slot,
) -> Callable[[Callable[..., Any]], Rule]: ...


def rule(
    function: Callable[..., Any] | None = None,
    /,
    *,
    ranges: Mapping[str, Range] | None = None,
    parts: Mapping[str, tuple[str, ...]] | None = None,
    counts_steps: bool | None = None,
    source: str = "",
    sparse: Sparse = "refused",
    elementwise: bool = True,
    batched: bool = False,
    decoupled: bool = False,
    takes_complex: bool = True,
    keeps_denormals: bool = False,
    averages_param: bool = False,
    optional: tuple[str, ...] = (),
    **slots: Slot,
) -> Rule | Callable[[Callable[..., Any]], Rule]:
    """Make a rule of a pure function (a decorator, with or without arguments).

    The function takes, by position, ``param``, ``grad`` and its slots (state, one array each,
    shaped as ``param``); by keyword only, numbers (``lr``, ``beta1``…) and flags (annotated
    ``bool``, fixed before the rule is recorded). It returns the new ``param`` and slots in the
    same order, and uses nothing but arithmetic, comparisons and :mod:`steprule.ops` (norms and sums
    of a parameter's elements among them).

    Some keyword arguments are supplied when asked for: ``step``, the number of updates including
    this one (1 at the first); ``first``, true on a parameter's first update; ``machine_eps``, that
    of the parameter's dtype; ``rows``, the length of its first axis (1 for a 0-dim one), and
    ``columns``, of all others together. Weight decay (unless the function asks for it),
    ``maximize``, complex parameters and half precision are dealt with outside: do not write them.

    Args:
        ranges: allowed values of options beyond the usual ones (`lr`, `eps`, `betas`…).
        parts: for an option that is a tuple, the names of its parts:
            ``{"scales": ("low", "high")}``. ``beta1, beta2, beta3…`` are known as ``betas``.
        counts_steps: keep a ``step`` count in the state; by default, if ``step`` is asked for.
        source: authors, title, year.
        sparse: whether a sparse gradient is ``"refused"``, updates the ``"rows"`` it has, or is
            the ``"only"`` kind taken.
        elementwise: False if the rule needs more than operations on elements and reductions of
            all of them: matrix products, means over one axis. Such a rule may use
            :mod:`steprule.matrix_ops` and runs on the eager engine alone,
        batched: unless all that it takes from there can be recorded (``orthogonalized``,
            ``sandwiched``, ``gram``, ``eigenbasis``, ``inverse_root``): then the engine
            ``foreach`` carries that out for many matrices at once.
        decoupled: weight decay shrinks the parameter instead of adding to the gradient.
        takes_complex: whether complex parameters (as pairs of reals) make sense.
        keeps_denormals: compute with numbers below the normal range too. Otherwise the fused engine
            takes them as 0: state that decays towards 0 would stay among them, and make every
            step many times slower.
        averages_param: state follows what the rule makes of the parameter, so that a step which is
            masked afterwards would leave it behind: ``cautious`` and ``cautious_weight_decay`` are
            refused.
        optional: numbers that may be None: the rule gets nan (``where(eps == eps, eps, ...)``).
        **slots: a :class:`Slot` for each slot that is not simply signed and 0 at first.

    Raises:
        TypeError: the function's signature does not have this form.
        ValueError: a slot or an option has a name that means something else (``params``), or none.

    Example:
        >>> import steprule
        >>> from steprule.ops import sign
        >>> @steprule.rule
        ... def signum(param, grad, momentum_buffer, *, lr, momentum):
        ...     momentum_buffer = momentum * momentum_buffer + (1 - momentum) * grad
        ...     return param - lr * sign(momentum_buffer), momentum_buffer
        >>> Signum = steprule.make_optimizer(signum, lr=1e-3, momentum=0.9)
    """
    if function is None:
        return functools.partial(
            _rule_of,
            ranges=ranges,
            parts=parts,
            counts_steps=counts_steps,
            slots=slots,
            record={
                "source": source,
                "sparse": sparse,
                "elementwise": elementwise,
                "batched": batched,
                "decoupled": decoupled,
                "takes_complex": takes_complex,
                "keeps_denormals": keeps_denormals,
                "averages_param": averages_param,
                "optional": optional,
            },
        )
    return _rule_of(function)


def _betas_of(names: Iterable[str]) -> tuple[str, ...]:
    """Return the parts of ``betas``: up to the last one asked for, but never fewer than two."""
    numbers = [int(found[1]) for found in map(_BETA.fullmatch, names) if found]
    return tuple(f"beta{i}" for i in range(1, max([2, *numbers]) + 1))


def _check_described(
    name: str, slots: Any, ranges: Any, parts: Any, record: Mapping[str, Any]
) -> None:
    """Check what is said of a rule beside its function.

    Raises:
        TypeError: an argument of the wrong kind.
        ValueError: a word that is none.
    """
    for slot, kept in slots.items():
        if not isinstance(kept, Slot):
            raise TypeError(f"rule {name}: {slot} must be a Slot, got {kept!r}")
    for what, given in (("ranges", ranges), ("parts", parts)):
        if given is not None and not isinstance(given, Mapping):
            raise TypeError(f"rule {name}: {what} must be a dict, got {given!r}")
    for option, allowed in (ranges or {}).items():
        if not isinstance(allowed, Range):
            raise TypeError(f"rule {name}: ranges of {option} must be a Range, got {allowed!r}")
    for option, names in (parts or {}).items():
        if not isinstance(names, (tuple, list)) or not all(isinstance(n, str) for n in names):
            raise TypeError(
                f"rule {name}: parts of {option} must be a tuple of names, got {names!r}"
            )
    _check_record(name, record)


def _check_bounds(name: str, slots: Mapping[str, Slot], keywords: Iterable[str]) -> None:
    """Check the names of the options that say which square matrices there are."""
    for slot, kept in slots.items():
        for what in ("longest", "of_vectors"):
            option = getattr(kept, what)
            if option is not None and option not in keywords:
                raise ValueError(
                    f"rule {name}: {what} of {slot} must be the name of an option that the rule "
                    f"takes, got {option!r}; there are {', '.join(keywords)}"
                )
            if option is not None and not kept.is_square:
                raise ValueError(
                    f"rule {name}: {what} of {slot} is of square matrices, shape='left' or "
                    f"'right', its shape is {kept.shape!r}"
                )


def _check_record(name: str, record: Mapping[str, Any]) -> None:
    if record and record["sparse"] not in get_args(Sparse):
        known = ", ".join(map(repr, get_args(Sparse)))
        raise ValueError(f"rule {name}: sparse must be one of {known}, got {record['sparse']!r}")
    for what, value in record.items():
        if what == "source" and not isinstance(value, str):
            raise TypeError(f"rule {name}: source must be text, got {value!r}")
        if what == "optional" and not isinstance(value, (tuple, list)):
            raise TypeError(f"rule {name}: optional must be a tuple of options, got {value!r}")
        if what not in ("source", "sparse", "optional") and not isinstance(value, bool):
            raise TypeError(f"rule {name}: {what} must be True or False, got {value!r}")


def _rule_of(
    function: Callable[..., Any],
    *,
    ranges: Mapping[str, Range] | None = None,
    parts: Mapping[str, tuple[str, ...]] | None = None,
    counts_steps: bool | None = None,
    slots: Mapping[str, Slot] | None = None,
    record: Mapping[str, Any] | None = None,
) -> Rule:
    """Return the record of a function: what its signature says, and what was said beside it."""
    if not callable(function) or isinstance(function, type):
        raise TypeError(f"rule needs a function, got {function!r}")
    slots = slots or {}
    arrays, keywords = [], {}
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind is parameter.POSITIONAL_OR_KEYWORD:
            arrays.append(parameter.name)
        elif parameter.kind is parameter.KEYWORD_ONLY:
            keywords[parameter.name] = parameter.annotation not in _NUMBERS
        else:
            raise TypeError(f"rule {function.__name__} may not take *args or **kwargs")
    if arrays[:2] != ["param", "grad"]:
        raise TypeError(
            f"rule {function.__name__} must take param and grad first, then its slots; "
            f"its positional arguments are {arrays}"
        )
    unknown = sorted(set(slots) - set(arrays[2:]))
    if unknown:
        raise TypeError(f"rule {function.__name__} has no slot {', '.join(unknown)}")
    _check_described(function.__name__, slots, ranges, parts, record or {})
    if counts_steps not in (None, True, False):
        raise TypeError(
            f"rule {function.__name__}: counts_steps must be True, False or None, got "
            f"{counts_steps!r}"
        )
    own_parts = {option: tuple(names) for option, names in (parts or {}).items()}
    all_parts = {"betas": _betas_of(keywords), **own_parts}
    owner = {part: option for option, names in all_parts.items() for part in names}
    numbers = [name for name, is_flag in keywords.items() if not is_flag and name not in SUPPLIED]
    options = tuple(dict.fromkeys(owner.get(name, name) for name in numbers))
    strange = [str(name) for name in (record or {}).get("optional", ()) if name not in numbers]
    if strange:
        raise TypeError(
            f"rule {function.__name__}: optional has {', '.join(strange)}, which is no number "
            f"that it takes: {', '.join(numbers)}"
        )
    flags = [name for name, is_flag in keywords.items() if is_flag]
    check_names(function.__name__, arrays[2:], numbers, flags, all_parts)
    _check_bounds(function.__name__, slots, keywords)
    return Rule(
        function=function,
        slots={name: slots.get(name, Slot()) for name in arrays[2:]},
        options=options,
        flags=tuple(flags),
        needs=tuple(keywords),
        counts_steps="step" in keywords if counts_steps is None else counts_steps,
        ranges={**RANGES, **(ranges or {})},
        parts={option: names for option, names in all_parts.items() if option in options},
        **(record or {}),
    )
