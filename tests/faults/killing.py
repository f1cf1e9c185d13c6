"""kill -9 of the node and of what it started, at random moments, while studies come from a scanner and from Orthanc and
results go to Orthanc.

The seed fixes the studies, whom each kill hits and how long it waits; where in its work the node then stands is chance.
"""

from __future__ import annotations

import json
import random
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from io import BytesIO
from itertools import count
from pathlib import Path
from typing import Any

from pydicom import dcmread

from pulmo_node.deliver import DicomSender
from pulmo_node.errors import Transient
from pulmo_node.orthanc import OrthancProcess, free_port
from tests.faults.node import AE_TITLE, NodeProcess, alive, kill
from tests.faults.studies import Study, make_study, same_data_set
from tests.faults.table import Outcome

LONGEST_LIFE_SECONDS = 2.0  # of a node whose port is open
_AT_START_SHARE = 0.15  # of the kills hit a node that is still starting
_MOST_OPEN_STUDIES = 6  # at the same time; the senders wait beyond
_END_SECONDS = 300.0
_ORPHAN_SECONDS = 30.0
_ENDED = "('DONE', 'FAILED', 'REJECTED', 'QUARANTINED', 'SUPERSEDED', 'CANCELLED')"

CONFIGURATION: dict[str, dict[str, Any]] = {
    "receive": {"quiet_seconds": 1.0},
    # Kills of the analysis process count as attempts, those of the node as takeovers; here no job is to blame.
    "analysis": {
        "lease_seconds": 2.0,
        "max_attempts": 10_000,
        "max_takeovers": 10_000,
        "first_delay_seconds": 0.2,
        "max_delay_seconds": 1.0,
    },
    "delivery": {
        "lease_seconds": 2.0,
        "max_attempts": 10_000,
        "first_delay_seconds": 0.2,
        "max_delay_seconds": 1.0,
        "timeout_seconds": 10.0,
    },
}


@dataclass(kw_only=True)
class Load:
    """Studies on their way to the node, from two threads, until `stop`: each is sent again until all of it is in."""

    node: NodeProcess
    pacs: OrthancProcess
    folder: Path
    seed: int
    acknowledged: dict[str, Path] = field(default_factory=dict)  # SOP Instance UID -> the file as sent
    sent: list[Study] = field(default_factory=list)
    broken_transfers: int = 0
    _numbers: Any = field(default_factory=count)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _stopping: threading.Event = field(default_factory=threading.Event)
    _threads: list[threading.Thread] = field(default_factory=list)
    _errors: list[BaseException] = field(default_factory=list)

    def start(self) -> None:
        """Begin to send."""
        for send in (self._send_as_scanner, self._send_by_orthanc):
            thread = threading.Thread(target=self._run, args=(send,), daemon=True)
            thread.start()
            self._threads.append(thread)

    def finish(self) -> None:
        """Send what was begun to its end."""
        self._stopping.set()
        for thread in self._threads:
            thread.join(_END_SECONDS)
            assert not thread.is_alive(), "a sender did not come to its end"
        self.check()

    def check(self) -> None:
        """Raises what a sender ran into."""
        if self._errors:
            raise self._errors[0]

    def _run(self, send: Any) -> None:
        try:
            while not self._stopping.is_set():
                if self._too_many_open():
                    self._stopping.wait(0.2)
                    continue
                with self._lock:
                    number = next(self._numbers)
                study = make_study(self.folder / "studies", self.seed, number)
                send(study)
                with self._lock:
                    self.sent.append(study)
        except BaseException as exc:  # noqa: BLE001 - handed to the thread that waits for this one
            self._errors.append(exc)

    def _too_many_open(self) -> bool:
        (known,) = self.node.query("SELECT count(*) FROM series")[0]
        (done,) = self.node.query("SELECT count(DISTINCT series_id) FROM jobs WHERE state = 'DONE'")[0]
        return known - done >= _MOST_OPEN_STUDIES

    def _send_as_scanner(self, study: Study) -> None:
        """Instance by instance; the answer to each is what counts."""
        sender = DicomSender("SCANNER", timeout_seconds=10.0)
        missing = dict(zip(study.sop_instance_uids, study.files, strict=True))
        while missing:
            try:
                for answer in sender.send_files(self.node.peer, list(missing.values())):
                    if answer.error is None:
                        self.acknowledged[answer.sop_instance_uid] = missing.pop(answer.sop_instance_uid)
            except Transient:
                self.broken_transfers += 1
                time.sleep(0.1)

    def _send_by_orthanc(self, study: Study) -> None:
        """The study as a whole: Orthanc says only whether all of it was taken."""
        for file in study.files:
            _post(self.pacs, "/instances", file.read_bytes())
        (identifier,) = self.pacs.find("Study", {"StudyInstanceUID": study.study_instance_uid})
        order = json.dumps({"Resources": [identifier], "Synchronous": True, "Timeout": 10}).encode()
        while True:
            try:
                _post(self.pacs, "/modalities/pulmo/store", order)
            except urllib.error.HTTPError:
                self.broken_transfers += 1
                time.sleep(0.1)
            else:
                self.acknowledged.update(zip(study.sop_instance_uids, study.files, strict=True))
                return


