"""What a reader of a comparison must know besides its figures."""

from __future__ import annotations

from typing import Any

from steprule.cli.comparison import Comparison
from steprule.cli.contenders import STARTING_OPTIONS, Contender
from steprule.cli.training import HESSIAN_EVERY
from steprule.cli.trials import best_of
from steprule.optimizer import Optimizer
from steprule.optimizer.train_eval import TrainEval

SHOWN_ELSEWHERE = frozenset({"lr", "engine", "foreach", "fused"})


def notes_of(comparison: Comparison) -> list[str]:
    """Return what is peculiar to a comparison and to those who take part."""
    notes = []
    if comparison.is_partial:
        notes.append(_what_there_was(comparison))
    standings = comparison.standings
    if standings and all(one.instead_of_a_rank == "diverged" for one in standings):
        notes.append("Everybody diverged, so nobody has a rank: a smaller --lr may be what helps.")
    for label, trials in comparison.trials.items():
        best = best_of(trials)
        if comparison.is_search and best is not None:
            values = ", ".join(f"{key}={value:.3g}" for key, value in best.options.items())
            notes.append(
                f"{label}: the best of {len(trials)} trials has {values}, and comes to "
                f"{best.value:.6g}."
            )
    notes += _default_rates(comparison)
    for standing in standings:
        run, contender = standing.runs[0], standing.contender
        options = contender.options.items()
        hidden = {
            *SHOWN_ELSEWHERE,
            *contender.fixed,
            *({"weight_decay"} if comparison.is_search else ()),
        }
        shown = [f"{key}={_short(value)}" for key, value in options if key not in hidden]
        if shown:
            notes.append(f"{run.label} runs with {', '.join(shown)}.")
        notes += [f"{run.label} {remark}" for remark in _remarks(contender)]
        failed = {one.failure for one in standing.runs if one.failure}
        notes += [f"{run.label} failed: {end}" for end in sorted(failed)]
        if standing.broken_off and len(standing.runs) > 1:
            notes.append(
                f"{run.label} broke off with {standing.broken_off} of {len(standing.runs)} seeds."
            )
    return notes


def _default_rates(comparison: Comparison) -> list[str]:
    """Say whose rates nobody chose: a rank among those is as much one of defaults."""
    runs = {one.runs[0].label: one.contender for one in comparison.standings}
    untuned = [
        label
        for label, contender in runs.items()
        if contender.has_default_rate and label not in comparison.trials
    ]
    if not untuned or len(runs) < 2:
        return []
    who = "all" if len(untuned) == len(runs) else ", ".join(untuned)
    own = [
        f"{label} {runs[label].lr:g}"
        for label in untuned
        if "lr" in STARTING_OPTIONS.get(runs[label].name, {})
    ]
    if not own:
        which = "the classes' defaults"
    elif len(own) == len(untuned):
        which = f"steprule compare's own starting values ({', '.join(own)}), not the defaults"
    else:
        which = (
            "the classes' defaults, but for those that steprule compare starts from values of its "
            f"own ({', '.join(own)})"
        )
    return [
        f"Without a search for a learning rate: {who}. They have {which}, which suit some problems "
        "and not others. --search N or --lr-sweep finds each its own."
    ]


def _what_there_was(comparison: Comparison) -> str:
    standings = comparison.standings
    what = "Interrupted" if comparison.stop == "Ctrl-C" else f"Ended by {comparison.stop}"
    text = f"{what}: this is what there was until then."
    if not standings:
        return text
    runs = [run for one in standings for run in one.runs]
    if all(run.is_over for run in runs):
        return f"{text} Ranks are over {comparison.seeds_that_count} of {comparison.seeds} seeds."
    place = standings[0].place
    steps = {run.points[place].step for run in runs if run.points and not run.end}
    if len(steps) == 1:
        return f"{text} Ranks are by what everybody had come to at step {steps.pop()}."
    if place >= 0:
        return f"{text} Ranks are by the last look that everybody has had."
    return f"{text} Ranks are of each as far as it came, which is not the same step for all."


def _remarks(contender: Contender) -> list[str]:
    """Return what is peculiar to how an optimizer is trained and judged here."""
    remarks = []
    made_by: Any = contender.factory
    is_ours = isinstance(made_by, type) and issubclass(made_by, Optimizer)
    if contender.only_2d:
        rest = "AdamW with its defaults updates the rest" if is_ours else "the rest stays as it is"
        remarks.append(f"takes matrices only; {rest}.")
    if contender.needs_closure:
        remarks.append(
            "evaluates the loss itself, several times a step; its step() time leaves those "
            "evaluations out."
        )
    if hasattr(contender.factory, "update_hessian"):
        remarks.append(
            f"renews its curvature every {HESSIAN_EVERY} steps by the batch's own gradient; drawn "
            "labels, which its authors use, are not to be had from a loss alone."
        )
    if is_ours and issubclass(made_by, TrainEval):
        remarks.append("is judged by its averages, as eval() puts them in place.")
    return remarks


def _short(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
