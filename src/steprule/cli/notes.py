"""What a reader of a comparison must know besides its figures."""

from __future__ import annotations

from typing import Any

from steprule.cli.comparison import Comparison
from steprule.cli.contenders import Contender
from steprule.cli.search import best_of
from steprule.cli.training import HESSIAN_EVERY
from steprule.optimizer import Optimizer
from steprule.optimizer.train_eval import TrainEval

SHOWN_ELSEWHERE = frozenset({"lr", "engine", "foreach", "fused"})


def notes_of(comparison: Comparison) -> list[str]:
    """Return what is peculiar to a comparison and to those who take part."""
    notes = []
    if comparison.is_partial:
        notes.append(
            "Interrupted: this is what there was until then. Of seeds that everybody finished, if "
            "there are any, and else of what is there, as far as it came."
        )
    for label, trials in comparison.trials.items():
        best = best_of(trials)
        if comparison.is_search and best is not None:
            values = ", ".join(f"{key}={value:.3g}" for key, value in best.options.items())
            notes.append(
                f"{label}: the best of {len(trials)} trials has {values}, and comes to "
                f"{best.value:.6g}."
            )
    for standing in comparison.standings:
        run, contender = standing.runs[0], standing.contender
        options = contender.options.items()
        hidden = {*SHOWN_ELSEWHERE, *({"weight_decay"} if comparison.is_search else ())}
        shown = [f"{key}={_short(value)}" for key, value in options if key not in hidden]
        if shown:
            notes.append(f"{run.label} runs with {', '.join(shown)}.")
        notes += [f"{run.label} {remark}" for remark in _remarks(contender)]
        failed = {one.end for one in standing.runs if one.end not in ("", "diverged")}
        notes += [f"{run.label} failed: {end}" for end in sorted(failed)]
        if standing.broken_off and len(standing.runs) > 1:
            notes.append(
                f"{run.label} broke off with {standing.broken_off} of {len(standing.runs)} seeds."
            )
    return notes


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
