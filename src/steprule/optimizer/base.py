"""The Optimizer base: parameter groups, state, hooks, and the step."""

from __future__ import annotations

import inspect
import warnings
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any, ClassVar, Protocol, TypeAlias, TypeVar, cast, overload

import torch
from torch import Tensor
from torch.optim import optimizer as torch_optimizer

from steprule.distributed.shards import is_sharded, local_of
from steprule.distributed.torch_wrappers import shows_a_part
from steprule.engines import registry
from steprule.engines.engine import Runner
from steprule.engines.uninterrupted import uninterrupted
from steprule.formats.choices import (
    AVERAGING,
    STORING,
    check_param,
    check_storing,
    storing_of,
)
from steprule.formats.storage import ROUNDING_STEP
from steprule.language.caution import CAUTION, check_caution
from steprule.language.decay import DECAYING, check_decay, check_kind_of_decay
from steprule.language.form import form_of
from steprule.language.guards import GUARDS, WORDS, check_guards, guards_of
from steprule.language.rule import Rule
from steprule.optimizer.averaging import STEP_AMONG_AVERAGES, averages_in_place
from steprule.optimizer.explain import Explanation, explanation_of, pass_notes
from steprule.optimizer.hooks import HOOKS, MOVED_ON, hooked, uncompiled
from steprule.optimizer.options import check_options, check_spelling, suggestion
from steprule.optimizer.param_groups import (
    ParamsT,
    check_against_others,
    check_tensors,
    check_updated_by,
    listed_groups,
    split_names,
)
from steprule.optimizer.saving import SavedOptimizer
from steprule.optimizer.scheduled import (
    SCHEDULES,
    STEP,
    advance_schedules,
    split_schedules,
    steps_seen,
    with_schedules,
)
from steprule.planning.assignment import Assignment
from steprule.planning.leaf_checks import counts_on_device
from steprule.planning.owners import Owners, check_dividable
from steprule.planning.plan import PassedOver, Plan
from steprule.planning.rank_sums import RefusedElsewhereError
from steprule.planning.scaling import Scaling, kind_of
from steprule.planning.settings import FLAGS, Context, Kind, requested_engine, settings_of
from steprule.planning.step_record import LastStep, StepRecord
from steprule.schedules import Schedule, checks
from steprule.state.copying import moved
from steprule.state.labels import label_of
from steprule.state.making import ensure_state, unchanged_state
from steprule.state.recognition import COMMON, KNOWN, Marks
from steprule.state.sizes import StateBytes, state_bytes_of

__all__ = ["Number", "Optimizer", "ParamsT", "own_options", "required"]

# What any numeric option takes: a number, a 1-element tensor, or a schedule.
Number: TypeAlias = float | Tensor | Schedule
# What a closure returns, and its step after it: a tensor, or its number.
_Loss = TypeVar("_Loss")

#: Options that all optimizers have beside torch's, with their defaults.
SHARED: Mapping[str, Any] = {**GUARDS, **STORING, **AVERAGING, **CAUTION, **DECAYING}
_TAKERS_OF_SPARSE: list[str] = []
# Whether the compiler can trace a step; elsewhere it leaves each out of its graph.
IS_TRACED = torch.torch_version.TorchVersion(torch.__version__) >= "2.13"
# torch's mark for a default that each group must give.
required = torch_optimizer.required


class StepsInBackward(Protocol):
    """What updates parameters as soon as they have a gradient (``backward_steps.py``)."""

    is_accumulating: bool
    is_averaged: bool

    def check(self, group: int) -> None:
        """Refuse a group with an option that must see all gradients at once."""

    def attach(self, group: int) -> None:
        """Take a group's parameters as well."""

    def forget(self) -> None:
        """Let go of plans and of what they know of the state."""

    def assignments(self) -> list[Assignment]:
        """Return who updates what."""

    def free_gradients(self) -> None:
        """Free gradients that were left over."""

    def end_step(self) -> bool:
        """End a step; tell whether no gradient was left over."""


