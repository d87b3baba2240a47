"""The registry: one line for each optimizer. Tests, benchmarks, docs and the CLI read it."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from steprule.optimizer import Optimizer
from steprule.optimizer.any_optimizer import AnyOptimizer
from steprule.quasi_newton import LBFGS as LBFGS
from steprule.rules.adabelief import AdaBelief as AdaBelief
from steprule.rules.adadelta import Adadelta as Adadelta
from steprule.rules.adafactor import Adafactor as Adafactor
from steprule.rules.adagrad import Adagrad as Adagrad
from steprule.rules.adam import Adam as Adam
from steprule.rules.adam import AdamW as AdamW
from steprule.rules.adamax import Adamax as Adamax
from steprule.rules.adan import Adan as Adan
from steprule.rules.ademamix import AdEMAMix as AdEMAMix
from steprule.rules.adopt import ADOPT as ADOPT
from steprule.rules.asgd import ASGD as ASGD
from steprule.rules.grokadamw import GrokAdamW as GrokAdamW
from steprule.rules.lamb import LAMB as LAMB
from steprule.rules.laprop import LaProp as LaProp
from steprule.rules.lars import LARS as LARS
from steprule.rules.lion import Lion as Lion
from steprule.rules.mars import MARS as MARS
from steprule.rules.muon import Muon as Muon
from steprule.rules.nadam import NAdam as NAdam
from steprule.rules.prodigy import Prodigy as Prodigy
from steprule.rules.qhadam import QHAdam as QHAdam
from steprule.rules.qhm import QHM as QHM
from steprule.rules.radam import RAdam as RAdam
from steprule.rules.rmsprop import RMSprop as RMSprop
from steprule.rules.rprop import Rprop as Rprop
from steprule.rules.schedule_free import ScheduleFreeAdamW as ScheduleFreeAdamW
from steprule.rules.schedule_free import ScheduleFreeSGD as ScheduleFreeSGD
from steprule.rules.sgd import SGD as SGD
from steprule.rules.shampoo import Shampoo as Shampoo
from steprule.rules.signum import Signum as Signum
from steprule.rules.soap import SOAP as SOAP
from steprule.rules.sophiag import SophiaG as SophiaG
from steprule.rules.sparse_adam import SparseAdam as SparseAdam
from steprule.rules.stable_adamw import StableAdamW as StableAdamW
from steprule.rules.yogi import Yogi as Yogi

OPTIMIZERS: dict[str, type[AnyOptimizer]] = {
    name.lower(): cast("type[AnyOptimizer]", value)
    for name, value in sorted(globals().items(), key=lambda item: item[0].lower())
    if isinstance(value, type) and issubclass(value, Optimizer) and value is not Optimizer
}
if not TYPE_CHECKING:  # which cannot follow it, and takes what is imported under its own name
    __all__ = ["OPTIMIZERS", *(optimizer.__name__ for optimizer in OPTIMIZERS.values())]
