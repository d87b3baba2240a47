"""`python -m steprule.cli` is the `steprule` command."""

from steprule.cli import main

raise SystemExit(main())