class Optimizer(SavedOptimizer):
    """Base of all optimizers: holds parameter groups and state, and carries out steps.

    It inherits from ``torch.optim.Optimizer`` so that ``isinstance`` checks hold, and for the
    registration of hooks; groups, state and updates are its own. A subclass either names a
    :attr:`rule`, or overrides :meth:`step` as a subclass of torch's would.

    Args:
        params: tensors, ``(name, tensor)`` pairs (``model.named_parameters()``), or dicts with
            a key ``params`` and any options that the group has of its own. Generators will do.
        defaults: the options, for groups that do not set them; in place of any number, a
            :class:`~steprule.schedules.Schedule`, which this optimizer's steps drive. Those that
            (nearly) all optimizers have:

            - ``lr``: learning rate of a step, a number or a 1-element tensor, >= 0;
            - ``weight_decay``: >= 0; ``weight_decay * param`` is added to the gradient (L2), or,
              with ``decoupled_weight_decay=True``, ``param`` is first shrunk by
              ``1 - lr * weight_decay``;
            - ``maximize``: climb instead of descending;
            - ``differentiable``: let autograd through ``step()`` (engine ``eager``);
            - ``capturable``: keep step counts on the parameter's device, as graphs need it;
            - ``foreach``, ``fused``: torch's way to ask for an engine;
            - the guards ``clip_grad_norm``, ``clip_grad_norm_over``, ``clip_grad_value`` and
              ``on_nonfinite``, and ``ema_decay`` for running averages: see
              :class:`~steprule.optimizer.SharedOptions`.
        engine: ``"auto"`` (the fastest that takes the parameter), or ``"eager"``, ``"foreach"``,
            ``"fused"``, ``"triton"`` (what ``"fused"`` means on a GPU). See :meth:`explain`.

    Attributes:
        param_groups: the groups, as dicts; a changed value counts from the next step. The list
            stays the same object for the optimizer's life.
        state: for each parameter that has been updated, its state by torch's names.

    Raises:
        TypeError: ``params`` is a bare tensor, or holds something that is not a tensor.
        ValueError: it is empty, a parameter stands in two groups or is the result of a
            computation, an option is out of its range or misspelled.
    """

    #: The update rule, for subclasses that have one.
    rule: ClassVar[Rule | None] = None
    #: Whether ``step`` must be given a closure.
    needs_closure: ClassVar[bool] = False
    #: Whether only sparse gradients are taken.
    needs_sparse: ClassVar[bool] = False
    #: Whether only matrices are taken.
    only_2d: ClassVar[bool] = False

    _fresh: set[Tensor]
    _record: StepRecord
    _is_stepping: bool
    _has_warned: bool
    _backward_steps: StepsInBackward | None
    _in_graphs: list[Runner]
    _is_averaged: bool
    #: Whether SAM has moved the parameters, to put them back at its second step.
    _is_moved = False
    _owners: Owners | None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if cls.rule is None:
            if cls.state_keys:
                own = {*inspect.signature(cls).parameters} - COMMON - {*cls.extras, "params"}
                KNOWN[cls.__name__] = Marks(frozenset(cls.state_keys), frozenset(own))
            return
        if cls.__module__.startswith("steprule.rules."):
            options = frozenset(cls.rule.options) - COMMON
            KNOWN[cls.__name__] = Marks(frozenset(cls.rule.slots), options)
        if cls.rule.sparse != "refused":
            _TAKERS_OF_SPARSE.append(cls.__name__)
        own = {*cls.rule.options, *cls.rule.flags, *_named_in_constructors(cls, DECAYING)}
        shared = {**SHARED, "decoupled_weight_decay": cls.rule.decoupled}
        cls.extras = {**{k: v for k, v in shared.items() if k not in own}, **cls.extras}

    def __init__(self, params: ParamsT, defaults: dict[str, Any], *, engine: str = "auto") -> None:
        if torch.compiler.is_dynamo_compiling():
            _uncompiled_init(self, params, defaults, engine=engine)
            return
        torch._C._log_api_usage_once("python.optimizer")
        extras = {k: defaults[k] for k in self.extras if k in defaults}
        self.defaults = {
            k: v for k, v in defaults.items() if k not in extras or v != self.extras[k]
        }
        self.engine = engine
        self._prepare()
        self._check_group(split_schedules({**self.extras, **self.defaults})[0], "")
        self.state: defaultdict[Tensor, Any] = defaultdict(dict)
        self.param_groups: list[dict[str, Any]] = []
        for group in listed_groups(params):
            self.add_param_group(group)
        if shows_a_part():
            self._check_needs_a_part_only()

    def _check_needs_a_part_only(self) -> None:
        """Refuse options that mean all parameters, where this optimizer is to have some of them.

        Raises:
            ValueError: naming the option.
        """
        if self.rule is None:
            return
        context = self._context()
        for i in range(len(self.param_groups)):
            settings = settings_of(context, i)
            rule = settings.kind.rule
            reason = ""
            if settings.clip_over is not None:
                reason = "clip_grad_norm would be of that part alone"
            elif settings.on_nonfinite != "propagate":
                reason = f"on_nonfinite={settings.on_nonfinite!r} would look at that part alone"
            elif rule.is_recorded and settings.form.recording().shared_reductions:
                reason = f"{type(self).__name__} sums over several parameters"
            if reason:
                raise ValueError(
                    f"ZeroRedundancyOptimizer shows each rank a part of the parameters: {reason}. "
                    f"Take steprule.shard_state({type(self).__name__}(...)), where all are seen"
                )

    def _prepare(self) -> None:
        """Set what is neither saved nor copied: hooks, the plan, torch's bookkeeping."""
        for name in HOOKS:
            self.__dict__.setdefault(name, OrderedDict())
        self.__dict__.setdefault("engine", "auto")
        self.__dict__.setdefault("_fresh", set())
        self._plan: Plan | None = None
        self.__dict__.setdefault("_record", StepRecord())
        self.__dict__.setdefault("_is_stepping", False)
        self.__dict__.setdefault("_has_warned", False)
        self.__dict__.setdefault("_backward_steps", None)
        self.__dict__.setdefault("_in_graphs", [])
        self.__dict__.setdefault("_is_averaged", False)
        self.__dict__.setdefault("_owners", None)
        self._warned_capturable_if_run_uncaptured = True
        self._patch_step_function()

    # -- groups ---------------------------------------------------------------------------

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; options that it does not set take the optimizer's defaults.

        Args:
            param_group: a dict with ``params`` (a tensor, tensors, or named pairs) and options.
                It is copied: the one in ``param_groups`` is another object.

        Raises:
            TypeError, ValueError: as the constructor; the optimizer is then unchanged.
        """
        if not isinstance(param_group, dict):
            raise TypeError(f"param_group must be a dict, but got {type(param_group)}")
        where = f"group {len(self.param_groups)}: "
        group = self._new_group(param_group, where, steps_seen(self.param_groups))
        check_against_others(group, self.param_groups)
        if self._owners is not None:
            check_dividable(group, len(self.param_groups))
        self.param_groups.append(group)
        if self._backward_steps is not None:
            added = len(self.param_groups) - 1
            try:
                self._backward_steps.check(added)
            except ValueError:
                self.param_groups.pop()
                raise
            self._backward_steps.attach(added)

    def _new_group(self, param_group: Mapping[str, Any], where: str, step: int) -> dict[str, Any]:
        """Return a checked group with all options, its schedules at this step."""
        if "params" not in param_group:
            raise ValueError(f"{where}a parameter group needs the key 'params'")
        params, names = split_names(param_group["params"], where)
        check_updated_by(param_group, type(self), KNOWN, where)
        check_spelling(
            (k for k in param_group if k not in ("params", "param_names", SCHEDULES, STEP)),
            [*self.defaults, *(k for k in self.extras if k not in self.defaults)],
            where,
        )
        group = {**self.defaults, **param_group, "params": params}
        group = with_schedules(group, step)
        if names is not None:
            group["param_names"] = names
        for name, value in group.items():
            if value is required:
                raise ValueError(
                    f"{where}parameter group didn't specify a value of required optimization "
                    f"parameter {name}"
                )
        self._check_group({**self.extras, **group}, where)
        check_tensors(params, names, where, bool(group.get("differentiable")))
        kind = self._kind_of(group)
        if kind is not None:
            options = kind.options_of(group)
            check_kind_of_decay(type(self).__name__, kind.rule.root, options, where)
        self._check_storable(group, len(self.param_groups))
        self._check_params(params, names, where)
        return group

    def _check_group(self, options: Mapping[str, Any], where: str) -> None:
        """Check one group's options, or the defaults; subclasses add what concerns several."""
        given = {k: v for k, v in options.items() if v is not required}
        kind = self._kind_of(given)
        if kind is not None:  # without one, options are the subclass's own business
            check_options(kind.rule, given, where)
            check_guards(guards_of(given, kind.rule.options), where)
            check_decay(type(self).__name__, kind.rule.root, given, where)
            check_caution(type(self).__name__, kind.rule.root, given, where)
            storing = storing_of(given, kind.rule.options)
            check_storing(storing, given, where)
            if kind.rule.sparse == "only" and not storing.is_default:
                raise ValueError(
                    f"{where}{type(self).__name__} takes sparse gradients only, for which there "
                    "are no formats and averages: state_format='param', param_rounding='nearest' "
                    "and ema_decay=None"
                )
        self._check_scheduled(given.get(SCHEDULES, ()), where)
        requested_engine(self.engine, given)

    def _check_scheduled(self, keys: Iterable[str], where: str) -> None:
        """Refuse schedules for what is no number: a flag would be on or off for good."""
        rule = self.rule
        flags = {*FLAGS, *WORDS, *STORING, *(rule.flags if rule is not None else ())}
        for key in keys:
            if key in flags:
                raise TypeError(f"{where}{key} is a flag, not a number: it cannot be scheduled")

    def _check_storable(self, group: Mapping[str, Any], index: int) -> None:
        """Refuse parameters that can't be stored as their group asks."""
        kind = self._kind_of(group)
        if kind is not None:
            storing = storing_of(kind.options_of(group), kind.rule.options)
            for position, param in enumerate(group["params"]):
                check_param(storing, param, label_of(group, index, position))

    def _check_params(self, params: Sequence[Tensor], names: list[str] | None, where: str) -> None:
        """Refuse tensors that this optimizer has no use for (for subclasses)."""

    # -- steps ----------------------------------------------------------------------------

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], _Loss]) -> _Loss: ...

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every parameter that has a gradient.

        Args:
            closure: clears the gradients, computes the loss and its gradients, returns the loss;
                called once, before the update.

        Returns:
            What the closure returned; None without one.

        Raises:
            RuntimeError: a gradient that this optimizer cannot take, named; nothing is changed.
        """
        if torch.compiler.is_dynamo_compiling():
            return self._compiled_step(closure)
        if self._owners is not None:
            with self._owners.step(self.param_groups):
                return self._step_with_hooks(closure)
        if self._has_step_hooks():
            return self._step_with_hooks(closure)
        return self._step(closure)

    step.hooked = True  # type: ignore[attr-defined]  # torch's base class need not wrap it

    def _compiled_step(self, closure: Callable[[], float] | None) -> Any:
        """Carry out a step in the graph that the compiler is tracing, or leave it out of that."""
        if IS_TRACED:
            # Nobody else waits for the compiler's import.
            from steprule.optimizer.compiling.entry import compiled_step

            return compiled_step(self, closure, _uncompiled_step)
        return _uncompiled_step(self, closure)

    def _step_with_hooks(self, closure: Callable[[], float] | None) -> float | None:
        if self._has_step_hooks():
            given = () if closure is None else (closure,)
            return cast("float | None", _hooked_step(self, *given))
        return self._step(closure)

    def _has_step_hooks(self) -> bool:
        return bool(
            self._optimizer_step_pre_hooks
            or self._optimizer_step_post_hooks
            or torch_optimizer._global_optimizer_pre_hooks
            or torch_optimizer._global_optimizer_post_hooks
            or torch._C._autograd._profiler_enabled()
        )

    def _step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Carry out the step itself, without hooks."""
        loss = None
        if self._is_stepping:
            self.__dict__[MOVED_ON] = True
        if not self.state and self._is_asked_for_state():
            return None
        if closure is not None:
            if not callable(closure):
                raise TypeError(f"closure must be a function or None, got {closure!r:.80}")
            with torch.enable_grad():
                loss = closure()
        in_backward = self._backward_steps
        if in_backward is not None and in_backward.end_step():
            advance_schedules(self.param_groups)
            return loss
        plan = self._plan
        if plan is not None and not self._is_own(plan):
            self._drop_plan()
            plan = None
        is_scaled = plan is not None and plan.context.scaling is not None
        if is_scaled or "found_inf" in self.__dict__:
            plan = self._plan_for_scaling(plan)
        is_taken = self._whole_step(plan) if plan is not None and plan.ignores_autograd else None
        if is_taken is None:
            before = torch.is_grad_enabled()
            try:  # an interrupt may come as soon as the mode is set
                torch._C._set_grad_enabled(bool(self.defaults.get("differentiable")))
                is_taken = self._update(plan)
            finally:
                torch._C._set_grad_enabled(before)
        if in_backward is not None:
            in_backward.free_gradients()
        return loss

    def _check_may_step(self) -> None:
        """Refuse a step as things stand (for subclasses), which ``_step`` does before all else."""

    def _whole_step(self, plan: Plan) -> bool | None:
        """Have a plan step by one call, and move schedules on with it."""
        if not self._has_schedules():
            return plan.step_whole()
        with uninterrupted:
            return self._moved_on(plan.step_whole())

    def _moved_on(self, is_taken: bool | None) -> bool | None:
        """Move schedules on if a step was taken; a signal comes before or after both."""
        if is_taken:
            advance_schedules(self.param_groups)
        return is_taken

    def _plan_for_scaling(self, plan: Plan | None) -> Plan | None:
        """Tell a plan of this step's scaling; None if it was not made for any such."""
        scaling = self._scaling()
        if plan is None or kind_of(plan.context.scaling) != kind_of(scaling):
            self._drop_plan()
            return None
        plan.context.scaling = scaling
        return plan

    def _is_own(self, plan: Plan) -> bool:
        """Tell whether a plan is one for the present lists and dicts."""
        context = plan.context
        return (
            context.state is self.state
            and context.groups is self.param_groups
            and context.engine == self.engine
            and not (context.calls_off_on_device and self._has_schedules())
        )

    def _has_schedules(self) -> bool:
        return any(SCHEDULES in group for group in self.param_groups)

    def _drop_plan(self) -> None:
        """Have the next step plan anew; what a captured graph uses is kept."""
        plan, self._plan = self._plan, None
        if plan is not None:
            plan.let_go()
            plan.settle_first_updates()
            self._in_graphs += plan.runners_in_graphs()

    def _update(self, plan: Plan | None) -> bool:
        """Update the parameters by the rule; the plan is made anew if it no longer holds.

        Returns:
            False if the guards passed the step over: nothing has changed.
        """
        # Where nothing but whole steps is taken it was tried before, and is not ready now.
        try:
            is_taken = None if plan is None else self._whole_step(plan)
            if is_taken is not None:
                return is_taken
            if plan is not None and plan.collect():
                with uninterrupted:
                    return bool(self._moved_on(plan.run()))
            self._drop_plan()
            plan = None
            if self._is_averaged:
                raise RuntimeError(STEP_AMONG_AVERAGES)
            try:
                plan = self._plan = Plan(self._context(), for_step=True)
            except PassedOver:
                return False
            self._say_what_fell_back(plan)
            try:
                with uninterrupted:
                    plan.run_admitted()
                    self._moved_on(True)
            except RefusedElsewhereError:
                plan.unmake_state()
                raise
            return True
        except BaseException:
            if plan is not None:
                plan.let_go()
                plan.refuse()
            raise

    def _say_what_fell_back(self, plan: Plan) -> None:
        """Warn, once, of parameters that an engine asked for by name does not take."""
        if self._has_warned:
            return
        fallen = plan.fallen_back()
        if fallen:
            self._has_warned = True
            row = explanation_of(fallen[:1], self.param_groups).rows[0]
            others = f" and {len(fallen) - 1} more" if len(fallen) > 1 else ""
            warnings.warn(
                f"{type(self).__name__}: {row.label}{others} runs on engine {row.engine!r}: "
                f"{row.reason}. optimizer.explain() shows all",
                stacklevel=5,
            )

    def _kind_of(self, group: Mapping[str, Any]) -> Kind | None:
        """Return what updates a group; None if this class overrides ``step``."""
        if self.rule is None:
            return None
        return Kind(type(self).__name__, self.rule, self.extras).of(group)

    def _kinds(self) -> Mapping[str, Kind]:
        """Return what updates groups that say so, by the name that they say."""
        return {}

    def _context(self) -> Context:
        kinds = self._kinds()
        kind = next(iter(kinds.values())) if kinds else self._kind_of({})
        if kind is None:
            raise NotImplementedError(
                f"{type(self).__name__} has no rule: set the class attribute `rule`, or override "
                "step()"
            )
        if self._owners is not None:
            self._owners.cover(self.param_groups)
        return Context(
            kind=kind,
            kinds=kinds,
            groups=self.param_groups,
            state=self.state,
            engine=self.engine,
            fresh=self._fresh,
            takers_of_sparse=_TAKERS_OF_SPARSE,
            record=self._record,
            scaling=self._scaling(),
            calls_off_on_device=self._is_called_off_on_device(),
            owners=self._owners,
        )

    def _scaling(self) -> Scaling | None:
        """Return what a gradient scaler has left for this step; None without one."""
        found_inf = self.__dict__.get("found_inf")
        if found_inf is None:
            return None
        return Scaling(found_inf, self.__dict__.get("grad_scale"))

    @property
    def _step_supports_amp_scaling(self) -> bool:
        """Whether ``torch.amp.GradScaler`` may leave it to ``step`` to divide gradients."""
        return self._is_called_off_on_device()

    def _is_called_off_on_device(self) -> bool:
        """Tell whether kernels do on a device all that a step is called off by.

        Schedules of options count the steps that were taken, which the host does not know then;
        steps in the backward pass see no gradients together.
        """
        if (self.rule is None and not self._kinds()) or self._backward_steps is not None:
            return False
        devices, wide = registry.kernel_devices(), (torch.float64, torch.complex128)
        return not self._has_schedules() and all(
            requested_engine(self.engine, group) in ("auto", "triton", "fused")
            # Squares of float64 may overflow where gradients do not: somebody has to look.
            and all(p.device.type in devices and p.dtype not in wide for p in group["params"])
            for group in self.param_groups
        )

    def _patch_step_function(self) -> None:
        # torch's base class calls this too, when it unpickles. A subclass's own step gets hooks.
        self._zero_grad_profile_name = f"Optimizer.zero_grad#{self.__class__.__name__}.zero_grad"
        step = self.__class__.step
        if not getattr(step, "hooked", False):
            self.__class__.step = hooked(step)  # type: ignore[method-assign]

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients of all parameters.

        Args:
            set_to_none: drop the gradients (a parameter without one is passed over by ``step``)
                instead of filling them with 0.

        Raises:
            TypeError: ``set_to_none`` says neither on nor off.
        """
        set_to_none = checks.switch("set_to_none", set_to_none)
        # What imitates an optimizer (Lightning's) has the groups in no other way.
        if torch.compiler.is_dynamo_compiling():
            self._compiled_zero_grad(set_to_none)
        elif torch._C._autograd._profiler_enabled():
            name = f"Optimizer.zero_grad#{type(self).__name__}.zero_grad"
            with torch.autograd.profiler.record_function(name):
                self._zero_grad(self.param_groups, set_to_none)
        else:
            self._zero_grad(self.param_groups, set_to_none)

    def _compiled_zero_grad(self, set_to_none: bool) -> None:
        if IS_TRACED:
            # Nobody else waits for the compiler's import.
            from steprule.optimizer.compiling.entry import before_zero_grad

            before_zero_grad(self)
        # A compiler that is asked for `self.param_groups` takes the groups' numbers for constants.
        self._zero_grad(self.__dict__["param_groups"], set_to_none)

    @staticmethod
    def _zero_grad(groups: Iterable[Mapping[str, Any]], set_to_none: bool) -> None:
        params = chain.from_iterable(group["params"] for group in groups)
        if set_to_none:
            for param in params:
                param.grad = None
            return
        on_cpu: list[Tensor] = []  # where one call takes tensors of any dtypes
        elsewhere: dict[Any, list[Tensor]] = {}
        for param in params:
            grad = param.grad
            if grad is None:
                continue
            if grad.grad_fn is not None:
                grad.detach_()
            elif grad.requires_grad:
                grad.requires_grad_(False)
            if is_sharded(grad):
                grad = local_of(grad)
            if type(grad) is not Tensor or grad.is_sparse:
                grad.zero_()
            elif grad.is_cpu:
                on_cpu.append(grad)
            else:
                elsewhere.setdefault((grad.device, grad.dtype), []).append(grad)
        for grads in (on_cpu, *elsewhere.values()):
            if grads:
                torch._foreach_zero_(grads)

    # -- state ----------------------------------------------------------------------------

    def init_state(self) -> None:
        """Make the state of every parameter now, as its first step would; no step is taken."""
        self._refuse_while_moved("init_state")
        context = self._context()
        for i, group in enumerate(self.param_groups):
            kind = context.kind_of(group)
            options = kind.options_of(group)
            storing = storing_of(options, kind.rule.options)
            check_storing(storing, options, f"group {i}: ")
            self._check_storable(group, i)
        for group in self.param_groups:
            kind = context.kind_of(group)
            options = kind.options_of(group)
            storing = storing_of(options, kind.rule.options)
            for param in filter(context.has, group["params"]):
                on_device = counts_on_device(form_of(kind.rule, options), options, param)
                ensure_state(
                    kind.rule,
                    options,
                    param,
                    self.state,
                    self._fresh,
                    storing,
                    counts_on_device=on_device,
                )

    def _let_go_of_plans(self) -> None:
        self._drop_plan()
        if self._backward_steps is not None:
            self._backward_steps.forget()

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Have the parameters at their running averages within a ``with`` block.

        ::

            optimizer = steprule.AdamW(model.parameters(), ema_decay=0.999)
            ...
            with optimizer.averaged():
                evaluate(model)

        Parameters are copied meanwhile, and put back bit for bit at the end. Buffers stay. Where
        state is divided among ranks, each must enter the block, for all of them to have averages.

        Raises:
            RuntimeError: no group has ``ema_decay``; or this is within such a block already.
        """
        if self._is_averaged:
            raise RuntimeError("optimizer.averaged() is in force already: leave its block first")
        self._refuse_while_moved("averaged")
        self._set_averaged(True)
        try:
            with averages_in_place(
                self.param_groups, self.state, self._let_go_of_plans, self._owners
            ):
                yield
        finally:
            self._set_averaged(False)

    def _refuse_while_moved(self, method: str) -> None:
        if self._is_moved:
            raise RuntimeError(
                f"the parameters are moved, and will be put back: call optimizer.{method}() after "
                "SAM's second_step(), or its restore()"
            )

    def _divide_among(self, owners: Owners) -> None:
        """Keep this rank's part of the state only."""
        self._drop_plan()
        for param in [x for x in self.state if isinstance(x, Tensor) and not owners.has(x)]:
            del self.state[param]
            self._fresh.discard(param)
        self._owners = owners

    def _set_averaged(self, is_averaged: bool) -> None:
        """Have steps refused, which would be lost; plans that are kept must be gone by then."""
        self._is_averaged = is_averaged
        if self._backward_steps is not None:
            self._backward_steps.is_averaged = is_averaged

    def to(self, device: torch.device | str) -> Optimizer:
        """Move the state (not the parameters) to ``device``; step counts stay on the CPU.

        Returns:
            The optimizer itself.
        """
        target = torch.device(device)
        for entry in self.state.values():
            for key, value in entry.items() if isinstance(entry, dict) else ():
                is_count = key in ("step", ROUNDING_STEP)
                is_count &= isinstance(value, Tensor) and value.dim() == 0
                entry[key] = value if is_count else moved(value, target)
        self._let_go_of_plans()
        return self

    # -- looking at it --------------------------------------------------------------------

    @property
    def last_step(self) -> LastStep:
        """What the guards saw at the last step: the gradients' norm, whether it was skipped.

        All None where no guard is on. Numbers that are on another device are waited for here, not
        in the step.
        """
        return self._record.as_seen()

    def state_bytes(self) -> StateBytes:
        """Return the bytes of the state there is, by slot and format; ``str()`` is a table.

        Before the first step there is none: :meth:`init_state` makes it, on the meta device
        without memory. What is sharded over processes counts with what this one has.
        """
        return state_bytes_of(self.state)

    def explain(self) -> Explanation:
        """Which parameters run on which engine, and why where it is not the one asked for.

        Parameters are assigned when they first have a gradient: call it after ``backward()``.
        Its ``str()`` is a table.
        """
        if not self._kinds() and self.rule is None:
            assignments = [
                Assignment(param, i, position, "own step", f"{type(self).__name__} has no rule")
                for i, group in enumerate(self.param_groups)
                for position, param in enumerate(group["params"])
            ]
            return explanation_of(assignments, self.param_groups)
        kinds = [(self._kind_of(group), group) for group in self.param_groups]
        notes = pass_notes([(kind.rule, kind.options_of(g)) for kind, g in kinds if kind])
        if self._backward_steps is not None:
            return explanation_of(self._backward_steps.assignments(), self.param_groups, notes)
        plan = self._plan
        if plan is None or not plan.still_fits():
            self._drop_plan()
            # Looking changes nothing.
            with torch.no_grad(), unchanged_state(self.state, self._fresh, always=True):
                plan = Plan(self._context())
                plan.let_go()
        notes += plan.notes()
        if self._owners is not None:
            notes.append(self._owners.note())
        return explanation_of(plan.assignments, self.param_groups, notes)

    def __repr__(self) -> str:
        text = f"{type(self).__name__} ("
        for i, group in enumerate(self.param_groups):
            options = [f"    {key}: {group[key]}\n" for key in sorted(group) if key != "params"]
            text += f"\nParameter Group {i}\n" + "".join(options)
        return text + ")"

    def __getstate__(self) -> dict[str, Any]:
        if self._owners is not None:
            raise RuntimeError(
                f"this {type(self).__name__} has a part of its state, other ranks have the rest: "
                "it can't be copied or pickled. Take its state_dict(), on every rank"
            )
        # Hooks and plans belong to this process and this object.
        if self._plan is not None:
            self._plan.settle_first_updates()
        return {
            "defaults": self.defaults,
            "state": self.state,
            "param_groups": self.param_groups,
            "engine": self.engine,
            "_fresh": self._fresh,
        }

    def _sets_state_as_ours(self) -> bool:
        return type(self).__setstate__ is Optimizer.__setstate__

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._prepare()
        self.defaults.setdefault("differentiable", False)


