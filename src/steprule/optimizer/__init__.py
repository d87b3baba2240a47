"""The optimizer base, its groups, hooks and options; the names of ``torch.optim.optimizer``."""

from steprule.optimizer.base import SHARED as SHARED
from steprule.optimizer.base import Number as Number
from steprule.optimizer.base import Optimizer as Optimizer
from steprule.optimizer.base import ParamsT as ParamsT
from steprule.optimizer.base import own_options as own_options
from steprule.optimizer.base import required as required
from steprule.optimizer.hooks import uncompiled as uncompiled
from steprule.optimizer.shared_options import SharedOptions as SharedOptions
from steprule.optimizer.shared_options import (
    SharedOptionsBesideDecay as SharedOptionsBesideDecay,
)
