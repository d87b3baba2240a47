"""Transformers' Trainer drives steprule's optimizers and schedulers as it drives torch's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from client_runs import assert_close, assert_same, run_example
from torch.utils.data import Dataset

import steprule
from steprule.schedules import linear

transformers = pytest.importorskip("transformers")

pytestmark = [
    # Of the Trainer's: it pins memory whether there is a device or not.
    pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning"),
]

STEPS = 8
OURS = steprule.lr_scheduler
#: Adam divides by the root of squares that are nearly 0 for tokens seldom seen: a rounding of such
#: a gradient turns a step of lr. After 8 steps of 1e-3, a thousandth of what was moved.
TOLERANCE = {"rtol": 1e-4, "atol": 1e-5}


class Sentences(Dataset[Any]):
    """Tokens that follow each other by a rule; 16 sentences, two batches of 8."""

    def __len__(self) -> int:
        return 16

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        tokens = (torch.arange(6) * (index % 3 + 1) + index) % 13
        return {"input_ids": tokens, "labels": tokens}


def model() -> Any:
    config = transformers.GPT2Config(
        vocab_size=13, n_positions=6, n_embd=8, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return transformers.GPT2LMHeadModel(config)


class Losses(transformers.TrainerCallback):  # type: ignore[misc, name-defined]
    """Keeps what is logged at every step."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.lrs: list[float] = []
        self.norms: list[float] = []

    def on_log(self, *_: Any, logs: dict[str, Any], **__: Any) -> None:
        if "loss" in logs:
            self.losses.append(float(logs["loss"]))
            self.lrs.append(float(logs["learning_rate"]))
            self.norms.append(float(logs["grad_norm"]))


class Run:
    """A Trainer, what it logged, and the model that it has trained."""

    def __init__(self, folder: Path, cls: Any = None, resume: Any = None, **options: Any) -> None:
        ours = ("optimizers", "optimizer_cls_and_kwargs", "model")
        callbacks = options.pop("callbacks", [])
        given = {key: options.pop(key) for key in ours if key in options}
        defaults = {
            "max_steps": STEPS,
            "learning_rate": 1e-3,
            "save_strategy": "no",
            "per_device_train_batch_size": 8,
        }
        arguments = transformers.TrainingArguments(
            output_dir=str(folder),
            use_cpu=True,
            report_to=[],
            disable_tqdm=True,
            logging_steps=1,
            logging_nan_inf_filter=False,
            dataloader_pin_memory=False,
            **{**defaults, **options},
        )
        self.seen = Losses()
        self.trainer = (cls or transformers.Trainer)(
            args=arguments,
            train_dataset=Sentences(),
            callbacks=[self.seen, *callbacks],
            **{"model": model(), **given},
        )
        self.trainer.remove_callback(transformers.PrinterCallback)
        self.trainer.train(resume_from_checkpoint=resume)

    @property
    def outcome(self) -> Any:
        return self.seen.losses, self.seen.lrs, list(self.trainer.model.parameters())

    @property
    def optimizer(self) -> Any:
        """The one that was made, out of what Accelerate wraps it in."""
        return self.trainer.optimizer.optimizer


def groups(net: Any) -> list[dict[str, Any]]:
    """As the Trainer's own: no decay for biases and norms."""
    named = dict(net.named_parameters())
    free = {name for name in named if "bias" in name or ".ln_" in name}
    return [
        {"params": [p for n, p in named.items() if n not in free], "weight_decay": 0.1},
        {"params": [p for n, p in named.items() if n in free], "weight_decay": 0.0},
    ]


def test_losses_are_those_of_the_trainers_adamw(tmp_path: Path) -> None:
    """``optimizer_cls_and_kwargs``: the Trainer makes groups, schedule and clipping."""
    options: Any = {"weight_decay": 0.1, "warmup_steps": 2, "lr_scheduler_type": "cosine"}
    theirs = Run(tmp_path, optim="adamw_torch", **options)
    ours = Run(tmp_path, optimizer_cls_and_kwargs=(steprule.AdamW, {"lr": 1e-3}), **options)
    assert_close(ours.outcome, theirs.outcome, **TOLERANCE)
    assert_close(ours.seen.norms, theirs.seen.norms, **TOLERANCE)
    assert isinstance(ours.optimizer, steprule.AdamW)
    assert not isinstance(theirs.optimizer, steprule.Optimizer)
    assert [group["weight_decay"] for group in ours.optimizer.param_groups] == [0.1, 0.0]
    assert ours.seen.losses[-1] < ours.seen.losses[0]


def test_an_optimizer_and_a_scheduler_that_are_given(tmp_path: Path) -> None:
    sides = []
    for optim, schedulers in ((torch.optim, torch.optim.lr_scheduler), (steprule, OURS)):
        net = model()
        optimizer = optim.AdamW(groups(net), lr=1e-3)
        scheduler = schedulers.OneCycleLR(optimizer, 3e-3, STEPS)
        sides.append(Run(tmp_path, model=net, optimizers=(optimizer, scheduler)))
    assert_close(sides[1].outcome, sides[0].outcome, **TOLERANCE)
    assert len(set(sides[1].seen.lrs)) == STEPS


class OwnOptimizer(transformers.Trainer):  # type: ignore[misc, name-defined]
    """Overrides ``create_optimizer``, as the documentation of the Trainer has it."""

    optim: Any = steprule

    def create_optimizer(self, model: Any = None) -> Any:
        if self.optimizer is None:
            net = self.model if model is None else model
            lr, decay = self.args.learning_rate, self.args.weight_decay
            made = steprule.param_groups(net, lr=lr, weight_decay=decay)
            self.optimizer = self.optim.AdamW(made)
        return self.optimizer


