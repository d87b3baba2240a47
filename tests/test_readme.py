"""What the README shows is what happens."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from steprule.cli.contenders import parse_contenders

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_python_runs_from_top_to_bottom(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # for the file that it writes
    namespace: dict[str, object] = {"__name__": "readme"}
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(blocks) >= 5
    # One file, since the blocks continue each other and a rule's source is read back.
    source = "\n".join(blocks)
    exec(compile(source, "README.md", "exec"), namespace)
    assert "engine" in capsys.readouterr().out


@pytest.mark.parametrize("command", re.findall(r"steprule compare[^\n`]*", README))
def test_the_comparisons_name_optimizers_and_rates_that_exist(command: str) -> None:
    words = shlex.split(command.partition(" > ")[0])
    pairs = zip(words, [*words[1:], ""], strict=True)
    options = {name: value for name, value in pairs if name.startswith("--")}
    found, _ = parse_contenders(
        options.get("--optimizers"), [options["--lr"]] if "--lr" in options else [], "auto"
    )
    assert found


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\]\(([^)#:]+)\)", README))))
def test_the_files_it_links_to_are_there(target: str) -> None:
    assert (ROOT / target).is_file()
