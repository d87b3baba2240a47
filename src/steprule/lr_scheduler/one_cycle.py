"""OneCycleLR: one rise and one long fall."""

from __future__ import annotations

import math
from typing import Any

from torch.optim import Optimizer

from steprule.lr_scheduler import groups
from steprule.lr_scheduler.annealing import strategy_of
from steprule.lr_scheduler.momentum import MomentumLR
from steprule.schedules import Schedule, checks, constant, one_cycle


class OneCycleLR(MomentumLR):
    """Rise from max_lr / div_factor to `max_lr`, then fall far below; momentum the other way.

    Step it once for each batch. The last lr is reached at step total_steps - 1, and the step
    after that is an error past total_steps, unless `hold_last` is set.

    Args:
        optimizer: any `torch.optim.Optimizer`.
        max_lr: highest lr, a number or one for each group.
        total_steps: steps of the whole run, whole, at least 1; or give the next two.
        epochs, steps_per_epoch: their product is total_steps.
        pct_start: share of the steps spent rising, 0 to 1, default 0.3.
        anneal_strategy: "cos" (default) or "linear".
        cycle_momentum: move momentum, or beta1, as well, default True.
        base_momentum, max_momentum: its limits, default 0.85 and 0.95, or one for each group.
        div_factor: max_lr over the first lr, default 25.
        final_div_factor: first lr over the last, default 1e4.
        three_phase: fall to the first lr as slowly as it rose, then to the last.
        last_epoch, verbose, options: as `LRScheduler`.
        hold_last: hold the last lr past the end instead of raising, default False.

    Raises:
        ValueError: total_steps is missing or wrong, or another argument is out of range.

    Source: Smith and Topin, Super-Convergence, 2018.
    """

    _kept_with = {  # noqa: RUF012
        "total_steps": ("_schedule_phases", "_steps_from"),
    }

    def __init__(
        self,
        optimizer: Optimizer,
        max_lr: float | list[float],
        total_steps: int | None = None,
        epochs: int | None = None,
        steps_per_epoch: int | None = None,
        pct_start: float = 0.3,
        anneal_strategy: str = "cos",
        cycle_momentum: bool = True,
        base_momentum: float | list[float] = 0.85,
        max_momentum: float | list[float] = 0.95,
        div_factor: float = 25.0,
        final_div_factor: float = 1e4,
        three_phase: bool = False,
        last_epoch: int = -1,
        verbose: Any = False,
        *,
        hold_last: bool = False,
        **options: Any,
    ) -> None:
        groups.check_optimizer(optimizer)
        last_epoch = checks.whole("last_epoch", last_epoch, low=-1)
        self.total_steps, self._steps_from = _total(total_steps, epochs, steps_per_epoch)
        if checks.number("pct_start", pct_start, low=0) > 1:
            raise ValueError(f"pct_start must be between 0 and 1, got {pct_start!r}")
        self._anneal_func_type = checks.one_of(
            "anneal_strategy", anneal_strategy, ("cos", "linear")
        )
        self._schedule_phases = _phases(
            pct_start, self.total_steps, checks.switch("three_phase", three_phase)
        )
        self.hold_last = checks.switch("hold_last", hold_last)
        checks.number("div_factor", div_factor, above=0)
        checks.number("final_div_factor", final_div_factor, above=0)
        with groups.unchanged(optimizer):
            lows, highs = self._prepare_momentum(
                optimizer, cycle_momentum, base_momentum, max_momentum, last_epoch
            )
            self._ends: list[dict[str, float]] = []
            for index, most in enumerate(groups.rates("max_lr", optimizer, max_lr)):
                first = most / div_factor
                ends = {"initial_lr": first, "max_lr": most, "min_lr": first / final_div_factor}
                if cycle_momentum:
                    ends |= {"max_momentum": highs[index], "base_momentum": lows[index]}
                self._ends.append(ends)
                if last_epoch == -1:
                    optimizer.param_groups[index].update(ends)
            self._equip(optimizer)
            super().__init__(optimizer, last_epoch, verbose, **options)

    def _equip(self, optimizer: Optimizer) -> None:
        """Give a group its ends where it lacks them: loaded without, or added later."""
        for index, group in enumerate(optimizer.param_groups):
            for key, value in self._ends[min(index, len(self._ends) - 1)].items():
                group.setdefault(key, groups.copied(value))

    def _phase(self, epoch: int) -> tuple[dict[str, Any], float]:
        """Return the phase `epoch` falls in, and the share of it done."""
        if epoch > self.total_steps and not self.hold_last:
            raise ValueError(
                f"Tried to step {epoch} times. The specified number of total steps is "
                f"{self.total_steps} ({self._steps_from}): pass hold_last=True to hold the last "
                "lr, or more total_steps; to extend a resumed run, build with more total_steps "
                'and load_state_dict(state, keep=["total_steps"])'
            )
        if self.hold_last:
            epoch = min(epoch, self.total_steps - 1)
        begin = 0.0
        for phase in self._schedule_phases:
            end = phase["end_step"]
            if epoch <= end or phase is self._schedule_phases[-1]:
                break
            begin = end
        return phase, (epoch - begin) / (end - begin) if end != begin else 1.0

    def _at(self, epoch: int, quantity: str) -> list[float]:
        phase, done = self._phase(epoch)
        start, end = phase[f"start_{quantity}"], phase[f"end_{quantity}"]
        left = 1 - done
        if self._anneal_func_type == "cos":
            left = (math.cos(math.pi * done) + 1) / 2
        groups_ = self.optimizer.param_groups
        try:
            stops = [group[end] for group in groups_]
            ways = [group[start] - group[end] for group in groups_]
        except KeyError:
            self._equip(self.optimizer)
            return self._at(epoch, quantity)
        return groups.floats([stop + way * left for stop, way in zip(stops, ways, strict=True)])

    def _closed(self, epoch: Any) -> list[float]:
        return self._at(epoch, "lr")

    def _momenta(self, epoch: int) -> list[float]:
        return self._at(epoch, "momentum")

    def _load(self, state_dict: dict[str, Any], kept: frozenset[str]) -> None:
        super()._load(_as_saved_today(state_dict), kept | {"anneal_func"})

    def _adopt(self) -> None:
        for group in self.optimizer.param_groups[len(self.base_lrs) :]:
            group.update(self._ends[-1])
        super()._adopt()

    def _pure(self, index: int, base: float) -> Schedule:
        group = self.optimizer.param_groups[index]
        first, most, least = (float(group[key]) for key in ("initial_lr", "max_lr", "min_lr"))
        if not most:  # a frozen group: 0 has no ratios
            return constant(0.0)
        return one_cycle(
            most,
            steps=self.total_steps,
            pct_start=(self._schedule_phases[0]["end_step"] + 1) / self.total_steps,
            div_factor=most / first,
            final_div_factor=first / least,
            anneal=self._anneal_func_type,
            three_phase=len(self._schedule_phases) == 3,
        )


