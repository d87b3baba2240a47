"""SAM."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from steprule.distributed.shards import is_dtensor, local_of, spread_as, whole_of
from steprule.engines.uninterrupted import uninterrupted
from steprule.formats.floating import compute_dtype, real_view
from steprule.optimizer import Optimizer
from steprule.optimizer.averaging import count_change
from steprule.optimizer.hooks import HOOKS
from steprule.schedules import checks
from steprule.state.labels import label_of
from steprule.wrappers.wrapper import Wrapper, check_keys, layers, params_of

# What gradients are multiplied by at most: float32's largest number.
_MOST = torch.finfo(torch.float32).max
# The method of torch's scalers that divides, or looks at, an optimizer's gradients.
_UNSCALING = "_unscale_grads_"
# What the wrapped optimizer can do that would take moved parameters for the true ones.
_OF_TRUE_PARAMETERS = ("train", "eval", "averaged", "init_state")
_REMEDY = "the parameters are moved. Call second_step() first, or restore() to give this step up"
_STEPS_ALONE = (
    "SAM needs gradients at two points: pass a closure that clears the gradients, computes the "
    "loss, calls backward() and returns the loss, optimizer.step(closure); or call "
    "optimizer.first_step() after the first backward pass and optimizer.second_step() after the "
    "second"
)


class SAM(Wrapper):
    """Sharpness-aware minimization: steps by the gradient at the worst point nearby.

    ::

        e = rho * grad / |grad|                      (|grad| over all parameters)
        param = optimizer's step by the gradient at param + e

    and with ``adaptive`` (ASAM) ``e = rho * param**2 * grad / |param * grad|``. A step takes two
    forward and backward passes::

        optimizer = steprule.SAM(steprule.SGD(model.parameters(), lr=0.1, momentum=0.9), rho=0.05)

        def closure():
            optimizer.zero_grad()
            loss = loss_fn(model(inputs), targets)
            loss.backward()
            return loss

        loss = optimizer.step(closure)

    or, without a closure, ``loss.backward(); optimizer.first_step(zero_grad=True)``, a second
    ``loss_fn(model(inputs), targets).backward()``, and ``optimizer.second_step(zero_grad=True)``.

    With a ``GradScaler``: ``first_step()`` takes scaled gradients as they are (it needs their
    direction alone), and ``scaler.step(optimizer)`` is the second step. Both backward passes are
    of ``scaler.scale(loss)``; ``scaler.unscale_(optimizer)`` comes after the second one, if at all.

    Where the first gradients are not finite, or all are 0, nothing moves: the step is then an
    ordinary one, by the second gradients, which are taken at the same place.

    The parameters are put back from copies, bit for bit, before the wrapped optimizer steps; and
    where the second pass raises, or is interrupted. Meanwhile the wrapped optimizer neither steps
    nor saves or loads.

    Args:
        optimizer: the wrapped one, of this library or torch's; it makes the step.
        rho: how far is looked, >= 0 (default 0.05); with ``adaptive``, ten times as far is usual.
        adaptive: in units of the parameters' size, so that rescaling a layer changes nothing.

    Attributes:
        rho: likewise; may be set between steps.
        adaptive: likewise.

    State: none of its own; between the two evaluations a copy of the parameters.

    When to use: where generalization matters more than time, most of all for images: a step takes
    twice as long, and keep the wrapped optimizer's lr. Running statistics (batch norm) see both
    passes; set those layers' ``momentum`` to 0 in the second if that matters.

    Raises:
        TypeError: not an optimizer, or one that takes a closure several times itself (LBFGS).
        ValueError: ``rho`` out of its range, also when set; ``differentiable=True``.
        RuntimeError: steps out of order; sparse gradients, or none after a closure; steps of the
            wrapped optimizer, changes of its mode, saving or loading in between; first gradients
            that a scaler has divided, but not the second.

    Source: Foret, Kleiner, Mobahi, Neyshabur, "Sharpness-aware minimization for efficiently
    improving generalization", 2021; Kwon, Kim, Park, Choi, "ASAM", 2021, without its eta. The
    closure is called for both gradients, where davda54/sam and pytorch-optimizer expect the first
    ones to be there; and the norm is taken in float64 with nothing added, so that gradients of any
    size move by rho (these add 1e-12).
    """

    key = "sam"
    attributes = ("_rho", "_adaptive", "_kept", "_handles", "_was_unscaled")
    # The scaler then leaves it to `step` to divide gradients and to skip a step: parameters have to
    # be put back either way.
    _step_supports_amp_scaling = True

    # While the parameters are moved: they and their copies; hooks by which the wrapped optimizers
    # refuse.
    _kept: list[tuple[Tensor, Tensor]] | None
    _handles: list[Any]
    # Whether a scaler has last divided gradients while the parameters were in their place.
    _was_unscaled: bool
    # Whether second_step() is what steps.
    _is_second = False

    def __init__(
        self, optimizer: torch.optim.Optimizer, rho: float = 0.05, adaptive: bool = False
    ) -> None:
        super().__init__(optimizer)
        for one in layers(optimizer):
            if getattr(one, "needs_closure", False) or isinstance(one, torch.optim.LBFGS):
                raise TypeError(
                    f"SAM can't go round {type(one).__name__}, which asks for gradients where it "
                    "likes: use one that steps by given gradients"
                )
        self.rho, self.adaptive = rho, adaptive
        self._kept, self._handles, self._was_unscaled = None, [], False

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]
        """The wrapped optimizer's groups."""
        # A scaler divides without a word. Of which pass the gradients are it can't know.
        if sys._getframe(1).f_code.co_name == _UNSCALING:
            self._was_unscaled = self._kept is None
        return self.optimizer.param_groups

    @property
    def rho(self) -> float:
        """How far is looked."""
        return self._rho

    @rho.setter
    def rho(self, value: float) -> None:
        self._rho = checks.number("rho", value, low=0.0)

    @property
    def adaptive(self) -> bool:
        """Whether that is in units of the parameters' size."""
        return self._adaptive

    @adaptive.setter
    def adaptive(self, value: bool) -> None:
        self._adaptive = checks.switch("adaptive", value)

    def __getattr__(self, name: str) -> Any:
        found = super().__getattr__(name)
        if name in _OF_TRUE_PARAMETERS and self._kept is not None:
            return lambda *_, **__: self._refuse_if_moved(f"{name}()")
        return found

    # -- steps ----------------------------------------------------------------------------

    def _step(self, closure: Callable[[], Any] | None = None) -> Any:
        if closure is None:
            if self._kept is None:
                raise RuntimeError(_STEPS_ALONE)
            return self._step_from_here()
        if self._is_second:  # Lightning hands on a closure, whoever calls
            with torch.enable_grad():
                closure()
            return self._step_from_here()
        self._refuse_if_moved("step(closure)")
        if "found_inf" in self.__dict__:
            raise RuntimeError(
                "SAM with a GradScaler takes no closure: call optimizer.first_step() after the "
                "first scaled backward pass and scaler.step(optimizer) after the second"
            )
        with torch.enable_grad():
            loss = closure()
        if all(param.grad is None for param in params_of(self.param_groups)):
            raise RuntimeError(
                "SAM.step: after the closure no parameter has a gradient: have it call "
                "loss.backward(), after zero_grad()"
            )
        try:
            try:
                self.first_step(zero_grad=True)
                with torch.enable_grad():
                    closure()
            finally:
                self.restore()
        finally:  # an interrupt may have come as that began
            self.restore()
        self.optimizer.step()
        return loss

    def first_step(self, zero_grad: bool = False) -> None:
        """Move the parameters to where the loss is largest nearby, by the gradients that they have.

        Args:
            zero_grad: clear the gradients then.

        Raises:
            RuntimeError: it was called already; or a gradient is sparse.
        """
        if self._itself() is not self:
            self._itself().first_step(zero_grad)
            return
        self._refuse_if_moved("first_step()")
        self._check_differentiable()
        with torch.no_grad():
            found = self._gradients()
            params = [real_view(local_of(param)) for param in found]
            grads = [real_view(local_of(grad)) for grad in found.values()]
            scaled = found.items() if self.adaptive else ()
            norm = _norm([_scaled(*pair) for pair in scaled] or list(found.values()))
            kept = [torch.empty_like(param) for param in params]
            with uninterrupted:
                _copy(kept, params)
                self._kept = list(zip(found, kept, strict=True))
                try:
                    self._watch()
                    if found and 0.0 < norm < math.inf:
                        self._climb(params, grads, min(self._rho / norm, _MOST))
                        for param in found:
                            count_change(param)
                except BaseException:  # of memory, perhaps
                    self.restore()
                    raise
        if zero_grad:
            self.zero_grad()

    def _watch(self) -> None:
        """Have the wrapped optimizers refuse to work on moved parameters, until these are back."""
        for one in [*layers(self.optimizer)]:
            for when, what in (("step_pre", "step()"), *_WHEN_SAVED):
                if all(hasattr(one, name) for name in HOOKS):
                    refuse = _Refusing(f"{what} of {type(one).__name__}")
                    self._handles.append(getattr(one, f"register_{when}_hook")(refuse))
            if isinstance(one, Optimizer):
                one._is_moved = True

    def _climb(self, params: list[Tensor], grads: list[Tensor], scale: float) -> None:
        if self.adaptive:
            torch._foreach_addcmul_(params, torch._foreach_mul(params, params), grads, value=scale)
        else:
            # A scale for small gradients is beyond float16.
            wide = [grad.float() if grad.dtype is torch.float16 else grad for grad in grads]
            torch._foreach_add_(params, wide, alpha=scale)

    def second_step(self, zero_grad: bool = False) -> Any:
        """Put the parameters back and have the wrapped optimizer step by the present gradients.

        Args:
            zero_grad: clear the gradients then.

        Returns:
            What the wrapped optimizer's step does.

        Raises:
            RuntimeError: ``first_step()`` was not called before.
        """
        if self._kept is None:
            raise RuntimeError(
                "second_step() comes after first_step() and a backward pass at the point to which "
                "that has moved the parameters"
            )
        itself = self._itself()
        itself._is_second = True
        try:
            result = self.step()
        finally:
            itself._is_second = False
        if zero_grad:
            self.zero_grad()
        return result

    def restore(self) -> None:
        """Put the parameters back where ``first_step()`` found them, bit for bit; no step is taken.

        For a second evaluation that failed. If the parameters are in their place, nothing is done.
        """
        if self._itself() is not self:
            self._itself().restore()
            return
        if self._kept is None:
            return
        with torch.no_grad(), uninterrupted:
            _copy(
                [real_view(local_of(param)) for param, _ in self._kept], [x for _, x in self._kept]
            )
            for param, _ in self._kept:
                count_change(param)
            for handle in self._handles:
                handle.remove()
            for one in layers(self.optimizer):
                if isinstance(one, Optimizer):
                    one._is_moved = False
            self._handles, self._kept = [], None

    def _step_from_here(self) -> Any:
        """Step by the present gradients from where the parameters were."""
        self.restore()
        found_inf = self.__dict__.get("found_inf")
        if found_inf is not None:
            if bool(found_inf):
                return None
            self._unscale()
        return self.optimizer.step()

    def _unscale(self) -> None:
        """Divide gradients by what the scaler has multiplied the loss by, unless it has.

        Raises:
            RuntimeError: the scaler has divided the first gradients.
        """
        was_unscaled, self._was_unscaled = self._was_unscaled, False
        scale = self.__dict__.get("grad_scale")
        if scale is None:
            if was_unscaled:
                raise RuntimeError(
                    "SAM: scaler.unscale_(optimizer) has divided the gradients of the first pass, "
                    "so that those of the second would be taken as they are, scaled: call it after "
                    "the second backward pass, or leave it out. The parameters are back where they "
                    "were"
                )
            return
        grads = [param.grad for param in params_of(self.param_groups)]
        with torch.no_grad():
            here = [real_view(local_of(grad)) for grad in grads if grad is not None]
            if here:
                torch._foreach_mul_(here, 1.0 / float(scale))

    def _gradients(self) -> dict[Tensor, Tensor]:
        """Return the gradients that there are by their parameters, spread over ranks as these.

        Raises:
            RuntimeError: a sparse one.
        """
        found: dict[Tensor, Tensor] = {}
        for i, group in enumerate(self.param_groups):
            for position, param in enumerate(group["params"]):
                grad = param.grad
                if grad is None:
                    continue
                if grad.layout is not torch.strided:
                    raise RuntimeError(
                        f"SAM takes dense gradients, that of {label_of(group, i, position)} is "
                        f"{grad.layout}: make the embedding with sparse=False"
                    )
                found[param] = spread_as(grad, param) if is_dtensor(grad) else grad
        return found

    # -- saving and loading ---------------------------------------------------------------

    def _refuse_if_moved(self, what: str) -> None:
        if self._kept is not None:
            raise RuntimeError(f"{what} between first_step() and second_step(): {_REMEDY}")

    def _numbers(self) -> dict[str, Any]:
        return {"rho": self._rho, "adaptive": self._adaptive}

    def _loaded(
        self, own: Mapping[str, Any], state_dict: Mapping[str, Any], **how: Any
    ) -> dict[str, Any]:
        check_keys(self.key, own, ("rho", "adaptive"))
        return {
            "_rho": checks.number("rho", own.get("rho", self._rho), low=0.0),
            "_adaptive": checks.switch("adaptive", own.get("adaptive", self._adaptive)),
        }


