"""Checkpoints of radiograph networks by the command line: imported, listed, verified, chosen, used."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from pulmo_models.cxr import lung_risk
from pulmo_models.cxr.networks import classifier
from pulmo_node.cli import app
from pulmo_node.config import load
from tests.radiograph_factory import film, radiograph, write_series

runner = CliRunner()


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "node.toml"
    rule = '[[rules]]\nmodality = "DX"\npipelines = ["cxr-findings"]\n'
    path.write_text(f'[node]\nstorage = "var"\n[pipelines.cxr-findings]\n{rule}', encoding="utf-8")
    return path


def call(*words: str) -> str:
    result = runner.invoke(app, list(words))
    assert result.exit_code == 0, result.output
    return result.output


def test_from_a_checkpoint_to_results(config: Path, tmp_path: Path) -> None:
    torch.manual_seed(5)
    torch.save({"model_state": classifier("efficientnet_b0").state_dict(), "config": {}}, tmp_path / "best_model.pth")
    thresholds = [word for value in (0.1, 0.2, 0.3, 0.4, 0.6) for word in ("--threshold", str(value))]
    output = call("weights", "import-findings", str(tmp_path / "best_model.pth"), *thresholds, "--config", str(config))
    assert "weights use cxr-findings --pipeline cxr-findings" in output.replace("\n", " ")
    call("weights", "use", "cxr-findings", "--pipeline", "cxr-findings", "--config", str(config))
    assert load(config, {}).pipelines == {"cxr-findings": {"weights": "cxr-findings"}}
    assert "efficientnet_b0" in call("weights", "list", "--config", str(config))
    call("weights", "verify", "--config", str(config))
    write_series(tmp_path / "dx", radiograph(film()))
    output = call("analyze", str(tmp_path / "dx"), "--out", str(tmp_path / "out"), "--config", str(config))
    assert "Cardiomegaly" in output
    found = json.loads((tmp_path / "out" / "findings.json").read_text(encoding="utf-8"))
    assert [score["threshold"] for score in found["images"][0]["class_scores"]] == [0.1, 0.2, 0.3, 0.4, 0.6]
    assert (tmp_path / "out" / "sr.dcm").is_file()
    assert list((tmp_path / "out").glob("heat-map*.dcm"))


def test_what_is_no_checkpoint_is_refused(config: Path, tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pth")
    result = runner.invoke(app, ["weights", "import-findings", str(tmp_path / "other.pth"), "--config", str(config)])
    assert result.exit_code == 1
    assert "is none of densenet121" in str(result.exception)
    assert not (tmp_path / "var" / "weights" / "cxr-findings").exists()


def test_lung_risk(config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lung_risk, "regressor", lambda architecture: torch.nn.Linear(1, 1))
    for number in lung_risk.MEMBERS:
        torch.save(torch.nn.Linear(1, 1).state_dict(), tmp_path / f"Lung_Age_081221_{number}.pth")
    assert "Zenodo" in call("weights", "import-lung-risk", str(tmp_path), "--config", str(config))
    again = runner.invoke(app, ["weights", "import-lung-risk", str(tmp_path), "--config", str(config)])
    assert again.exit_code == 1
    assert "is there already" in str(again.exception)


def test_without_weights_it_says_how_to_get_some(config: Path, tmp_path: Path) -> None:
    write_series(tmp_path / "dx", radiograph(film()))
    words = ["analyze", str(tmp_path / "dx"), "--out", str(tmp_path / "out"), "--config", str(config)]
    result = runner.invoke(app, words)
    assert result.exit_code == 1
    said = " ".join(f"{result.output} {result.exception}".split())
    assert "pulmo-node weights import-findings" in said
    checks = runner.invoke(app, ["healthchecks", "--config", str(config)])
    assert checks.exit_code == 1
    assert "import-findings" in " ".join(checks.output.split())
