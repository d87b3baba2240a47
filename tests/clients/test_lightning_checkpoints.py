"""Lightning's checkpoints, and Fabric's: a resumed fit is the uninterrupted one, bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from client_runs import assert_close, assert_same, loader, network
from lightning_runs import (
    BATCHES,
    OURS,
    RESUMED,
    TORCH_SCHEDULERS,
    WARNINGS,
    ModelCheckpoint,
    Module,
    Resumable,
    fitted,
    lightning,
    outcome,
    plain_loop,
    trainer,
)
from torch import Tensor, nn

import steprule

pytestmark = WARNINGS


@pytest.mark.parametrize("name", RESUMED)
def test_a_resumed_fit_is_the_uninterrupted_one(name: str, tmp_path: Path) -> None:
    """Saved within an epoch by the Trainer's own callback, loaded by ``ckpt_path``."""
    whole = Module(RESUMED[name])
    first = ModelCheckpoint(tmp_path, save_top_k=-1, every_n_train_steps=6, filename="{step}")
    trainer(4, enable_checkpointing=True, callbacks=[first]).fit(whole, Resumable())
    saved = tmp_path / "step=6.ckpt"
    assert saved.exists()

    again = Module(RESUMED[name])
    again.net.load_state_dict(network(seed=5).state_dict())  # which the checkpoint replaces
    trainer(4).fit(again, Resumable(), ckpt_path=saved)
    assert_same(again.losses, whole.losses[-len(again.losses) :])
    assert 0 < len(again.losses) < len(whole.losses)
    assert_same(list(again.net.parameters()), list(whole.net.parameters()))
    states = [fit.trainer.optimizers[0].state_dict() for fit in (again, whole)]
    assert_same(*states)


def test_a_plateau_goes_on_between_epochs(tmp_path: Path) -> None:
    """Within an epoch Lightning itself leaves out the plateau's step at its end."""

    def make(module: Any) -> Any:
        optimizer = steprule.SGD(module.parameters(), lr=0.3, momentum=0.5)
        plateau = OURS.ReduceLROnPlateau(optimizer, patience=0, threshold=0.3)
        return {"optimizer": optimizer, "lr_scheduler": plateau, "monitor": "loss"}

    whole = fitted(make, epochs=5)
    begun = trainer(2)
    begun.fit(Module(make), loader())
    begun.save_checkpoint(tmp_path / "begun.ckpt")
    again = Module(make)
    trainer(5).fit(again, loader(), ckpt_path=tmp_path / "begun.ckpt")
    assert_same(again.losses, whole.losses[2 * BATCHES :])
    plateaus = [
        fit.trainer.lr_scheduler_configs[0].scheduler.state_dict() for fit in (again, whole)
    ]
    assert_same(*plateaus)
    assert plateaus[0]["_last_lr"] < [0.3]


def test_a_wrappers_state_is_loaded_through_lightnings_optimizer() -> None:
    module = fitted(RESUMED["Lookahead"])
    seen = module.optimizers()
    saved = seen.state_dict()
    assert saved["lookahead"]["steps"] == 3 * BATCHES
    seen.load_state_dict(saved)
    assert_same(module.trainer.optimizers[0].state_dict(), saved)


def test_a_checkpoint_of_torchs_goes_on_with_ours_and_back(tmp_path: Path) -> None:
    def make(optim: Any, schedulers: Any) -> Any:
        def configure(module: Any) -> Any:
            optimizer = optim.AdamW(module.parameters(), lr=0.01)
            return [optimizer], [schedulers.CosineAnnealingLR(optimizer, 4)]

        return configure

    sides = [make(torch.optim, TORCH_SCHEDULERS), make(steprule, OURS)]
    results = []
    for first, second in (sides, sides[::-1]):
        start = Module(first)
        begun = trainer(2)
        begun.fit(start, loader())
        begun.save_checkpoint(tmp_path / "begun.ckpt")
        end = Module(second)
        trainer(4).fit(end, loader(), ckpt_path=tmp_path / "begun.ckpt")
        results.append((start.losses + end.losses, list(end.net.parameters())))
    assert len(results[0][0]) == 4 * BATCHES
    assert_close(*results)
    assert_close(results[0], outcome(fitted(sides[0], epochs=4)))


@pytest.mark.parametrize("name", [name for name in RESUMED if "LR" not in name])
def test_fabric(name: str, tmp_path: Path) -> None:
    """The plain loop, saved by Fabric after an epoch and loaded into what is made anew."""

    def build() -> Any:
        fabric = lightning.Fabric(accelerator="cpu", devices=1)
        net = network()
        return fabric, *fabric.setup(net, RESUMED[name](net))

    def epochs(fabric: Any, net: Any, optimizer: Any, count: int) -> list[float]:
        losses = []
        for batch in list(loader()) * count:

            def closure(batch: Any = batch) -> Tensor:
                optimizer.zero_grad()
                loss = nn.functional.mse_loss(net(batch[0]), batch[1])
                fabric.backward(loss)
                losses.append(loss.item())
                return loss

            optimizer.step(closure)
        return losses

    whole, again = build(), build()
    losses = epochs(*whole, 1)
    path = tmp_path / "fabric.ckpt"
    whole[0].save(path, {"net": whole[1], "optimizer": whole[2]})
    again[0].load(path, {"net": again[1], "optimizer": again[2]})
    rest = [epochs(*side, 2) for side in (whole, again)]
    assert_same(rest[1], rest[0])
    assert_same(again[2].state_dict(), whole[2].state_dict())
    parameters = list(again[1].parameters())
    assert_same((losses + rest[0], parameters), plain_loop(RESUMED[name]))
