"""What people's code finds by name: classes by isinstance, helpers by import, words by match."""

from __future__ import annotations

import copy
import functools
import inspect
import re
import sys
import types
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.optim.lr_scheduler as torch_schedulers
import torch.optim.swa_utils as torch_swa
from lr_scheduler_cases import CASES, COMPOSITES, OPTIMIZERS, OURS, TORCH, make_optimizer, run

import steprule.lr_scheduler
import steprule.swa_utils
from steprule.lr_scheduler import scheduler_first

BUILD: dict[str, Callable[..., Any]] = {
    "ChainedScheduler": COMPOSITES["chained"],
    "SequentialLR": COMPOSITES["sequential"],
    "ReduceLROnPlateau": lambda m, o: m.ReduceLROnPlateau(o, patience=0),
    **{name: build for name, build in CASES.items() if "-" not in name},
}


# ---- classes ---------------------------------------------------------------------------------
def torchs_class(name: str) -> Any:
    return getattr(torch_swa if name == "SWALR" else torch_schedulers, name)


def test_every_class_of_torchs_is_here() -> None:
    assert {*torch_schedulers.__all__} - {"LRScheduler"} == BUILD.keys() - {"SWALR"}
    assert {*torch_schedulers.__all__} <= {*steprule.lr_scheduler.__all__}


@pytest.mark.parametrize("name", BUILD)
def test_a_scheduler_is_an_instance_of_torchs_class_of_the_same_name(name: str) -> None:
    scheduler = BUILD[name](OURS, make_optimizer())
    assert isinstance(scheduler, torchs_class(name))
    assert isinstance(scheduler, torch_schedulers._LRScheduler)
    assert isinstance(scheduler, OURS._LRScheduler)
    others = {*BUILD} - {name}
    assert not [other for other in others if isinstance(scheduler, torchs_class(other))]


@pytest.mark.parametrize("name", scheduler_first.__all__)
def test_so_are_those_for_the_old_order(name: str) -> None:
    assert issubclass(getattr(scheduler_first, name), torchs_class(name))


@pytest.mark.parametrize("name", BUILD)
def test_no_method_of_torchs_class_is_reached(name: str) -> None:
    """Whatever torch's class defines, ours defines before it, but for static formulas."""
    ours = type(BUILD[name](OURS, make_optimizer()))
    for base in torchs_class(name).__mro__[:-1]:
        for attribute, value in vars(base).items():
            if not inspect.isfunction(value) and not isinstance(value, property):
                continue
            found = next(cls for cls in ours.__mro__ if attribute in vars(cls))
            formula = attribute == "_anneal_func"  # asks for the name of the strategy alone
            assert found.__module__.startswith("steprule") or formula, attribute


def live(module: Any, name: str, kind: str) -> None:
    """What a scheduler may go through."""
    optimizer = make_optimizer(kind)
    scheduler = BUILD[name](module, optimizer)
    arguments = (1.0,) if name == "ReduceLROnPlateau" else ()
    for _ in range(3):
        optimizer.step()
        scheduler.step(*arguments)
    composite = name in ("SequentialLR", "ChainedScheduler")
    if not composite:
        scheduler.step(*arguments, 4)
    state = scheduler.state_dict()
    again = BUILD[name](module, make_optimizer(kind))
    again.load_state_dict(state)
    again.get_last_lr()
    again.get_lr()
    repr(again)
    copy.deepcopy(again)
    optimizer.add_param_group({"params": [torch.zeros(1, requires_grad=True)], "lr": 0.3})
    scheduler.step(*arguments)


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("name", BUILD)
@pytest.mark.filterwarnings("ignore:The epoch parameter:UserWarning")
def test_no_code_of_torchs_schedulers_runs(name: str, kind: str) -> None:
    files = {torch_schedulers.__file__, torch_swa.__file__}
    seen = []

    def watch(frame: types.FrameType, event: str, _: Any) -> None:
        if event == "call" and frame.f_code.co_filename in files:
            seen.append(frame.f_code.co_name)

    before = sys.getprofile()
    sys.setprofile(watch)
    try:
        live(OURS, name, kind)
    finally:
        sys.setprofile(before)
    assert seen == []


