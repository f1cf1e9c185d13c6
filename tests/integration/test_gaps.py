"""Gap repair: before a series is complete, the PACS that sent it is asked for the rest."""

from __future__ import annotations

import json
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset
from pynetdicom import AE, evt

from pulmo_node import orthanc
from pulmo_node.app import Node
from pulmo_node.config import Config, resolve
from pulmo_node.deliver import DicomSender
from pulmo_node.dimse import listen
from pulmo_node.orthanc import OrthancProcess
from pulmo_node.ports import StudyDetail
from tests.fake_pipeline import fake_pipeline
from tests.integration.test_node import configuration, send, series_files, wait_for
from tests.network_factory import watched

pytestmark = pytest.mark.usefixtures("fake_pipeline")
__all__ = ["fake_pipeline"]

FIND, MOVE = "1.2.840.10008.5.1.4.1.2.2.1", "1.2.840.10008.5.1.4.1.2.2.2"


def node_configuration(folder: Path, peers: dict[str, Any]) -> Config:
    raw = configuration(folder).as_dict() | {"peers": peers, "rules": []}
    raw["receive"] |= {"gap_attempts": 2, "gap_delay_seconds": 0.05}
    return resolve(raw, base=folder)


def complete(detail: StudyDetail) -> bool:
    return {series.state.value for series in detail.series} == {"COMPLETE"}


class TestOrthanc:
    @pytest.mark.parametrize(("gap_repair", "instances"), [(True, 12), (False, 5)])
    def test_it_sends_a_part_and_the_node_fetches_the_rest(
        self, tmp_path: Path, gap_repair: bool, instances: int
    ) -> None:
        missing = orthanc.available()
        if missing:
            pytest.skip(missing)
        study, files = series_files(tmp_path / "ct")
        assert len(files) == 12
        with OrthancProcess(tmp_path / "orthanc") as server:
            assert all(sent.error is None for sent in DicomSender("CT").send_files(server.peer, files))
            peer = {"ae_title": "ORTHANC", "host": "127.0.0.1", "port": server.dicom_port, "gap_repair": gap_repair}
            with Node(node_configuration(tmp_path, {"pacs": peer})) as node:

                def rest(method: str, path: str, body: object) -> Any:
                    data = json.dumps(body).encode()
                    call = urllib.request.Request(server.url + path, data=data, method=method)  # noqa: S310
                    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
                    with opener.open(call, timeout=180) as answer:
                        return json.loads(answer.read() or b"null")

                rest("PUT", "/modalities/pulmo", ["PULMO", "127.0.0.1", node.receiver.port])
                some = server.find("Instance", {"StudyInstanceUID": study})[:5]
                rest("POST", "/modalities/pulmo/store", some)
                detail = wait_for(node, study, complete)
                (series,) = detail.series
                assert (series.number_of_instances, series.revision) == (instances, 1)
                kept = node.store.instance_uids(series.series_instance_uid)
        everything = {str(dcmread(path, stop_before_pixels=True).SOPInstanceUID) for path in files}
        assert kept == everything if gap_repair else kept < everything


class Pacs:
    """Answers queries with what it is told to know, and cannot send anything."""

    def __init__(self, known: list[str], *, count: int | None = None) -> None:
        self.known = known
        self.count = count
        self.answering = threading.Event()
        self.answering.set()
        self.levels: list[str] = []
        self.wanted: list[set[str]] = []

    def on_find(self, event: evt.Event) -> Iterator[tuple[int, Dataset | None]]:
        level = event.identifier.QueryRetrieveLevel
        self.levels.append(level)
        self.answering.wait(180.0)
        found = Dataset()
        found.QueryRetrieveLevel = level
        if level == "SERIES":
            if self.count is not None:
                found.NumberOfSeriesRelatedInstances = self.count
            yield 0xFF00, found
            return
        for uid in self.known:
            found.SOPInstanceUID = uid
            yield 0xFF00, found

    def on_move(self, event: evt.Event) -> Iterator[Any]:
        uids = event.identifier.SOPInstanceUID
        self.wanted.append({uids} if isinstance(uids, str) else set(uids))
        yield None, None

    @contextmanager
    def listening(self, *, moves: bool = True) -> Iterator[dict[str, Any]]:
        entity = AE(ae_title="PACS")
        entity.add_supported_context(FIND)
        if moves:
            entity.add_supported_context(MOVE)
        handlers: list[Any] = [(evt.EVT_C_FIND, self.on_find), (evt.EVT_C_MOVE, self.on_move)]
        server = listen(entity, ("127.0.0.1", 0), handlers)
        try:
            port = server.server_address[1]
            yield {"pacs": {"ae_title": "PACS", "host": "127.0.0.1", "port": port, "gap_repair": True}}
        finally:
            server.shutdown()


