"""A CT and a radiograph of one patient, every pipeline of the node, and what a node with them sends to an Orthanc."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import torch
from pydicom import Dataset, dcmread

from pulmo_models import registry
from pulmo_models.ct import box_nodules, lung_region
from pulmo_models.cxr import lung_risk
from pulmo_models.cxr.imports import LUNG_RISK_FILE, import_lung_risk
from pulmo_models.cxr.networks import ARCHITECTURES as CLASSIFIERS
from pulmo_models.nets.lung_boxes import ARCHITECTURES as REGRESSORS
from pulmo_models.nets.retinanet3d import RetinaNet3D
from pulmo_node.app import Node
from pulmo_node.config import resolve
from pulmo_node.deliver import DicomSender
from pulmo_node.domain.deliveries import Peer
from pulmo_node.orthanc import OrthancProcess
from pulmo_node.ports import StudyDetail
from tests.acceptance.test_orthanc import wait_for_end
from tests.conftest import data_folder
from tests.ct_factory import ct_datasets, write_datasets
from tests.cxr_factory import write_findings_set
from tests.fake_pipeline import _replaced
from tests.made_up_sets import drawing_regressor, write_network_set
from tests.models.retinanet_factory import fill
from tests.models.test_box_nodules import BlobDetector
from tests.models.test_lung_boxes import reader
from tests.models.test_lung_risk import Told
from tests.models.test_lungs import ellipsoid, thorax
from tests.models.test_nodules import NODULES
from tests.radiograph_factory import film, radiograph, write_series

DESCRIPTIONS: Mapping[str, frozenset[str]] = {
    "ct-nodules": frozenset({"Pulmo nodules SR", "Pulmo nodules SEG", "Pulmo nodules key images"}),
    "ct-retinanet": frozenset({"Pulmo RetinaNet nodules SR", "Pulmo RetinaNet nodules key images"}),
    "ct-lungs": frozenset({"Pulmo lungs SR", "Pulmo lungs SEG"}),
    "cxr-findings": frozenset({"Pulmo chest findings SR", "Pulmo chest findings heat maps"}),
    "cxr-lung-risk": frozenset({"Pulmo lung risk SR"}),
}
"""Series of the results of each pipeline."""


Tables = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of the study, and every object that the node wrote, as Orthanc gives it back."""

    detail: StudyDetail
    objects: tuple[Dataset, ...]

    @property
    def reports(self) -> dict[str, Dataset]:
        """The SRs by the description of their series."""
        return {str(each.SeriesDescription): each for each in self.objects if each.Modality == "SR"}


def analysed(folder: Path, pacs: OrthancProcess, study: Sequence[Path], tables: Tables) -> Outcome:
    """Send a study to a node with these pipelines, whose results go to `pacs`."""
    raw = {
        "node": {"port": 0, "storage": str(folder / "node")},
        "receive": {"quiet_seconds": 1.0},
        "analysis": {"isolated": False, "device": "cpu"},
        "peers": {"orthanc": {"ae_title": pacs.ae_title, "host": "127.0.0.1", "port": pacs.dicom_port}},
        "pipelines": {label: dict(table) for label, table in tables.items()},
        "rules": [
            {"modality": "CT", "pipelines": [label for label in tables if label.startswith("ct-")]},
            {"modality": "[CD][RX]", "pipelines": [label for label in tables if label.startswith("cxr-")]},
        ],
    }
    with Node(resolve(raw, base=folder)) as node:
        peer = Peer(name="node", ae_title="PULMO", host="127.0.0.1", port=node.receiver.port)
        # The calling AE title is Orthanc's, so the results go there.
        assert all(sent.error is None for sent in DicomSender(pacs.ae_title).send_files(peer, study))
        detail = wait_for_end(node, seconds=3000)
    written = [delivery.result.sop_instance_uid for delivery in detail.deliveries]
    return Outcome(
        detail=detail, objects=tuple(dcmread(BytesIO(content)) for content in pacs.objects(written).values())
    )


