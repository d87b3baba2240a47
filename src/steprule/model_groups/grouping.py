"""``param_groups``: a model's parameters in groups, by patterns over their names."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, nn

from steprule.model_groups.depth import Depths, LayerDepth, depths_of
from steprule.model_groups.kinds import KINDS
from steprule.model_groups.listing import DECAYS, LR_FACTOR, ParamGroups
from steprule.model_groups.named import NamedParam, named_params, plain_name, unwrapped
from steprule.model_groups.patterns import check_pattern, matches
from steprule.model_groups.updaters import (
    Rules,
    Updater,
    checked_rules,
    classes_of,
    notes_on,
    updater_of,
)
from steprule.planning.settings import KIND
from steprule.schedules import Schedule, checks


def param_groups(
    model: nn.Module,
    lr: float | Schedule | None = None,
    *,
    weight_decay: float | Schedule | None = None,
    no_decay: str | Sequence[str] = ("bias", "norm"),
    layer_decay: float | None = None,
    layer_depth: LayerDepth | None = None,
    lr_scale: Mapping[str, float] | None = None,
    rule: Rules | None = None,
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
        model: the model. What compiling, ``DistributedDataParallel``, ``AveragedModel``, activation
            checkpointing and FSDP put into names is left out, of modules within it as well.
        lr: learning rate per step, a number or a schedule, which all groups are given, multiplied
            by what follows. None (default) leaves it to the optimizer, and is no choice with
            ``layer_decay`` or ``lr_scale``.
        weight_decay: of all that decay; a number or a schedule. None leaves it to the optimizer.
        no_decay: patterns of what has weight decay 0 (default biases and normalisation layers).
            What the model's own ``no_weight_decay()`` names (timm's have one) has it as well.
        layer_decay: the lr is multiplied by ``layer_decay ** (deepest - depth)``, in (0, 1]; None
            for none. Depths are those of ``layer_depth``; or of the model's ``group_matcher``, as
            timm's models have it; or go by numbered layers (``blocks.0``, ``layers.11``,
            ``encoder.layer.3``), the outermost number counting: these are 1, 2, … in the order of
            the model. Embeddings, also where a head shares their matrix, and what stands before the
            layers are at 0; what stands behind them is one deeper than the last. Several rows
            of layers are counted one after the other, as the table then says; where they may lie
            side by side (two towers), ``layer_depth`` is asked for.
        layer_depth: a function from a parameter's name to its depth, 0 for the first layer.
        lr_scale: factors of the lr by pattern, >= 0; all that match are multiplied.
        rule: what updates a parameter, by pattern: a name as in ``steprule list``, or a class of
            this library; or a pair of that and a dict of its options. The first pattern that
            matches counts, what none matches has the default of :func:`steprule.build_optimizer`,
            which makes one optimizer of such groups. A pattern for an optimizer of matrices (Muon)
            takes the matrices among what it matches (two axes; more with
            ``("muon", {"flatten": True})``), and leaves biases and the like to the patterns that
            follow and the default: the table shows it, and what had better be left, too.

    Returns:
        The groups: a list of dicts with ``params``, ``param_names``, a ``name`` of their own, the
        options, ``"lr_factor"`` (what the lr was multiplied by, where anything is), ``"decays"``
        (whether ``no_decay`` leaves them weight decay), and ``"optimizer"`` where ``rule`` says so.
        torch's optimizers take them as well (and would
        pass over what ``rule`` says; those of this library refuse such groups).

    Raises:
        TypeError: no module, a pattern that is no text, something that is no optimizer.
        ValueError: a pattern that matches nothing, with names near it; one that matches the second
            name of tied weights alone; a factor without ``lr``; no layers found, or rows that may
            lie side by side; a rule for matrices whose pattern matches none, LBFGS, two classes of
            one name; a number out of its range; nothing to train; a lazy module without shapes.

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
    rules = checked_rules(rule, params)
    classes = classes_of(updater.cls for updater in rules.values())
    own_exempt = _exempt_by_model(inner)
    found = _depths(inner, params, layer_decay, layer_depth)
    depths = found.by_name
    if lr is None and (scales or depths):
        which = "layer_decay" if depths else "lr_scale"
        raise ValueError(f"{which} multiplies the lr, which only the optimizer knows: pass lr=...")
    deepest = max(depths.values(), default=0)

    groups: dict[tuple[Any, ...], dict[str, Any]] = {}
    for one in trained:
        updated_by = updater_of(one, rules)
        scale = math.prod(factor for pattern, factor in scales.items() if matches(pattern, one))
        is_exempt = any(fnmatchcase(one.name, pattern) for pattern in own_exempt)
        decays = not is_exempt and not any(matches(pattern, one) for pattern in exempt)
        depth = depths.get(one.name)
        key = updated_by, depth, scale, decays
        if key not in groups:
            groups[key] = {"params": [], "param_names": [], "name": _name_of(*key)}
            if lr is not None:
                groups[key]["lr"] = lr
            if scales or depths:
                decay = 1.0 if depth is None else (layer_decay or 1.0) ** (deepest - depth)
                groups[key] |= {"lr": scaled(lr, scale * decay), LR_FACTOR: scale * decay}
            if updated_by is not None:
                groups[key] |= {KIND: updated_by.cls.__name__, **updated_by.options}
            if not decays or (weight_decay is not None and "weight_decay" not in groups[key]):
                groups[key]["weight_decay"] = weight_decay if decays else 0.0
            groups[key][DECAYS] = decays
        groups[key]["params"].append(one.param)
        groups[key]["param_names"].append(one.name)
    by_model = [name for name in own_exempt if any(fnmatchcase(one.name, name) for one in trained)]
    listed = f"no weight decay, as the model's no_weight_decay() says: {', '.join(by_model)}"
    return ParamGroups(
        groups.values(),
        {one.name: one.param for one in params if not one.param.requires_grad},
        {other: one.name for one in params for other in one.other_names},
        classes,
        [
            *found.notes,
            *([listed] if by_model else []),
            *notes_on(rules, trained),
            *_of_frozen_alone("lr_scale", scales, trained),
            *_of_frozen_alone("rule", rules, trained),
        ],
    )


def _exempt_by_model(model: nn.Module) -> list[str]:
    """Return the names, or patterns of them, that a model says to have no weight decay, as timm."""
    says = getattr(model, "no_weight_decay", None)
    # A parameter or a module of that name is no list of names.
    if not callable(says) or isinstance(says, (nn.Module, Tensor)):
        return []
    own = {name: plain_name(model, name) for name, _ in model.named_parameters()}
    return sorted(own.get(name, name) for name in checks.listed("model.no_weight_decay()", says()))


def _of_frozen_alone(
    argument: str, patterns: Mapping[str, Any], trained: Sequence[NamedParam]
) -> list[str]:
    without = [p for p in patterns if p not in KINDS and not any(matches(p, x) for x in trained)]
    return [f"{argument}: {p!r} matches frozen parameters alone, and does nothing" for p in without]


def scaled(lr: Any, factor: float) -> Any:
    """Return a learning rate, a number or a schedule, times a factor."""
    return lr if factor == 1 else lr * factor


def _name_of(updated_by: Updater | None, depth: int | None, scale: float, decays: bool) -> str:
    parts = [
        updated_by.label if updated_by is not None else "",
        f"layer_{depth}" if depth is not None else "",
        f"lr_x{scale:g}" if scale != 1 else "",
        "decay" if decays else "no_decay",
    ]
    return ".".join(filter(None, parts))


def _checked_number(name: str, value: Any) -> Any:
    if value is None or isinstance(value, Schedule):
        return value
    if isinstance(value, Tensor):
        raise TypeError(
            f"{name} must be a number or a schedule, got {value!r}, which groups of different "
            f"{name} can't share: pass {name}=float(...), and put tensors into the groups returned"
        )
    if isinstance(value, str):
        raise TypeError(
            f"{name} must be a number or a schedule, got {value!r}: of text, "
            "steprule.schedules.parse(...) makes a schedule"
        )
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


def _depths(
    model: nn.Module,
    params: Sequence[NamedParam],
    layer_decay: Any,
    layer_depth: Any,
) -> Depths:
    """Return the depths that the lr decays by; none without ``layer_decay``."""
    if layer_depth is not None and not callable(layer_depth):
        raise TypeError(f"layer_depth must be a function of a name, got {layer_depth!r}")
    if layer_decay is None:
        if layer_depth is not None:
            raise ValueError("layer_depth has no meaning without layer_decay: pass it as well")
        return Depths({})
    if checks.number("layer_decay", layer_decay, above=0) > 1:
        raise ValueError(f"layer_decay must be in (0, 1], got {layer_decay!r}")
    return depths_of(model, params, layer_depth)