def _as_saved_today(state: dict[str, Any]) -> dict[str, Any]:
    """Return a state with what older versions of torch saved otherwise said in today's words.

    They saved the function itself as `anneal_func`, and up to 1.6 lengths in place of phases.

    Raises:
        ValueError: `anneal_func` is neither of torch's two.
    """
    state = dict(state)
    old = state.get("anneal_func")
    if old is not None and "_anneal_func_type" not in state:
        state["_anneal_func_type"] = strategy_of(old, 0.0, 1.0)
    if "_schedule_phases" not in state and {"step_size_up", "total_steps"} <= state.keys():
        total = state["total_steps"]
        state["_schedule_phases"] = _phases((state["step_size_up"] + 1) / total, total, three=False)
    return state


def _total(total: Any, epochs: Any, per_epoch: Any) -> tuple[int, str]:
    """Return the number of steps, and in words where it came from."""
    for name, given in (("epochs", epochs), ("steps_per_epoch", per_epoch)):
        if given is not None:
            checks.whole(name, given)
    if total is not None:
        return checks.whole("total_steps", total, low=1), "the argument total_steps"
    if epochs is None or per_epoch is None:
        raise ValueError(
            "total_steps is missing: pass total_steps, or both epochs and steps_per_epoch"
        )
    epochs = checks.whole("epochs", epochs, low=1)
    per_epoch = checks.whole("steps_per_epoch", per_epoch, low=1)
    return epochs * per_epoch, f"epochs={epochs} times steps_per_epoch={per_epoch}"


def _phases(pct_start: float, total: int, three: bool) -> list[dict[str, Any]]:
    """Return where each phase ends, and from and to which of the groups' keys it goes."""
    ends: list[tuple[float, str, str]] = [(pct_start * total - 1, "max_lr", "base_momentum")]
    if three:
        ends.append((2 * pct_start * total - 2, "initial_lr", "max_momentum"))
    ends.append((total - 1, "min_lr", "max_momentum"))
    lr, momentum, phases = "initial_lr", "max_momentum", []
    for end, next_lr, next_momentum in ends:
        phases.append(
            {
                "end_step": end,
                "start_lr": lr,
                "end_lr": next_lr,
                "start_momentum": momentum,
                "end_momentum": next_momentum,
            }
        )
        lr, momentum = next_lr, next_momentum
    return phases
