"""``param_groups``: a model's parameters in groups, by patterns over their names."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from steprule.model_groups.depth import LayerDepth, depths_of
from steprule.model_groups.listing import ParamGroups
from steprule.model_groups.named import NamedParam, named_params, unwrapped
from steprule.model_groups.patterns import check_pattern, matches
from steprule.optimizer import Optimizer
from steprule.optimizer.options import suggestion
from steprule.planning.settings import KIND
from steprule.rules import OPTIMIZERS
from steprule.schedules import Schedule, checks

#: The key under which a group says what its lr was multiplied by.
LR_FACTOR = "lr_factor"


def param_groups(
    model: nn.Module,
    *,
    lr: float | Schedule | None = None,
    weight_decay: float | Schedule | None = None,
    no_decay: str | Sequence[str] = ("bias", "norm"),
    layer_decay: float | None = None,
    layer_depth: LayerDepth | None = None,
    lr_scale: Mapping[str, float] | None = None,
    rule: Mapping[str, str | type[Optimizer]] | None = None,
) -> ParamGroups:
    """Return a model's parameters in groups, by patterns over their names.

    ::

        groups = steprule.param_groups(
            model, lr=1e-3, weight_decay=0.05, layer_decay=0.75, lr_scale={"head.*": 10}
        )
        print(groups)                          # a table of what went where
        optimizer = steprule.AdamW(groups)     # or torch.optim.AdamW(groups)

    Every parameter that takes a gradient is in one group. Tied weights count once, by the first
    name that they have in the model; frozen ones are left out, and the table lists them.

    **A pattern** is compared with the dotted name of a parameter (``blocks.0.attn.qkv.weight``),
    case counting, in the manner of ``fnmatch``: ``*`` stands for any text, dots included, ``?`` for
    a character, ``[ab]`` for one of these. One without a dot fits the last part of a name as well:
    ``"gamma"`` is every parameter of that name. Three words stand for kinds:

    - ``"bias"``: the last part of the name is ``bias``, or begins with ``bias_`` or ends with
      ``_bias`` (``in_proj_bias``, ``bias_hh_l0``);
    - ``"norm"``: what a normalisation layer holds itself: a layer, group, RMS, batch or instance
      normalisation of torch's; and of other modules with "norm" in the name of their class or in
      their own name, what has at most one axis;
    - ``"1d"``: whatever has at most one axis, as timm and BEiT take it (also scales and gains).

    A pattern that matches nothing is an error; a kind that the model has none of is not.

    Args:
        model: the model. What ``torch.compile`` and ``DistributedDataParallel`` put before names
            is left out.
        lr: learning rate per step, a number or a schedule, which all groups are given, multiplied
            by what follows. None (default) leaves it to the optimizer, and is no choice with
            ``layer_decay`` or ``lr_scale``.
        weight_decay: of all that decay; a number or a schedule. None leaves it to the optimizer.
        no_decay: patterns of what has weight decay 0 (default biases and normalisation layers).
        layer_decay: the lr is multiplied by ``layer_decay ** (deepest - depth)``, in (0, 1]; None
            for none. Depths are those of ``layer_depth``; or of the model's ``group_matcher``, as
            timm's models have it; or go by numbered layers (``blocks.0``, ``layers.11``,
            ``encoder.layer.3``), the outermost number counting: these are 1, 2, … in the order of
            the model, one row of layers after the other. Embeddings, names with "stem" or "embed"
            and what stands before the layers are at 0; names as ``head``, ``classifier`` and
            ``fc`` and what stands behind the layers are one deeper than the last. Models whose
            rows of layers lie side by side (two towers) need ``layer_depth``.
        layer_depth: a function from a parameter's name to its depth, 0 for the first layer.
        lr_scale: factors of the lr by pattern, >= 0; all that match are multiplied.
        rule: what updates a parameter, by pattern: a name as in ``steprule list``, or a class of
            this library; the first pattern that matches counts, what none matches has the default
            of :func:`steprule.build_optimizer`, which makes one optimizer of such groups. A
            pattern for an optimizer of matrices (Muon) takes the matrices among what it matches
            (two axes), and leaves biases and the like to the default: the table shows it.

    Returns:
        The groups: a list of dicts with ``params``, ``param_names``, a ``name`` of their own, the
        options, ``"lr_factor"`` (what the lr was multiplied by, where anything is), and
        ``"optimizer"`` where ``rule`` says so. torch's optimizers take them as well (and would
        pass over what ``rule`` says; those of this library refuse such groups).

    Raises:
        TypeError: no module, a pattern that is no text, something that is no optimizer.
        ValueError: a pattern that matches nothing, with names near it; one that matches the second
            name of tied weights alone; a factor without ``lr``; no layers found; a rule for
            matrices whose pattern matches none; a number out of its range; nothing to train.

    Source: layer-wise decay as in Bao et al., "BEiT", 2021 (its ``lr_scale``, with embeddings at
    0 and the head at the end).
    """
    inner = unwrapped(model)
    params = named_params(inner)
    trained = [one for one in params if one.param.requires_grad]
    if not trained:
        raise ValueError("model has no parameter that takes a gradient: are all of them frozen?")
    lr = _checked_number("lr", lr)
    weight_decay = _checked_number("weight_decay", weight_decay)
    exempt = [no_decay] if isinstance(no_decay, str) else checks.listed("no_decay", no_decay)
    for pattern in exempt:
        check_pattern("no_decay", pattern, params)
    scales = _checked_scales(lr_scale, params)
    rules = _checked_rules(rule, params)
    depths = _depths(inner, params, layer_decay, layer_depth)
    if lr is None and (scales or depths):
        which = "layer_decay" if depths else "lr_scale"
        raise ValueError(f"{which} multiplies the lr, which only the optimizer knows: pass lr=...")
    deepest = max(depths.values(), default=0)

    groups: dict[tuple[Any, ...], dict[str, Any]] = {}
    for one in trained:
        updated_by = _rule_of(one, rules)
        scale = math.prod(factor for pattern, factor in scales.items() if matches(pattern, one))
        decays = not any(matches(pattern, one) for pattern in exempt)
        depth = depths.get(one.name)
        key = updated_by, depth, scale, decays
        if key not in groups:
            groups[key] = {"params": [], "param_names": [], "name": _name_of(*key)}
            if lr is not None:
                groups[key]["lr"] = lr
            if scales or depths:
                decay = 1.0 if depth is None else (layer_decay or 1.0) ** (deepest - depth)
                groups[key] |= {"lr": scaled(lr, scale * decay), LR_FACTOR: scale * decay}
            if not decays or weight_decay is not None:
                groups[key]["weight_decay"] = weight_decay if decays else 0.0
            if updated_by is not None:
                groups[key][KIND] = updated_by.__name__
        groups[key]["params"].append(one.param)
        groups[key]["param_names"].append(one.name)
    classes = {cls.__name__: cls for cls in rules.values()}
    return ParamGroups(
        groups.values(),
        {one.name: one.param for one in params if not one.param.requires_grad},
        {other: one.name for one in params for other in one.other_names},
        classes,
    )


def scaled(lr: Any, factor: float) -> Any:
    """Return a learning rate, a number or a schedule, times a factor."""
    return lr if factor == 1 else lr * factor


def _name_of(
    updated_by: type[Optimizer] | None, depth: int | None, scale: float, decays: bool
) -> str:
    parts = [
        updated_by.__name__.lower() if updated_by is not None else "",
        f"layer_{depth}" if depth is not None else "",
        f"lr_x{scale:g}" if scale != 1 else "",
        "decay" if decays else "no_decay",
    ]
    return ".".join(filter(None, parts))


def _checked_number(name: str, value: Any) -> Any:
    if value is None or isinstance(value, Schedule):
        return value
    return checks.number(name, value, low=0)


def _checked_scales(lr_scale: Any, params: Sequence[NamedParam]) -> dict[str, float]:
    if lr_scale is None:
        return {}
    if not isinstance(lr_scale, Mapping):
        raise TypeError(f"lr_scale must be a dict, as {{'head.*': 10}}, got {lr_scale!r}")
    for pattern in lr_scale:
        check_pattern("lr_scale", pattern, params)
    return {
        pattern: checks.number(f"lr_scale[{pattern!r}]", factor, low=0)
        for pattern, factor in lr_scale.items()
    }


def _checked_rules(rule: Any, params: Sequence[NamedParam]) -> dict[str, type[Optimizer]]:
    if rule is None:
        return {}
    if not isinstance(rule, Mapping):
        raise TypeError(f"rule must be a dict, as {{'blocks.*': 'muon'}}, got {rule!r}")
    classes = {}
    for pattern, given in rule.items():
        check_pattern("rule", pattern, params)
        classes[pattern] = optimizer_class(f"rule[{pattern!r}]", given)
        matched = [one for one in params if matches(pattern, one)]
        if classes[pattern].only_2d and matched and not any(one.param.ndim == 2 for one in matched):
            shapes = sorted({str(tuple(one.param.shape)) for one in matched})[:3]
            raise ValueError(
                f"rule: {classes[pattern].__name__} takes matrices (two axes) alone, and "
                f"{pattern!r} matches none: there are {', '.join(shapes)}"
            )
    return classes


def optimizer_class(where: str, given: Any) -> type[Optimizer]:
    """Return an optimizer class of this library, by its name as in ``steprule list`` or itself.

    Raises:
        ValueError: an unknown name, with one near it.
        TypeError: something else.
    """
    if isinstance(given, str):
        found = OPTIMIZERS.get(given.lower())
        if found is None:
            raise ValueError(
                f"{where}: no optimizer {given!r}{suggestion(given.lower(), OPTIMIZERS)}; there "
                f"are {', '.join(OPTIMIZERS)}"
            )
        given = found
    if not (isinstance(given, type) and issubclass(given, Optimizer)):
        raise TypeError(
            f"{where} must be the name or the class of an optimizer of steprule, got {given!r}"
        )
    return given


def _rule_of(one: NamedParam, rules: Mapping[str, type[Optimizer]]) -> type[Optimizer] | None:
    for pattern, cls in rules.items():
        if matches(pattern, one) and (one.param.ndim == 2 or not cls.only_2d):
            return cls
    return None


def _depths(
    model: nn.Module,
    params: Sequence[NamedParam],
    layer_decay: Any,
    layer_depth: Any,
) -> dict[str, int]:
    """Return the depths that the lr decays by; none without ``layer_decay``."""
    if layer_depth is not None and not callable(layer_depth):
        raise TypeError(f"layer_depth must be a function of a name, got {layer_depth!r}")
    if layer_decay is None:
        if layer_depth is not None:
            raise ValueError("layer_depth has no meaning without layer_decay: pass it as well")
        return {}
    if checks.number("layer_decay", layer_decay, above=0) > 1:
        raise ValueError(f"layer_decay must be in (0, 1], got {layer_decay!r}")
    return depths_of(model, params, layer_depth)
