"""Optimizers from rules of the user's own."""

from __future__ import annotations

import inspect
import sys
from typing import Any, cast

from steprule.language.rule import Rule
from steprule.optimizer.any_optimizer import AnyOptimizer
from steprule.optimizer.base import SHARED, Optimizer, required
from steprule.optimizer.options import check_options
from steprule.optimizer.scheduled import split_schedules

_SHARED: dict[str, Any] = {
    "weight_decay": 0.0,
    "maximize": False,
    "foreach": None,
    "capturable": False,
    "differentiable": False,
    "fused": None,
    **SHARED,
}


def make_optimizer(
    rule: Rule, /, *, name: str | None = None, **defaults: Any
) -> type[AnyOptimizer]:
    """Make an optimizer class of a rule: groups, state dicts, checks and every engine included.

    The class is called as the built-in ones are: ``MyOpt(params, lr=..., **options)``, and takes
    besides the rule's own options ``weight_decay``, ``decoupled_weight_decay``, ``maximize``,
    ``foreach``, ``fused``, ``capturable``, ``differentiable``, ``engine`` and the guards
    (:class:`~steprule.optimizer.SharedOptions`).

    Args:
        rule: what :func:`steprule.rule` made of a function.
        name: name of the class (default: the rule's, in CamelCase). To be picklable, assign the
            class to a module-level variable of that name.
        **defaults: default values of the rule's options; one without a default must be given to
            the class.

    Raises:
        TypeError: ``rule`` is not a rule, ``name`` no name, or a default is for no option of the
            rule or of the wrong kind.
        ValueError: a default that is out of its range.

    Example:
        >>> import torch, steprule
        >>> from steprule.ops import sign
        >>> @steprule.rule
        ... def lion(param, grad, exp_avg, *, lr, beta1, beta2):
        ...     update = sign(beta1 * exp_avg + (1 - beta1) * grad)
        ...     return param - lr * update, beta2 * exp_avg + (1 - beta2) * grad
        >>> Lion = steprule.make_optimizer(lion, lr=1e-4, betas=(0.9, 0.99))
        >>> weight = torch.ones(3, requires_grad=True)
        >>> optimizer = Lion([weight], lr=0.5)
        >>> weight.sum().backward()
        >>> optimizer.step()
        >>> weight
        tensor([0.5000, 0.5000, 0.5000], requires_grad=True)
    """
    if not isinstance(rule, Rule):
        raise TypeError(f"make_optimizer needs a rule: decorate {rule!r} with @steprule.rule")
    if name is not None and not (isinstance(name, str) and name.isidentifier()):
        raise TypeError(f"name must be a name as Python's classes have, got {name!r}")
    own = (*rule.options, *rule.flags)
    unknown = sorted(set(defaults) - {*own, *_SHARED})
    if unknown:
        raise TypeError(
            f"rule {rule.name} has no option {', '.join(unknown)}; it has {', '.join(own)}"
        )
    given = {key: value for key, value in defaults.items() if value is not required}
    check_options(rule, split_schedules(given)[0], "make_optimizer: ")
    usual = {**_SHARED, "decoupled_weight_decay": rule.decoupled}
    shared = {k: defaults.get(k, v) for k, v in usual.items() if k not in own}
    positional = [
        inspect.Parameter(
            option,
            inspect.Parameter.POSITIONAL_OR_KEYWORD,
            default=defaults.get(option, inspect.Parameter.empty),
        )
        for option in sorted(own, key=lambda o: o in defaults)
    ]
    keyword = [
        inspect.Parameter(option, inspect.Parameter.KEYWORD_ONLY, default=default)
        for option, default in {**shared, "engine": "auto"}.items()
    ]
    params = inspect.Parameter("params", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    signature = inspect.Signature([params, *positional, *keyword])

    def construct(self: Optimizer, /, *args: Any, **kwargs: Any) -> None:
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError as problem:
            raise TypeError(f"{type(self).__name__}{signature}: {problem}") from None
        bound.apply_defaults()
        options = dict(bound.arguments)
        Optimizer.__init__(
            self, options.pop("params"), engine=options.pop("engine"), defaults=options
        )

    class_name = name or "".join(part.title() for part in rule.name.split("_"))
    caller = sys._getframe(1).f_globals.get("__name__", __name__)
    namespace = {
        "rule": rule,
        "__init__": construct,
        "__doc__": rule.function.__doc__,
        "__module__": caller,
        "__qualname__": class_name,
        "__signature__": signature,
    }
    return cast("type[AnyOptimizer]", type(class_name, (Optimizer,), namespace))
