"""The whole node in one process with a pipeline that needs no network: real sockets, real database, real objects."""

from __future__ import annotations

import errno
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from pydicom import Dataset, dcmread
from pydicom.uid import generate_uid

from pulmo_node.app import Node, SystemClock, open_audit, open_store, replaced
from pulmo_node.config import Config, resolve
from pulmo_node.deliver import DicomSender
from pulmo_node.dimse import DimseStatus
from pulmo_node.domain.deliveries import DeliveryState, Peer
from pulmo_node.errors import DiskFull
from pulmo_node.outbox import FileOutbox
from pulmo_node.ports import StudyDetail
from pulmo_node.retention import erase_study
from pulmo_node.store import SqlStore
from pulmo_node.testing import Answer, SmallPacs
from tests import fake_pipeline as fake_pipeline_module
from tests.ct_factory import write_datasets, write_part10
from tests.encode_factory import chest_datasets
from tests.fake_pipeline import REJECTED_DESCRIPTION, FakePipeline, fake_pipeline

pytestmark = pytest.mark.usefixtures("fake_pipeline")
__all__ = ["fake_pipeline"]

WAIT_SECONDS = 180.0
SENDER = "SCANNER"


def configuration(folder: Path, *pacs: SmallPacs, **changes: Any) -> Config:
    """A node that is quick to complete and to retry, and delivers SR and SEG to every PACS given."""
    names = [f"pacs{number}" for number in range(len(pacs))]
    raw: dict[str, Any] = {
        "node": {"port": 0, "storage": str(folder / "node")},
        "receive": {"quiet_seconds": 0.3},
        "analysis": {"isolated": False},  # so that a test can put its own pipeline in
        "results": {"key_images": False},
        # However long it takes until a test has its PACS answer again: 20 attempts are over in ten seconds.
        "delivery": {"first_delay_seconds": 0.1, "max_delay_seconds": 0.5, "max_attempts": 1000},
        "peers": {
            name: {"ae_title": one.ae_title, "host": "127.0.0.1", "port": one.port}
            for name, one in zip(names, pacs, strict=True)
        },
        "rules": [{"modality": "CT", "pipelines": ["ct-nodules"], "destinations": names}],
    }
    for section, values in changes.items():
        raw[section] = {**raw.get(section, {}), **values}
    return resolve(raw, base=folder)


@contextmanager
def running(folder: Path, *pacs: SmallPacs, **changes: Any) -> Iterator[Node]:
    with Node(configuration(folder, *pacs, **changes)) as node:
        yield node


def send(node: Node, files: list[Path], calling: str = SENDER) -> None:
    address = Peer(name="node", ae_title="PULMO", host="127.0.0.1", port=node.receiver.port)
    results = list(DicomSender(calling).send_files(address, files))
    assert [result.error for result in results] == [None] * len(files)


def wait_for(node: Node, study_uid: str, condition: Callable[[StudyDetail], bool]) -> StudyDetail:
    """Wait for a state that the node reaches in threads of its own."""
    deadline = time.monotonic() + WAIT_SECONDS
    while time.monotonic() < deadline:
        detail = node.store.study(study_uid)
        if detail is not None and condition(detail):
            return detail
        threading.Event().wait(0.02)
    raise AssertionError(f"not reached in {WAIT_SECONDS} s: {node.store.study(study_uid)}")


def in_state(state: str) -> Callable[[StudyDetail], bool]:
    return lambda detail: detail.summary.state == state


@pytest.fixture
def pacs(tmp_path: Path) -> Iterator[SmallPacs]:
    with SmallPacs(tmp_path / "pacs") as one:
        yield one


def series_files(folder: Path, **elements: str) -> tuple[str, list[Path]]:
    datasets = chest_datasets()
    for dataset in datasets:
        for keyword, value in elements.items():
            setattr(dataset, keyword, value)
    return str(datasets[0].StudyInstanceUID), write_datasets(datasets, folder, seed=2)