def run(folder: Path, seed: int, kills: int) -> Outcome:
    """That many kills, then peace, then the account."""
    port = free_port()
    pacs = OrthancProcess(
        folder / "orthanc",
        extra={"OverwriteInstances": False, "DicomModalities": {"pulmo": [AE_TITLE, "127.0.0.1", port]}},
    )
    node = NodeProcess(folder / "node", CONFIGURATION, peers=[pacs.peer], port=port)
    with pacs, node:
        load = Load(node=node, pacs=pacs, folder=folder, seed=seed)
        load.start()
        hit, orphans = _kill(node, load, random.Random(seed), kills)
        load.finish()
        _wait_for_the_end(node)
        failures = [*lost(node, load.acknowledged), *_not_done(node, load), *_in_the_pacs(node, pacs, load), *orphans]
        status = node.stop()
    if status != 0:
        failures.append(f"the node ended with status {status} on SIGTERM")
    (taken_over,) = node.query("SELECT count(*) FROM events WHERE event = 'taken over'")[0]
    victims = ", ".join(f"{number} {whose}" for whose, number in sorted(hit.items()))
    found = f"{len(load.acknowledged)} acknowledged instances of {len(load.sent)} studies"
    if not failures:
        found += (
            ": 0 lost, 0 duplicates in the PACS, 0 stuck, every result delivered "
            f"({load.broken_transfers} transfers broken off, {taken_over} leases taken over)"
        )
    return Outcome(
        fault="kill -9",
        done=f"{kills} kills at random moments ({victims}); a scanner and Orthanc sending, Orthanc receiving",
        found=found,
        failures=tuple(failures),
    )


def _kill(node: NodeProcess, load: Load, chance: random.Random, kills: int) -> tuple[Counter[str], list[str]]:
    """Kill and start again; whom it hit, and which processes outlived their node."""
    hit: Counter[str] = Counter()
    orphans = []
    for number in range(kills):
        worker = chance.random() < 0.5
        life_seconds, which = chance.uniform(0.0, LONGEST_LIFE_SECONDS), chance.random()
        at_start = chance.random() < _AT_START_SHARE
        if not at_start:
            node.wait_until_open()
        time.sleep(life_seconds)
        load.check()
        below = node.descendants()
        if worker and below and kill(below[int(which * len(below))]):
            hit["of its workers"] += 1
            continue
        node.kill()
        hit["of the node starting" if at_start else "of the node"] += 1
        node.launch()
        deadline = time.monotonic() + _ORPHAN_SECONDS
        while any(alive(pid) for pid in below) and time.monotonic() < deadline:
            time.sleep(0.02)
        orphans += [f"kill {number}: process {pid} outlived its node" for pid in below if alive(pid)]
    node.wait_until_open()
    return hit, orphans


