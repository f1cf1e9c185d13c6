"""The offline comparison of what is installed with advisories in the OSV format."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest

from tools import advisories


def advisory(**affected: Any) -> dict[str, Any]:
    package = {"ecosystem": "PyPI", "name": "Some_Package"}
    return {"id": "PYSEC-1", "modified": "2026-11-01T00:00:00Z", "affected": [{"package": package, **affected}]}


def events(*steps: dict[str, str], kind: str = "ECOSYSTEM") -> dict[str, Any]:
    return advisory(ranges=[{"type": kind, "events": list(steps)}])


FIXED = events({"introduced": "0"}, {"fixed": "1.5"}, {"introduced": "2.0"}, {"fixed": "2.1"})
LAST = events({"introduced": "1.2"}, {"last_affected": "1.10"})


@pytest.mark.parametrize(
    ("entry", "version", "affected"),
    [
        (FIXED, "0.1.dev1", True),
        (FIXED, "1.4.9", True),
        (FIXED, "1.5", False),
        (FIXED, "2.0", True),
        (FIXED, "2.0.1+cpu", True),
        (FIXED, "2.1", False),
        (LAST, "1.1.9", False),
        (LAST, "1.9", True),
        (LAST, "1.10", True),
        (LAST, "1.10.1", False),
        (advisory(versions=["1.0", "not a version"]), "1.0.0", True),
        (advisory(versions=["1.0"]), "1.0.1", False),
        (events({"introduced": "0"}, kind="GIT"), "1.0", False),
        (FIXED | {"withdrawn": "2026-01-01T00:00:00Z"}, "1.4", False),
    ],
)
def test_which_versions_are_affected(entry: dict[str, Any], version: str, affected: bool) -> None:
    assert advisories.names(entry, {"some-package": version}) == ([("some-package", version)] if affected else [])
    assert advisories.names(entry, {"another": version}) == []


def test_another_ecosystem() -> None:
    entry = advisory(versions=["1.0"])
    entry["affected"][0]["package"]["ecosystem"] = "npm"
    assert advisories.names(entry, {"some-package": "1.0"}) == []


@pytest.mark.parametrize("packed", [False, True])
def test_a_list_that_names_an_installed_package(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], packed: bool
) -> None:
    version = advisories.installed()["pydicom"]
    entry = advisory(versions=[version])
    entry["affected"][0]["package"]["name"] = "pydicom"
    (tmp_path / "PYSEC-1.json").write_text(json.dumps(entry))
    source = tmp_path
    if packed:
        source = tmp_path / "all.zip"
        with zipfile.ZipFile(source, "w") as archive:
            archive.write(tmp_path / "PYSEC-1.json", "PYSEC-1.json")
    assert advisories.main([str(source)]) == 1
    assert f"pydicom {version}: PYSEC-1" in capsys.readouterr().out


def test_a_list_that_names_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "PYSEC-1.json").write_text(json.dumps(FIXED))
    assert advisories.main([str(tmp_path)]) == 0
    assert "against 1 advisories, the newest of 2026-11-01T00:00:00Z: 0 found" in capsys.readouterr().out


@pytest.mark.parametrize("content", [None, "", "{"])
def test_no_list_is_not_clean(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "all.zip").write_text(content)
    assert advisories.main([str(tmp_path / "all.zip" if content is not None else tmp_path)]) == 2