@pytest.mark.skipif(not hasattr(TORCH.SequentialLR, "recursive_undo"), reason="newer torch")
@pytest.mark.parametrize("name", ["SequentialLR", "depth 2"])
def test_recursive_undo_does_what_torchs_does(name: str) -> None:
    epochs = []
    for module in (OURS, TORCH):
        optimizer = make_optimizer()
        leaves = [module.LinearLR(optimizer), module.ExponentialLR(optimizer, 0.9)]
        inner = module.ChainedScheduler(leaves[1:])
        members = leaves if name == "SequentialLR" else [leaves[0], inner]
        sequence = module.SequentialLR(optimizer, members, [4])
        before = [leaf.last_epoch for leaf in leaves]
        sequence.recursive_undo()
        epochs.append([leaf.last_epoch - old for leaf, old in zip(leaves, before, strict=True)])
    assert epochs[0] == epochs[1] == [-1, -1]


# ---- imports ---------------------------------------------------------------------------------
PEOPLE_IMPORT = {
    "lr_scheduler": (
        "_LRScheduler",
        "_check_verbose_deprecated_warning",
        "_enable_get_lr_call",
        "_format_param",
        "_initial_mode",
        "_param_groups_val_list",
        "_update_param_group_val",
        "_warn_get_lr_called_within_step",
        "EPOCH_DEPRECATION_WARNING",
        "LRScheduler",
    ),
    "swa_utils": (
        "AveragedModel",
        "LRScheduler",
        "PARAM_LIST",
        "_format_param",
        "get_ema_multi_avg_fn",
    ),
}


@pytest.mark.parametrize(
    ("module", "name"),
    [(module, name) for module, names in PEOPLE_IMPORT.items() for name in names],
)
def test_names_that_people_import_are_here(module: str, name: str) -> None:
    theirs = {"lr_scheduler": torch_schedulers, "swa_utils": torch_swa}[module]
    if hasattr(theirs, name) or name == "_initial_mode":
        assert hasattr(getattr(steprule, module), name)
        exec(f"from steprule.{module} import {name}")


def test_every_name_that_torch_wrote_is_here() -> None:
    """All that torch's modules define, and not only use."""
    for theirs, ours in (
        (torch_schedulers, steprule.lr_scheduler),
        (torch_swa, steprule.swa_utils),
    ):
        for name, value in vars(theirs).items():
            if getattr(value, "__module__", None) == theirs.__name__:
                assert hasattr(ours, name), name


def test_a_name_that_nobody_has_is_missing() -> None:
    for module in (steprule.lr_scheduler, steprule.swa_utils):
        with pytest.raises(AttributeError, match="has no attribute 'NoSuchLR'"):
            module.NoSuchLR  # noqa: B018


def test_the_base_in_swa_utils_is_ours() -> None:
    assert steprule.swa_utils.LRScheduler is OURS.LRScheduler
    assert isinstance(steprule.swa_utils.AveragedModel(torch.nn.Linear(1, 1)), torch.nn.Module)
    assert steprule.swa_utils.AveragedModel is torch_swa.AveragedModel


@pytest.mark.parametrize("name", CASES)
def test_a_step_of_ones_own_uses_torchs_helpers(name: str) -> None:
    """The body of torch's `_update_lr`, as people copy it into a subclass."""
    sides = []
    for module in (OURS, TORCH):
        optimizer = make_optimizer()
        cls = type(CASES[name](module, make_optimizer()))

        class Own(cls):  # type: ignore[misc, valid-type]
            def step(self, epoch: Any = None, module: Any = module) -> None:
                self._step_count += 1
                with module._enable_get_lr_call(self):
                    self.last_epoch += 1
                    if hasattr(self, "T_cur"):
                        self.T_cur = self.last_epoch
                    values = self.get_lr()
                for group, lr in zip(self.optimizer.param_groups, values, strict=True):
                    group["lr"] = lr
                self._last_lr = [group["lr"] for group in self.optimizer.param_groups]

        if name.startswith("SWALR"):  # which lives in another module
            built = Own(optimizer, 0.5, anneal_epochs=0 if "once" in name else 10)
        else:
            built = CASES[name](_Swapped(module, cls, Own), optimizer)
            assert isinstance(built, Own)
        sides.append(run(optimizer, built, 20))
    for mine, expected in zip(*sides, strict=True):
        assert mine == pytest.approx(expected, rel=1e-11)