def test_results_lie_in_the_pacs_under_the_same_study(tmp_path: Path, pacs: SmallPacs) -> None:
    study, files = series_files(tmp_path / "ct")
    everything = {"key_images": True, "presentation_states": True, "pdf_report": True}
    with running(tmp_path, pacs, results=everything) as node:
        send(node, files)
        detail = wait_for(node, study, in_state("DONE"))
    objects = [dcmread(stored.path) for stored in pacs.stored]
    # As they came: what is read first is sent first.
    assert [found.Modality for found in objects] == ["SR", "SEG", "OT", "OT", "PR", "DOC"]
    assert {found.StudyInstanceUID for found in objects} == {study}
    assert {found.PatientID for found in objects} == {"PHANTOM-1"}
    assert {str(d.result.sop_instance_uid) for d in detail.deliveries} == {o.SOPInstanceUID for o in objects}
    assert [job.state for job in detail.jobs] == ["DONE"]
    events = [event.event for event in detail.events if event.subject.startswith("job")]
    assert events[-1] == "delivered"


def test_a_pacs_that_is_down_gets_everything_when_it_is_back(tmp_path: Path, pacs: SmallPacs) -> None:
    study, files = series_files(tmp_path / "ct")
    with running(tmp_path, pacs) as node:
        pacs.stop()
        send(node, files)
        wait_for(node, study, lambda d: any(delivery.attempts >= 2 for delivery in d.deliveries))
        assert pacs.stored == ()
        pacs.start()
        wait_for(node, study, in_state("DONE"))
    assert len(pacs.stored) == 2


def test_a_destination_that_stays_down_delays_no_other(tmp_path: Path, pacs: SmallPacs) -> None:
    study, files = series_files(tmp_path / "ct")
    with ExitStack() as stack:
        dead = stack.enter_context(SmallPacs(tmp_path / "dead", ae_title="DEAD"))
        dead.stop()
        node = stack.enter_context(running(tmp_path, pacs, dead, delivery={"max_attempts": 3}))
        send(node, files)
        detail = wait_for(node, study, in_state("FAILED"))
    assert len(pacs.stored) == 2
    states = {(delivery.destination, delivery.state.value) for delivery in detail.deliveries}
    assert states == {("pacs0", "SENT"), ("pacs1", "FAILED")}
    assert all("3" in (d.reason or "") for d in detail.deliveries if d.destination == "pacs1")


def test_a_refused_object_names_the_status_and_is_not_tried_again(tmp_path: Path, pacs: SmallPacs) -> None:
    study, files = series_files(tmp_path / "ct")
    pacs.answer_next(Answer(status=DimseStatus.DATA_SET_DOES_NOT_MATCH_SOP_CLASS, comment="no thanks"))
    with running(tmp_path, pacs, delivery={"error_comments": True}) as node:
        send(node, files)
        detail = wait_for(node, study, in_state("FAILED"))
    refused = [delivery for delivery in detail.deliveries if delivery.state == "FAILED"]
    assert len(refused) == 1
    assert "0xA900" in (refused[0].reason or "")
    assert "no thanks" in (refused[0].reason or "")
    assert pacs.requests == 2


def test_a_resent_series_changes_nothing(tmp_path: Path, pacs: SmallPacs) -> None:
    study, files = series_files(tmp_path / "ct")
    with running(tmp_path, pacs) as node:
        send(node, files)
        before = wait_for(node, study, in_state("DONE"))
        send(node, files)
        after = node.store.study(study)
    assert after == before
    assert len(pacs.stored) == 2


def test_a_late_slice_gives_a_new_revision_with_new_uids(tmp_path: Path, pacs: SmallPacs) -> None:
    study, files = series_files(tmp_path / "ct")
    files = sorted(files, key=lambda path: float(dcmread(path).ImagePositionPatient[2]))
    with running(tmp_path, pacs) as node:
        send(node, files[:-1])
        wait_for(node, study, in_state("DONE"))
        send(node, files[-1:])
        detail = wait_for(node, study, lambda d: d.series[0].revision == 2 and d.summary.state == "DONE")
    assert detail.series[0].number_of_instances == len(files)
    assert [(job.revision, job.state.value) for job in detail.jobs] == [(1, "DONE"), (2, "DONE")]
    assert len({stored.sop_instance_uid for stored in pacs.stored}) == 4


