"""`python -m steprule`: the command line, where its script is not on the path."""

from __future__ import annotations

from steprule_command import main

if __name__ == "__main__":
    raise SystemExit(main())