_WHEN_SAVED = (
    ("state_dict_pre", "state_dict()"),
    ("load_state_dict_pre", "load_state_dict()"),
)


class _Refusing:
    """A hook of the wrapped optimizer's, for as long as the parameters are moved."""

    def __init__(self, what: str) -> None:
        self._what = what

    def __call__(self, *_: Any) -> None:
        raise RuntimeError(
            f"{self._what} between SAM's first_step() and second_step(): {_REMEDY} (of SAM, round "
            "it)"
        )


def _copy(to: list[Tensor], values: list[Tensor]) -> None:
    if to:
        torch._foreach_copy_(to, values)


def _scaled(param: Tensor, grad: Tensor) -> Tensor:
    """Return a gradient in units of its parameter, wide enough; complex numbers are pairs."""
    return real_view(param.detach()).to(compute_dtype(param)) * real_view(grad)


def _norm(tensors: Sequence[Tensor]) -> float:
    """Return the norm of tensors together; every rank must come to that of sharded ones.

    In float64, where squares of float32 neither overflow nor vanish.
    """
    norms: list[Tensor] = []
    plain: dict[torch.dtype, list[Tensor]] = {}
    for tensor in tensors:
        # Apple's GPUs have no float64.
        wide = torch.float32 if tensor.device.type == "mps" else torch.float64
        if is_dtensor(tensor):
            dtype = wide.to_complex() if tensor.is_complex() else wide
            norms.append(whole_of(torch.linalg.vector_norm(tensor, dtype=dtype)))
        elif tensor.numel():
            plain.setdefault(wide, []).append(real_view(tensor))
    for dtype, alike in plain.items():
        norms += torch._foreach_norm(alike, 2, dtype=dtype)
    if not norms:
        return 0.0
    return math.hypot(*torch.stack([norm.cpu().double() for norm in norms]).tolist())