class OwnOptimizerOfTorchs(OwnOptimizer):
    optim = torch.optim


def test_a_subclass_creates_the_optimizer(tmp_path: Path) -> None:
    options: Any = {"weight_decay": 0.1, "gradient_accumulation_steps": 2}
    theirs = Run(tmp_path, OwnOptimizerOfTorchs, **options)
    ours = Run(tmp_path, OwnOptimizer, **options)
    assert_close(ours.outcome, theirs.outcome, **TOLERANCE)
    assert ours.optimizer.param_groups[0]["name"]


def test_bfloat16(tmp_path: Path) -> None:
    """Activations are rounded to 8 bits; the weights, and the optimizer, are in float32."""
    theirs = Run(tmp_path, optim="adamw_torch", bf16=True)
    ours = Run(tmp_path, optimizer_cls_and_kwargs=(steprule.AdamW, {"lr": 1e-3}), bf16=True)
    assert_close(ours.seen.losses, theirs.seen.losses, rtol=2e-2, atol=0.0)


def hidden(net: Any) -> list[Any]:
    return [p for n, p in net.named_parameters() if p.ndim == 2 and ".h." in n]


def others(net: Any) -> list[Any]:
    inside = {id(param) for param in hidden(net)}
    return [param for param in net.parameters() if id(param) not in inside]


RESUMED: dict[str, Callable[[Any], Any]] = {
    "AdamW": lambda net: steprule.AdamW(groups(net), lr=1e-3),
    "a schedule": lambda net: steprule.Lion(
        net.named_parameters(), lr=1e-3, weight_decay=linear(0.1, 0, steps=STEPS)
    ),
    "int8, guards": lambda net: steprule.AdamW(
        groups(net), lr=1e-3, state_format="int8", clip_grad_norm=0.5, on_nonfinite="skip"
    ),
    "Muon and AdamW": lambda net: steprule.combine(
        steprule.Muon(hidden(net), lr=0.02), steprule.AdamW(others(net), lr=1e-3)
    ),
    "ScheduleFree": lambda net: steprule.ScheduleFreeAdamW(net.parameters(), lr=3e-3),
    "Lookahead": lambda net: steprule.Lookahead(steprule.SGD(net.parameters(), lr=0.1), k=2),
}


def given(name: str, net: Any) -> Any:
    """An optimizer, with a schedule that the Trainer steps."""
    optimizer = RESUMED[name](net)
    factors = linear(1.0, 0.1, steps=STEPS)
    scheduler = OURS.from_schedule(optimizer, factors, relative=True)
    return {"model": net, "optimizers": (optimizer, scheduler)}


@pytest.mark.parametrize("name", RESUMED)
def test_a_resumed_run_is_the_uninterrupted_one(name: str, tmp_path: Path) -> None:
    whole = Run(tmp_path, **given(name, model()), save_strategy="steps", save_steps=5)
    again = Run(tmp_path, **given(name, model()), resume=str(tmp_path / "checkpoint-5"))
    assert_same(again.seen.losses, whole.seen.losses[5:])
    assert_same(again.seen.lrs, whole.seen.lrs[5:])
    assert_same(again.outcome[2], whole.outcome[2])
    assert_same(again.optimizer.state_dict(), whole.optimizer.state_dict())
    assert len(again.seen.losses) == STEPS - 5


def test_a_checkpoint_of_torchs_goes_on_with_ours(tmp_path: Path) -> None:
    options: Any = {"weight_decay": 0.1, "lr_scheduler_type": "linear"}
    whole = Run(tmp_path, optim="adamw_torch", save_strategy="steps", save_steps=4, **options)
    ours = Run(
        tmp_path,
        optimizer_cls_and_kwargs=(steprule.AdamW, {"lr": 1e-3}),
        resume=str(tmp_path / "checkpoint-4"),
        **options,
    )
    assert_close(ours.seen.losses, whole.seen.losses[4:], **TOLERANCE)
    assert_close(ours.outcome[2], whole.outcome[2], **TOLERANCE)


def test_schedule_free_evaluates_the_average(tmp_path: Path) -> None:
    """The Trainer calls ``train()`` and ``eval()`` of an optimizer that has them."""
    net = model()
    run = Run(tmp_path, **given("ScheduleFree", net))
    at_y = [param.detach().clone() for param in net.parameters()]
    run.trainer.evaluate(Sentences())
    assert not run.optimizer.param_groups[0]["train_mode"]
    assert not all(map(torch.equal, at_y, net.parameters()))
    run.optimizer.train()
    assert_same(list(net.parameters()), at_y)


def test_the_trainers_own_scheduler_beside_a_schedule_is_warned_of(tmp_path: Path) -> None:
    net = model()
    optimizer = steprule.SGD(net.parameters(), lr=linear(0.1, 0, steps=STEPS).warmup(3))
    with pytest.warns(UserWarning, match="a scheduler has set it for this step"):
        Run(tmp_path, model=net, optimizers=(optimizer, None))


def test_tensorboards_callback_writes_the_lr(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(tmp_path / "events") as writer:
        callback = transformers.integrations.TensorBoardCallback(writer)
        run = Run(tmp_path, **given("AdamW", model()), callbacks=[callback])
    events = EventAccumulator(str(tmp_path / "events")).Reload()
    lrs = [event.value for event in events.Scalars("train/learning_rate")]
    assert lrs == pytest.approx(run.seen.lrs)
    assert len(set(lrs)) == STEPS


def test_the_example_in_the_docs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run_example("Transformers")
