"""Storage commitment as SCU: a delivery is done only once the PACS has said that it keeps the object."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from queue import Queue
from typing import Any

import pytest
from pydicom.dataset import Dataset
from pydicom.uid import ImplicitVRLittleEndian
from pynetdicom import AE, build_context, build_role, evt
from pynetdicom.association import Association

from pulmo_node import orthanc
from pulmo_node.app import Node
from pulmo_node.config import resolve
from pulmo_node.dimse import STORAGE_COMMITMENT, STORAGE_COMMITMENT_INSTANCE, _keep_answers, prepare_connection
from pulmo_node.domain.deliveries import DeliveryState
from pulmo_node.domain.jobs import DELIVERY_FAILED
from pulmo_node.errors import InvalidTransition, StaleJob
from pulmo_node.orthanc import OrthancProcess
from pulmo_node.ports import StudyDetail
from pulmo_node.store import SqlStore
from pulmo_node.testing import SmallPacs
from tests.fake_pipeline import fake_pipeline
from tests.integration.store_scene import STUDY, Scene, SetClock
from tests.integration.test_node import configuration, in_state, running, send, series_files, wait_for

pytestmark = pytest.mark.usefixtures("fake_pipeline")
__all__ = ["fake_pipeline"]

WAIT_SECONDS = 180.0
LIMIT = timedelta(minutes=5)
OFFERED = {"storage_commitment": "if_offered"}
UNHURRIED = {"commitment_seconds": 300.0}


class CommittingPacs(SmallPacs):
    """A PACS that takes requests for storage commitment; the test says what becomes of each."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._entity.add_supported_context(STORAGE_COMMITMENT)
        self.requested: Queue[tuple[Association, Dataset]] = Queue()
        self.statuses: list[int] = []  # of the next answers; then Success
        self.abort_next = False
        self.offers_no_more = False  # from the next abort on

    def start(self) -> SmallPacs:
        super().start()
        assert self._server is not None
        self._server.bind(evt.EVT_N_ACTION, self._on_n_action)
        return self

    def _on_n_action(self, event: evt.Event) -> tuple[int, None]:
        if self.abort_next:
            self.abort_next = False
            if self.offers_no_more:
                assert self._server is not None
                kept = [one for one in self._server.contexts if one.abstract_syntax != STORAGE_COMMITMENT]
                self._server.contexts = kept
            event.assoc.abort()
        _keep_answers(event.assoc)  # to a report on this association
        self.requested.put((event.assoc, event.action_information))
        return (self.statuses.pop(0) if self.statuses else 0), None

    def next_request(self) -> tuple[Association, Dataset]:
        return self.requested.get(timeout=WAIT_SECONDS)


@pytest.fixture
def pacs(tmp_path: Path) -> Iterator[CommittingPacs]:
    with CommittingPacs(tmp_path / "pacs") as one:
        assert isinstance(one, CommittingPacs)
        yield one


def peers(pacs: SmallPacs, **changes: Any) -> dict[str, Any]:
    return {"pacs0": {"ae_title": pacs.ae_title, "host": "127.0.0.1", "port": pacs.port, **OFFERED, **changes}}


def report_on(request: Dataset, failed: dict[str, int] | None = None) -> tuple[int, Dataset]:
    """The report that everything is kept but the failed instances."""
    failed = failed or {}
    information = Dataset()
    information.TransactionUID = request.TransactionUID
    kept = [item for item in request.ReferencedSOPSequence if item.ReferencedSOPInstanceUID not in failed]
    information.ReferencedSOPSequence = kept
    if failed:
        information.FailedSOPSequence = []
        for item in request.ReferencedSOPSequence:
            if item.ReferencedSOPInstanceUID in failed:
                lost = Dataset()
                lost.ReferencedSOPClassUID = item.ReferencedSOPClassUID
                lost.ReferencedSOPInstanceUID = item.ReferencedSOPInstanceUID
                lost.FailureReason = failed[item.ReferencedSOPInstanceUID]
                information.FailedSOPSequence.append(lost)
    return (2 if failed else 1), information


