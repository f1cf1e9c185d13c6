"""`pulmo-node weights`: from a hub or from files to a set, to the configuration, and into SR and SEG."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from pydicom import dcmread
from typer.testing import CliRunner

from pulmo_models.nets.heatmap_unet3d import HeatmapUNet3D
from pulmo_models.nets.student2p5d import Student2p5D
from pulmo_models.weights import load_set, manifests
from pulmo_node.cli import app, main
from pulmo_node.config import load
from tests.ct_factory import write_datasets
from tests.encode_factory import chest_datasets
from tests.hub_server import COMMIT, HubServer, hub_in_use
from tests.models.test_weights import Intruder
from tests.published_factory import STAGE1_FILE, STAGE2_FILE, write_published

runner = CliRunner()

FILE = """# My node
[node]
storage = "var"  # beside this file

# Where the networks are told what to do.
[pipelines.ct-nodules]
peak_threshold = 0.25   # looser
# the set
weights = "pulmo-node-3" # as shipped
precision = 'fp32'

[[rules]]
pipelines = ["ct-nodules"]
"""


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_published(tmp_path_factory.mktemp("published"))


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "node.toml"
    path.write_text(FILE, encoding="utf-8")
    return path


@pytest.fixture
def server(published: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    with hub_in_use(monkeypatch, {path.name: path for path in published}) as running:
        yield running


def weights(*arguments: str | Path) -> tuple[int, str]:
    """Exit code and all that is said, of the program as it is called from a shell."""
    result = runner.invoke(app, ["weights", *map(str, arguments)])
    return result.exit_code, result.output


def failure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str | Path
) -> tuple[int, str]:
    """Exit code and last words of the console script."""
    monkeypatch.setattr("sys.argv", ["pulmo-node", "weights", *map(str, arguments)])
    with pytest.raises(SystemExit) as caught:
        main()
    return int(str(caught.value.code)), capsys.readouterr().err.strip()


def test_fetch_list_verify_use(server: HubServer, config: Path, tmp_path: Path) -> None:
    code, said = weights("fetch", "pulmo", "-c", config)
    assert code == 0, said
    assert COMMIT in said
    assert "CC-BY-4.0" in said
    assert "Furkan" in said
    manifest = tmp_path / "var" / "weights" / "pulmo" / "pulmo.toml"
    assert str(manifest) in said
    listed = json.loads(weights("list", "-c", config, "--json")[1])
    assert [(s["name"], s["manifest"], s["used"]) for s in listed] == [
        *((path.stem, str(path), path.stem == "pulmo-node-3") for path in manifests()),
        ("pulmo", str(manifest), False),
    ]
    assert listed[-1]["commit"] == COMMIT
    assert listed[-1]["sha256"] == load_set(manifest).sha256
    code, said = weights("verify", "-c", config)
    assert code == 0
    assert [line.split(":")[0] for line in said.splitlines()] == [*(p.stem for p in manifests()), "pulmo"]
    assert weights("use", "pulmo", "-c", config)[0] == 0
    assert config.read_text() == FILE.replace('"pulmo-node-3"', '"pulmo"')
    listed = json.loads(weights("list", "-c", config, "--json")[1])
    assert [s["name"] for s in listed if s["used"]] == ["pulmo"]


def test_fetch_of_a_revision_under_another_name(server: HubServer, config: Path, tmp_path: Path) -> None:
    server.revisions["b" * 40] = "b" * 40
    assert weights("fetch", "pulmo", "--revision", "b" * 40, "--name", "older", "-c", config)[0] == 0
    assert load_set("older", tmp_path / "var" / "weights").commit == "b" * 40


def test_fetch_in_a_process_of_its_own_draws_a_bar_and_respects_the_endpoint(server: HubServer, config: Path) -> None:
    command = [sys.executable, "-m", "pulmo_node", "weights", "fetch", "pulmo", "-c", str(config)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=300, env=dict(os.environ))
    assert done.returncode == 0, done.stderr
    assert STAGE2_FILE in done.stderr
    assert "100 %" in done.stderr
    assert {file for file, _ in server.transfers()} == {STAGE1_FILE, STAGE2_FILE}


def test_faults_of_the_hub_are_one_sentence(
    server: HubServer, config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    server.gated = True
    code, said = failure(monkeypatch, capsys, "fetch", "pulmo", "-c", config)
    assert code == 1
    assert "failed: ariyul/Pulmo on http://127.0.0.1" in said.splitlines()[-1]
    assert "Traceback" not in said
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    code, said = failure(monkeypatch, capsys, "fetch", "pulmo", "-c", config)
    assert code == 1
    assert "failed: no connection to http://127.0.0.1:1: " in said.splitlines()[-1]
    assert not (tmp_path / "var").exists()


def test_import_of_the_published_files(published: tuple[Path, Path], config: Path, tmp_path: Path) -> None:
    code, said = weights("import", *published, "-c", config)
    assert code == 0, said
    found = load_set("pulmo", tmp_path / "var" / "weights")
    assert (found.concept_scale, found.commit) == ("raw", "")
    assert weights("import", *published, "--name", "again", "-c", config)[0] == 0


def test_import_of_other_weights_has_to_be_meant(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(HeatmapUNet3D().state_dict(), tmp_path / "one.pth")
    torch.save(Student2p5D().state_dict(), tmp_path / "two.pth")
    files = (tmp_path / "one.pth", tmp_path / "two.pth")
    code, said = failure(monkeypatch, capsys, "import", *files, "-c", config)
    assert code == 1
    assert "one.pth, two.pth: these are not the published weights of ariyul/Pulmo" in said
    assert said.endswith("--any imports other weights of the same architecture")
    assert not (tmp_path / "var").exists()
    for missing in (["--any"], ["--any", "--concept-scale", "unit"], ["--any", "--name", "mine"]):
        assert weights("import", *files, *missing, "-c", config)[0] == 2
    assert weights("import", *files, "--concept-scale", "unit", "-c", config)[0] == 2
    assert weights("import", *files, "--any", "--concept-scale", "unit", "--name", "mine", "-c", config)[0] == 0
    assert load_set("mine", tmp_path / "var" / "weights").concept_scale == "unit"


def test_a_file_with_code_is_one_error_and_not_run(
    published: tuple[Path, Path],
    config: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    evil = tmp_path / "evil.pth"
    evil.write_bytes(pickle.dumps(Intruder(tmp_path / "trace")))
    code, said = failure(monkeypatch, capsys, "import", published[0], evil, "-c", config)
    assert code == 1
    assert len(said.splitlines()) == 1
    assert f"checkpoint {evil} cannot be read as tensors and plain values" in said
    assert not (tmp_path / "trace").exists()
    assert not (tmp_path / "var").exists()


def test_use_refuses_what_is_missing_or_damaged_and_leaves_the_file(
    published: tuple[Path, Path],
    config: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    code, said = failure(monkeypatch, capsys, "use", "pulmo", "-c", config)
    assert code == 1
    assert "no set of weights is called 'pulmo'" in said
    weights("import", *published, "-c", config)
    found = load_set("pulmo", tmp_path / "var" / "weights")
    os.truncate(found.stage1.path, 999)
    code, said = failure(monkeypatch, capsys, "use", "pulmo", "-c", config)
    assert code == 1
    assert "pulmo-stage1.safetensors is truncated" in said
    assert config.read_text() == FILE
    code, said = weights("verify", "-c", config)
    assert code == 1
    assert "pulmo-node-3: ok" in said
    found.stage1.path.with_name("pulmo.toml").write_text("name = 1")
    code, said = weights("list", "-c", config)
    assert code == 1
    assert "pulmo-node-3 (in use): version" in said
    assert "name must be a text" in said


def test_use_names_a_set_outside_of_the_folder_by_its_path(
    published: tuple[Path, Path], config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "elsewhere.toml"
    elsewhere.write_text(f'[node]\nstorage = "{tmp_path / "other"}"\n')
    weights("import", *published, "-c", elsewhere)
    monkeypatch.chdir(tmp_path)
    assert weights("use", "other/weights/pulmo/pulmo.toml", "-c", config)[0] == 0
    named = load(config, {}).pipelines["ct-nodules"]["weights"]
    assert named == str(tmp_path / "other" / "weights" / "pulmo" / "pulmo.toml")


def test_use_needs_a_file_and_says_when_the_environment_goes_before_it(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PULMO_NODE__PIPELINES__CT_NODULES__WEIGHTS", "pulmo-node-3")
    code, said = weights("use", "pulmo-node-3", "-c", config)
    assert code == 0
    assert "caution: PULMO_NODE__PIPELINES__CT_NODULES__WEIGHTS is set" in said
    monkeypatch.setattr("pulmo_node.cli_weights.default_path", lambda: None)
    code, said = failure(monkeypatch, capsys, "use", "pulmo-node-3")
    assert code == 2
    assert "no configuration file to write" in said


def test_the_hash_of_imported_weights_stands_in_sr_and_seg(
    published: tuple[Path, Path], config: Path, tmp_path: Path
) -> None:
    """Networks without training find something everywhere; what counts is what the objects say of them."""
    weights("import", *published, "-c", config)
    config.write_text(
        '[node]\nstorage = "var"\n[pipelines.ct-nodules]\nweights = "pulmo"\nprotocol = "published"\n'
        "peak_threshold = 0.4\ncluster_mm = 100.0\ndetection_threshold = 0.0\n"
    )
    write_datasets(chest_datasets((24, 96, 112)), tmp_path / "ct")
    out = tmp_path / "out"
    result = runner.invoke(app, ["analyze", str(tmp_path / "ct"), "--out", str(out), "-c", str(config), "--json"])
    assert result.exit_code == 0, result.output
    found = load_set("pulmo", tmp_path / "var" / "weights")
    hashes = {
        f"weights_sha256={found.sha256}",
        f"stage1_weights_sha256={found.stage1.sha256}",
        f"stage2_weights_sha256={found.stage2.sha256}",
        "weights=pulmo",
        "stage1_protocol=published",
    }
    report = dcmread(out / "sr.dcm")
    said = {element.value for element in report.iterall() if element.keyword == "TextValue"}
    assert hashes <= said
    segments = dcmread(out / "seg.dcm").SegmentSequence
    assert len(segments) > 0
    for segment in segments:
        (algorithm,) = segment.SegmentationAlgorithmIdentificationSequence
        assert hashes <= set(algorithm.AlgorithmParameters.split(","))
    assert json.loads((out / "findings.json").read_text())["weights_sha256"] == found.sha256


def test_healthchecks_load_an_imported_set_and_name_a_missing_one(published: tuple[Path, Path], tmp_path: Path) -> None:
    config = tmp_path / "node.toml"
    config.write_text('[node]\nport = 0\nstorage = "var"\n[analysis]\nweights_folder = "sets"\n')
    weights("import", *published, "--name", "mine", "-c", config)
    assert (tmp_path / "sets" / "mine" / "mine.toml").is_file()
    for name, sound in (("mine", True), ("yours", False)):
        config.write_text(
            '[node]\nport = 0\nstorage = "var"\n[analysis]\nweights_folder = "sets"\n'
            f'[pipelines.ct-nodules]\nweights = "{name}"\n'
        )
        checks = json.loads(runner.invoke(app, ["healthchecks", "-c", str(config), "--json"]).output)
        (check,) = (check for check in checks if check["name"] == "pipeline ct-nodules")
        assert check["ok"] is sound
        assert sound or "no set of weights is called 'yours'" in check["detail"]


def test_listing_and_choosing_do_without_torch(config: Path) -> None:
    commands = [["list"], ["verify"], ["use", "pulmo-node-3"]]
    code = (
        "import sys\nfrom typer.testing import CliRunner\nfrom pulmo_node.cli import app\n"
        f"for command in {commands}:\n"
        f"    done = CliRunner().invoke(app, ['weights', *command, '-c', {str(config)!r}])\n"
        "    assert done.exit_code == 0, done.output\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=300).returncode == 0
