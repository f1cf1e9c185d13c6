"""Detector, teacher, student, export: the whole training on a tiny store, and what comes out is a set of weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from pulmo_models.checkpoints import load_stage1, load_stage2
from pulmo_models.errors import WeightsCorrupt, WeightsMissing
from pulmo_models.nets.heatmap_unet3d import HeatmapUNet3D
from pulmo_models.nets.student2p5d import Student2p5D
from pulmo_models.training.fitting.export import ReportUnfit, export_set, set_operating_point
from pulmo_models.training.fitting.runs import (
    RunBusy,
    RunMismatch,
    begin_run,
    finish_run,
    only_one,
    read_run,
    trained_state,
)
from pulmo_models.training.fitting.trainings import start_state
from pulmo_models.weights import OperatingPoint, load_set, verify_set
from tests.models.tiny_store import write_tiny_store
from tests.models.training_runs import changes, refused, train

STAGE1 = "stage1.phases = [{window = [16, 32, 32], batch = 2, epochs = 1, samples_per_epoch = 4}]"
TEACHER = ("teacher.batch = 2", "teacher.shape = [32, 32, 32]", "teacher.mixup_probability = 1.0")
RESULT_KEYS = {"training", "recipe", "seed", "steps", "start", "stores", "pulmo", "torch", "device", "finished"}


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chain")
    store = write_tiny_store(folder / "tiny.h5", windows=(4, 1), patches=(6, 6))
    common = ["--store", store, "--work", folder / "run", "--device", "cpu"]
    train("stage1", *common, *changes(STAGE1, "stage1.validation_samples = 1"))
    train("teacher", *common, *changes(*TEACHER), "--max-steps", "2")
    train("distill", *common, *changes("distill.batch = 2"), "--max-steps", "2", "--seed", "5")
    return folder / "run"


def test_the_chain_ends_in_a_set_of_weights(work: Path, tmp_path: Path) -> None:
    manifest = export_set(work, tmp_path, name="tiny", version="7")
    weights = load_set(manifest)
    verify_set(weights)
    assert (weights.name, weights.version, weights.concept_scale) == ("tiny", "7", "unit")
    assert "distill 5" in weights.origin
    for network, training in ((load_stage1(weights), "stage1"), (load_stage2(weights), "distill")):
        trained = trained_state(work / training / "best.ckpt")
        assert all(torch.equal(value, trained[key]) for key, value in network.state_dict().items())
    record = json.loads((tmp_path / "tiny-training.json").read_text())
    assert set(record) == {"stage1", "teacher", "distill"}
    for training, run in record.items():
        assert set(run) == RESULT_KEYS | ({"teacher"} if training == "distill" else set())
        assert run["finished"]
        assert run["stores"][0]["provenance"] == {"command": "test"}
        assert run["stores"][0]["rows"]["stage2"] == {"train": 6, "validation": 6, "test": 0}
    assert record["distill"]["recipe"]["batch"] == 2


def test_a_student_of_another_teacher_is_another_training(work: Path) -> None:
    """It was taken for trained already, or went on with the other teacher."""
    common = ["distill", "--store", work.parent / "tiny.h5", "--work", work, "--device", "cpu", "--max-steps", "2"]
    same = [*common, *changes("distill.batch = 2"), "--seed", "5"]
    assert "distill/best.ckpt" in "".join(train(*same, "--teacher", work / "teacher" / "best.ckpt").split())
    sentence = " ".join(refused(*same, "--teacher", work / "teacher" / "last.ckpt").split())
    assert "holds another training: teacher is" in sentence


def test_training_begins_with_a_set_or_a_checkpoint(work: Path, tmp_path: Path) -> None:
    manifest = export_set(work, tmp_path, name="tiny", version="7")
    for network, training in ((HeatmapUNet3D(), "stage1"), (Student2p5D(), "distill")):
        checkpoint = str(work / training / "best.ckpt")
        of_set, of_checkpoint = start_state(str(manifest), network), start_state(checkpoint, network)
        assert all(torch.equal(of_set[key], of_checkpoint[key]) for key in network.state_dict())
        published = tmp_path / f"{training}.pth"
        torch.save({"model_state_dict": of_set, "epoch": 3}, published)
        assert start_state(str(published), network).keys() == of_set.keys()
    with pytest.raises(WeightsCorrupt, match="another network than Student2p5D"):
        start_state(str(work / "stage1" / "best.ckpt"), Student2p5D())


def test_the_thresholds_of_a_report_go_into_its_set(work: Path, tmp_path: Path) -> None:
    manifest = export_set(work, tmp_path, name="tiny", version="7")
    report = tmp_path / "report.json"
    point: dict[str, Any] = {"peak_threshold": 0.1881, "false_per_scan": 8.0}
    found = {"weights": {"name": "tiny", "sha256": load_set(manifest).sha256}}

    def write() -> None:
        report.write_text(json.dumps(found | {"stage1": {"inserted": {"operating_point": point}}}), encoding="utf-8")

    write()
    with pytest.raises(ReportUnfit, match="no operating point of both stages"):
        set_operating_point(manifest, report)
    point |= {"detection_threshold": 0.75}
    write()
    train("operating-point", manifest, report)
    assert load_set(manifest).operating_point == OperatingPoint(peak_threshold=0.1881, detection_threshold=0.75)
    load_stage1(load_set(manifest))
    found["weights"] = {"name": "other", "sha256": "0" * 64}
    write()
    with pytest.raises(ReportUnfit, match="is of other, other weights"):
        set_operating_point(manifest, report)


def test_what_was_not_trained_is_not_exported(work: Path, tmp_path: Path) -> None:
    with pytest.raises(WeightsMissing, match="run pulmo-train stage1 first"):
        export_set(tmp_path, tmp_path / "set", name="tiny", version="1")
    assert "run pulmo-train stage1 first" in refused(
        "export", tmp_path / "set", "--name", "tiny", "--work", tmp_path / "empty"
    )
    with pytest.raises(WeightsMissing, match="does not exist"):
        trained_state(work / "stage1" / "other.ckpt")
    torch.save({"state_dict": {"foreign": torch.zeros(1)}}, tmp_path / "foreign.ckpt")
    with pytest.raises(WeightsCorrupt, match="none of pulmo-train"):
        trained_state(tmp_path / "foreign.ckpt")
    (tmp_path / "text.ckpt").write_text("no checkpoint at all")
    with pytest.raises(WeightsCorrupt, match=r"text\.ckpt cannot be read as tensors"):
        trained_state(tmp_path / "text.ckpt")


def test_a_folder_keeps_one_training(tmp_path: Path) -> None:
    about = {"training": "stage1", "recipe": {"optimiser": {"learning_rate": 0.1}}, "seed": 1}
    assert not begin_run(tmp_path / "a", about, {"torch": "2"})
    assert not begin_run(tmp_path / "a", about, {"torch": "3"})
    finish_run(tmp_path / "a")
    assert begin_run(tmp_path / "a", about, {"torch": "3"})
    assert read_run(tmp_path / "a")["torch"] == "2"
    other = {**about, "recipe": {"optimiser": {"learning_rate": 0.2}}}
    with pytest.raises(RunMismatch, match=r"recipe\.optimiser\.learning_rate is 0\.1 there, 0\.2 asked for"):
        begin_run(tmp_path / "a", other, {})
    stores = {**about, "stores": [{"file": "a.h5"}, {"file": "b.h5"}]}
    assert not begin_run(tmp_path / "b", stores, {})
    for changed, message in (
        ([{"file": "a.h5"}, {"file": "c.h5"}], r'stores\[1\]\.file is "b\.h5" there, "c\.h5" asked for'),
        ([{"file": "a.h5"}], "2 stores there, 1 asked for"),
    ):
        with pytest.raises(RunMismatch, match=message):
            begin_run(tmp_path / "b", {**about, "stores": changed}, {})


def test_a_folder_is_for_one_process(tmp_path: Path) -> None:
    with only_one(tmp_path / "a"):
        with pytest.raises(RunBusy, match="another process trains there"), only_one(tmp_path / "a"):
            pass
        with only_one(tmp_path / "b"):
            pass
    with only_one(tmp_path / "a"):
        pass


def test_a_wrong_call_is_answered_with_a_sentence(tmp_path: Path) -> None:
    store = write_tiny_store(tmp_path / "a.h5", windows=(2, 0), patches=(3, 0))
    call = ["--store", store, "--work", tmp_path / "run", "--device", "cpu"]
    assert "no window of the validation split" in refused("stage1", *call)
    assert "no patch of the validation split" in refused("distill", "--no-teacher", *call)
    assert "stage1.epochs: unknown key" in refused("stage1", *call, *changes("stage1.epochs = 3"))
    assert "recipe other: not there" in refused("stage1", *call, "--recipe", "other")
    (tmp_path / "no.h5").write_bytes(b"")
    assert "no.h5: cannot be read" in refused("stage1", "--store", tmp_path / "no.h5", "--work", tmp_path / "run")
    (tmp_path / "file").touch()
    assert "Not a directory" in refused("data", "patches", tmp_path / "file" / "x", "--out", tmp_path / "p.h5")
    inserted = ("data", "inserted", "--out", tmp_path / "i.h5", "--data")
    assert "--windows" in refused(*inserted, tmp_path, exit_code=2)
    assert "missing" in refused(*inserted, tmp_path / "missing", "--patches", "1")
    assert not (tmp_path / "i.h5").exists()