def tell(association: Association, event_type: int, information: Dataset, instance: str = "") -> int:
    answer, _ = association.send_n_event_report(
        information, event_type, STORAGE_COMMITMENT, instance or STORAGE_COMMITMENT_INSTANCE
    )
    return int(answer.Status)


def call_and_tell(
    node: Node, event_type: int, information: Dataset, instance: str = "", *, with_role: bool = True
) -> int:
    """The report on an association of its own, as a PACS opens it."""
    entity = AE(ae_title="SMALLPACS")
    entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = WAIT_SECONDS
    contexts = [build_context(STORAGE_COMMITMENT, ImplicitVRLittleEndian)]
    roles = [build_role(STORAGE_COMMITMENT, scp_role=True)] if with_role else []
    port = node.receiver.port
    handlers: list[evt.EventHandlerType] = [(evt.EVT_CONN_OPEN, prepare_connection, [WAIT_SECONDS])]
    association = entity.associate("127.0.0.1", port, contexts, ae_title="PULMO", ext_neg=roles, evt_handlers=handlers)
    assert association.is_established
    try:
        return tell(association, event_type, information, instance)
    finally:
        association.release()


def states(detail: StudyDetail) -> set[str]:
    return {delivery.state.value for delivery in detail.deliveries}


def all_sent(detail: StudyDetail) -> bool:
    return bool(detail.deliveries) and states(detail) == {"SENT"}


def some(state: str) -> Callable[[StudyDetail], bool]:
    return lambda detail: state in states(detail)


class TestCommitted:
    def test_on_the_association_of_the_request(self, tmp_path: Path, pacs: CommittingPacs) -> None:
        study, files = series_files(tmp_path / "ct")
        delivery = {**UNHURRIED, "commitment_linger_seconds": 60.0}
        with running(tmp_path, pacs, peers=peers(pacs), delivery=delivery) as node:
            send(node, files)
            association, request = pacs.next_request()
            assert in_state("ENCODED")(wait_for(node, study, all_sent)), "sent is not delivered"
            assert {item.ReferencedSOPInstanceUID for item in request.ReferencedSOPSequence} == {
                stored.sop_instance_uid for stored in pacs.stored
            }
            assert tell(association, *report_on(request)) == 0
            detail = wait_for(node, study, in_state("DONE"))
        assert states(detail) == {"COMMITTED"}
        assert len(pacs.stored) == 2

    @pytest.mark.parametrize("with_role", [True, False])
    def test_by_a_call_to_the_receiver(self, tmp_path: Path, pacs: CommittingPacs, with_role: bool) -> None:
        study, files = series_files(tmp_path / "ct")
        delivery = {**UNHURRIED, "commitment_linger_seconds": 0.0}
        with running(tmp_path, pacs, peers=peers(pacs), delivery=delivery) as node:
            send(node, files)
            _, request = pacs.next_request()
            report = report_on(request)
            assert call_and_tell(node, *report, with_role=with_role) == 0
            detail = wait_for(node, study, in_state("DONE"))
            assert states(detail) == {"COMMITTED"}
            assert call_and_tell(node, *report) == 0, "told once more"

    def test_after_a_restart(self, tmp_path: Path, pacs: CommittingPacs) -> None:
        study, files = series_files(tmp_path / "ct")
        delivery = {**UNHURRIED, "commitment_linger_seconds": 0.0}
        with running(tmp_path, pacs, peers=peers(pacs), delivery=delivery) as node:
            send(node, files)
            _, request = pacs.next_request()
            wait_for(node, study, all_sent)
        with running(tmp_path, pacs, peers=peers(pacs), delivery=delivery) as node:
            assert call_and_tell(node, *report_on(request)) == 0
            wait_for(node, study, in_state("DONE"))
        assert len(pacs.stored) == 2

    @pytest.mark.parametrize(("setting", "offered"), [("off", True), ("if_offered", False)])
    def test_sent_is_delivered_where_it_is_not_wanted_or_not_offered(
        self, tmp_path: Path, setting: str, offered: bool
    ) -> None:
        study, files = series_files(tmp_path / "ct")
        kind = CommittingPacs if offered else SmallPacs
        with kind(tmp_path / "pacs") as pacs:
            configured = peers(pacs, storage_commitment=setting)
            with running(tmp_path, pacs, peers=configured) as node:
                send(node, files)
                assert states(wait_for(node, study, in_state("DONE"))) == {"SENT"}
            assert not isinstance(pacs, CommittingPacs) or pacs.requested.empty()


