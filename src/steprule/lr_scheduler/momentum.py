"""Cycling the momentum against the lr, for CyclicLR and OneCycleLR."""

from __future__ import annotations

from typing import Any

from torch.optim import Optimizer

from steprule.lr_scheduler import groups
from steprule.lr_scheduler.groups import Rate
from steprule.lr_scheduler.pure import AbsoluteLR
from steprule.schedules import checks


def read_momentum(group: dict[str, Any]) -> float:
    """Return the group's momentum, or beta1 where it has betas."""
    return float(group["betas"][0] if "betas" in group else group.get("momentum", 0.0))


def put_momentum(group: dict[str, Any], momentum: float) -> None:
    """Set the group's momentum, or beta1 where it has betas."""
    if "betas" in group:
        group["betas"] = (momentum, *group["betas"][1:])
    elif "momentum" in group:
        group["momentum"] = momentum


class MomentumLR(AbsoluteLR):
    """A scheduler that also sets momentum, or beta1 of `betas`, when `cycle_momentum` is true."""

    cycle_momentum: bool
    use_beta1: bool = False

    def _momenta(self, epoch: int) -> list[float]:
        """Return the momentum of each group at `epoch`."""
        raise NotImplementedError

    def momentum_at(self, step: int) -> list[float]:
        """Return the momentum (or beta1) of each group at an epoch, without side effects.

        Raises:
            ValueError: `step` is negative or not whole, or momentum is not cycled.
        """
        if not self.cycle_momentum:
            raise ValueError("momentum is not cycled: build with cycle_momentum=True")
        return self._momenta(checks.whole("step", step))

    def _prepare_momentum(
        self, optimizer: Optimizer, cycle: bool, base: Any, most: Any, last_epoch: int
    ) -> tuple[list[float], list[float]]:
        """Check the arguments; at the start of a run, put the highest momentum in force."""
        self.cycle_momentum = cycle = checks.switch("cycle_momentum", cycle)
        if not cycle:
            return [], []
        # A wrapper that never ran Optimizer.__init__ may have groups and no defaults.
        known = getattr(optimizer, "defaults", None) or optimizer.param_groups[0]
        if "momentum" not in known and "betas" not in known:
            raise ValueError(
                "cycle_momentum needs an optimizer that must support momentum or beta1, and "
                f"{type(optimizer).__name__} has neither: pass cycle_momentum=False"
            )
        self.use_beta1 = "betas" in known
        lows = groups.rates("base_momentum", optimizer, base)
        highs = groups.rates("max_momentum", optimizer, most)
        if last_epoch == -1:
            for group, low, high in zip(optimizer.param_groups, lows, highs, strict=True):
                self._equip_momentum(group, low, high)
        return lows, highs

    def _equip_momentum(self, group: dict[str, Any], low: float, high: float) -> None:
        put_momentum(group, high)
        group["max_momentum"], group["base_momentum"] = high, low

    def _apply_momentum(self) -> None:
        if self.cycle_momentum:
            momenta = self._momenta(self.last_epoch)
            pairs = zip(self.optimizer.param_groups, momenta, strict=False)
            if self.use_beta1:
                for group, momentum in pairs:
                    put_momentum(group, momentum)
            else:
                for group, momentum in pairs:
                    group["momentum"] = momentum

    def get_lr(self) -> list[Rate]:
        """As the base class; where it computes the next lr it sets the momentum, as in torch."""
        asked = self._only_asked()
        lrs = super().get_lr()
        if not asked:
            self._apply_momentum()
        return lrs

    def _update_lr(self, epoch: int | None = None) -> None:
        super()._update_lr(epoch)
        if epoch is not None:  # by the closed form, not by get_lr()
            self._apply_momentum()

    def _restore(self, lrs: list[Any]) -> None:
        super()._restore(lrs)
        self._apply_momentum()
