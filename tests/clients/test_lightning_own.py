"""What torch has not, under Lightning: the plain loop; SAM by hand; schedule-free optimizers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from client_runs import assert_same, loader, network
from lightning_runs import (
    BATCHES,
    RESUMED,
    WARNINGS,
    ModelCheckpoint,
    Module,
    fitted,
    in_16_bits,
    outcome,
    plain_loop,
    trainer,
)
from torch import Tensor, nn

import steprule

pytestmark = WARNINGS


class SamByHand(Module):
    """SAM by hand: with a closure, or in two steps."""

    in_two_steps = False

    def __init__(self, make: Callable[[Any], Any]) -> None:
        super().__init__(make)
        self.automatic_optimization = False

    def training_step(self, batch: Any, _: int) -> None:  # type: ignore[override]
        optimizer = self.optimizers()

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = self.loss(batch)
            self.manual_backward(loss)
            self.losses.append(loss.item())
            return loss

        if not self.in_two_steps:
            optimizer.step(closure)
            return
        closure()
        optimizer.first_step()
        closure()
        optimizer.second_step()


class SamInTwoSteps(SamByHand):
    in_two_steps = True


@pytest.mark.parametrize("name", [name for name in RESUMED if "LR" not in name])
def test_a_fit_is_the_plain_loop(name: str) -> None:
    assert_same(outcome(fitted(RESUMED[name])), plain_loop(RESUMED[name]))


@pytest.mark.parametrize("module", [SamByHand, SamInTwoSteps])
def test_sam_by_hand(module: Any) -> None:
    by_hand = fitted(RESUMED["SAM"], module=module)
    assert_same(outcome(by_hand), plain_loop(RESUMED["SAM"]))
    assert by_hand.trainer.global_step == 3 * BATCHES


class ScheduleFree(Module):
    """Evaluates and saves the average: the optimizer's mode goes with the model's."""

    def __init__(self, make: Callable[[Any], Any]) -> None:
        super().__init__(make)
        self.evaluated: list[float] = []

    def put(self, *, in_train_mode: bool) -> None:
        for optimizer in self.trainer.optimizers:  # none in trainer.validate()
            optimizer.train() if in_train_mode else optimizer.eval()

    def on_train_epoch_start(self) -> None:
        self.put(in_train_mode=True)

    def on_validation_model_eval(self) -> None:
        super().on_validation_model_eval()
        self.put(in_train_mode=False)

    def on_validation_model_train(self) -> None:
        super().on_validation_model_train()
        if self.trainer.state.fn == "fit":  # trainer.validate() calls this as well
            self.put(in_train_mode=True)

    def on_test_model_eval(self) -> None:
        super().on_test_model_eval()
        self.put(in_train_mode=False)

    def on_predict_model_eval(self) -> None:
        super().on_predict_model_eval()
        self.put(in_train_mode=False)

    def on_train_end(self) -> None:
        self.put(in_train_mode=False)

    def validation_step(self, batch: Any, _: int) -> None:
        self.evaluated.append(self.loss(batch).item())

    def test_step(self, batch: Any, _: int) -> None:  # noqa: PT019  # Lightning's name, no test
        self.evaluated.append(self.loss(batch).item())

    def predict_step(self, batch: Any, _: int) -> Tensor:
        self.evaluated.append(self.loss(batch).item())
        return self.net(batch[0])


def test_schedule_free_goes_with_the_models_mode(tmp_path: Path) -> None:
    """The checkpoint is written in eval mode, by Lightning at the end of a validation."""
    make = RESUMED["ScheduleFree"]
    whole = ScheduleFree(make)
    saving = ModelCheckpoint(
        tmp_path, save_top_k=-1, save_on_train_epoch_end=False, filename="{epoch}"
    )
    options: Any = {"check_val_every_n_epoch": 1, "num_sanity_val_steps": 1}
    saver = trainer(4, enable_checkpointing=True, callbacks=[saving], **options)
    saver.fit(whole, loader(), loader())

    net = network()
    optimizer = steprule.ScheduleFreeAdamW(net.parameters(), lr=0.05, warmup_steps=3)
    evaluated = []
    for _ in range(4):
        optimizer.train()
        for inputs, targets in loader():
            optimizer.zero_grad()
            nn.functional.mse_loss(net(inputs), targets).backward()
            optimizer.step()
        optimizer.eval()
        evaluated += [nn.functional.mse_loss(net(x), y).item() for x, y in loader()]
    assert_same(whole.evaluated[1:], evaluated)
    assert_same(list(whole.net.parameters()), list(net.parameters()))

    saved = torch.load(tmp_path / "epoch=1.ckpt", weights_only=True)
    assert not saved["optimizer_states"][0]["param_groups"][0]["train_mode"]
    again = ScheduleFree(make)
    trainer(4, **options).fit(again, loader(), loader(), ckpt_path=tmp_path / "epoch=1.ckpt")
    assert_same(again.evaluated[-2 * BATCHES :], evaluated[-2 * BATCHES :])
    assert_same(list(again.net.parameters()), list(net.parameters()))


def test_schedule_free_keeps_to_the_average_after_a_fit() -> None:
    """Whatever is called then, in whatever order; and a second fit goes on with what it trains."""
    module = ScheduleFree(RESUMED["ScheduleFree"])
    used = trainer(2, check_val_every_n_epoch=1)
    used.fit(module, loader(), loader())
    average = [param.detach().clone() for param in module.net.parameters()]
    with torch.no_grad():
        losses = [module.loss(batch).item() for batch in loader()]
    for evaluate in (used.test, used.validate, used.test, used.predict, used.test):
        module.evaluated.clear()
        evaluate(module, loader())
        assert_same(module.evaluated, losses)
        assert_same(list(module.net.parameters()), average)
    assert not used.optimizers[0].param_groups[0]["train_mode"]


def test_sam_by_hand_with_a_scaler() -> None:
    """Both passes scaled; the second step is the scaler's."""
    fit = fitted(RESUMED["SAM"], module=SamInTwoSteps, **in_16_bits())

    module = Module(RESUMED["SAM"])
    optimizer = RESUMED["SAM"](module)
    scaler = in_16_bits()["plugins"][0].scaler
    for batch in list(loader()) * 3:
        for step in (optimizer.first_step, lambda: scaler.step(optimizer)):
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.float16, cache_enabled=False):
                loss = module.loss(batch)
            scaler.scale(loss).backward()
            module.losses.append(loss.item())
            step()
        scaler.update()
    assert_same(outcome(fit), outcome(module))
    assert not torch.equal(fit.net[0].weight, network()[0].weight)
