"""Those who are timed beside each other: ours, torch's modes, peers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from steprule.bench.peers import Peer
from steprule.bench.results import OURS
from steprule.bench.settings import Settings
from steprule.bench.subjects import Make as MakeOptimizer
from steprule.bench.subjects import Subject
from steprule.bench.timing import Make, Timed


def makers_of(subject: Subject) -> dict[str, MakeOptimizer]:
    """Return makers of our optimizer and of torch's in each of its modes."""
    return {OURS: subject.ours, **subject.modes()}


def stepping(make: MakeOptimizer, params: Sequence[torch.Tensor]) -> Make:
    """Return a contender that steps; its state is made by a first step, untimed."""

    def ready() -> Timed:
        optimizer = make(params)
        optimizer.step()
        return Timed(optimizer.step)

    return ready


def peers_of(
    subject: Subject, case: str, params: list[torch.Tensor], settings: Settings
) -> dict[str, Make]:
    """Return the peers that can take this step; notes say why others do not."""
    found = {}
    for peer in settings.peers:
        why = peer.unfit(subject, len(params))
        if why:
            settings.say(f"{peer.name} is left out where {why}.")
        elif (peer.name, subject.label, case) not in settings.broken:
            found[peer.name] = _trying(peer, subject, case, params, settings)
    return found


def _trying(
    peer: Peer, subject: Subject, case: str, params: list[torch.Tensor], settings: Settings
) -> Callable[[], Timed | None]:
    def ready() -> Timed | None:
        try:
            step = peer.step_of(subject, params)
            step()  # many compile now
        except Exception as error:  # noqa: BLE001  # other people's compilers raise what they like
            settings.broken.add((peer.name, subject.label, case))
            first_line = (str(error).strip() or "no message").splitlines()[0]
            settings.say(
                f"{peer.name} failed for {subject.label}, {case}: "
                f"{type(error).__name__}: {first_line}"
            )
            return None
        return Timed(step, settle=True)

    return ready
