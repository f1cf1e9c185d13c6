"""The documents are true as far as a program can tell: the site builds without a warning, code blocks run,
configurations can be used, commands exist, tables are those of the code."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from pulmo_models import __version__
from pulmo_models.codes import CautionCode, RejectionCode
from pulmo_node.cli import app
from pulmo_node.config import resolve
from pulmo_node.domain.deliveries import DeliveryState
from pulmo_node.domain.jobs import JobState
from pulmo_node.domain.studies import STUDY_STATES
from tests.conftest import ROOT
from tests.ct_factory import write_datasets
from tests.encode_factory import chest_datasets

DOCUMENTS = sorted([*(ROOT / "docs").glob("*.md"), *ROOT.glob("*.md"), ROOT / "deploy" / "README.md"])
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(kind: str) -> list[tuple[str, str]]:
    """Name of the document and text of every code block of a kind."""
    return [
        (str(path.relative_to(ROOT)), found[2])
        for path in DOCUMENTS
        for found in _BLOCK.finditer(path.read_text(encoding="utf-8"))
        if found[1] == kind
    ]


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert said.returncode == 0, said.stderr
    assert "WARNING" not in said.stderr
    pages = [page.read_text(encoding="utf-8") for page in (tmp_path / "site").glob("*.html")]
    assert len(pages) >= len(list((ROOT / "docs").glob("*.md")))
    loaded = [
        found
        for page in pages
        for found in re.findall(r"<(?:script|link|img)[^>]+(?:src|href)=\"(https?:[^\"]+)", page)
    ]
    assert loaded == [], "nothing is loaded from elsewhere"


@pytest.mark.parametrize("document", sorted({name for name, _ in blocks("python")}))
def test_the_python_blocks_run_one_after_the_other(document: str, tmp_path: Path) -> None:
    write_datasets(chest_datasets(), tmp_path)
    names: dict[str, Any] = {"folder": str(tmp_path)}
    for name, text in blocks("python"):
        if name == document:
            exec(compile(text, document, "exec"), names)  # noqa: S102 - the project's own documents


@pytest.mark.parametrize(("document", "text"), blocks("toml"))
def test_the_configurations_can_be_used(document: str, text: str, tmp_path: Path) -> None:
    raw = tomllib.loads(text)
    if "tls" in raw:  # shows some sections of a whole file
        raw.setdefault("receive", {})["accept_networks"] = ["192.0.2.0/24"]
    resolve(raw, base=tmp_path)


def _commands() -> list[tuple[str, list[str]]]:
    found = []
    for document, text in blocks("sh"):
        for line in text.replace("\\\n", " ").splitlines():
            for part in re.split(r"&&|;|\|", line.partition("  #")[0]):
                words = shlex.split(part)
                if words and Path(words[0]).name == "pulmo-node":
                    found.append((document, words[1:]))
    return found


def test_there_are_commands_in_the_documents() -> None:
    assert len(_commands()) >= 3


@pytest.mark.parametrize(("document", "words"), _commands(), ids=lambda value: str(value)[:60])
def test_every_command_of_the_documents_exists(document: str, words: list[str]) -> None:
    command: Any = typer.main.get_command(app)
    while hasattr(command, "commands") and words:
        command = command.commands[words[0]]
        words = words[1:]
    options = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    assert [word for word in words if word.startswith("--") and word.split("=")[0] not in options] == []


def test_every_link_between_the_documents_leads_somewhere() -> None:
    lost = []
    for path in DOCUMENTS:
        text = re.sub(r"^```.*?^```$", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
        for target in re.findall(r"\]\(([^)\s]+)\)", text):
            file = target.partition("#")[0]
            if "://" not in target and file and not (path.parent / file).exists():
                lost.append(f"{path.name}: {target}")
    assert lost == []


def test_the_guide_names_every_state() -> None:
    text = (ROOT / "docs" / "administration.md").read_text(encoding="utf-8")
    rows = set(re.findall(r"^\| ([A-Z_]+) \|", text, re.MULTILINE))
    assert {*STUDY_STATES, *(state.value for state in JobState), *(state.value for state in DeliveryState)} <= rows
    source = "".join(path.read_text() for path in (ROOT / "pulmo_node" / "worker").glob("*.py"))
    codes = set(re.findall(r'"(GAVE_UP|[A-Z]+_FAILED)"', source))
    assert codes
    assert {*codes, "DELIVERY_FAILED"} <= rows


def test_the_readme_names_every_code() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [code.value for code in (*RejectionCode, *CautionCode) if f"| `{code.value}` |" not in text] == []


def test_the_citation_is_of_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == __version__
    assert citation["cff-version"] == "1.2.0"
    assert {"title", "message", "authors", "license"} <= citation.keys()


def test_the_licences_are_those_of_what_is_needed() -> None:
    """By name: a package that is added has its licence looked at."""
    needed = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = needed["optional-dependencies"]
    names = {
        re.split(r"[\[<>=~! ]", each)[0].lower()
        for each in (*needed["dependencies"], *extras["web"], *extras["postgresql"], *extras["train"])
    }
    listed = set(
        re.findall(r"^\| ([\w.-]+) \|", (ROOT / "docs" / "licences.md").read_text(encoding="utf-8"), re.MULTILINE)
    )
    assert names <= listed
