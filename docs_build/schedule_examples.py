"""What the gallery of schedules shows: code that ends with ``lr``, ``scheduler`` or ``seen``."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Example:
    """One entry.

    Attributes:
        title: its heading, the name that it shows.
        words: what is seen, for those who do not see it, too.
        code: makes a schedule ``lr``, a ``scheduler``, or a list ``seen`` of values.
        steps: how many are drawn.
    """

    title: str
    words: str
    code: str
    steps: int = 100

    @property
    def key(self) -> str:
        """The name of its picture."""
        return self.title.lower().replace(" ", "_").replace(".", "")


def _shape(name: str, call: str, words: str) -> Example:
    return Example(name, words, f"from steprule.schedules import {name}\n\nlr = {call}")


SHAPES = (
    _shape("constant", "constant(0.1)", "the same value at every step"),
    _shape("linear", "linear(0.1, 0, steps=80)", "a straight line, then its last value"),
    _shape(
        "polynomial",
        "polynomial(0.1, 0, steps=90, power=2)",
        "a fall that grows flatter towards its end",
    ),
    _shape("cosine", "cosine(0.1, 0, steps=90)", "half a cosine: flat, steep, flat"),
    _shape(
        "cosine_restarts",
        "cosine_restarts(0.1, 0, steps=20, cycle_mult=2, peak_mult=0.7)",
        "cosines one after another, each twice as long and 0.7 times as high",
    ),
    _shape("exponential", "exponential(0.1, gamma=0.95)", "a fall by 5 % at each step"),
    _shape("step_decay", "step_decay(0.1, gamma=0.3, every=30)", "stairs of equal length"),
    _shape(
        "piecewise",
        "piecewise({0: 0.1, 20: 0.05, 70: 0.01})",
        "a value from each of the named steps on",
    ),
    _shape("cyclic", "cyclic(0.01, 0.1, up=10, down=20)", "a triangle wave"),
    _shape("one_cycle", "one_cycle(0.1, steps=100)", "one rise and one long fall, by cosines"),
    _shape("inverse_sqrt", "inverse_sqrt(0.1, warmup=15)", "a straight rise, then 1/sqrt(step)"),
    _shape(
        "wsd",
        "wsd(0.1, warmup=10, stable=60, decay=30)",
        "a rise from 0, a plateau, a straight fall to 0",
    ),
    _shape(
        "from_points",
        "from_points([(0, 0.02), (25, 0.1), (60, 0.04), (99, 0.0)])",
        "straight lines between given points",
    ),
)
COMPOSED = (
    Example(
        "Warm-up",
        "ten straight steps from 0, then a cosine from its own beginning",
        "from steprule.schedules import cosine\n\nlr = cosine(0.1, 0, steps=90).warmup(10)",
    ),
    Example(
        "One after another",
        "a constant, and from step 50 on a line",
        "from steprule.schedules import constant, linear\n\n"
        "lr = constant(0.1).then(linear(0.1, 0, steps=40), at=50)",
    ),
    Example(
        "Product",
        "a wave under a falling line",
        "from steprule.schedules import cyclic, linear\n\n"
        "lr = cyclic(0.02, 0.1, up=8) * linear(1, 0, steps=100)",
    ),
    Example(
        "Repeated",
        "the first 25 steps of a cosine again and again",
        "from steprule.schedules import cosine\n\nlr = cosine(0.1, 0, steps=30).repeat(25)",
    ),
    Example(
        "Clipped",
        "an exponential fall that stops at a lowest value",
        "from steprule.schedules import exponential\n\n"
        "lr = exponential(0.1, gamma=0.95).clip(0.02)",
    ),
)

_SETUP = """\
import torch
from steprule import SGD, lr_scheduler

weight = torch.zeros(1, requires_grad=True)
optimizer = SGD([weight], lr=0.1, momentum=0.9)
"""


def _class(name: str, arguments: str, words: str) -> Example:
    code = f"{_SETUP}scheduler = lr_scheduler.{name}(optimizer, {arguments})"
    return Example(name, words, code)


CLASSES = (
    _class("LambdaLR", "lambda step: 0.95**step", "the initial lr times what a function returns"),
    _class("MultiplicativeLR", "lambda step: 0.97", "the last lr times what a function returns"),
    _class("StepLR", "step_size=30, gamma=0.3", "stairs of equal length"),
    _class("MultiStepLR", "milestones=[20, 70], gamma=0.3", "stairs at the named steps"),
    _class("ConstantLR", "factor=0.3, total_iters=30", "a lower lr for the first 30 steps"),
    _class("LinearLR", "start_factor=0.1, total_iters=30", "a straight rise to the initial lr"),
    _class("ExponentialLR", "gamma=0.95", "a fall by 5 % at each step"),
    _class("PolynomialLR", "total_iters=90, power=2", "a fall that grows flatter"),
    _class(
        "CosineAnnealingLR",
        "T_max=60",
        "half a cosine down, and past T_max up again, as torch's does",
    ),
    _class(
        "CosineAnnealingWarmRestarts",
        "T_0=20, T_mult=2",
        "cosines one after another, each twice as long",
    ),
    _class("CyclicLR", "base_lr=0.01, max_lr=0.1, step_size_up=12", "a triangle wave"),
    _class("OneCycleLR", "max_lr=0.1, total_steps=100", "one rise and one long fall, by cosines"),
    Example(
        "SequentialLR",
        "a straight rise for 10 steps, then a cosine",
        _SETUP
        + """\
warmup = lr_scheduler.LinearLR(optimizer, start_factor=0.01, total_iters=10)
cosine = lr_scheduler.CosineAnnealingLR(optimizer, T_max=90)
scheduler = lr_scheduler.SequentialLR(optimizer, [warmup, cosine], milestones=[10])""",
    ),
    Example(
        "ChainedScheduler",
        "a warm-up times an exponential fall",
        _SETUP
        + """\
warmup = lr_scheduler.LinearLR(optimizer, start_factor=0.1, total_iters=20)
fall = lr_scheduler.ExponentialLR(optimizer, gamma=0.98)
scheduler = lr_scheduler.ChainedScheduler([warmup, fall], optimizer=optimizer)""",
    ),
    Example(
        "ReduceLROnPlateau",
        "a fall to a third wherever the loss has not improved for five steps",
        _SETUP
        + """\
scheduler = lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.3, patience=5)
seen = []
for epoch in range(100):
    loss = max(1 - epoch / 30, 0.4) if epoch < 60 else 0.39 - epoch / 1000
    optimizer.step()
    seen.append(optimizer.param_groups[0]["lr"])
    scheduler.step(loss if epoch < 80 else 0.32)""",
    ),
    Example(
        "from_schedule",
        "any schedule as a scheduler object: a plateau, then a fall",
        _SETUP
        + """\
scheduler = lr_scheduler.from_schedule(optimizer, "wsd(0.1, warmup=10, stable=60, decay=30)")""",
    ),
)
