"""A CT and a radiograph of one patient go into one node; the results of every pipeline lie in a real Orthanc."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import pytest
import torch
from pydicom import Dataset, dcmread

from pulmo_models.cxr import lung_risk
from pulmo_models.cxr.imports import import_lung_risk
from pulmo_node import orthanc
from pulmo_node.app import Node
from pulmo_node.config import resolve
from pulmo_node.deliver import DicomSender
from pulmo_node.domain.deliveries import Peer
from pulmo_node.ports import StudyDetail
from tests.acceptance.test_orthanc import needs_orthanc, wait_for_end
from tests.ct_factory import write_datasets
from tests.cxr_factory import write_findings_set
from tests.encode_factory import chest_datasets, measurement_groups
from tests.fake_pipeline import fake_pipeline
from tests.models.test_lung_risk import Told
from tests.radiograph_factory import film, radiograph, write_series

__all__ = ["fake_pipeline"]

RADIOGRAPHS = ("cxr-findings", "cxr-lung-risk")
DESCRIPTIONS = {
    "ct-nodules": {"Pulmo nodules SR", "Pulmo nodules SEG", "Pulmo nodules key images"},
    "cxr-findings": {"Pulmo chest findings SR", "Pulmo chest findings heat maps"},
    "cxr-lung-risk": {"Pulmo lung risk SR"},
}


@pytest.fixture
def sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, str]]:
    """Tables of the radiograph pipelines with weights that are made up."""
    monkeypatch.setattr(lung_risk, "regressor", lambda architecture: Told())
    for number in lung_risk.MEMBERS:
        torch.save({"factor": torch.tensor([0.1 * number])}, tmp_path / f"Lung_Age_081221_{number}.pth")
    manifests = (write_findings_set(tmp_path / "findings"), import_lung_risk(tmp_path, tmp_path / "risk"))
    return {label: {"weights": str(path)} for label, path in zip(RADIOGRAPHS, manifests, strict=True)}


@pytest.fixture
def study(tmp_path: Path) -> list[Path]:
    """A CT series and a frontal film in one study."""
    ct, dx = chest_datasets(), radiograph(film())
    for keyword in ("StudyInstanceUID", "PatientID", "PatientName", "PatientBirthDate", "PatientSex", "StudyDate"):
        setattr(dx, keyword, ct[0].get(keyword))
    files = write_datasets(ct, tmp_path / "ct")
    dx_uid = ct[0].StudyInstanceUID
    paths = write_series(tmp_path / "dx", dx)
    assert dcmread(paths[0]).StudyInstanceUID == dx_uid
    return [*files, *paths]


def results(
    folder: Path, study: Sequence[Path], sets: dict[str, dict[str, str]], enabled: Sequence[str]
) -> tuple[StudyDetail, list[Dataset]]:
    """What became of the study, and what the node wrote, as Orthanc gives it back."""
    with orthanc.OrthancProcess(folder / "orthanc") as pacs:
        raw = {
            "node": {"port": 0, "storage": str(folder / "node")},
            "receive": {"quiet_seconds": 1.0},
            "analysis": {"isolated": False, "device": "cpu"},
            "peers": {"orthanc": {"ae_title": pacs.ae_title, "host": "127.0.0.1", "port": pacs.dicom_port}},
            "pipelines": {"ct-nodules": {}, **{label: sets[label] for label in enabled}},
            "rules": [
                {"modality": "CT", "pipelines": ["ct-nodules"]},
                {"modality": "[CD][RX]", "pipelines": list(enabled)},
            ],
        }
        with Node(resolve(raw, base=folder)) as node:
            peer = Peer(name="node", ae_title="PULMO", host="127.0.0.1", port=node.receiver.port)
            # The calling AE title is Orthanc's, so the results go there.
            assert all(sent.error is None for sent in DicomSender(pacs.ae_title).send_files(peer, study))
            detail = wait_for_end(node, seconds=300)
            written = [delivery.result.sop_instance_uid for delivery in detail.deliveries]
            return detail, [dcmread(BytesIO(content)) for content in pacs.objects(written).values()]


@pytest.mark.usefixtures("fake_pipeline")
def test_every_pipeline_has_series_of_its_own(
    tmp_path: Path, study: list[Path], sets: dict[str, dict[str, str]]
) -> None:
    needs_orthanc()
    detail, found = results(tmp_path, study, sets, RADIOGRAPHS)
    assert {job.pipeline: job.state for job in detail.jobs} == dict.fromkeys(DESCRIPTIONS, "DONE")
    series = {str(each.SeriesInstanceUID): (each.SeriesDescription, int(each.SeriesNumber)) for each in found}
    assert {description for description, _ in series.values()} == set().union(*DESCRIPTIONS.values())
    assert Counter(number for _, number in series.values()).most_common(1)[0][1] == 1
    reports = {each.SeriesDescription: each for each in found if each.Modality == "SR"}
    observers = {
        next(item.DeviceUID for item in report.ContributingEquipmentSequence if "DeviceUID" in item)
        for report in reports.values()
    }
    assert len(observers) == len(reports) == 3
    assert len(measurement_groups(reports["Pulmo chest findings SR"])) == 5
    assert len(measurement_groups(reports["Pulmo lung risk SR"])) == 1
    source = dcmread(study[-1], stop_before_pixels=True)
    for report in reports.values():
        assert (report.StudyInstanceUID, report.PatientID) == (source.StudyInstanceUID, source.PatientID)


@pytest.mark.usefixtures("fake_pipeline")
def test_a_disabled_pipeline_has_no_results_and_the_others_have_theirs(
    tmp_path: Path, study: list[Path], sets: dict[str, dict[str, str]]
) -> None:
    needs_orthanc()
    _, found = results(tmp_path, study, sets, ["cxr-lung-risk"])
    expected = DESCRIPTIONS["ct-nodules"] | DESCRIPTIONS["cxr-lung-risk"]
    assert {each.SeriesDescription for each in found} == expected
