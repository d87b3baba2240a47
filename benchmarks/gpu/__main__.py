"""Check and time steprule on a card: what `script/gpu` runs.

Writes one JSON file and prints tables; ends with 1 if a check fails. Needs torch 2.11 or later,
triton, llvmlite and numpy; nothing is installed, and steprule is taken from the source tree.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import sys
import time
import traceback
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "src"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda", help="cuda, or cpu: Triton's interpreter")
    parser.add_argument("--out", default=os.environ.get("OUT", "."), help="folder of gpu.json")
    parser.add_argument(
        "--only", default="", help="checks whose names contain one of these, joined by commas"
    )
    parser.add_argument("--no-timings", action="store_true", help="checks alone")
    parser.add_argument("--seconds", type=float, default=420, help="when no more is begun")
    chosen = parser.parse_args()
    if chosen.device == "cpu":
        import triton  # noqa: F401  # it must not know while it is imported

        os.environ["TRITON_INTERPRET"] = "1"
    import torch

    if chosen.device == "cuda" and not torch.cuda.is_available():
        print("gpu: torch sees no card (--device cpu runs the checks by Triton's interpreter)")
        return 2
    device = torch.device("cuda", 0) if chosen.device == "cuda" else torch.device("cpu")
    report: dict[str, Any] = {"ran_on": ran_on(device)}
    print(json.dumps(report["ran_on"], indent=2), flush=True)
    began = time.perf_counter()
    report["checks"] = run_checks(device, chosen.only, began + chosen.seconds * 0.55)
    if device.type == "cuda" and not chosen.no_timings:
        report["timings"] = run_timings(device, began + chosen.seconds)
    report["seconds"] = time.perf_counter() - began
    path = Path(chosen.out) / "gpu.json"
    path.write_text(json.dumps(report, indent=1)[: 1 << 20])
    from tables import tables_of

    print("\n" + tables_of(report))
    failed = [row["name"] for row in report["checks"] if row["outcome"] == "failed"]
    failed += errors_in(report.get("timings"))
    print(f"\n{path}: {len(report['checks'])} checks, failed: {', '.join(failed) or 'none'}")
    return bool(failed)


def errors_in(found: Any, where: str = "timings") -> list[str]:
    """Return where a report says that something went wrong."""
    if not isinstance(found, dict):
        return []
    own = [f"{where}: {found['error']}"] if "error" in found else []
    return own + [error for name, row in found.items() for error in errors_in(row, str(name))]


def ran_on(device: Any) -> dict[str, str]:
    """Return what machine and versions this is."""
    import torch

    card = "none: Triton's interpreter"
    if device.type == "cuda":
        at = torch.cuda.get_device_properties(device)
        card = f"{at.name}, {at.total_memory >> 30} GiB, {at.multi_processor_count} SMs"
    found = {"card": card, "date": datetime.date.today().isoformat()}
    from steprule.engines.gpu.programs.version import triton_version

    found["triton"] = triton_version()
    for package in ("torch", "llvmlite", "numpy"):
        found[package] = version(package)
    found["cuda"] = str(torch.version.cuda)
    found["python"], found["machine"] = platform.python_version(), platform.machine()
    return found


def run_checks(device: Any, only: str, until: float) -> list[dict[str, Any]]:
    """Run every check, whatever became of those before it."""
    from checks import CHECKS

    rows = []
    for name, function in CHECKS.items():
        if not any(word in name for word in only.split(",")):
            continue
        row: dict[str, Any] = {"name": name, "outcome": "passed"}
        needs_card = getattr(function, "needs_card", False)
        began = time.perf_counter()
        if needs_card and device.type != "cuda":
            row["outcome"] = "needs a card"
        elif time.perf_counter() > until:
            row["outcome"] = "failed"
            row["error"] = "the time was up"
        else:
            try:
                function(device)
            except Exception as error:  # noqa: BLE001
                row["outcome"] = "failed"
                row["error"] = f"{type(error).__name__}: {error}"[:2000]
                row["trace"] = traceback.format_exc()[-3000:]
        row["seconds"] = round(time.perf_counter() - began, 2)
        print(f"{row['outcome']:13} {name} ({row['seconds']} s)", flush=True)
        if "error" in row:
            print(row["error"], flush=True)
        rows.append(row)
    return rows


def run_timings(device: Any, until: float) -> dict[str, Any]:
    """Take all timings, as long as there is time."""
    import timings

    found: dict[str, Any] = {}
    sections = {
        "copy_bytes_per_s": lambda: timings.copy_bandwidth(device),
        "launch_us": lambda: timings.launches(device),
        "sets": lambda: timings.side_by_side(device, until - time.perf_counter() - 60),
        "formats": lambda: timings.formats(device),
        "others": lambda: timings.others(device),
        "first_step": timings.first_steps,
    }
    for name, take in sections.items():
        if time.perf_counter() > until:
            found[name] = {"left out": "the time was up"}
            continue
        began = time.perf_counter()
        try:
            found[name] = take()
        except Exception as error:  # noqa: BLE001
            found[name] = {"error": f"{type(error).__name__}: {error}"[:500]}
        print(f"timed {name} ({time.perf_counter() - began:.1f} s)", flush=True)
    return found


if __name__ == "__main__":
    sys.exit(main())
