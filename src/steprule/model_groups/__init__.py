"""Parameter groups of a model, by the names of its parameters; optimizers built of them."""

from steprule.model_groups.building import build_optimizer as build_optimizer
from steprule.model_groups.grouping import param_groups as param_groups
from steprule.model_groups.listing import ParamGroups as ParamGroups
