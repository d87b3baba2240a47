"""What hosts and indexes read: citation, issue forms, the check-list of a release."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

import steprule
from steprule.cli.app import app

ROOT = Path(__file__).parent.parent
FORMS = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*_*.yml"))
PAGES = [
    *FORMS,
    ROOT / ".github" / "PULL_REQUEST_TEMPLATE.md",
    ROOT / "docs" / "releasing.md",
    ROOT / "SECURITY.md",
]
KINDS = {"markdown", "textarea", "input", "dropdown", "checkboxes"}


def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def test_the_citation_has_what_its_format_asks_for() -> None:
    """By the schema of CFF 1.2.0: required keys, of which an author may be an entity by name."""
    found = read(ROOT / "CITATION.cff")
    assert {"authors", "cff-version", "message", "title"} <= found.keys()
    assert found["cff-version"] == "1.2.0"
    assert found["type"] in ("software", "dataset")
    assert found["authors"]
    assert all("name" in x or "family-names" in x for x in found["authors"])
    strings = ("abstract", "cff-version", "license", "message", "title", "version")
    assert all(isinstance(found[key], str) for key in strings)


def test_versions_and_licenses_agree() -> None:
    found = read(ROOT / "CITATION.cff")
    assert steprule.__version__.split(".dev")[0] == found["version"]
    assert f'license = "{found["license"]}"' in (ROOT / "pyproject.toml").read_text()
    assert f"## [{found['version']}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_there_are_three_forms() -> None:
    assert [f.stem for f in FORMS] == ["bug_report", "feature_request", "optimizer_request"]
    assert set(read(ROOT / ".github" / "ISSUE_TEMPLATE" / "config.yml")) == {"blank_issues_enabled"}


@pytest.mark.parametrize("form", FORMS, ids=lambda path: path.stem)
def test_a_form_is_one(form: Path) -> None:
    found = read(form)
    assert {"name", "description", "labels", "body"} == found.keys()
    fields = [entry for entry in found["body"] if entry["type"] != "markdown"]
    assert all(entry["type"] in KINDS for entry in found["body"])
    assert all(entry["attributes"]["label"] for entry in fields)
    names = [entry["id"] for entry in fields]
    assert len(names) == len(set(names))
    assert any(entry.get("validations", {}).get("required") for entry in fields)


def test_a_bug_report_asks_for_the_doctor() -> None:
    (field,) = (x for x in read(FORMS[0])["body"] if x.get("id") == "doctor")
    assert "`steprule doctor`" in field["attributes"]["description"]
    assert field["validations"]["required"]


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_what_it_names_is_there(page: Path) -> None:
    """Commands, scripts, files and modules."""
    text = page.read_text(encoding="utf-8")
    commands = {command.name for command in app.registered_commands}
    assert set(re.findall(r"`[^`\n]*\bsteprule ([a-z-]+)", text)) <= commands
    files = re.findall(r"(?<![\w/.])(?:script|tests|docs|src)/[\w./-]*\w", text)
    files += re.findall(r"\b[A-Z]{4,}\.(?:md|cff)\b", text)
    assert [name for name in files if not (ROOT / name).exists()] == []
