"""Sender and receiver against a real Orthanc."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from pathlib import Path

import pydicom
import pytest

from pulmo_node import orthanc
from pulmo_node.deliver import DicomSender
from pulmo_node.dimse import RESULT_SOP_CLASSES
from pulmo_node.domain.deliveries import ResultObject
from pulmo_node.orthanc import OrthancProcess
from tests.conftest import data_folder
from tests.network_factory import ct_slice, data_set_part, part10, receiving_node

SYNTAXES = "ct_edge_cases/ct_chest_one_slice_all_syntaxes"


@pytest.fixture(scope="module")
def pacs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OrthancProcess]:
    missing = orthanc.available()
    if missing:
        pytest.skip(missing)
    with OrthancProcess(tmp_path_factory.mktemp("orthanc")) as running:
        yield running


def rest(pacs: OrthancProcess, method: str, path: str, body: object = None) -> bytes:
    connection = http.client.HTTPConnection("127.0.0.1", pacs.http_port, timeout=300)
    try:
        connection.request(method, path, json.dumps(body), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        content = answer.read()
    finally:
        connection.close()
    assert answer.status == 200, content
    return content


def identifier_of(pacs: OrthancProcess, sop_instance_uid: str) -> str:
    (found,) = pacs.find("Instance", {"SOPInstanceUID": sop_instance_uid})
    return found


def file_of(pacs: OrthancProcess, sop_instance_uid: str, folder: Path) -> Path:
    """What Orthanc keeps of an instance."""
    path = folder / "from_orthanc.dcm"
    path.write_bytes(rest(pacs, "GET", f"/instances/{identifier_of(pacs, sop_instance_uid)}/file"))
    return path


def test_results_and_images_arrive_as_they_are(pacs: OrthancProcess, tmp_path: Path) -> None:
    sender = DicomSender("PULMO")
    assert sender.echo(pacs.peer) >= 0
    with sender.open(pacs.peer) as link:
        for number, sop_class in enumerate(RESULT_SOP_CLASSES):
            data_set = ct_slice(number)
            data_set.SOPClassUID = sop_class
            path = part10(tmp_path / f"{number}.dcm", data_set)
            result = ResultObject(
                kind="any",
                sop_class_uid=sop_class,
                sop_instance_uid=data_set.SOPInstanceUID,
                series_instance_uid=data_set.SeriesInstanceUID,
                path=path.name,
                sha256="",
            )
            assert link.store(path, result) == "0x0000: success"
            assert data_set_part(file_of(pacs, data_set.SOPInstanceUID, tmp_path)) == data_set_part(path)
    image = data_folder(f"{SYNTAXES}/JPEGLSLossless_1.2.840.10008.1.2.4.80.dcm")
    (sent,) = sender.send_files(pacs.peer, [image])
    assert sent.error is None
    assert data_set_part(file_of(pacs, sent.sop_instance_uid, tmp_path)) == data_set_part(image)
    rest(pacs, "DELETE", f"/instances/{identifier_of(pacs, sent.sop_instance_uid)}")


@pytest.mark.parametrize(
    "name",
    [
        "JPEGLSLossless_1.2.840.10008.1.2.4.80.dcm",
        "JPEG2000LosslessOnly_1.2.840.10008.1.2.4.90.dcm",
        "RLELossless_1.2.840.10008.1.2.5.dcm",
        "LittleEndianImplicit_1.2.840.10008.1.2.dcm",
    ],
)
def test_orthanc_sends_to_the_node_in_the_syntax_that_it_has(pacs: OrthancProcess, tmp_path: Path, name: str) -> None:
    image = data_folder(f"{SYNTAXES}/{name}")
    (sent,) = DicomSender("PULMO").send_files(pacs.peer, [image])
    assert sent.error is None
    found = identifier_of(pacs, sent.sop_instance_uid)
    with receiving_node(tmp_path) as node:
        rest(pacs, "PUT", "/modalities/node", {"AET": "PULMO", "Host": "127.0.0.1", "Port": node.port})
        done = json.loads(rest(pacs, "POST", "/modalities/node/store", {"Resources": [found], "Synchronous": True}))
        assert done["FailedInstancesCount"] == 0
        source = pydicom.dcmread(image)
        (path,) = node.stored(source.SeriesInstanceUID)
        kept = pydicom.dcmread(path)
        assert kept.file_meta.TransferSyntaxUID == source.file_meta.TransferSyntaxUID
        assert kept.PixelData == source.PixelData
    rest(pacs, "DELETE", f"/instances/{found}")  # every file of this folder has the same SOP Instance UID