class TestNotCommitted:
    def test_what_failed_is_sent_again(self, tmp_path: Path, pacs: CommittingPacs) -> None:
        study, files = series_files(tmp_path / "ct")
        delivery = {**UNHURRIED, "commitment_linger_seconds": 0.0}
        with running(tmp_path, pacs, peers=peers(pacs), delivery=delivery) as node:
            send(node, files)
            _, request = pacs.next_request()
            lost = request.ReferencedSOPSequence[0].ReferencedSOPInstanceUID
            assert call_and_tell(node, *report_on(request, {lost: 0x0112})) == 0
            _, again = pacs.next_request()
            assert [item.ReferencedSOPInstanceUID for item in again.ReferencedSOPSequence] == [lost]
            assert again.TransactionUID != request.TransactionUID
            waiting = wait_for(node, study, some("COMMITTED"))
            assert waiting.summary.state == "ENCODED"
            assert call_and_tell(node, *report_on(again)) == 0
            detail = wait_for(node, study, in_state("DONE"))
        assert states(detail) == {"COMMITTED"}
        assert [stored.sop_instance_uid for stored in pacs.stored].count(lost) == 2
        assert len(pacs.stored) == 3
        assert any("0x0112" in (event.detail or "") for event in detail.events if event.event == "not committed")

    def test_what_the_report_does_not_name_is_sent_again(self, tmp_path: Path, pacs: CommittingPacs) -> None:
        _, files = series_files(tmp_path / "ct")
        delivery = {**UNHURRIED, "commitment_linger_seconds": 0.0}
        with running(tmp_path, pacs, peers=peers(pacs), delivery=delivery) as node:
            send(node, files)
            _, request = pacs.next_request()
            forgotten = request.ReferencedSOPSequence.pop()
            assert call_and_tell(node, *report_on(request)) == 0
            _, again = pacs.next_request()
            (item,) = again.ReferencedSOPSequence
            assert item.ReferencedSOPInstanceUID == forgotten.ReferencedSOPInstanceUID

    def test_no_report_in_time(self, tmp_path: Path, pacs: CommittingPacs) -> None:
        study, files = series_files(tmp_path / "ct")
        limits = {"commitment_seconds": 0.2, "commitment_linger_seconds": 0.0, "max_attempts": 2}
        with running(tmp_path, pacs, peers=peers(pacs), delivery=limits) as node:
            send(node, files)
            detail = wait_for(node, study, in_state("FAILED"))
            assert {delivery.reason for delivery in detail.deliveries} == {
                "no storage commitment in time (attempt 2 of 2)"
            }
            _, first = pacs.next_request()
            assert call_and_tell(node, *report_on(first)) == 0x0115, "nothing waits for it any more"
        assert len(pacs.stored) == 4

    def test_the_request_is_refused(self, tmp_path: Path, pacs: CommittingPacs) -> None:
        study, files = series_files(tmp_path / "ct")
        pacs.statuses = [0x0110]
        delivery = {**UNHURRIED, "commitment_linger_seconds": 0.0}
        with running(tmp_path, pacs, peers=peers(pacs), delivery=delivery) as node:
            send(node, files)
            pacs.next_request()
            _, again = pacs.next_request()
            assert call_and_tell(node, *report_on(again)) == 0
            detail = wait_for(node, study, some("COMMITTED"))
        assert any("0x0110" in (event.detail or "") for event in detail.events if event.event == "not committed")

    def test_a_request_lost_with_its_association_is_made_again_without_the_objects(
        self, tmp_path: Path, pacs: CommittingPacs
    ) -> None:
        study, files = series_files(tmp_path / "ct")
        pacs.abort_next = True
        delivery = {**UNHURRIED, "commitment_linger_seconds": 0.0}
        with running(tmp_path, pacs, peers=peers(pacs), delivery=delivery) as node:
            send(node, files)
            _, lost = pacs.next_request()
            _, again = pacs.next_request()
            assert lost.TransactionUID != again.TransactionUID
            assert call_and_tell(node, *report_on(again)) == 0
            wait_for(node, study, in_state("DONE"))
        assert len(pacs.stored) == 2

    def test_a_peer_that_offers_it_no_more(self, tmp_path: Path, pacs: CommittingPacs) -> None:
        """What waits to be asked for counts as delivered, as anything sent to such a peer does."""
        study, files = series_files(tmp_path / "ct")
        pacs.abort_next = pacs.offers_no_more = True
        with running(tmp_path, pacs, peers=peers(pacs), delivery=UNHURRIED) as node:
            send(node, files)
            pacs.next_request()
            detail = wait_for(node, study, in_state("DONE"))
        assert states(detail) == {"SENT"}
        assert pacs.requested.empty()