def _wait_for_the_end(node: NodeProcess) -> None:
    def open_work() -> int:
        series = node.query("SELECT count(*) FROM series WHERE state != 'COMPLETE'")[0][0]
        jobs = node.query(f"SELECT count(*) FROM jobs WHERE state NOT IN {_ENDED}")[0][0]  # noqa: S608 - a constant
        return int(series + jobs)

    deadline = time.monotonic() + _END_SECONDS
    while open_work() and time.monotonic() < deadline:
        time.sleep(0.1)


def lost(node: NodeProcess, acknowledged: Mapping[str, Path]) -> list[str]:
    """Acknowledged instances that are not there as they were sent."""
    stored = dict(node.query("SELECT sop_instance_uid, path FROM instances"))
    failures = []
    for uid, file in acknowledged.items():
        if uid not in stored:
            failures.append(f"instance {uid} was acknowledged and has no row")
        elif not same_data_set(file, node.storage / stored[uid]):
            failures.append(f"instance {uid} was acknowledged and is another on disk")
    return failures


def _not_done(node: NodeProcess, load: Load) -> list[str]:
    """Studies without results of all their instances, and results without an end."""
    states = {
        uid: (number, state)
        for uid, number, state in node.query(
            "SELECT series_instance_uid, number_of_instances, jobs.state FROM series "
            "JOIN jobs ON series_id = series.id AND jobs.revision = series.revision"
        )
    }
    failures = []
    for study in load.sent:
        number, state = states.get(study.series_instance_uid, (0, "no job"))
        if (number, state) != (len(study.files), "DONE"):
            failures.append(f"series {study.series_instance_uid}: {number} instances, {state}")
    for number, state in node.query(
        "SELECT count(*), state FROM deliveries WHERE state NOT IN ('SENT', 'COMMITTED', 'CANCELLED') GROUP BY state"
    ):
        failures.append(f"{number} deliveries are {state}")
    return failures


def _in_the_pacs(node: NodeProcess, pacs: OrthancProcess, load: Load) -> list[str]:
    """Results that are missing in the PACS, changed, or there more than once for one revision of a series."""
    rows = node.query(
        "SELECT results.sop_instance_uid, results.path, results.kind, results.job_id FROM results "
        "JOIN deliveries ON result_id = results.id WHERE deliveries.state IN ('SENT', 'COMMITTED')"
    )
    known = {uid: path for uid, path, _, _ in rows}
    present = _results_in(pacs)
    failures = [f"result {uid} was delivered and is not in the PACS" for uid in known.keys() - present.keys()]
    failures += [f"result {uid} in the PACS is unknown to the node" for uid in present.keys() - _all_results(node)]
    for uid in known.keys() & present.keys():
        if dcmread(BytesIO(present[uid])) != dcmread(node.storage / known[uid]):
            failures.append(f"result {uid} in the PACS is another than the node's")
    for number, kind, job in node.query(
        "SELECT count(*), kind, job_id FROM results WHERE kind IN ('sr', 'seg') "
        "GROUP BY job_id, kind HAVING count(*) > 1"
    ):
        failures.append(f"job {job} has {number} results of kind {kind}")
    with_report = {job for _, _, kind, job in rows if kind == "sr"}
    if len(with_report) < len(load.sent):
        failures.append(f"only {len(with_report)} reports of {len(load.sent)} studies")
    return failures


def _all_results(node: NodeProcess) -> set[str]:
    # A result of a superseded job may have arrived just before the kill, its delivery never recorded.
    return {uid for (uid,) in node.query("SELECT sop_instance_uid FROM results")}


def _results_in(pacs: OrthancProcess) -> dict[str, bytes]:
    uids = []
    for modality in ("SR", "SEG"):
        for series in pacs.find("Series", {"Modality": modality}):
            uids += [each["MainDicomTags"]["SOPInstanceUID"] for each in pacs.get(f"/series/{series}/instances")]
    return pacs.objects(uids)


def _post(pacs: OrthancProcess, path: str, body: bytes) -> None:
    request = urllib.request.Request(pacs.url + path, data=body, method="POST")  # noqa: S310 - own loopback URL
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=120) as response:
        response.read()
