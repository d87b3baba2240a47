"""What a case is: a bad call, what is raised, and what to do instead."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


def nothing() -> None:
    """Make no subject: for calls that act on nothing that there is already."""


@dataclass(frozen=True)
class Case:
    """A bad call.

    Attributes:
        about: the section of docs/errors.md that it stands in.
        where: the public name, as users write it.
        argument: the argument that is bad.
        given: the bad value, as text.
        call: makes the call; it is handed the subject.
        error: the class of the exception, exactly.
        remedy: what to do, in a sentence.
        says: what the message must contain; by default the argument and the value.
        subject: makes what the call acts on (an optimizer, parameters), which must not change.
        is_shown: whether the page has it. Of cases derived alike for many classes, one has.
    """

    about: str
    where: str
    argument: str
    given: str
    call: Callable[[Any], object]
    error: type[Exception]
    remedy: str
    says: tuple[str, ...] = ()
    subject: Callable[[], Any] = nothing
    is_shown: bool = True

    def __str__(self) -> str:
        return f"{self.where}-{self.argument}-{self.given}"

    @property
    def expected(self) -> tuple[str, ...]:
        """What the message must contain."""
        return self.says or (self.argument, self.given)

    def raised(self) -> Exception:
        """The exception that the call raises.

        Raises:
            AssertionError: it raises none.
        """
        subject = self.subject()
        try:
            self.call(subject)
        except Exception as error:  # noqa: BLE001  # of which class it is, is what is asked
            return error
        raise AssertionError(f"{self} was taken in silence")