def uids_of(files: list[Path]) -> list[str]:
    return [str(dcmread(path, stop_before_pixels=True).SOPInstanceUID) for path in files]


def received(tmp_path: Path, peers: dict[str, Any], files: list[Path], study: str) -> tuple[int, str]:
    """Number of instances of the series once it is complete, and what was logged."""
    with watched() as log, Node(node_configuration(tmp_path, peers)) as node:
        send(node, files, calling="PACS")
        (series,) = wait_for(node, study, complete).series
        return series.number_of_instances, "\n".join(log.lines)


class TestScripted:
    def test_what_it_cannot_send_is_done_without(self, tmp_path: Path) -> None:
        study, files = series_files(tmp_path / "ct")
        known = uids_of(files)
        pacs = Pacs(known, count=12)
        with pacs.listening() as peers:
            number, log = received(tmp_path, peers, files[:10], study)
        assert number == 10
        assert pacs.wanted == [set(known[10:])] * 2
        assert "2 instances that pacs has are missing" in log
        assert "0xA801 to C-MOVE; done without" in log

    def test_nothing_missing_is_one_question(self, tmp_path: Path) -> None:
        study, files = series_files(tmp_path / "ct")
        pacs = Pacs(uids_of(files), count=12)
        with pacs.listening() as peers:
            number, log = received(tmp_path, peers, files, study)
        assert (number, pacs.levels, pacs.wanted) == (12, ["SERIES"], [])
        assert "done without" not in log

    def test_a_pacs_that_does_not_count(self, tmp_path: Path) -> None:
        study, files = series_files(tmp_path / "ct")
        pacs = Pacs(uids_of(files))
        with pacs.listening() as peers:
            assert received(tmp_path, peers, files, study)[0] == 12
        assert pacs.levels == ["SERIES", "IMAGE"]

    def test_a_pacs_without_c_move(self, tmp_path: Path) -> None:
        study, files = series_files(tmp_path / "ct")
        with Pacs(uids_of(files), count=12).listening(moves=False) as peers:
            number, log = received(tmp_path, peers, files[:11], study)
        assert number == 11
        assert "accepts none of the SOP classes offered; done without" in log

    def test_a_pacs_that_is_down(self, tmp_path: Path) -> None:
        study, files = series_files(tmp_path / "ct")
        with Pacs([]).listening() as peers:
            pass
        number, log = received(tmp_path, peers, files, study)
        assert number == 12
        assert "cannot be reached; done without" in log

    def test_other_senders_are_not_held_up(self, tmp_path: Path) -> None:
        slow_study, slow = series_files(tmp_path / "slow")
        pacs = Pacs(uids_of(slow), count=12)
        pacs.answering.clear()
        other_study, others = series_files(tmp_path / "other")
        with pacs.listening() as peers, Node(node_configuration(tmp_path, peers)) as node:
            send(node, slow, calling="PACS")
            send(node, others, calling="SCANNER")
            wait_for(node, other_study, complete)
            slow_detail = node.store.study(slow_study)
            assert slow_detail is not None
            assert not complete(slow_detail)
            pacs.answering.set()
            wait_for(node, slow_study, complete)
