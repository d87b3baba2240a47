"""Optimizers round optimizers: they move the parameters before or after another one's step."""

from steprule.wrappers.lookahead import Lookahead as Lookahead
from steprule.wrappers.sam import SAM as SAM
