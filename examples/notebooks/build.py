"""Make the notebooks of their sources: run every cell, and keep what it shows.

    script/notebooks              # all of them
    script/notebooks first_hour   # this one

A source is a Python file in which ``# %%`` begins a cell, and ``# %% [markdown]`` a cell of text.
"""

import argparse
import os
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

import nbformat
from jupyter_client.kernelspec import KernelSpecManager
from nbclient import NotebookClient
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

HERE = Path(__file__).parent
NAMES = ("first_hour", "choosing_an_optimizer")


def cells_of(source: str) -> list[NotebookNode]:
    """Return the cells of a source, without outputs."""
    cells = []
    for number, part in enumerate(re.split(r"^# %%", source, flags=re.M)[1:]):
        kind, _, text = part.partition("\n")
        text = text.strip("\n")
        # Ids that stay as they are, so that making a notebook anew changes nothing but outputs.
        if kind.strip() == "[markdown]":
            plain = re.sub(r"^# ?", "", text, flags=re.M)
            cells.append(new_markdown_cell(plain, id=f"text-{number}"))
        else:
            cells.append(new_code_cell(text, id=f"code-{number}"))
    return cells


def read(name: str) -> NotebookNode:
    """Return the notebook of a source, without outputs."""
    notebook = new_notebook(cells=cells_of((HERE / f"{name}.py").read_text(encoding="utf-8")))
    notebook.metadata["kernelspec"] = {
        "name": "python3",
        "display_name": "Python 3",
        "language": "python",
    }
    notebook.metadata["language_info"] = {"name": "python"}
    return notebook


def run(notebook: NotebookNode, seconds: int = 300) -> None:
    """Run all cells in a kernel of this Python, in an empty folder; outputs go into the notebook.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell raised.
    """
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder, "work")
        work.mkdir()
        client = NotebookClient(
            notebook,
            timeout=seconds,
            startup_timeout=seconds,
            record_timing=False,
            resources={"metadata": {"path": str(work)}},
        )
        manager: Any = client.create_kernel_manager()
        # Without folders to look in there is one kernel: ipykernel's own, of this interpreter. What
        # is installed elsewhere by the name of python3 may be any Python.
        manager.kernel_spec_manager = KernelSpecManager(kernel_dirs=[])
        manager.transport = "ipc"  # sockets that no other user reaches
        manager.ip = str(Path(folder, "kernel"))
        client.execute(env={**os.environ, "OMP_NUM_THREADS": "1", "STEPRULE_QUIET": "1"})
    notebook.metadata["language_info"] = {"name": "python"}  # not which version it was


def main() -> None:
    """Make those that are named, or all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help=", ".join(NAMES))
    names = parser.parse_args().names or NAMES
    if unknown := [name for name in names if name not in NAMES]:
        parser.error(f"no notebook {unknown[0]!r}: there are {', '.join(NAMES)}")
    for name in names:
        notebook = read(name)
        run(notebook)
        path = HERE / f"{name}.ipynb"
        nbformat.write(notebook, path)
        print(f"{path.name}: {len(notebook.cells)} cells, {path.stat().st_size // 1000} kB")


if __name__ == "__main__":
    sys.exit(main())
