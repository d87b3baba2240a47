"""The registry: one line for each optimizer. Tests, benchmarks, docs and the CLI read it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from steprule.optimizer import Optimizer
from steprule.quasi_newton import LBFGS as LBFGS
from steprule.rules.adadelta import Adadelta as Adadelta
from steprule.rules.adafactor import Adafactor as Adafactor
from steprule.rules.adagrad import Adagrad as Adagrad
from steprule.rules.adam import Adam as Adam
from steprule.rules.adam import AdamW as AdamW
from steprule.rules.adamax import Adamax as Adamax
from steprule.rules.asgd import ASGD as ASGD
from steprule.rules.lamb import LAMB as LAMB
from steprule.rules.lars import LARS as LARS
from steprule.rules.muon import Muon as Muon
from steprule.rules.nadam import NAdam as NAdam
from steprule.rules.prodigy import Prodigy as Prodigy
from steprule.rules.radam import RAdam as RAdam
from steprule.rules.rmsprop import RMSprop as RMSprop
from steprule.rules.rprop import Rprop as Rprop
from steprule.rules.schedule_free import ScheduleFreeAdamW as ScheduleFreeAdamW
from steprule.rules.schedule_free import ScheduleFreeSGD as ScheduleFreeSGD
from steprule.rules.sgd import SGD as SGD
from steprule.rules.sparse_adam import SparseAdam as SparseAdam
from steprule.rules.stable_adamw import StableAdamW as StableAdamW

OPTIMIZERS: dict[str, type[Optimizer]] = {
    name.lower(): value
    for name, value in sorted(globals().items())
    if isinstance(value, type) and issubclass(value, Optimizer) and value is not Optimizer
}
if not TYPE_CHECKING:  # which cannot follow it, and takes what is imported under its own name
    __all__ = ["OPTIMIZERS", *(optimizer.__name__ for optimizer in OPTIMIZERS.values())]