def test_other_images_after_a_deletion_have_other_uids(tmp_path: Path, pacs: SmallPacs) -> None:
    """The PACS has the old results, and keeps what it has under a UID; of the same images they are the same."""
    study, files = series_files(tmp_path / "ct")
    files = sorted(files, key=lambda path: float(dcmread(path).ImagePositionPatient[2]))
    made: list[set[str]] = []
    with running(tmp_path, pacs) as node:
        for sent in (files[:-1], files[:-1], files):
            send(node, sent)
            detail = wait_for(node, study, in_state("DONE"))
            made.append({delivery.result.sop_instance_uid for delivery in detail.deliveries})
            erase_study(node.config.storage, node.store, open_audit(node.config), study)
    assert made[0] == made[1]
    assert not made[0] & made[2]


def reports(pacs: SmallPacs) -> list[Dataset]:
    """The SR of the PACS in order of arrival."""
    return [found for found in map(dcmread, [stored.path for stored in pacs.stored]) if found.Modality == "SR"]


def named_predecessors(report: Dataset) -> list[str]:
    return [
        str(instance.ReferencedSOPInstanceUID)
        for study in report.get("PredecessorDocumentsSequence", ())
        for series in study.ReferencedSeriesSequence
        for instance in series.ReferencedSOPSequence
    ]


def analyse_again(folder: Path, pacs: SmallPacs, study: str, **changes: Any) -> None:
    """Requeue a study of a stopped node and let it run to its end."""
    with Node(configuration(folder, pacs, **changes)) as node:
        assert node.store.requeue(study_instance_uid=study) == 1
        wait_for(node, study, in_state("DONE"))


def test_a_new_report_names_the_one_that_it_replaces(tmp_path: Path, pacs: SmallPacs) -> None:
    """By other thresholds, by the first ones again, and by a late slice; the same again is the same object."""
    study, files = series_files(tmp_path / "ct")
    files = sorted(files, key=lambda path: float(dcmread(path).ImagePositionPatient[2]))
    other = {"pipelines": {"ct-nodules": {"detection_threshold": 0.9}}}
    with running(tmp_path, pacs) as node:
        send(node, files[:-1])
        wait_for(node, study, in_state("DONE"))
    analyse_again(tmp_path, pacs, study)
    analyse_again(tmp_path, pacs, study, **other)
    analyse_again(tmp_path, pacs, study, **other)
    analyse_again(tmp_path, pacs, study)
    with running(tmp_path, pacs) as node:
        send(node, files[-1:])
        wait_for(node, study, lambda d: d.series[0].revision == 2 and d.summary.state == "DONE")
    found = reports(pacs)
    first, again, changed, changed_again, back, late = [str(report.SOPInstanceUID) for report in found]
    assert (again, changed_again) == (first, changed)
    assert len({first, changed, back, late}) == 4
    assert [named_predecessors(report) for report in found] == [[], [], [first], [first], [changed], [back]]
    assert len({(stored.sop_instance_uid, stored.path.read_bytes()) for stored in pacs.stored}) == len(
        {stored.sop_instance_uid for stored in pacs.stored}
    ), "bytes under one UID never change"


def test_a_report_that_never_arrived_is_no_predecessor(tmp_path: Path, pacs: SmallPacs) -> None:
    study, files = series_files(tmp_path / "ct")
    files = sorted(files, key=lambda path: float(dcmread(path).ImagePositionPatient[2]))
    with running(tmp_path, pacs) as node:
        pacs.stop()
        send(node, files[:-1])
        wait_for(node, study, lambda d: any(delivery.attempts for delivery in d.deliveries))
        send(node, files[-1:])
        wait_for(node, study, lambda d: d.series[0].revision == 2 and d.summary.state == "ENCODED")
        pacs.start()
        wait_for(node, study, in_state("DONE"))
    (report,) = reports(pacs)
    assert named_predecessors(report) == []


