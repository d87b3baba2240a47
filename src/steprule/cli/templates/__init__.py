"""Pages of reports, and the file that `steprule compare --template` prints."""

from pathlib import Path


def problem_template() -> str:
    """Return the text of a file with a `make_problem` that runs as it stands."""
    return (Path(__file__).parent / "make_problem.py").read_text(encoding="utf-8")