@pytest.mark.parametrize(
    ("event_type", "instance", "transaction_uid", "status"),
    [(1, "", "2.25.1", 0x0115), (1, "", None, 0x0115), (3, "", "2.25.1", 0x0113), (1, "1.2.3", "2.25.1", 0x0117)],
)
def test_reports_that_are_refused(
    tmp_path: Path, pacs: CommittingPacs, event_type: int, instance: str, transaction_uid: str | None, status: int
) -> None:
    information = Dataset()
    if transaction_uid:
        information.TransactionUID = transaction_uid
    information.ReferencedSOPSequence = []
    with running(tmp_path, pacs, peers=peers(pacs)) as node:
        assert call_and_tell(node, event_type, information, instance) == status


class TestStore:
    @pytest.fixture
    def scene(self, database_url: str) -> Iterator[Scene]:
        clock = SetClock()
        with SqlStore(database_url, clock) as store:
            yield Scene(store, clock)

    def sent(self, scene: Scene, *kinds: str) -> None:
        scene.encoded(*kinds)
        for delivery in scene.claim_deliveries():
            scene.store.delivery_sent(delivery, "0x0000", scene.clock.now() + LIMIT)

    def test_the_job_waits_for_all(self, scene: Scene) -> None:
        self.sent(scene, "sr", "seg")
        assert scene.store.uncommitted("pacs") == 2
        assert scene.store.uncommitted("another") == 0
        first, second = scene.store.commitment_asked("pacs", "2.25.1")
        assert scene.store.uncommitted("pacs") == 0
        assert scene.store.commitment_asked("pacs", "2.25.2") == ()
        scene.store.delivery_committed(first)
        assert scene.state() == "ENCODED"
        scene.store.delivery_committed(second)
        assert scene.state() == "DONE"
        assert scene.store.overdue_commitments("pacs", scene.clock.advance(hours=9)) == ()

    def test_the_limit(self, scene: Scene) -> None:
        self.sent(scene)
        scene.store.commitment_asked("pacs", "2.25.1")
        assert scene.store.overdue_commitments("pacs", scene.clock.advance(seconds=299)) == ()
        (late,) = scene.store.overdue_commitments("pacs", scene.clock.advance(seconds=1))
        again = scene.clock.now() + timedelta(seconds=10)
        assert scene.store.delivery_not_committed(late, "no word", again)
        with pytest.raises(StaleJob):
            scene.store.delivery_not_committed(late, "no word", again)
        with pytest.raises(InvalidTransition):
            scene.store.delivery_committed(replace(late, state=DeliveryState.PENDING))
        assert scene.claim_deliveries() == ()
        scene.clock.advance(seconds=10)
        (delivery,) = scene.claim_deliveries()
        assert (delivery.attempts, delivery.reason, delivery.commitment_until) == (1, "no word", None)
        assert scene.store.deliveries_of_transaction("2.25.1") == ()

    def test_a_clock_that_was_set_back_lets_nothing_wait_for_years(self, scene: Scene) -> None:
        self.sent(scene)
        scene.store.commitment_asked("pacs", "2.25.1")
        assert scene.store.overdue_commitments("pacs", scene.clock.advance(minutes=-30)) == ()
        assert len(scene.store.overdue_commitments("pacs", scene.clock.advance(days=-3650))) == 1

    def test_given_up(self, scene: Scene) -> None:
        self.sent(scene)
        (delivery,) = scene.store.commitment_asked("pacs", "2.25.1")
        assert scene.store.delivery_not_committed(delivery, "often enough", None)
        assert (scene.state(), scene.job().reason_code) == ("FAILED", DELIVERY_FAILED)

    def test_a_superseded_result_is_not_sent_again(self, scene: Scene) -> None:
        self.sent(scene)
        (delivery,) = scene.store.commitment_asked("pacs", "2.25.1")
        scene.receive(2)
        assert not scene.store.delivery_not_committed(delivery, "no word", scene.clock.now())
        assert scene.deliveries() == {("sr", "pacs"): "SENT"}
        assert scene.store.overdue_commitments("pacs", scene.clock.advance(hours=1)) == ()

    def test_delivered_anew_by_request(self, scene: Scene) -> None:
        self.sent(scene)
        scene.store.commitment_asked("pacs", "2.25.1")
        assert scene.store.requeue(study_instance_uid=STUDY, redeliver=True) == 1
        assert scene.store.overdue_commitments("pacs", scene.clock.advance(hours=1)) == ()
        assert scene.store.deliveries_of_transaction("2.25.1") == ()
        scene.deliver()
        assert scene.state() == "DONE"

    def test_lost_and_waived(self, scene: Scene) -> None:
        self.sent(scene)
        scene.store.commitment_asked("pacs", "2.25.1")
        scene.store.commitment_not_asked("2.25.1")
        assert scene.store.uncommitted("pacs") == 1
        assert scene.store.commitment_waived("pacs") == 1
        assert scene.state() == "DONE"


