"""Bad values, by what an argument takes: numbers, counts, flags, words."""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import torch


class Bad(NamedTuple):
    """A value that does not fit, and what to do."""

    text: str
    value: Any
    error: type[Exception]
    remedy: str
    #: What the message says of it, where that is not its text.
    said: str = ""

    @property
    def expected(self) -> str:
        return self.said or self.text


ONE = torch.tensor(1.0)

#: For whatever takes a number of an optimizer: a float, a tensor of one element, a schedule.
NUMBERS = (
    Bad("nan", math.nan, ValueError, "Find where the nan comes from, and pass a finite number."),
    Bad("'0.1'", "0.1", TypeError, "Convert text from a file or command line with float()."),
    Bad("True", True, TypeError, "Pass a number: a bool here is most often a misplaced argument."),
    Bad("1j", 1j, TypeError, "Pass a real number."),
    Bad("[0.5]", [0.5], TypeError, "Pass the number itself, not a list of it."),
    Bad(
        "torch.ones(2)",
        torch.ones(2),
        ValueError,
        "Pass one number, or a Tensor of one element; parameter groups may have one each.",
        "(2,)",
    ),
    Bad(
        "torch.tensor(1j)",
        torch.tensor(1j),
        TypeError,
        "Pass a real Tensor: x.real, or x.abs().",
        "tensor(0.+1.j)",
    ),
    Bad(
        "torch.tensor(True)",
        torch.tensor(True),
        TypeError,
        "Pass a Tensor of numbers.",
        "tensor(True)",
    ),
    Bad(
        "torch.tensor(1.0, device='meta')",
        ONE.to("meta"),
        ValueError,
        "Make the Tensor on a device that holds numbers, or pass a number.",
        "on meta",
    ),
)
#: For what a scheduler or schedule takes for a number.
PLAIN_NUMBERS = (
    *(bad for bad in NUMBERS if bad.text in ("nan", "'0.1'", "True", "1j")),
    Bad("[]", [], TypeError, "Pass one number."),
)
#: For numbers of steps or epochs.
COUNTS = (
    *(bad for bad in PLAIN_NUMBERS if bad.text != "1j"),
    Bad("2.5", 2.5, ValueError, "Pass a whole number of steps or epochs: round it first."),
)
#: For what is on or off.
FLAGS = (
    Bad("'False'", "False", TypeError, "Text is never off: pass False itself."),
    Bad("2", 2, TypeError, "Pass True or False (0 and 1 will do)."),
    Bad("nan", math.nan, TypeError, "Pass True or False."),
    Bad("[]", [], TypeError, "Pass True or False."),
)
#: For one of several words.
WORDS = (
    Bad("'sideways'", "sideways", ValueError, "Pass one of the words that the message lists."),
    Bad("3", 3, ValueError, "Pass one of the words that the message lists."),
    Bad("nan", math.nan, ValueError, "Pass one of the words that the message lists."),
)


@functools.cache
def named(kind: tuple[Bad, ...], text: str) -> Bad:
    """One of a kind's values by its text."""
    return next(bad for bad in kind if bad.text == text)
