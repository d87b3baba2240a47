"""A process that times its import of an optimizer's module, a construction and a first step."""

from __future__ import annotations

import importlib
import itertools
import json
import sys
import time

import torch


def main() -> None:
    """Print seconds by part."""
    request = json.loads(sys.argv[1])
    torch.set_num_threads(request["threads"])
    param = torch.ones(1000, requires_grad=True)
    param.grad = torch.ones(1000)
    times = [time.perf_counter()]
    module = importlib.import_module(request["module"])
    times.append(time.perf_counter())
    optimizer = getattr(module, request["name"])([param], **request["options"])
    times.append(time.perf_counter())
    optimizer.step()
    times.append(time.perf_counter())
    parts = ("import", "make", "first step")
    seconds = [end - start for start, end in itertools.pairwise(times)]
    sys.stdout.write(json.dumps(dict(zip(parts, seconds, strict=True))))


if __name__ == "__main__":
    main()
