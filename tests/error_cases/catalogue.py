"""All cases, module by module in the order of the page."""

from __future__ import annotations

from error_cases import (
    checkpoints,
    functions,
    helpers,
    lbfgs,
    optimizers,
    parameters,
    rules,
    scheduler_methods,
    schedulers,
    schedules,
    state_dicts,
    steps,
    tools,
    wrappers,
)
from error_cases.case import Case

MODULES = (
    parameters,
    optimizers,
    lbfgs,
    wrappers,
    steps,
    state_dicts,
    checkpoints,
    functions,
    helpers,
    tools,
    rules,
    schedulers,
    scheduler_methods,
    schedules,
)
CASES: list[Case] = [case for module in MODULES for case in module.cases()]