def test_the_report_of_a_rejection_is_the_predecessor_of_what_comes_after_it(
    tmp_path: Path, pacs: SmallPacs, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, files = series_files(tmp_path / "ct", SeriesDescription=REJECTED_DESCRIPTION)
    with running(tmp_path, pacs, results={"report_rejected": True}) as node:
        send(node, files)
        wait_for(node, study, lambda d: [x.state.value for x in d.deliveries] == ["SENT"])
    monkeypatch.setattr(fake_pipeline_module, "REJECTED_DESCRIPTION", "none")
    analyse_again(tmp_path, pacs, study)
    rejected, report = reports(pacs)
    assert named_predecessors(rejected) == []
    assert named_predecessors(report) == [rejected.SOPInstanceUID]


def test_the_findings_table_holds_the_numbers_of_findings_json(tmp_path: Path, pacs: SmallPacs) -> None:
    study, files = series_files(tmp_path / "ct")
    with running(tmp_path, pacs) as node:
        send(node, files)
        (job,) = wait_for(node, study, in_state("DONE")).jobs
        (finding,) = node.store.findings(job.id)
    plain = json.loads(job.findings or "")
    (nodule,) = plain["nodules"]
    nodule["centre_x_mm"], nodule["centre_y_mm"], nodule["centre_z_mm"] = nodule.pop("centre_lps_mm")
    assert asdict(finding) == nodule | {"malignancy_bias": plain["malignancy_bias"]}


def test_a_slice_that_comes_during_the_analysis_supersedes_it(
    tmp_path: Path, pacs: SmallPacs, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, files = series_files(tmp_path / "ct")
    files = sorted(files, key=lambda path: float(dcmread(path).ImagePositionPatient[2]))
    begun, go_on = threading.Event(), threading.Event()
    analyse = FakePipeline.__call__

    def slow(self: FakePipeline, image: Any, progress: Any = None) -> Any:
        begun.set()
        assert go_on.wait(WAIT_SECONDS)
        return analyse(self, image)

    monkeypatch.setattr(FakePipeline, "__call__", slow)
    with running(tmp_path, pacs) as node:
        send(node, files[:-1])
        assert begun.wait(WAIT_SECONDS)
        send(node, files[-1:])
        go_on.set()
        detail = wait_for(node, study, in_state("DONE"))
    assert [(job.revision, job.state.value) for job in detail.jobs] == [(1, "SUPERSEDED"), (2, "DONE")]
    assert len(pacs.stored) == 2


def test_a_series_that_takes_the_node_down_is_quarantined(tmp_path: Path, pacs: SmallPacs) -> None:
    study, files = series_files(tmp_path / "ct")
    node = Node(configuration(tmp_path, pacs, receive={"quiet_seconds": 0.01}, analysis={"max_takeovers": 2}))
    node.receiver.start()
    send(node, files)
    node.receiver.stop()
    wait_for(node, study, lambda _: node.worker.complete_quiet_series() == 1)
    for _ in range(2):  # two nodes that never come back
        now = SystemClock().now()
        assert node.store.claim_job("dead", now=now, lease_until=now) is not None
    assert node.worker.analyse_next()
    detail = node.store.study(study)
    node.store.close()
    assert detail is not None
    assert detail.summary.state == "QUARANTINED"
    assert "ended 2 times" in (detail.jobs[0].reason or "")


def test_an_unexpected_error_fails_the_job_and_the_node_goes_on(
    tmp_path: Path, pacs: SmallPacs, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    analyse = FakePipeline.__call__
    first, files = series_files(tmp_path / "one")
    second, more = series_files(tmp_path / "two")
    broken = [True]

    def fails_once(self: FakePipeline, image: Any, progress: Any = None) -> Any:
        if broken:
            broken.clear()
            raise ZeroDivisionError("of a library")
        return analyse(self, image)

    monkeypatch.setattr(FakePipeline, "__call__", fails_once)
    with running(tmp_path, pacs) as node:
        send(node, files)
        detail = wait_for(node, first, in_state("FAILED"))
        assert "ZeroDivisionError" in (detail.jobs[0].reason or "")
        send(node, more)
        wait_for(node, second, in_state("DONE"))
    assert "Phantom^Peter" not in caplog.text
    assert "PHANTOM-1" not in caplog.text


def test_two_studies_interleaved_on_two_associations(tmp_path: Path, pacs: SmallPacs) -> None:
    studies = [series_files(tmp_path / name) for name in ("one", "two")]
    with running(tmp_path, pacs) as node:
        start = threading.Barrier(2)

        def sender(files: list[Path], calling: str) -> None:
            start.wait(timeout=WAIT_SECONDS)
            send(node, files, calling)

        threads = [
            threading.Thread(target=sender, args=(files, f"SCANNER{number}"))
            for number, (_, files) in enumerate(studies)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=WAIT_SECONDS)
        for study, files in studies:
            detail = wait_for(node, study, in_state("DONE"))
            assert [series.number_of_instances for series in detail.series] == [len(files)]
    by_study = {uid: [s for s in pacs.stored if dcmread(s.path).StudyInstanceUID == uid] for uid, _ in studies}
    assert [len(found) for found in by_study.values()] == [2, 2]


def test_a_series_that_the_pipeline_rejects_says_why(tmp_path: Path, pacs: SmallPacs) -> None:
    study, files = series_files(tmp_path / "ct", SeriesDescription=REJECTED_DESCRIPTION)
    with running(tmp_path, pacs) as node:
        send(node, files)
        detail = wait_for(node, study, in_state("REJECTED"))
    assert [(job.reason_code, job.reason) for job in detail.jobs] == [("NO_LUNGS", "there are no lungs")]
    assert pacs.stored == ()


def test_a_study_that_holds_another_patient_is_refused(tmp_path: Path, pacs: SmallPacs) -> None:
    study, files = series_files(tmp_path / "ct")
    stranger = dcmread(files[0])
    stranger.SeriesInstanceUID, stranger.SOPInstanceUID = generate_uid(), generate_uid()
    stranger.PatientID = "SECRET-2"
    write_part10(stranger, tmp_path / "stranger.dcm")
    with running(tmp_path, pacs) as node:
        send(node, [tmp_path / "stranger.dcm"])
        send(node, files)
        detail = wait_for(node, study, lambda d: len(d.jobs) == 2 and all(job.state == "REJECTED" for job in d.jobs))
    codes = {job.series_instance_uid: job.reason_code for job in detail.jobs}
    assert codes[dcmread(files[0]).SeriesInstanceUID] == "PATIENT_CONFLICT"
    assert not any("SECRET" in (job.reason or "") for job in detail.jobs)
    assert pacs.stored == ()


def test_the_report_of_a_rejection_is_sent_where_the_site_wants_it(tmp_path: Path, pacs: SmallPacs) -> None:
    study, files = series_files(tmp_path / "ct", SeriesDescription=REJECTED_DESCRIPTION)
    with running(tmp_path, pacs, results={"report_rejected": True}) as node:
        send(node, files)
        wait_for(node, study, lambda d: [x.state.value for x in d.deliveries] == ["SENT"])
    (report,) = pacs.stored
    assert dcmread(report.path).Modality == "SR"
    assert b"NO_LUNGS" in report.path.read_bytes()


def test_a_series_that_no_rule_wants_is_kept_and_says_why(tmp_path: Path, pacs: SmallPacs) -> None:
    study, files = series_files(tmp_path / "ct")
    config = configuration(tmp_path, pacs)
    none = [{"modality": "MR", "pipelines": ["ct-nodules"], "destinations": ["pacs0"]}]
    raw = {
        "node": {"port": 0, "storage": str(config.storage)},
        "receive": {"quiet_seconds": 0.3},
        "peers": {"pacs0": {"ae_title": pacs.ae_title, "host": "127.0.0.1", "port": pacs.port}},
        "rules": none,
    }
    with Node(resolve(raw, base=tmp_path)) as node:
        send(node, files)
        detail = wait_for(node, study, in_state("NO_PIPELINE"))
        assert "no rule fits" in (detail.series[0].note or "")
        assert len(node.store.instance_paths(detail.series[0].series_instance_uid)) == len(files)
    with running(tmp_path, pacs) as node:
        assert node.store.requeue(study_instance_uid=study) == 1
        wait_for(node, study, in_state("DONE"))


def test_a_full_disk_at_the_outbox_is_tried_again(
    tmp_path: Path, pacs: SmallPacs, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, files = series_files(tmp_path / "ct")
    full = [True]
    fsync = os.fsync

    def no_space(descriptor: int) -> None:
        if full and os.readlink(f"/proc/self/fd/{descriptor}").endswith("findings.json"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(descriptor)

    with running(tmp_path, pacs, analysis={"first_delay_seconds": 0.1, "max_attempts": 1}) as node:
        monkeypatch.setattr(os, "fsync", no_space)
        send(node, files)
        detail = wait_for(node, study, lambda d: [event.event for event in d.events].count("deferred") >= 2)
        assert [(job.state.value, job.attempts) for job in detail.jobs] == [("QUEUED", 0)]
        assert any("No space left" in (event.detail or "") for event in detail.events)
        full.clear()
        wait_for(node, study, in_state("DONE"))
    assert len(pacs.stored) == 2


def test_missing_weights_fail_the_job_and_name_the_file(
    tmp_path: Path, pacs: SmallPacs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()  # the real pipeline
    study, files = series_files(tmp_path / "ct")
    missing = tmp_path / "nowhere.toml"
    with running(tmp_path, pacs, pipelines={"ct-nodules": {"weights": str(missing)}}) as node:
        send(node, files)
        detail = wait_for(node, study, in_state("FAILED"))
        assert str(missing) in (detail.jobs[0].reason or "")
        send(node, series_files(tmp_path / "next")[1])  # the node goes on
    assert pacs.stored == ()


def test_redeliver_sends_the_same_bytes_again(tmp_path: Path, pacs: SmallPacs) -> None:
    study, files = series_files(tmp_path / "ct")
    with running(tmp_path, pacs) as node:
        send(node, files)
        wait_for(node, study, in_state("DONE"))
        first = [stored.path.read_bytes() for stored in pacs.stored]
        assert node.store.requeue(study_instance_uid=study, redeliver=True) == 1
        assert pacs.wait_for(4, WAIT_SECONDS)
        wait_for(node, study, in_state("DONE"))
    assert [stored.path.read_bytes() for stored in pacs.stored[2:]] == first


def test_requeue_analyses_again_and_keeps_bytes_under_a_uid(tmp_path: Path, pacs: SmallPacs) -> None:
    study, files = series_files(tmp_path / "ct")
    with running(tmp_path, pacs) as node:
        send(node, files)
        wait_for(node, study, in_state("DONE"))
        assert node.store.requeue(study_instance_uid=study) == 1
        assert pacs.wait_for(4, WAIT_SECONDS)
        wait_for(node, study, in_state("DONE"))
    contents: dict[str, set[bytes]] = {}
    for stored in pacs.stored:
        contents.setdefault(stored.sop_instance_uid, set()).add(stored.path.read_bytes())
    assert [len(versions) for versions in contents.values()] == [1, 1]


def test_an_outcome_that_the_database_does_not_take_costs_no_attempt(
    tmp_path: Path, pacs: SmallPacs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full when the result is to be recorded, and still when the job is to be deferred for it."""
    study, files = series_files(tmp_path / "ct")
    refusals = {"job_encoded": 2, "job_deferred": 2, "delivery_sent": 2, "delivery_deferred": 2}

    def refusing(name: str) -> Callable[..., Any]:
        method = getattr(SqlStore, name)

        def refused(*args: Any, **kwargs: Any) -> Any:
            if refusals[name]:
                refusals[name] -= 1
                raise DiskFull("database: database or disk is full")
            return method(*args, **kwargs)

        return refused

    for name in refusals:
        monkeypatch.setattr(SqlStore, name, refusing(name))
    once = {"max_attempts": 1, "lease_seconds": 600.0}
    with running(tmp_path, pacs, analysis=once, delivery=once) as node:
        send(node, files)
        detail = wait_for(node, study, in_state("DONE"))
    assert [job.attempts for job in detail.jobs] == [0]
    assert [delivery.attempts for delivery in detail.deliveries] == [0, 0]
    assert refusals["job_encoded"] == refusals["delivery_sent"] == 0


def test_damaged_findings_in_the_outbox_end_their_job(tmp_path: Path, pacs: SmallPacs) -> None:
    """It would be the oldest of all jobs for ever, and none behind it would have its turn."""
    study, files = series_files(tmp_path / "ct")
    with running(tmp_path, pacs) as node:
        send(node, files)
        wait_for(node, study, in_state("DONE"))
        for damaged in (node.config.storage / "outbox").glob("*/findings.json"):
            damaged.write_text("{")
        assert node.store.requeue(study_instance_uid=study) == 1
        (job,) = wait_for(node, study, in_state("FAILED")).jobs
        assert "findings.json" in (job.reason or "")


def test_a_result_that_was_damaged_on_the_disk_is_not_sent(tmp_path: Path, pacs: SmallPacs) -> None:
    study, files = series_files(tmp_path / "ct")
    with running(tmp_path, pacs) as node:
        send(node, files)
        detail = wait_for(node, study, in_state("DONE"))
        sent = len(pacs.stored)
        (seg,) = (one.result for one in detail.deliveries if one.result.kind == "seg")
        path = node.config.storage / seg.path
        content = bytearray(path.read_bytes())
        content[-20] ^= 1  # a pixel
        path.write_bytes(content)
        assert node.store.requeue(study_instance_uid=study, redeliver=True) == 1
        detail = wait_for(node, study, in_state("FAILED"))
    failed = {one.result.kind: one.reason for one in detail.deliveries if one.state is DeliveryState.FAILED}
    assert list(failed) == ["seg"]
    assert "is damaged" in (failed["seg"] or "")
    assert [one.sop_instance_uid for one in pacs.stored[sent:]] == [
        one.result.sop_instance_uid for one in detail.deliveries if one.result.kind != "seg"
    ]


def test_a_database_that_takes_no_leases_back_ends_no_node_that_is_replaced(
    tmp_path: Path, pacs: SmallPacs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full just when the analysis of the node before was broken off: its leases expire then."""

    def refused(*_args: object, **_kwargs: object) -> int:
        raise DiskFull("database: disk is full")

    study, files = series_files(tmp_path / "ct")
    config = configuration(tmp_path, pacs)
    node = Node(config).__enter__()
    try:
        with monkeypatch.context() as full:
            full.setattr(SqlStore, "release_leases", refused)
            node = replaced(node, lambda: config)
        send(node, files)
        wait_for(node, study, in_state("DONE"))
    finally:
        node.__exit__(None, None, None)


def test_a_study_that_is_deleted_while_it_is_analysed_leaves_nothing(
    tmp_path: Path, pacs: SmallPacs, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, files = series_files(tmp_path / "ct")
    begun, deleted = threading.Event(), threading.Event()
    analyse = FakePipeline.__call__

    def slow(self: FakePipeline, image: Any, progress: Any = None) -> Any:
        begun.set()
        assert deleted.wait(WAIT_SECONDS)
        return analyse(self, image)

    monkeypatch.setattr(FakePipeline, "__call__", slow)
    with running(tmp_path, pacs) as node:
        send(node, files)
        assert begun.wait(WAIT_SECONDS)
        storage = node.config.storage
        assert erase_study(storage, node.store, open_audit(node.config), study) is not None
        deleted.set()
    with open_store(node.config) as store:
        assert store.study(study) is None
    assert not [path for folder in ("instances", "outbox", "incoming") for path in (storage / folder).rglob("*.dcm")]
    assert pacs.stored == ()


def test_a_study_that_is_deleted_while_its_rejection_is_told_leaves_nothing(
    tmp_path: Path, pacs: SmallPacs, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, files = series_files(tmp_path / "ct", SeriesDescription=REJECTED_DESCRIPTION)
    ended, put = threading.Event(), FileOutbox.put

    def put_too_late(self: FileOutbox, *args: Any) -> Any:
        erase_study(node.config.storage, node.store, open_audit(node.config), study)
        ended.set()
        return put(self, *args)

    monkeypatch.setattr(FileOutbox, "put", put_too_late)
    with running(tmp_path, pacs, results={"report_rejected": True}) as node:
        send(node, files)
        assert ended.wait(WAIT_SECONDS)
    assert not list(node.config.storage.rglob("*.dcm"))
