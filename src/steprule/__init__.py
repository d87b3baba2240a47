"""steprule: torch.optim's interface, each update rule written once, run by many engines.

``import steprule as optim`` and a PyTorch training script runs unchanged.
"""

import sys as _sys
from typing import TYPE_CHECKING

from torch import optim as _torchs
from torch.optim.optimizer import (
    register_optimizer_step_post_hook as register_optimizer_step_post_hook,
)
from torch.optim.optimizer import (
    register_optimizer_step_pre_hook as register_optimizer_step_pre_hook,
)

from steprule import drop_in as _drop_in
from steprule import lr_scheduler as lr_scheduler
from steprule import ops as ops
from steprule import optimizer as optimizer
from steprule import schedules as schedules
from steprule import swa_utils as swa_utils
from steprule.checkpoints.errors import CheckpointError as CheckpointError
from steprule.engines.native.switch import set_native_loops as set_native_loops
from steprule.formats.choices import register_state_format as register_state_format
from steprule.formulas import formula as formula
from steprule.language.rule import Range as Range
from steprule.language.rule import Slot as Slot
from steprule.language.rule import rule as rule
from steprule.model_groups import build_optimizer as build_optimizer
from steprule.model_groups import param_groups as param_groups
from steprule.optimizer import Optimizer as Optimizer
from steprule.optimizer.backward_steps import accumulating as accumulating
from steprule.optimizer.backward_steps import step_in_backward as step_in_backward
from steprule.optimizer.combined import combine as combine
from steprule.optimizer.custom import make_optimizer as make_optimizer
from steprule.optimizer.learning_rate import set_learning_rate as set_learning_rate
from steprule.optimizer.state_sharding import shard_state as shard_state
from steprule.plotting import plot_schedule as plot_schedule
from steprule.range_test import lr_range_test as lr_range_test
from steprule.rules import *  # noqa: F403  # every optimizer in the registry
from steprule.rules import OPTIMIZERS as OPTIMIZERS
from steprule.step_log import log_to as log_to
from steprule.training.runs import load_training as load_training
from steprule.training.runs import save_training as save_training
from steprule.warming import warm as warm
from steprule.wrappers import SAM as SAM
from steprule.wrappers import Lookahead as Lookahead

__version__ = "0.1.0"
if not TYPE_CHECKING:  # which cannot follow it, and takes what is imported under its own name
    __all__ = [
        "OPTIMIZERS",
        "SAM",
        "CheckpointError",
        "Lookahead",
        "Optimizer",
        "Range",
        "Slot",
        "accumulating",
        "build_optimizer",
        "combine",
        "formula",
        "load_training",
        "log_to",
        "lr_range_test",
        "lr_scheduler",
        "make_optimizer",
        "ops",
        "optimizer",
        "param_groups",
        "plot_schedule",
        "register_optimizer_step_post_hook",
        "register_optimizer_step_pre_hook",
        "register_state_format",
        "rule",
        "save_training",
        "schedules",
        "set_learning_rate",
        "set_native_loops",
        "shard_state",
        "step_in_backward",
        "swa_utils",
        "warm",
        *(_optimizer.__name__ for _optimizer in OPTIMIZERS.values()),
    ]

    def __dir__() -> list[str]:
        return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})


_drop_in.pass_for_torchs(OPTIMIZERS.values(), _torchs)
_drop_in.add_torchs_paths(_sys.modules[__name__], OPTIMIZERS)