@contextmanager
def stand_ins(folder: Path) -> Iterator[dict[str, dict[str, Any]]]:
    """Tables of all pipelines, with something simple in the place of the networks that take long."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(registry._ENTRIES, "ct-nodules", _replaced())
        patch.setattr(box_nodules, "MAX_NODULES", 2)
        read = box_nodules.load_network
        patch.setattr(box_nodules, "load_network", lambda spec, network: read(spec, network) and BlobDetector())
        patch.setattr(lung_region, "load_localiser", lambda name, device: reader())
        patch.setattr(lung_risk, "regressor", lambda architecture: Told())
        for number in lung_risk.MEMBERS:
            torch.save({"factor": torch.tensor([0.1 * number])}, folder / LUNG_RISK_FILE.format(number))
        detector = write_network_set(folder, "ct-retinanet", {"detector": RetinaNet3D()}, "detector")
        smallest = {"efficientnet_b0": drawing_regressor("efficientnet_b0")}
        regressors = write_network_set(folder, "ct-lungs", smallest, "regressors")
        yield {
            "ct-nodules": {},
            "ct-retinanet": {"weights": str(detector)},
            "ct-lungs": {"weights": str(regressors)},
            "cxr-findings": {"weights": str(write_findings_set(folder / "findings"))},
            "cxr-lung-risk": {"weights": str(import_lung_risk(folder, folder / "risk"))},
        }


@contextmanager
def real_networks(folder: Path) -> Iterator[dict[str, dict[str, Any]]]:
    """Tables of all pipelines with the networks that they are made of: ct-nodules as shipped, the others untrained.

    Of what the untrained detector takes for nodules the four best are reported.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(box_nodules, "MAX_NODULES", 4)
        for number, (architecture, _) in lung_risk.MEMBERS.items():
            torch.manual_seed(number)
            torch.save(lung_risk.regressor(architecture).state_dict(), folder / LUNG_RISK_FILE.format(number))
        detector = write_network_set(folder, "ct-retinanet", {"detector": fill(RetinaNet3D())}, "detector")
        both = {name: drawing_regressor(name) for name in REGRESSORS}
        regressors = write_network_set(folder, "ct-lungs", both, "regressors")
        yield {
            "ct-nodules": {},
            "ct-retinanet": {"weights": str(detector), "score_threshold": 0.02},
            "ct-lungs": {"weights": str(regressors)},
            "cxr-findings": {"weights": str(write_findings_set(folder / "findings", tuple(CLASSIFIERS)))},
            "cxr-lung-risk": {"weights": str(import_lung_risk(folder, folder / "risk"))},
        }


def made_study(folder: Path) -> list[Path]:
    """A thorax with a nodule in each lung, and a drawn film."""
    hu, _ = thorax()
    for centre in NODULES:
        hu[ellipsoid(hu.shape, centre, (8, 8, 8))] = 60.0
    ct = ct_datasets(hu[10:50].astype(float), spacing_mm=(4.0, 2.0, 2.0))
    dx = _of_one_patient(radiograph(film(640, 560)), ct[0])
    return [*write_datasets(ct, folder / "ct"), *write_series(folder / "dx", dx)]


def real_study(folder: Path) -> list[Path]:
    """Forty slices of a real CT around its nodule, and a real film that is given to the same patient."""
    paths = sorted(data_folder("ct_cptac_c3n-00247/dicom").iterdir())
    headers = {path: dcmread(path, stop_before_pixels=True) for path in paths}
    ordered = sorted(paths, key=lambda path: float(headers[path].ImagePositionPatient[2]))
    dx = dcmread(data_folder("cxr_dicom/dx_chest_pa_monochrome1_j2k_966_fixed.dcm"))
    dx = _of_one_patient(dx, headers[ordered[0]])
    folder.mkdir(parents=True, exist_ok=True)
    dx.save_as(folder / "film.dcm")
    return [*ordered[12:52], folder / "film.dcm"]


def _of_one_patient(image: Dataset, other: Dataset) -> Dataset:
    for keyword in ("StudyInstanceUID", "PatientID", "PatientName", "PatientBirthDate", "PatientSex", "StudyDate"):
        setattr(image, keyword, other.get(keyword, ""))
    return image
