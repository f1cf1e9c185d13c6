"""The node's main job against a real Orthanc: a chest CT goes in by storescu, SR and SEG come back beside it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import time
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset

from pulmo_models.types import Volume
from pulmo_node import assemble, orthanc
from pulmo_node.app import Node
from pulmo_node.config import Config, resolve
from pulmo_node.deliver import DicomSender
from pulmo_node.domain.browsing import Counts
from pulmo_node.ports import StudyDetail
from tests.conftest import ROOT, data_folder
from tests.ct_factory import write_datasets
from tests.encode_factory import chest_datasets
from tests.fake_pipeline import fake_pipeline
from tests.web.served import Samples, scrape

__all__ = ["fake_pipeline"]

pytestmark = pytest.mark.timeout(1800)

FINAL = {"DONE", "FAILED", "REJECTED", "QUARANTINED"}


def needs(program: str) -> str:
    found = shutil.which(program)
    if found is None:
        pytest.skip(f"{program} is not installed")
    return found


def needs_orthanc() -> None:
    missing = orthanc.available()
    if missing is not None:
        pytest.skip(missing)


def configuration(folder: Path, pacs: orthanc.OrthancProcess, **node: Any) -> Config:
    raw = {
        "web": {"enabled": True, "port": 0},
        "node": {"port": 0, "storage": str(folder / "node"), **node},
        "receive": {"quiet_seconds": 1.0},
        "peers": {"orthanc": {"ae_title": pacs.ae_title, "host": "127.0.0.1", "port": pacs.dicom_port}},
    }
    return resolve(raw, base=folder)


def wait_for_end(node: Node, seconds: float) -> StudyDetail:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        studies = node.store.studies()
        if studies and all(study.state in FINAL for study in studies):
            detail = node.store.study(studies[0].study_instance_uid)
            assert detail is not None
            return detail
        time.sleep(0.1)
    raise AssertionError(f"not done after {seconds} s: {node.store.studies()}")


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of the CPTAC series."""

    detail: StudyDetail
    objects: dict[str, Dataset]  # "sr", "seg" and the others, as Orthanc gave them back
    files: dict[str, Path]
    volume: Volume
    counts: Counts  # of the database, after the last delivery
    metrics: Samples  # at the same moment


