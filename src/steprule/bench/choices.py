"""Names chosen on the command line, checked against those there are."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from steprule.cli.errors import CommandError
from steprule.optimizer.options import suggestion


def chosen(
    what: str, texts: Sequence[str], known: Collection[str], *, words: Sequence[str] = ("all",)
) -> list[str]:
    """Return the names in `texts`, each of which may hold several joined by commas.

    Args:
        what: how an error begins: the option, or the kind of name.
        texts: as typed.
        known: the valid names, in the order that `all` takes them in.
        words: `all` and `none`, where they are allowed; they stand alone.

    Raises:
        CommandError: for a name that is not known, or that is named twice.
    """
    names = [name.strip().lower() for text in texts for name in text.split(",")]
    if names == ["all"] and "all" in words:
        return list(known)
    if names == ["none"] and "none" in words:
        return []
    for name in names:
        if name not in known:
            meant = suggestion(name, known)
            raise CommandError(
                f"{what}: unknown {name!r}{meant}; valid: {', '.join([*known, *words])}"
            )
        if names.count(name) > 1:
            raise CommandError(f"{what}: {name!r} is named more than once")
    return names
