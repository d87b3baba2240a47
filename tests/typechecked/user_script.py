"""A user's script with every public call, which mypy and pyright check at their strictest.

It runs, too. What a call returns is asserted where somebody goes on with it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from typing_extensions import assert_type

import steprule as optim
from steprule import lr_scheduler as schedulers
from steprule import matrix_ops, ops, schedules, swa_utils
from steprule.doctor import Report, examine
from steprule.formats import Column
from steprule.model_groups.listing import ParamGroups
from steprule.optimizer import Number, ParamsT, SharedOptions
from steprule.optimizer.explain import Explanation
from steprule.range_test.result import LRRangeTest
from steprule.schedules import Schedule
from steprule.state.pairing import LoadReport
from steprule.step_log.step_log import StepLog
from steprule.training.runs import Training
from steprule.warming import Warmed

X, Y = torch.randn(16, 8), torch.randn(16, 1)


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 1))


def loss_of(net: nn.Module) -> Tensor:
    loss: Tensor = nn.functional.mse_loss(net(X), Y)
    return loss


def closure_of(net: nn.Module, optimizer: torch.optim.Optimizer) -> Callable[[], Tensor]:
    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = loss_of(net)
        torch.autograd.backward(loss)
        return loss

    return closure


def every_optimizer(net: nn.Sequential) -> list[optim.Optimizer]:
    """Each class, with options of its own in words, numbers, tensors or schedules."""
    p: list[nn.Parameter] = [*net.parameters()]
    matrices = [x for x in p if x.ndim == 2]
    decay = schedules.linear(0.1, 0.0, steps=10)
    return [
        optim.AdaBelief(p, lr=1e-3, rectify=False),
        optim.Adadelta(p, rho=0.9),
        optim.Adafactor(p, eps=(None, 1e-3), d=1.0),
        optim.Adagrad(p, lr_decay=0.1, fused=True),
        optim.Adam(p, lr=torch.tensor(1e-3), betas=(0.9, 0.99), amsgrad=True, foreach=True),
        optim.Adamax(p, eps=1e-6),
        optim.AdamW(p, lr=schedules.cosine(1e-3, 0.0, steps=10), weight_decay=decay),
        optim.Adan(p, betas=(0.98, 0.92, 0.99), no_prox=True),
        optim.AdEMAMix(p, alpha=5, alpha_warmup=10, beta3_warmup=10),
        optim.ADOPT(p, clip_exp=None),
        optim.ASGD(p, lambd=1e-4, t0=1e6),
        optim.GrokAdamW(p, lamb=1.0),
        optim.LAMB(p, eps=1e-6),
        optim.LaProp(p, lr=4e-4),
        optim.LARS(p, trust_coefficient=1e-3, nesterov=True),
        optim.LBFGS(p, line_search_fn="strong_wolfe", history_size=5, bounds=(-1.0, None)),
        optim.Lion(p, lr=1e-4, cautious=True),
        optim.MARS(p, gamma=0.025),
        optim.Muon(matrices, lr=0.02, ns_method="auto", adjust_lr_fn="match_rms_adamw"),
        optim.NAdam(p, momentum_decay=4e-3, decoupled_weight_decay=True),
        optim.Prodigy(p, d_coef=0.5, safeguard_warmup=True),
        optim.QHAdam(p, nus=(0.7, 1.0)),
        optim.QHM(p, nu=0.7),
        optim.RAdam(p, capturable=False),
        optim.RMSprop(p, alpha=0.99, centered=True, eps_inside_sqrt=True),
        optim.Rprop(p, etas=(0.5, 1.2), step_sizes=(1e-6, 50)),
        optim.ScheduleFreeAdamW(p, warmup_steps=10),
        optim.ScheduleFreeSGD(p, r=0.0),
        optim.SGD(p, momentum=0.9, nesterov=True, classic_momentum=False),
        optim.Shampoo(p, grafting="sgd", precondition_frequency=5),
        optim.Signum(p, momentum=0.9),
        optim.SOAP(p, shampoo_beta=0.9),
        optim.SophiaG(p, rho=0.05, bs=100),
        optim.SparseAdam([nn.Embedding(3, 2, sparse=True).weight]),
        optim.StableAdamW(p),
        optim.Yogi(p, initial_accumulator=1e-6),
    ]


def options_of_all(net: nn.Sequential) -> None:
    """Guards, formats, averages, caution and decay; engines; ways to give parameters."""
    optimizer = optim.AdamW(
        net.named_parameters(),
        clip_grad_norm=1.0,
        clip_grad_norm_over="group",
        clip_grad_value=schedules.constant(5.0),
        on_nonfinite="skip",
        state_format="int8",
        state_format_min_size=16,
        param_rounding="nearest",
        rounding_seed=1,
        ema_decay=0.999,
        ema_format="bfloat16",
        cautious=True,
        peak_lr=1e-3,
        engine="fused",
    )
    optim.SGD(net.parameters(), cautious_weight_decay=True, decoupled_weight_decay=True)
    shared: SharedOptions = {"clip_grad_norm": 1.0, "on_nonfinite": "raise"}
    optim.Lion(net.parameters(), **shared)
    first, last = net[0], net[3]
    groups: list[dict[str, Any]] = [
        {"params": first.parameters()},
        {"params": last.parameters(), "lr": 0.1},
    ]
    params: ParamsT = groups
    rate: Number = 0.01
    optim.SGD(params, lr=rate).add_param_group({"params": [torch.ones(2, requires_grad=True)]})
    assert_type(optimizer.step(closure_of(net, optimizer)), Tensor)
    assert_type(optimizer.step(lambda: 1.0), float)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    assert_type(optimizer.explain(), Explanation)
    for row in optimizer.explain().rows:
        assert_type(row.engine, str)
    assert_type(optimizer.last_step.grad_norm, float | None)
    assert_type(optimizer.last_step.skipped, bool)
    with optimizer.averaged():
        net(X)
    assert_type(optimizer.param_groups, list[dict[str, Any]])


def hooks_and_states(net: nn.Sequential, folder: Path) -> None:
    optimizer = optim.SGD(net.named_parameters(), lr=0.1, momentum=0.9)

    def hook(opt: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        assert isinstance(opt, optim.Optimizer)

    handles = [
        optimizer.register_step_pre_hook(hook),
        optimizer.register_step_post_hook(hook),
        optim.register_optimizer_step_pre_hook(hook),
        optim.register_optimizer_step_post_hook(hook),
    ]
    optimizer.step(closure_of(net, optimizer))
    for handle in handles:
        handle.remove()
    state = optimizer.state_dict()
    assert_type(state, dict[str, Any])
    assert_type(optimizer.load_state_dict(state), LoadReport)
    optimizer.load_state_dict(state, strict=False, keep=["lr"], rename=str.lower)
    torchs = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    torchs.load_state_dict(state)
    optimizer.save(folder / "optimizer.safetensors")
    optimizer.load(folder / "optimizer.safetensors")
    scheduler = schedulers.StepLR(optimizer, 3)
    file = folder / "run.safetensors"
    optim.save_training(
        file, model=net, optimizer=optimizer, schedulers=[scheduler], step=3, random_state=True
    )
    run = optim.load_training(
        str(file), model=net, optimizer=optimizer, schedulers=[scheduler], keep=("lr",)
    )
    assert_type(run, Training)
    assert_type(run.step, int | None)
    try:
        optim.load_training(__file__, model=net)
    except optim.CheckpointError as error:
        assert_type(str(error), str)
    optim.set_learning_rate(optimizer, 0.01)
    optim.set_learning_rate(torchs, [torch.tensor(0.01)])
    optim.set_native_loops(False)
    optim.set_native_loops(True)


@dataclass(frozen=True)
class Halving(schedules.Shape):
    """A schedule of a user's own."""

    def _at(self, step: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return 0.5**step


def schedules_of_every_kind() -> None:
    made: list[Schedule] = [
        schedules.constant(0.1),
        schedules.linear(0.1, 0.0, steps=10),
        schedules.cosine(0.1, 0.0, steps=10),
        schedules.polynomial(0.1, 0.0, steps=10, power=2.0),
        schedules.exponential(0.1, gamma=0.9),
        schedules.step_decay(0.1, gamma=0.1, every=3),
        schedules.piecewise({0: 0.1, 5: 0.01}),
        schedules.from_points([(0, 0.0), (5, 0.1)]),
        schedules.inverse_sqrt(0.1, warmup=3),
        schedules.wsd(0.1, warmup=2, stable=5, decay=3),
        schedules.one_cycle(0.1, steps=10),
        schedules.cyclic(0.0, 0.1, up=3, down=3),
        schedules.cosine_restarts(0.1, 0.0, steps=4, cycle_mult=2),
        Halving(),
        schedules.parse("cosine(0.1, 0, steps=90).warmup(5)"),
    ]
    chain = (made[2].warmup(3).then(made[0], at=20) * 0.5).clip(0.0, 1.0).repeat(30)
    assert_type(chain, Schedule)
    assert_type(chain(3), float)
    assert_type(chain(range(3)), npt.NDArray[np.float64])
    assert_type(chain.table(5), schedules.Table)
    assert_type(chain.to_json(), dict[str, Any])
    assert_type(Schedule.from_json(chain.to_json()), Schedule)
    try:
        schedules.parse("cosine(")
    except schedules.ParseError as error:
        assert_type(str(error), str)


def torchs_schedulers(net: nn.Sequential) -> None:
    def sgd() -> optim.SGD:
        return optim.SGD(net.parameters(), lr=0.1, momentum=0.9)

    one = sgd()
    chained = [schedulers.ConstantLR(one, 0.5, 3), schedulers.ExponentialLR(one, 0.9)]
    two = sgd()
    parts = [schedulers.LinearLR(two, 0.1), schedulers.CosineAnnealingLR(two, 10)]
    made: list[schedulers.LRScheduler] = [
        schedulers.StepLR(sgd(), step_size=3, gamma=0.1),
        schedulers.MultiStepLR(sgd(), [3, 6]),
        schedulers.PolynomialLR(sgd(), total_iters=5, power=2.0),
        schedulers.LambdaLR(sgd(), lambda epoch: 0.9**epoch),
        schedulers.MultiplicativeLR(sgd(), lambda epoch: 0.9),
        schedulers.CyclicLR(sgd(), 0.01, 0.1, mode="triangular2"),
        schedulers.OneCycleLR(sgd(), max_lr=0.1, total_steps=20),
        schedulers.CosineAnnealingWarmRestarts(sgd(), 5, T_mult=2),
        schedulers.ChainedScheduler(chained),
        schedulers.SequentialLR(two, parts, milestones=[3]),
        schedulers.from_schedule(sgd(), schedules.cosine(0.1, 0.0, steps=10)),
    ]
    one.step(closure_of(net, one))
    two.step(closure_of(net, two))
    for scheduler in made:
        scheduler.optimizer.step()
        scheduler.step()
        assert_type(scheduler.get_last_lr(), list[float | Tensor])
        scheduler.load_state_dict(scheduler.state_dict())
    three = sgd()
    schedulers.ReduceLROnPlateau(three, mode="min", patience=2).step(1.0)
    schedulers.StepLR(torch.optim.SGD(net.parameters(), lr=0.1), 3)
    schedulers.scheduler_first.StepLR(sgd(), step_size=3).step()
    swa_utils.SWALR(sgd(), swa_lr=0.05, anneal_epochs=2)
    averaged = swa_utils.AveragedModel(net, use_buffers=True)
    averaged.update_parameters(net)
    swa_utils.update_bn([X], averaged)


def wrappers(net: nn.Sequential) -> None:
    sam = optim.SAM(optim.SGD(net.parameters(), lr=0.1), rho=0.05, adaptive=True)
    assert_type(sam.step(closure_of(net, sam)), Tensor)
    lookahead = optim.Lookahead(optim.AdamW(net.parameters()), k=5, alpha=0.5)
    assert_type(lookahead.step(closure_of(net, lookahead)), Tensor)
    free = optim.ScheduleFreeAdamW(net.parameters())
    free.train()
    free.step(closure_of(net, free))
    free.eval()
    lbfgs = optim.LBFGS(net.parameters(), lr=1, max_iter=2, history_dtype=torch.bfloat16)
    assert_type(lbfgs.step(closure_of(net, lbfgs)), Tensor)


def groups_of_a_model(net: nn.Sequential) -> None:
    groups = optim.param_groups(
        net,
        lr=3e-4,
        weight_decay=schedules.constant(0.1),
        no_decay=["bias", "norm"],
        layer_decay=None,
        lr_scale={"3.*": 10},
    )
    assert_type(groups, ParamGroups)
    assert_type(groups.frozen, dict[str, Tensor])
    optimizer = optim.AdamW(groups)
    optim.build_optimizer(groups, "adamw", clip_grad_norm=1.0)
    optim.build_optimizer(groups, optim.Lion, engine="foreach")
    log = optim.log_to(lambda values, step: None, optimizer, every=1)
    assert_type(log, StepLog)
    optimizer.step(closure_of(net, optimizer))
    log.remove()
    data = [(X, Y)] * 4
    tested = optim.lr_range_test(net, optimizer, nn.MSELoss(), data, steps=4)
    assert_type(tested, LRRangeTest)
    assert_type(tested.suggestion, float | None)
    hidden = [p for p in net.parameters() if p.ndim == 2]
    others = [p for p in net.parameters() if p.ndim != 2]
    both = optim.combine(optim.Muon(hidden), optim.AdamW(others), on_nonfinite="skip")
    assert isinstance(both, optim.Optimizer)
    assert_type(both.step(closure_of(net, both)), Tensor)
    in_backward = optim.step_in_backward(net, lambda p: optim.AdamW(p, lr=1e-3))
    with optim.accumulating(in_backward):
        torch.autograd.backward(loss_of(net))


@optim.rule
def soft_lion(
    param: Any, grad: Any, exp_avg: Any, *, lr: Any, beta1: Any, beta2: Any, sharpness: Any
) -> Any:
    update = ops.tanh(sharpness * (beta1 * exp_avg + (1 - beta1) * grad))
    return param - lr * update, beta2 * exp_avg + (1 - beta2) * grad


@optim.rule(
    ranges={"rho": optim.Range(0, 1)},
    source="nobody",
    exp_avg_sq=optim.Slot(signed=False),
    elementwise=True,
)
def own(param: Any, grad: Any, exp_avg_sq: Any, *, lr: Any, rho: Any, eps: Any) -> Any:
    exp_avg_sq = rho * exp_avg_sq + (1 - rho) * ops.square(grad)
    update = grad * ops.rsqrt(exp_avg_sq + eps)
    update = update / ops.maximum(1.0, ops.norm_of(update))
    return param - lr * ops.where(ops.all_finite(update), update, 0.0), exp_avg_sq


@optim.rule(elementwise=False)
def orthogonal(param: Any, grad: Any, *, lr: Any) -> Any:
    return param - lr * matrix_ops.orthogonalized(grad, (3.4445, -4.775, 2.0315), 5, 1e-7)


SoftLion = optim.make_optimizer(soft_lion, lr=1e-4, betas=(0.9, 0.99), sharpness=100.0)
Own = optim.make_optimizer(own, name="Own", lr=1e-3, rho=0.9, eps=1e-8)


@optim.rule
def with_everything(param: Any, grad: Any, exp_avg: Any, *, lr: Any) -> Any:
    bounded = ops.clip(grad, -1.0, 1.0) + ops.expm1(ops.log1p(ops.square(grad)))
    exp_avg = ops.lerp(exp_avg, bounded, 0.1)
    size = ops.sqrt(ops.sum_of(grad * grad)) + ops.max_of(grad) + ops.mean_of(grad, over="param")
    scale = ops.exp(-ops.log(1.0 + size)) * ops.minimum(1.0, ops.dot_of(exp_avg, grad))
    return param - lr * scale * ops.sign(exp_avg) * ops.floor(2 * ops.sigmoid(grad)), exp_avg


def rules_of_ones_own(net: nn.Sequential) -> None:
    optimizer = SoftLion(net.parameters(), lr=3e-4, weight_decay=0.1, decoupled_weight_decay=True)
    assert isinstance(optimizer, optim.Optimizer)
    assert_type(optimizer.step(closure_of(net, optimizer)), Tensor)
    Own(net.named_parameters(), rho=schedules.constant(0.9), clip_grad_norm=1.0)
    assert_type(optim.formula(soft_lion), str)
    assert_type(optim.formula(optim.Adam, amsgrad=True), str)
    assert_type(ops.sigmoid(0.5), Any)
    every = optim.make_optimizer(with_everything, lr=0.1)
    every(net.parameters()).step()
    for name, cls in optim.OPTIMIZERS.items():
        assert_type(name, str)
        if name == "adam":
            cls(net.parameters(), lr=1e-3)
    assert_type(optim.OPTIMIZERS["adam"](net.parameters()).engine, str)


def on_many_ranks(net: nn.Sequential) -> None:
    assert_type(optim.shard_state(optim.AdamW(net.parameters())), optim.AdamW)


class Thousandths:
    """A format of a user's own: whole thousandths, up to 32."""

    name = "thousandths"
    columns = (Column("", torch.int16),)
    is_random = False

    def read(self, columns: Sequence[Tensor], compute: torch.dtype, shape: torch.Size) -> Tensor:
        return (columns[0].to(compute) / 1000).view(shape)

    def write(self, columns: Sequence[Tensor], value: Tensor, words: Tensor | None = None) -> None:
        columns[0].copy_((value * 1000).round())


def formats_kernels_and_pictures(net: nn.Sequential) -> None:
    optim.register_state_format("thousandths", Thousandths())
    optimizer = optim.SGD(net.parameters(), momentum=0.9, state_format="thousandths")
    optimizer.step(closure_of(net, optimizer))
    warmed = optim.warm("sgd", optim.SGD, dtypes=["float32", torch.float32], momentum=0.9)
    assert_type(warmed, Warmed)
    figure = optim.plot_schedule(schedules.cosine(0.1, 0.0, steps=9), 9)
    figure.set_size_inches(4, 3)
    report = Report(tuple(examine()))
    assert_type(report.is_broken, bool)


def main() -> None:
    net = network()
    for optimizer in every_optimizer(net):
        assert optimizer.param_groups
    options_of_all(net)
    with tempfile.TemporaryDirectory() as folder:
        hooks_and_states(net, Path(folder))
    schedules_of_every_kind()
    torchs_schedulers(net)
    wrappers(net)
    groups_of_a_model(network())
    rules_of_ones_own(net)
    formats_kernels_and_pictures(net)


if __name__ == "__main__":
    main()
