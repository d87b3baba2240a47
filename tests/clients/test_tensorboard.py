"""What TensorBoard's files hold of an optimizer: by log_to, and by Lightning's logger."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from client_runs import assert_close, loader, network, run_example
from torch import nn

import steprule
from steprule.schedules import linear

pytest.importorskip("tensorboard")

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter


def read(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """The scalars in a folder's event files, by tag: pairs of step and value."""
    events = EventAccumulator(str(folder)).Reload()
    return {
        tag: [(event.step, event.value) for event in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
    }


def trained(optimizer: Any, net: Any, epochs: int = 3) -> None:
    for inputs, targets in list(loader()) * epochs:
        optimizer.zero_grad()
        nn.functional.mse_loss(net(inputs), targets).backward()
        optimizer.step()


def by_kind(net: Any) -> Any:
    return steprule.param_groups(net, lr=linear(0.1, 0, steps=12), weight_decay=0.01)


def test_log_to_a_writer(tmp_path: Path) -> None:
    net = network()
    optimizer = steprule.AdamW(by_kind(net), clip_grad_norm=0.5)
    expected: dict[str, list[tuple[int, float]]] = {}

    def keep(values: dict[str, float], step: int) -> None:
        for tag, value in values.items():
            expected.setdefault(tag, []).append((step, value))

    with SummaryWriter(tmp_path) as writer:
        logs = [steprule.log_to(out, optimizer, every=3) for out in (writer, keep)]
        trained(optimizer, net)
        for log in logs:
            log.remove()
    found = read(tmp_path)
    assert found.keys() == expected.keys()
    assert_close(found, expected)  # float32 in the file
    lrs = [(step, pytest.approx(0.1 * (1 - (step - 1) / 12))) for step in (3, 6, 9, 12)]
    assert found["optimizer/lr/decay"] == lrs
    assert {"optimizer/grad_norm", "optimizer/update_ratio/no_decay"} <= found.keys()


def test_the_same_is_written_for_torchs_optimizer(tmp_path: Path) -> None:
    for name, optim in (("ours", steprule), ("theirs", torch.optim)):
        net = network()
        optimizer = optim.AdamW(net.parameters(), lr=0.01)
        with SummaryWriter(tmp_path / name) as writer:
            steprule.log_to(writer, optimizer, every=2)
            trained(optimizer, net)
    ours, theirs = (read(tmp_path / name) for name in ("ours", "theirs"))
    assert_close(ours, theirs, rtol=1e-4)
    assert [step for step, _ in ours["optimizer/lr"]] == [2, 4, 6, 8, 10, 12]


def test_steps_go_on_in_a_resumed_run(tmp_path: Path) -> None:
    net = network()
    optimizer = steprule.Adam(net.parameters())
    trained(optimizer, net, epochs=1)
    again = steprule.Adam(net.parameters())
    with SummaryWriter(tmp_path) as writer:
        steprule.log_to(writer, again, every=2)
        again.load_state_dict(optimizer.state_dict())
        trained(again, net, epochs=1)
    assert [step for step, _ in read(tmp_path)["optimizer/lr"]] == [6, 8]


def test_defaults_and_groups_are_hyperparameters(tmp_path: Path) -> None:
    """``add_hparams`` takes numbers, truth values and text, which the options are but for a few."""
    optimizer = steprule.Adam(network().parameters(), lr=0.01, weight_decay=0.1)
    kinds = (bool, int, float, str)
    options = {k: v for k, v in optimizer.defaults.items() if isinstance(v, kinds)}
    assert {"lr", "eps", "weight_decay", "amsgrad"} <= options.keys()
    with SummaryWriter(tmp_path) as writer:
        writer.add_hparams(options, {"loss": 0.5}, run_name=".")
        writer.add_text("optimizer", repr(optimizer))
        for name, entry in zip("abcd", optimizer.state.values(), strict=False):
            writer.add_histogram(name, entry["exp_avg"])
    events = EventAccumulator(str(tmp_path)).Reload()
    (content,) = (
        event
        for tag, event in events.summary_metadata.items()
        if tag == "_hparams_/session_start_info"
    )
    assert b"weight_decay" in content.plugin_data.content


def test_lightnings_logger(tmp_path: Path) -> None:
    """LearningRateMonitor's lr, and log_to beside it, in one file."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what the packages that it imports say of each other
        lightning = pytest.importorskip("lightning")
        from lightning.pytorch.callbacks import LearningRateMonitor
        from lightning.pytorch.loggers import TensorBoardLogger

    class Module(lightning.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.net = network()

        def training_step(self, batch: Any, _: int) -> torch.Tensor:
            return nn.functional.mse_loss(self.net(batch[0]), batch[1])

        def configure_optimizers(self) -> Any:
            optimizer = steprule.AdamW(self.parameters(), lr=0.1)
            schedule = linear(0.1, 0, steps=12)
            scheduler = steprule.lr_scheduler.from_schedule(optimizer, schedule)
            steprule.log_to(self.logger, optimizer, every=4)
            return [optimizer], [{"scheduler": scheduler, "interval": "step"}]

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".isinstance.treespec")
        warnings.filterwarnings("ignore", message=".*does not have many workers")
        logger = TensorBoardLogger(tmp_path, name="", version="")
        lightning.Trainer(
            max_epochs=3,
            accelerator="cpu",
            logger=logger,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            log_every_n_steps=1,
            callbacks=[LearningRateMonitor(logging_interval="step")],
        ).fit(Module(), loader())
    found = read(tmp_path)
    schedule = linear(0.1, 0, steps=12)
    assert [value for _, value in found["lr-AdamW"]] == pytest.approx(schedule(range(12)).tolist())
    assert [step for step, _ in found["optimizer/update_ratio"]] == [4, 8, 12]


def test_the_example_in_the_docs() -> None:
    run_example("TensorBoard")
