"""`python -m steprule.doctor` is `steprule doctor`."""

from steprule.doctor.command import main

raise SystemExit(main())
