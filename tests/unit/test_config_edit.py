"""One key of the configuration file is changed; the rest of it, and its mode, stay."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pulmo_node.config import load
from pulmo_node.config_edit import set_pipeline_weights
from pulmo_node.errors import ConfigError
from tests.conftest import ROOT


def written(folder: Path, text: str) -> Path:
    path = folder / "node.toml"
    path.write_text(text, encoding="utf-8")
    return path


def named(path: Path) -> object:
    return load(path, {}).pipelines["ct-nodules"]["weights"]


def test_the_shipped_file_changes_in_one_line(tmp_path: Path) -> None:
    before = (ROOT / "config" / "node.toml").read_text(encoding="utf-8")
    path = written(tmp_path, before)
    config = set_pipeline_weights(path, "ct-nodules", "pulmo")
    assert config.pipelines["ct-nodules"]["weights"] == named(path) == "pulmo"
    after = path.read_text(encoding="utf-8")
    changed = [(a, b) for a, b in zip(before.splitlines(), after.splitlines(), strict=True) if a != b]
    assert changed == [('weights = "pulmo-node-3"', 'weights = "pulmo"')]
    set_pipeline_weights(path, "ct-nodules", "pulmo-node-3")
    assert path.read_text(encoding="utf-8") == before


@pytest.mark.parametrize(
    "text",
    [
        "",
        "# only a comment\n",
        '[node]\nport = 1 # one\n\n[[rules]]\npipelines = ["ct-nodules"]\n',
        "[pipelines.ct-nodules]\n",
        "[pipelines]\nct-nodules = {}\n",
        'pipelines = { ct-nodules = { weights = "a", peak_threshold = 0.5 } }\n',
        "pipelines.ct-nodules.peak_threshold = 0.5\n",
    ],
)
def test_every_way_to_write_the_table(tmp_path: Path, text: str) -> None:
    path = written(tmp_path, text)
    before = load(path, {})
    set_pipeline_weights(path, "ct-nodules", 'pul"mo')
    after = load(path, {})
    assert named(path) == 'pul"mo'
    assert (after.node, after.rules) == (before.node, before.rules)
    assert {**after.pipelines["ct-nodules"], "weights": 0} == {**before.pipelines["ct-nodules"], "weights": 0}
    assert all(line in path.read_text() for line in text.splitlines() if "#" in line)


def test_the_mode_stays_and_no_other_file_is_left(tmp_path: Path) -> None:
    path = written(tmp_path, "")
    path.chmod(0o640)
    set_pipeline_weights(path, "ct-nodules", "pulmo")
    assert path.stat().st_mode & 0o777 == 0o640
    assert list(tmp_path.iterdir()) == [path]


def test_of_a_link_its_target_is_changed(tmp_path: Path) -> None:
    path = written(tmp_path, "")
    link = tmp_path / "link.toml"
    link.symlink_to(path)
    set_pipeline_weights(link, "ct-nodules", "pulmo")
    assert link.is_symlink()
    assert named(path) == "pulmo"


def test_a_read_only_file_is_refused_even_to_root(tmp_path: Path) -> None:
    path = written(tmp_path, "# mine\n")
    path.chmod(0o444)
    with pytest.raises(ConfigError, match=r"node\.toml: the file is read-only"):
        set_pipeline_weights(path, "ct-nodules", "pulmo")
    assert path.read_text() == "# mine\n"


def test_a_write_that_fails_leaves_the_file_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path, "# mine\n")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ConfigError, match=r"node\.toml: cannot be written: No space left on device"):
        set_pipeline_weights(path, "ct-nodules", "pulmo")
    assert path.read_text() == "# mine\n"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("text", "label", "said"),
    [
        ("[node\n", "ct-nodules", "line 1"),
        ("", "mammography", r"pipelines\.mammography: not configured"),
        ("pipelines = 5\n", "ct-nodules", r"pipelines\.ct-nodules: not configured"),
        ("[node]\nport = -1\n", "ct-nodules", r"node\.port"),
    ],
)
def test_what_is_wrong_is_named_and_nothing_written(tmp_path: Path, text: str, label: str, said: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(ConfigError, match=said):
        set_pipeline_weights(path, label, "pulmo")
    assert path.read_text() == text


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.toml: No such file"):
        set_pipeline_weights(tmp_path / "nowhere.toml", "ct-nodules", "pulmo")