@pytest.fixture(scope="module")
def cptac(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    needs_orthanc()
    storescu = needs("storescu")
    source = data_folder("ct_cptac_c3n-00247/dicom")
    folder = tmp_path_factory.mktemp("cptac")
    with (
        orthanc.OrthancProcess(folder / "orthanc") as pacs,
        Node(configuration(folder, pacs)) as node,
    ):
        # -xt proposes JPEG-LS, as the files are; the calling AE title is Orthanc's, so the results go there.
        command = [storescu, "-xt", "-aet", pacs.ae_title, "-aec", "PULMO", "+sd", "+r"]
        sent = subprocess.run(
            [*command, "127.0.0.1", str(node.receiver.port), str(source)],
            env={**os.environ, "TCP_NODELAY": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert sent.returncode == 0, sent.stderr
        detail = wait_for_end(node, seconds=1500)
        counts, (_, metrics) = node.store.counts(), scrape(node)
        written = {delivery.result.sop_instance_uid: delivery.result.kind for delivery in detail.deliveries}
        files = {}
        for number, (uid, content) in enumerate(pacs.objects(written).items()):
            path = folder / f"{number}.dcm"
            path.write_bytes(content)
            files[written[uid] if written[uid] in ("sr", "seg") else f"{written[uid]} {number}"] = path
    paths = [path for path in source.rglob("*") if path.is_file()]
    volume = assemble.assemble(paths, assemble.describe(paths))
    assert isinstance(volume, Volume)
    objects = {name: dcmread(path) for name, path in files.items()}
    return Outcome(detail=detail, objects=objects, files=files, volume=volume, counts=counts, metrics=metrics)


def test_the_job_is_done_and_everything_it_wrote_lies_in_orthanc(cptac: Outcome) -> None:
    assert cptac.detail.summary.state == "DONE"
    written = {delivery.result.sop_instance_uid for delivery in cptac.detail.deliveries}
    assert {str(found.SOPInstanceUID) for found in cptac.objects.values()} == written
    assert "sr" in cptac.objects


def test_the_metrics_are_the_counts_of_the_database(cptac: Outcome) -> None:
    metrics, (received,) = cptac.metrics, cptac.counts.received
    peer = (received.calling_ae_title, "new")
    sent = len(cptac.detail.deliveries)
    assert metrics["pulmo_instances_received_total"] == {peer: received.instances}
    assert received.instances == cptac.detail.summary.instances
    assert metrics["pulmo_received_bytes_total"] == {peer: received.size_bytes}
    assert metrics["pulmo_series"] == {("COMPLETE",): 1, ("RECEIVING",): 0}
    assert metrics["pulmo_jobs"] == {("", "DONE"): 1}
    assert metrics["pulmo_deliveries"][("orthanc", "SENT")] == sent > 0
    assert metrics["pulmo_queue_length"] == {("orthanc",): 0}
    assert metrics["pulmo_associations_total"][("accepted",)] == 1
    assert {stage for (stage,) in metrics["pulmo_stage_seconds_count"]} >= {"assemble", "stage1", "encode", "deliver"}


def test_the_objects_belong_to_the_study_and_its_patient(cptac: Outcome) -> None:
    source = dcmread(cptac.volume.frames[0].path, stop_before_pixels=True)
    for found in cptac.objects.values():
        for keyword in ("StudyInstanceUID", "PatientID", "PatientName", "StudyDate"):
            assert found.get(keyword) == source.get(keyword), keyword


def test_dciodvfy_finds_no_error(cptac: Outcome) -> None:
    program = needs("dciodvfy")
    for path in cptac.files.values():
        said = subprocess.run([program, str(path)], capture_output=True, text=True, check=False)
        lines = (said.stdout + said.stderr).splitlines()
        assert [line for line in lines if line.startswith("Error")] == []


def test_the_findings_of_the_database_are_those_of_the_segmentation(cptac: Outcome) -> None:
    (job,) = cptac.detail.jobs
    findings = json.loads(job.findings or "{}")
    if not findings["nodules"]:
        assert "seg" not in cptac.objects
        return
    segments = cptac.objects["seg"].SegmentSequence
    assert [nodule["tracking_uid"] for nodule in findings["nodules"]] == [s.TrackingUID for s in segments]


def test_the_known_nodule_is_among_the_segments(cptac: Outcome) -> None:
    """The spiculated nodule of about 2 cm in the right lower lobe (seen by eye): row 168, column 106, z -195 mm."""
    if "seg" not in cptac.objects:
        pytest.fail("no nodule was found at all")
    nearest_slice = int(np.argmin([abs(cptac.volume.affine[2, 3] + k * cptac.volume.affine[2, 0] + 195.0)
                                   for k in range(cptac.volume.hu.shape[0])]))  # fmt: skip
    place = cptac.volume.affine @ np.array([nearest_slice, 168, 106, 1.0])
    segmentation = hd.seg.segread(cptac.files["seg"])
    uids = [source.sop_instance_uid for source in cptac.volume.frames]
    nearest = float("inf")
    for segment in segmentation.SegmentSequence:
        mask = segmentation.get_pixels_by_source_instance(
            uids, segment_numbers=[segment.SegmentNumber], assert_missing_frames_are_empty=True
        )
        indices = np.argwhere(np.asarray(mask)[..., 0] > 0)
        centre = cptac.volume.affine @ np.array([*indices.mean(axis=0), 1.0])
        nearest = min(nearest, float(np.linalg.norm((centre - place)[:3])))
    assert nearest <= 10.0


@pytest.mark.usefixtures("fake_pipeline")
def test_the_configuration_of_the_readme_makes_orthanc_forward_and_show_results(tmp_path: Path) -> None:
    """Orthanc with config/orthanc.json and orthanc-forward.lua: a series sent to Orthanc gets its results there."""
    needs_orthanc()
    shipped = re.sub(r"^\s*//.*$", "", (ROOT / "config" / "orthanc.json").read_text(), flags=re.MULTILINE)
    extra = json.loads(shipped)
    extra["LuaScripts"] = [str(ROOT / "config" / "orthanc-forward.lua")]
    reserved = orthanc.OrthancProcess(tmp_path / "reserve")  # its free HTTP port serves as the node's
    extra["DicomModalities"]["pulmo"][2] = reserved.http_port
    datasets = chest_datasets()
    files = write_datasets(datasets, tmp_path / "ct")
    with (
        orthanc.OrthancProcess(tmp_path / "orthanc", extra={**extra, "StableAge": 1}) as pacs,
        Node(configuration(tmp_path, pacs, port=reserved.http_port)) as node,
    ):
        assert all(sent.error is None for sent in DicomSender("SCANNER").send_files(pacs.peer, files))
        detail = wait_for_end(node, seconds=180)
        assert detail.summary.study_instance_uid == datasets[0].StudyInstanceUID
        written = [delivery.result.sop_instance_uid for delivery in detail.deliveries]
        found = pacs.objects(written)
    assert list(found) == written
    assert sorted(dcmread(BytesIO(content)).Modality for content in found.values()) == ["OT", "OT", "SEG", "SR"]
