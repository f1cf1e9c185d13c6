"""`pulmo-node report`: of a file, of a study of the node, in the terminal, as HTML and JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pulmo_models.types import Volume
from pulmo_node.app import SystemClock
from pulmo_node.cli import app
from pulmo_node.domain.deliveries import ResultObject
from pulmo_node.domain.jobs import NewJob
from pulmo_node.encode import EncodedObject, encode_findings
from pulmo_node.encode.identity import ResultOptions
from pulmo_node.errors import Permanent
from pulmo_node.outbox import FileOutbox
from pulmo_node.ports import OutboxItem
from pulmo_node.store import SqlStore
from tests.encode_factory import chest_datasets, make_context, make_findings, make_nodule, write_volume
from tests.integration.store_scene import instance

runner = CliRunner()


@pytest.fixture
def volume(tmp_path: Path) -> Volume:
    return write_volume(chest_datasets(), tmp_path / "ct")


@pytest.fixture
def objects(volume: Volume) -> tuple[EncodedObject, ...]:
    findings = make_findings(volume, [make_nodule(volume, (3, 10, 12))])
    return encode_findings(findings, volume, make_context(volume, options=ResultOptions()))


@pytest.fixture
def sr(objects: tuple[EncodedObject, ...], tmp_path: Path) -> Path:
    """The report as a file, with all that was made beside it."""
    (tmp_path / "out").mkdir()
    for number, encoded in enumerate(objects):
        (tmp_path / "out" / f"{number}.dcm").write_bytes(encoded.content)
    return tmp_path / "out" / "0.dcm"


def test_of_a_file(sr: Path) -> None:
    result = runner.invoke(app, ["report", str(sr)])
    assert result.exit_code == 0, result.output
    assert "Nodule 1: malignancy 55 %" in result.output
    assert "voxels on 3 images" in result.output
    assert "Phantom^Peter" not in result.output
    named = runner.invoke(app, ["report", str(sr), "--patient"])
    assert "Phantom^Peter" in named.output


def test_as_html(sr: Path, objects: tuple[EncodedObject, ...], tmp_path: Path) -> None:
    """The page holds what the terminal shows, and the key images of the same folder."""
    page = tmp_path / "report.html"
    result = runner.invoke(app, ["report", str(sr), "--html", str(page)])
    assert result.exit_code == 0, result.output
    written = page.read_text(encoding="utf-8")
    assert "Nodule 1: malignancy 55 %" in written
    pictures = [encoded for encoded in objects if encoded.kind == "key-image"]
    assert written.count('src="data:image/png;base64,') == len(pictures) == 2  # the page and the nodule
    refused = runner.invoke(app, ["report", str(sr), "--html", str(tmp_path / "no" / "folder.html")])
    assert refused.exit_code == 1


def test_as_json(sr: Path) -> None:
    result = runner.invoke(app, ["report", str(sr), "--json"])
    assert result.exit_code == 0, result.output
    (found,) = json.loads(result.stdout)
    (group,) = found["report"]["groups"]
    assert group["tracking_identifier"].endswith("Nodule 1")
    assert {tuple(number["name"][:2]) for number in group["numbers"]} >= {("103339001", "SCT"), ("111047", "DCM")}
    assert "patient" not in found["report"]
    assert "Phantom^Peter" not in result.stdout
    assert "PHANTOM-1" not in result.stdout


def test_of_a_study_that_the_node_has_results_of(
    volume: Volume, objects: tuple[EncodedObject, ...], tmp_path: Path
) -> None:
    """Also where no destination was there to deliver them to."""
    study, storage = volume.series.study_instance_uid, tmp_path / "var"
    config = tmp_path / "node.toml"
    config.write_text('[node]\nstorage = "var"\n', encoding="utf-8")
    storage.mkdir()
    results = _in_outbox(storage, "key", objects)
    clock = SystemClock()
    received = instance(study=study, series=volume.series.series_instance_uid)
    with SqlStore(f"sqlite:///{storage / 'pulmo.sqlite'}", clock) as store:
        store.record_instance(received)
        detail = store.study(study)
        assert detail is not None
        store.complete_series(detail.series[0], [NewJob(pipeline="ct-nodules", destinations=())], None)
        before = runner.invoke(app, ["report", study, "--config", str(config)])
        job = store.claim_job("worker", now=clock.now(), lease_until=clock.now())
        assert job is not None
        store.job_rejected(job, "NO_LUNGS", "there are no lungs", results)
        after = runner.invoke(app, ["report", study, "--config", str(config)])
        store.record_instance(replace(received, sop_instance_uid="1.2.4"))
        late = runner.invoke(app, ["report", study, "--config", str(config)])
    assert before.exit_code == 1
    assert "neither a file nor a study that the node has results of" in before.output
    assert after.exit_code == 0, after.output
    assert "Nodule 1: malignancy 55 %" in after.output
    assert "voxels on 3 images" in after.output
    assert late.exit_code == 1  # the series has another image by now, and no results of that revision


def test_of_two_series_of_a_study_each_report_has_its_own_pictures(
    volume: Volume, objects: tuple[EncodedObject, ...], tmp_path: Path
) -> None:
    """Also where one has no nodules, so that its picture shows no image that it could be told by."""
    study, storage = volume.series.study_instance_uid, tmp_path / "var"
    (tmp_path / "node.toml").write_text('[node]\nstorage = "var"\n', encoding="utf-8")
    storage.mkdir()
    datasets, other_uid = chest_datasets(), "1.2.3.9"
    for dataset in datasets:
        dataset.StudyInstanceUID, dataset.SeriesInstanceUID = study, other_uid
    other = write_volume(datasets, tmp_path / "other")
    made = {
        volume.series.series_instance_uid: _in_outbox(storage, "one", objects),
        other_uid: _in_outbox(
            storage, "two", encode_findings(make_findings(other), other, make_context(other, options=ResultOptions()))
        ),
    }
    clock = SystemClock()
    with SqlStore(f"sqlite:///{storage / 'pulmo.sqlite'}", clock) as store:
        for uid in made:
            store.record_instance(instance(study=study, series=uid))
        detail = store.study(study)
        assert detail is not None
        for one in detail.series:
            store.complete_series(one, [NewJob(pipeline="ct-nodules", destinations=())], None)
        while (
            job := store.claim_job("worker", now=clock.now(), lease_until=clock.now() + timedelta(hours=1))
        ) is not None:
            store.job_rejected(job, "NO_LUNGS", "there are no lungs", made[job.series_instance_uid])
    shown = runner.invoke(app, ["report", study, "--config", str(tmp_path / "node.toml"), "--json"])
    assert shown.exit_code == 0, shown.output
    pictures = [
        [Path(picture["path"]).parent.name for picture in found["pictures"]] for found in json.loads(shown.stdout)
    ]
    assert sorted(pictures, key=len) == [["two"], ["one", "one"]]


def _in_outbox(storage: Path, key: str, objects: Sequence[EncodedObject]) -> tuple[ResultObject, ...]:
    """The objects as the results of a job."""
    items = [
        OutboxItem(
            kind=encoded.kind,
            sop_class_uid=encoded.sop_class_uid,
            sop_instance_uid=encoded.sop_instance_uid,
            series_instance_uid=encoded.series_instance_uid,
            content=encoded.content,
        )
        for encoded in objects
    ]
    return FileOutbox(storage).put(key, items, "")[0]


def test_what_is_no_report_is_refused(objects: tuple[EncodedObject, ...], tmp_path: Path) -> None:
    (tmp_path / "seg.dcm").write_bytes(objects[1].content)
    result = runner.invoke(app, ["report", str(tmp_path / "seg.dcm")])
    assert isinstance(result.exception, Permanent)
    assert "is no structured report" in str(result.exception)
