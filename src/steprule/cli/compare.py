"""`steprule compare`: search, train, show, report."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from rich.console import Console

from steprule.cli.budget import Pace
from steprule.cli.comparison import Comparison
from steprule.cli.contenders import Contender, parse_contenders
from steprule.cli.errors import CommandError
from steprule.cli.labels import split_labels
from steprule.cli.progress import RunProgress
from steprule.cli.rate_schedule import parse_rate_schedule
from steprule.cli.request import Request as Request
from steprule.cli.runs import Run
from steprule.cli.search import Search, check_optuna, searched
from steprule.cli.show import show
from steprule.cli.subject import conditions_of, problem_of, training_of
from steprule.cli.surroundings import console as console_of
from steprule.cli.surroundings import make_folder, threads
from steprule.cli.sweep import sweep
from steprule.cli.training import Settings, train
from steprule.cli.trials import best_of, check_start, seed_of_trials
from steprule.problems import Problem

# Where no terminal sets a width, a row of the table stays one line.
PLAIN_WIDTH = 132


def compare(request: Request) -> Comparison:
    """Do what `request` asks: print the table, write the report, return what was seen.

    Raises:
        CommandError: for anything that cannot be done, before any training where possible.
        KeyboardInterrupt: after Ctrl-C, when what there was has been written; so does whatever
            the user's own code raises.
    """
    console = console_of(PLAIN_WIDTH)
    contenders, notes = parse_contenders(request.optimizers, request.lr, request.engine)
    if request.search is not None and request.lr_sweep is not None:
        raise CommandError("--search and --lr-sweep: give one of them; a search shows the lr, too")
    if request.search is not None:
        check_optuna()
        check_start(contenders, "--search")
    elif request.lr_sweep is not None:
        check_start(contenders, "--lr-sweep")
    make, about = problem_of(request)
    settings = Settings(
        make, request.budget, request.batch_size, parse_rate_schedule(request.schedule)
    )
    with threads(request.threads):
        first = make(request.seed)
        contenders = _fitting(contenders, first, request, notes)
        pace = settings.budget.pace(first.batches(request.batch_size), first.evaluate is not None)
        if settings.schedule is not None:
            settings.schedule.factors(pace.steps)
        make_folder("--report", request.report)
        subtitle = "; ".join([*about, *training_of(request, settings, first)])
        comparison = Comparison(
            subtitle=subtitle,
            command=request.command(contenders),
            conditions=conditions_of(request, first),
            seeds=request.seeds,
            contenders=contenders,
            notes=notes,
            is_search=request.search is not None,
            settings=request.settings,
        )
        del first
        for line in subtitle.split("; "):
            console.print(line, markup=False, highlight=False, soft_wrap=True)
        try:
            _carry_out(request, contenders, settings, pace, comparison, console)
        except (KeyboardInterrupt, Exception) as error:
            comparison.stop = "Ctrl-C" if isinstance(error, KeyboardInterrupt) else _line(error)
            if not comparison.is_empty:
                show(comparison, request.report, console)
            raise
    _check_some_ran(comparison)
    show(comparison, request.report, console)
    return comparison


def _fitting(
    contenders: list[Contender], problem: Problem, request: Request, notes: list[str]
) -> list[Contender]:
    """Return who can be built on this model; of `all`, who can't is left out with a note."""
    named = split_labels(request.optimizers or "")
    found = []
    for contender in contenders:
        refusal = _refusal(contender, problem)
        if refusal is None:
            found.append(contender)
        elif contender.label in named or request.optimizers is None:
            raise refusal
        else:
            notes.append(f"{contender.label} was left out: {refusal}.")
    if not found:
        raise CommandError(f"--optimizers: none is left: {' '.join(notes)}")
    return found


def _refusal(contender: Contender, problem: Problem) -> CommandError | None:
    try:
        contender.build(problem.model)
    except CommandError as error:
        return error
    return None


def _carry_out(
    request: Request,
    contenders: list[Contender],
    settings: Settings,
    pace: Pace,
    comparison: Comparison,
    console: Console,
) -> None:
    extra = 0
    seed = seed_of_trials(request.all_seeds)
    tuned = [one for one in contenders if one.takes("lr")]
    search = None
    with contextlib.ExitStack() as stack:
        if request.search is not None:
            name = request.problem or str(request.data or "digits")
            search = stack.enter_context(
                Search(request.report, request.search, name, settings, pace.points, seed)
            )
            tuned = [one for one in contenders if searched(one)]
            extra = sum(search.left(one) for one in tuned)
        elif request.lr_sweep is not None:
            extra = request.lr_sweep * len(tuned)
        final = list(contenders)
        progress = stack.enter_context(
            RunProgress(console, extra + len(contenders) * request.seeds)
        )

        def seen(what: str) -> Callable[[Run], None]:
            def on_step(run: Run) -> None:
                share = 1.0 if run.is_over else run.share
                loss = run.batch_losses[-1] if run.batch_losses else float("nan")
                progress.advance(run, share, f"{run.label}, {what}, loss {loss:.4g}")

            return on_step

        if search is not None:
            for place, one in enumerate(contenders):
                if one in tuned:
                    final[place] = _searched(one, search, comparison, seen("search"))
        elif request.lr_sweep is not None:
            for one in tuned:
                trials = comparison.trials.setdefault(one.label, [])
                on_step = seen("sweep over lr")
                sweep(one, settings, seed, request.lr_sweep, trials=trials, on_step=on_step)
        for each in request.all_seeds:
            train(final, settings, each, runs=comparison.runs, on_step=seen(f"seed {each}"))


def _searched(
    one: Contender, search: Search, comparison: Comparison, on_step: Callable[[Run], None]
) -> Contender:
    """Make the trials that are missing, and return the contender with the best."""
    try:
        search.run(one, on_step)
    finally:
        comparison.trials[one.label] = search.done(one)
    best = best_of(comparison.trials[one.label])
    if best is None:
        comparison.notes.append(
            f"{one.label} diverged with all that the search tried; it runs with its defaults."
        )
        return one
    return one.having(**best.options)


def _check_some_ran(comparison: Comparison) -> None:
    """Refuse a comparison in which every optimizer refused its first step."""
    if all(run.end and not run.step_seconds for run in comparison.runs):
        run = comparison.runs[0]
        raise CommandError(f"{run.label}: {run.end}")


def _line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
