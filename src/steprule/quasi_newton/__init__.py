"""Quasi-Newton methods: LBFGS."""

from steprule.quasi_newton.lbfgs import LBFGS
from steprule.quasi_newton.result import Result

__all__ = ["LBFGS", "Result"]
