"""What a page is called and described by where it is not seen: in tabs, by search engines."""

from __future__ import annotations

from html import escape

from docs_build.generated import description_of, title_of

# Of pages that begin with how they are made.
_DESCRIPTIONS = {
    "errors.md": "Every error message of steprule, with the call that raises it and what to do.",
    "compatibility.md": "Versions of torch and Python that steprule is tested with, and PyTorch's "
    "own tests with its optimizers in the place of torch's.",
}
_TITLES = {
    "optimizers.md": "All optimizers side by side",
    "errors.md": "Error messages",
    "lbfgs.md": "LBFGS and line searches",  # there is the optimizer's own page, too
}


def title(path: str, markdown: str, given: str | None) -> str:
    """Return a page's title, ready to stand in HTML.

    Args:
        path: the page's, in the site's source.
        markdown: its content.
        given: what its own head says.
    """
    return escape(given or _TITLES.get(path) or title_of(markdown))


def description(path: str, markdown: str, given: str | None) -> str:
    """Return a page's description, ready to stand in an attribute of HTML."""
    return escape(given or _DESCRIPTIONS.get(path) or description_of(markdown))