class TestOrthanc:
    @pytest.fixture
    def script(self, tmp_path: Path) -> Path:
        """Orthanc loses every SEG as soon as it has it."""
        path = tmp_path / "lose.lua"
        path.write_text(
            "function OnStoredInstance(id, tags, metadata)\n"
            "  if tags['Modality'] == 'SEG' then RestApiDelete('/instances/' .. id) end\n"
            "end\n"
        )
        return path

    @pytest.mark.parametrize("losing", [False, True])
    def test_what_it_reports(self, tmp_path: Path, script: Path, losing: bool) -> None:
        missing = orthanc.available()
        if missing:
            pytest.skip(missing)
        study, files = series_files(tmp_path / "ct")
        extra = {"LuaScripts": [str(script)]} if losing else {}
        with OrthancProcess(tmp_path / "orthanc", extra=extra) as server:
            peer = {"ae_title": "ORTHANC", "host": "127.0.0.1", "port": server.dicom_port, **OFFERED}
            rules = [{"modality": "CT", "pipelines": ["ct-nodules"], "destinations": ["pacs0"]}]
            raw = configuration(tmp_path).as_dict() | {"peers": {"pacs0": peer}, "rules": rules}
            raw["delivery"] |= {**UNHURRIED, "max_attempts": 2}
            with Node(resolve(raw, base=tmp_path)) as node:
                body = json.dumps(["PULMO", "127.0.0.1", node.receiver.port]).encode()
                call = urllib.request.Request(server.url + "/modalities/pulmo", data=body, method="PUT")  # noqa: S310
                urllib.request.build_opener(urllib.request.ProxyHandler({})).open(call, timeout=WAIT_SECONDS).close()
                send(node, files)
                detail = wait_for(node, study, in_state("FAILED" if losing else "DONE"))
        found = {delivery.result.kind: delivery.state.value for delivery in detail.deliveries}
        assert found == {"sr": "COMMITTED", "seg": "FAILED" if losing else "COMMITTED"}
        if losing:
            (lost,) = (delivery for delivery in detail.deliveries if delivery.result.kind == "seg")
            assert lost.reason == "storage commitment failed with 0x0112 (attempt 2 of 2)"
