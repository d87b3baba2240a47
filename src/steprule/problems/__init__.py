"""Problems to train on: a model, its loss and its data, as the command line takes them.

::

    def make_problem(seed):
        torch.manual_seed(seed)
        return Problem(model=..., loss=lambda model, batch: ..., data=DataLoader(...))

`load_problem("my_module:make_problem")` calls such a function of the user's.
"""

from steprule.problems.loading import Maker as Maker
from steprule.problems.loading import load_problem as load_problem
from steprule.problems.loading import maker_of as maker_of
from steprule.problems.problem import Problem as Problem
from steprule.problems.problem import ProblemError as ProblemError

__all__ = ["Maker", "Problem", "ProblemError", "load_problem", "maker_of"]