def _named_in_constructors(cls: type[Optimizer], names: Iterable[str]) -> set[str]:
    """Return those options that a class or one of its bases names itself, as torch's does."""
    constructors = (vars(base).get("__init__") for base in cls.__mro__[:-1])
    named = (inspect.signature(each).parameters for each in constructors if each is not None)
    known = {*inspect.signature(cls).parameters}.union(*named)
    return known.intersection(names)


def own_options(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options among a constructor's ``locals()``: what becomes its defaults.

    Raises:
        TypeError: among ``shared`` is none of :class:`~.shared_options.SharedOptions`.
    """
    shared = arguments.get("shared", {})
    fixed = getattr(arguments["self"], "fixed", {})
    for name in shared:
        if name in fixed:
            raise TypeError(
                f"{type(arguments['self']).__name__} has {name}={fixed[name]!r} for good: leave it "
                "out, or say otherwise in a group"
            )
        if name not in SHARED:
            raise TypeError(
                f"{type(arguments['self']).__name__}.__init__() got an unexpected keyword argument "
                f"{name!r}{suggestion(name, [*arguments, *SHARED])}"
            )
    given = {
        name: value
        for name, value in arguments.items()
        if name not in ("self", "params", "engine", "shared", "__class__")
    }
    return {**given, **shared}


# The planning is not for the compiler: it would trace it, and again with every new plan. This must
# not ask for `self.step`, which may be the compiled one.
_uncompiled_step: Any = uncompiled(
    lambda self, closure: _hooked_step(self, *(() if closure is None else (closure,)))
)
_uncompiled_init: Any = uncompiled(Optimizer.__init__)
_hooked_step: Any = hooked(lambda self, *args, **kwargs: self._step(*args, **kwargs))