class _Swapped:
    """A module in which one class is replaced by another."""

    def __init__(self, module: Any, cls: Any, other: Any) -> None:
        self.module, self.cls, self.other = module, cls, other

    def __getattr__(self, name: str) -> Any:
        return self.other if name == self.cls.__name__ else getattr(self.module, name)


def test_get_lr_of_ones_own_warns_a_user_with_torchs_helper() -> None:
    for module in (OURS, TORCH):

        class Own(module.LRScheduler):  # type: ignore[misc, name-defined]
            def get_lr(self, module: Any = module) -> Any:
                module._warn_get_lr_called_within_step(self)
                return [group["lr"] for group in self.optimizer.param_groups]

        scheduler = Own(make_optimizer())
        with pytest.warns(UserWarning, match=r"please use `get_last_lr\(\)`"):
            scheduler.get_lr()


def test_the_initial_mode_is_torchs() -> None:
    scheduler = OURS.StepLR(make_optimizer(), 1)
    with OURS._initial_mode(scheduler):
        assert scheduler._is_initial
    assert not scheduler._is_initial


# ---- words -----------------------------------------------------------------------------------
def said(action: Callable[[], Any]) -> str:
    """The one thing an action warns of or fails with."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            action()
        except Exception as error:  # noqa: BLE001
            return str(error.args[0])
    assert all(warning.category is UserWarning for warning in caught)
    return "".join(str(warning.message) for warning in caught)


def first_sentences(text: str) -> str:
    return text.split("\n")[0].rstrip(". ")


def wrong_order(module: Any) -> Any:
    scheduler = module.StepLR(make_optimizer(), 1)
    return lambda: scheduler.step()


def overridden(module: Any) -> Any:
    optimizer = make_optimizer()
    scheduler = module.StepLR(optimizer, 1)
    optimizer.step = lambda closure=None: None
    return lambda: scheduler.step()


def to_an_epoch(module: Any) -> Any:
    optimizer = make_optimizer()
    scheduler = module.StepLR(optimizer, 1)
    optimizer.step()
    return lambda: scheduler.step(3)


def plateau_at_an_epoch(module: Any) -> Any:
    scheduler = module.ReduceLROnPlateau(make_optimizer())
    return lambda: scheduler.step(1.0, 3)


WORDS: dict[str, Callable[[Any], Callable[[], Any]]] = {
    "wrong order": wrong_order,
    "overridden": overridden,
    "step(epoch)": to_an_epoch,
    "plateau.step(metric, epoch)": plateau_at_an_epoch,
    "no function": lambda m: lambda: m.MultiplicativeLR(make_optimizer(), [abs, abs, 3]),
    "too few functions": lambda m: lambda: m.MultiplicativeLR(make_optimizer(), [abs]),
    "too few functions for LambdaLR": lambda m: lambda: m.LambdaLR(make_optimizer(), [abs]),
}


@pytest.mark.parametrize("case", WORDS)
def test_torchs_own_words_come_first(case: str) -> None:
    ours, theirs = said(WORDS[case](OURS)), said(WORDS[case](TORCH))
    if not theirs:
        pytest.skip("this torch says nothing")
    assert ours.startswith(first_sentences(theirs))


def test_a_missing_initial_lr_is_said_in_torchs_words() -> None:
    both = [said(lambda m=m: m.StepLR(make_optimizer(), 3, last_epoch=2)) for m in (OURS, TORCH)]
    assert both[0].startswith("param 'initial_lr' is not specified in param_groups[0] when resum")
    assert both[1].startswith("param 'initial_lr' is not specified in param_groups[0] when resum")
    assert both[0].startswith(first_sentences(both[1])) or "last_epoch" not in both[1]


def test_the_epoch_warning_is_the_constant_to_the_letter() -> None:
    assert said(to_an_epoch(OURS)) == OURS.EPOCH_DEPRECATION_WARNING
    assert OURS.EPOCH_DEPRECATION_WARNING == torch_schedulers.EPOCH_DEPRECATION_WARNING


def test_the_wrong_order_names_torchs_page_and_our_way_out() -> None:
    text = said(wrong_order(OURS))
    assert "https://pytorch.org/docs/stable/optim.html#how-to-adjust-learning-rate" in text
    assert "steprule.lr_scheduler.scheduler_first" in text


# ---- a step put in place of the optimizer's ---------------------------------------------------
def plain(optimizer: Any) -> Any:
    original = optimizer.step
    return lambda *args, **kwargs: original(*args, **kwargs)


def as_a_method(optimizer: Any) -> Any:
    original = optimizer.step
    return types.MethodType(lambda self, *args: original(*args), optimizer)


def with_wraps(optimizer: Any) -> Any:
    original = optimizer.step

    @functools.wraps(original)
    def step(*args: Any, **kwargs: Any) -> Any:
        return original(*args, **kwargs)

    return step


def put_back(optimizer: Any) -> Any:
    return optimizer.step


def on_its_own(optimizer: Any) -> Any:
    """Does not go through the optimizer's step, nor so through its hooks."""

    def step(closure: Any = None) -> None:
        with torch.no_grad():
            for group in optimizer.param_groups:
                for param in group["params"]:
                    param.sub_(group["lr"])

    return types.MethodType(lambda self: step(), optimizer)


