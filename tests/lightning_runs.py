"""What the tests of Lightning share: a module whose losses are kept, and fits of it.

Importing this skips the tests where Lightning is not installed.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from client_runs import assert_close, loader, network
from torch import Tensor, nn

import steprule
from steprule.schedules import linear

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what the packages that it imports say of each other
    lightning = pytest.importorskip("lightning")

# Imported here for the tests, which would not silence what that says.
from lightning.pytorch.callbacks import LearningRateMonitor as LearningRateMonitor
from lightning.pytorch.callbacks import ModelCheckpoint as ModelCheckpoint
from lightning.pytorch.callbacks import StochasticWeightAveraging as StochasticWeightAveraging
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.plugins.precision import MixedPrecision

WARNINGS = [
    # Lightning's own: its tree of loaders, its advice on workers and on few batches.
    pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec.:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers:UserWarning"),
    # The resumed fits save nothing themselves.
    pytest.mark.filterwarnings("ignore:Be aware that when using .ckpt_path.:UserWarning"),
]

BATCHES = 4
TORCH_SCHEDULERS, OURS = torch.optim.lr_scheduler, steprule.lr_scheduler


class Module(lightning.LightningModule):  # type: ignore[misc, name-defined]
    """A regression whose losses are kept, and whose optimizer is what ``make(module)`` returns."""

    def __init__(self, make: Callable[[Any], Any]) -> None:
        super().__init__()
        self.net, self.make = network(), make
        self.losses: list[float] = []

    def loss(self, batch: Any) -> Tensor:
        inputs, targets = batch
        return nn.functional.mse_loss(self.net(inputs), targets)

    def training_step(self, batch: Any, _: int) -> Tensor:
        loss = self.loss(batch)
        self.losses.append(loss.item())
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return self.make(self)


class Resumable:
    """A loader that says how far it is: a run that stopped within an epoch goes on there."""

    def __init__(self) -> None:
        self.batches, self.given = list(loader()), 0

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Any]:
        for i in range(self.given % BATCHES, BATCHES):
            self.given = i + 1
            yield self.batches[i]
        self.given = 0

    def state_dict(self) -> dict[str, int]:
        return {"given": self.given}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.given = state["given"]


class InMemory(Logger):
    """Keeps what the Trainer and its callbacks log."""

    name = version = "memory"

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[dict[str, float]] = []

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.seen.append({**metrics, "at": step})  # type: ignore[dict-item]

    def log_hyperparams(self, *_: Any, **__: Any) -> None:
        pass


def trainer(epochs: int = 3, **options: Any) -> Any:
    quiet = {"logger": False, "enable_checkpointing": False, "log_every_n_steps": 1}
    return lightning.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
        **{**quiet, **options},
    )


def fitted(
    make: Callable[[Any], Any], epochs: int = 3, module: Any = Module, **options: Any
) -> Any:
    fit = module(make)
    trainer(epochs, **options).fit(fit, loader())
    return fit


def outcome(module: Any) -> Any:
    return module.losses, list(module.net.parameters())


def beside(make: Callable[[Any, Any], Any], tolerance: Any = None, **options: Any) -> Any:
    """Fit by ``make(optimizers, schedulers)`` with torch's and with steprule's; they agree."""
    theirs = fitted(make(torch.optim, TORCH_SCHEDULERS), **options)
    ours = fitted(make(steprule, OURS), **options)
    assert_close(outcome(ours), outcome(theirs), **(tolerance or {}))
    return ours


def in_16_bits() -> dict[str, Any]:
    """float16 with a scaler on the CPU, whose first scale is too large for four steps."""
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**18, growth_interval=5)
    return {"plugins": [MixedPrecision("16-mixed", "cpu", scaler)]}


def plain_loop(make: Callable[[Any], Any], epochs: int = 3) -> Any:
    """The same fit without Lightning."""
    module = Module(make)
    optimizer = make(module)
    for batch in list(loader()) * epochs:

        def closure(batch: Any = batch) -> Tensor:
            optimizer.zero_grad()
            loss = module.loss(batch)
            loss.backward()
            module.losses.append(loss.item())
            return loss

        optimizer.step(closure)
    return outcome(module)


def matrices(module: Any) -> list[Any]:
    return [p for p in module.parameters() if p.ndim == 2]


def vectors(module: Any) -> list[Any]:
    return [p for p in module.parameters() if p.ndim != 2]


def adamw_with_one_cycle(module: Any) -> Any:
    optimizer = steprule.AdamW(module.parameters(), lr=0.01)
    scheduler = OURS.OneCycleLR(optimizer, 0.05, 16)
    return [optimizer], [{"scheduler": scheduler, "interval": "step"}]


RESUMED: dict[str, Callable[[Any], Any]] = {
    "AdamW, OneCycleLR": adamw_with_one_cycle,
    "a schedule": lambda m: steprule.NAdam(
        m.named_parameters(), lr=linear(0.05, 0, steps=16), weight_decay=linear(0.1, 0, steps=8)
    ),
    "int8, an average": lambda m: steprule.Adam(
        m.parameters(), lr=0.01, state_format="int8", ema_decay=0.9
    ),
    "Lookahead": lambda m: steprule.Lookahead(steprule.AdamW(m.parameters(), lr=0.01), k=3),
    "SAM": lambda m: steprule.SAM(steprule.SGD(m.parameters(), lr=0.05, momentum=0.9)),
    "Muon and AdamW": lambda m: steprule.combine(
        steprule.Muon(matrices(m), lr=0.02), steprule.AdamW(vectors(m), lr=0.01)
    ),
    "ScheduleFree": lambda m: steprule.ScheduleFreeAdamW(m.parameters(), lr=0.05, warmup_steps=3),
    "LBFGS": lambda m: steprule.LBFGS(m.parameters(), max_iter=3, line_search_fn="more_thuente"),
}
