"""Is this installation sound? What `steprule doctor` looks at, and what bug reports begin with.

It needs no extra: ``python -m steprule.doctor`` is the same command.
"""

from __future__ import annotations

from steprule.doctor.examination import examine as examine
from steprule.doctor.finding import Finding as Finding
from steprule.doctor.finding import Level as Level
from steprule.doctor.report import Report as Report