STEPS = [plain, as_a_method, with_wraps, put_back, on_its_own]


def warned(module: Any, kind: str, replace: Any, *, before: bool, first: str) -> list[str]:
    optimizer = make_optimizer(kind)
    if before:
        optimizer.step = replace(optimizer)
    scheduler = module.StepLR(optimizer, 1)
    if not before:
        optimizer.step = replace(optimizer)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(3):
            for action in (
                (scheduler, optimizer) if first == "scheduler" else (optimizer, scheduler)
            ):
                action.step()
    return [first_sentences(str(warning.message))[:60] for warning in caught]


@pytest.mark.parametrize("first", ["scheduler", "optimizer"])
@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("replace", STEPS)
def test_a_step_replaced_afterwards_is_said_as_by_torch(
    replace: Any, kind: str, first: str
) -> None:
    ours = warned(OURS, kind, replace, before=False, first=first)
    theirs = warned(TORCH, kind.replace("steprule", "torch"), replace, before=False, first=first)
    assert ours == theirs


@pytest.mark.parametrize("first", ["scheduler", "optimizer"])
@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("replace", STEPS)
def test_a_step_replaced_before_is_watched_for_the_order(
    replace: Any, kind: str, first: str
) -> None:
    ours = warned(OURS, kind, replace, before=True, first=first)
    wrong = "Detected call of `lr_scheduler.step()` before `optimizer.step()`"
    assert ours == ([wrong[:60]] if first == "scheduler" else [])
    if replace in (as_a_method, put_back, on_its_own):  # torch fails on the others
        theirs = warned(TORCH, kind.replace("steprule", "torch"), replace, before=True, first=first)
        assert ours == theirs


def test_a_step_replaced_by_torchs_scheduler_counts_as_the_optimizers() -> None:
    for build in ((OURS, TORCH), (TORCH, OURS)):
        optimizer = make_optimizer()
        schedulers = [module.StepLR(optimizer, 1) for module in build]
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            optimizer.step()
            for scheduler in schedulers:
                scheduler.step()


def test_torchs_sentence_can_be_filtered_by() -> None:
    for text in (OURS.calls.WRONG_ORDER, OURS.calls.OVERRIDDEN):
        assert re.match(re.escape(text[:60]), text)
