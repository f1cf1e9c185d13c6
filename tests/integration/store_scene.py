"""What the tests of the store share: a clock to set, and the steps that lead up to a situation."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pulmo_node.domain.deliveries import Delivery, ResultObject
from pulmo_node.domain.jobs import Job, NewJob
from pulmo_node.domain.series import InstanceOutcome, Series, StoredInstance
from pulmo_node.ports import StudyDetail
from pulmo_node.store import SqlStore

STUDY = "1.2.840.1"
SERIES = "1.2.840.1.1"
LEASE = timedelta(minutes=10)
FINDINGS = '{"schema_version": 1}'


def run_threads(targets: Sequence[Callable[[], None]]) -> None:
    """Run all at once and wait; what one of them raises is raised here."""
    with ThreadPoolExecutor(max_workers=len(targets)) as pool:
        for future in [pool.submit(target) for target in targets]:
            future.result(timeout=300)


@cache
def _migrated_file() -> bytes:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "pulmo.sqlite"
        SqlStore(f"sqlite:///{path}", SetClock()).close()
        return path.read_bytes()


def new_database(folder: Path) -> str:
    """URL of an empty database at the newest schema (copied, since a migration takes a while)."""
    path = folder / "pulmo.sqlite"
    path.write_bytes(_migrated_file())
    return f"sqlite:///{path}"


class SetClock:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.time = datetime(2026, 10, 25, 0, 30, tzinfo=UTC)

    def now(self) -> datetime:
        return self.time

    def advance(self, **span: float) -> datetime:
        self.time += timedelta(**span)
        return self.time


def instance(number: int = 1, *, study: str = STUDY, series: str = SERIES, content: str = "a") -> StoredInstance:
    """The instance `number` of a series as the receiver would have written it."""
    sop = f"{series}.{number}"
    return StoredInstance(
        study_instance_uid=study,
        series_instance_uid=series,
        sop_instance_uid=sop,
        sop_class_uid="1.2.840.10008.5.1.4.1.1.2",
        transfer_syntax_uid="1.2.840.10008.1.2.1",
        modality="CT",
        calling_ae_title="SCANNER",
        path=f"instances/{study}/{series}/{sop}{'' if content == 'a' else '.conflict-' + content}.dcm",
        sha256=content * 64,
        size_bytes=527_000,
        received_at=datetime(2026, 10, 25, 0, 30, tzinfo=UTC),
    )


def nodule(number: int = 1, **changes: Any) -> dict[str, Any]:
    """A nodule of a findings.json; its numbers are no short binary fractions."""
    values: dict[str, Any] = {
        "segment_number": number,
        "tracking_uid": f"2.25.7.{number}",
        "centre_lps_mm": [-61.13, 0.1 + number, 1203.07],
        "long_axis_mm": 14.21,
        "short_axis_mm": 9.83,
        "box_lps_mm": None,
        "volume_mm3": 1403.3,
        "mean_hu": -12.7,
        "min_hu": -611.1,
        "max_hu": 84.9,
        "laterality": "right",
        "pleura_distance_mm": 3.7,
        "candidate_score": 0.9137,
        "detection_probability": 0.9871,
        "malignancy_probability": 0.5503,
        "concepts": {"spiculation": {"value": 3.14, "contribution": 0.4123}},
        "cautions": [{"code": "TOUCHES_INTERPOLATED", "sentence": "One slice was interpolated."}],
    }
    return values | changes


def findings_json(*nodules: dict[str, Any]) -> str:
    """A findings.json of these nodules, as far as the store looks at it."""
    return json.dumps({"schema_version": 3, "malignancy_bias": -1.2346, "nodules": nodules})


def result(kind: str = "sr", uid: str | None = None) -> ResultObject:
    """An object in the outbox."""
    uid = uid or {"sr": "2.25.1", "seg": "2.25.2", "report": "2.25.3"}[kind]
    return ResultObject(
        kind=kind,
        sop_class_uid="1.2.840.10008.5.1.4.1.1.88.34",
        sop_instance_uid=uid,
        series_instance_uid=f"{uid}.0",
        path=f"outbox/{uid}.dcm",
        sha256="f" * 64,
    )


@dataclass
class Scene:
    """A store and the steps of a study's life."""

    store: SqlStore
    clock: SetClock

    def receive(
        self, number: int = 1, *, study: str = STUDY, series: str = SERIES, content: str = "a"
    ) -> InstanceOutcome:
        return self.store.record_instance(instance(number, study=study, series=series, content=content))

    def series(self, series: str = SERIES, *, study: str = STUDY) -> Series:
        return next(each for each in self.study(study).series if each.series_instance_uid == series)

    def complete(
        self,
        *,
        study: str = STUDY,
        series: str = SERIES,
        pipelines: Sequence[str] = ("ct",),
        destinations: Sequence[str] = ("pacs",),
    ) -> None:
        jobs = [NewJob(pipeline=pipeline, destinations=tuple(destinations)) for pipeline in pipelines]
        self.store.complete_series(self.series(series, study=study), jobs, None if jobs else "no rule matches")

    def claim(self, worker_id: str = "worker") -> Job:
        job = self.store.claim_job(worker_id, now=self.clock.now(), lease_until=self.clock.now() + LEASE)
        assert job is not None
        return job

    def no_claim(self, worker_id: str = "worker") -> bool:
        return self.store.claim_job(worker_id, now=self.clock.now(), lease_until=self.clock.now() + LEASE) is None

    def claim_deliveries(self, destination: str = "pacs", worker_id: str = "sender") -> tuple[Delivery, ...]:
        now = self.clock.now()
        return self.store.claim_deliveries(destination, worker_id, now=now, lease_until=now + LEASE)

    def queued(self, *, destinations: Sequence[str] = ("pacs",), series: str = SERIES, study: str = STUDY) -> Job:
        """A series of one instance with one job, claimed."""
        self.receive(series=series, study=study)
        self.complete(series=series, study=study, destinations=destinations)
        return self.claim()

    def encoded(self, *kinds: str, destinations: Sequence[str] = ("pacs",)) -> Job:
        """A job whose objects wait for delivery."""
        job = self.queued(destinations=destinations)
        self.store.job_encoded(job, [result(kind) for kind in kinds or ("sr",)], FINDINGS)
        return self.job()

    def deliver(self, destination: str = "pacs") -> None:
        for delivery in self.claim_deliveries(destination):
            self.store.delivery_sent(delivery, "0x0000")

    def fail_deliveries(self, destination: str = "pacs", reason: str = "0xA900") -> None:
        for delivery in self.claim_deliveries(destination):
            self.store.delivery_failed(delivery, reason)

    def study(self, study: str = STUDY) -> StudyDetail:
        detail = self.store.study(study)
        assert detail is not None
        return detail

    def job(self, study: str = STUDY) -> Job:
        """The newest job of the study."""
        return self.study(study).jobs[-1]

    def state(self, study: str = STUDY) -> str:
        return self.study(study).summary.state

    def deliveries(self) -> dict[tuple[str, str], str]:
        """State of each delivery by kind and destination."""
        return {(each.result.kind, each.destination): each.state.value for each in self.study().deliveries}

    def history(self, subject: str) -> list[tuple[str, str | None]]:
        """Events and states of one subject of the study."""
        return [(row.event, row.state) for row in self.study().events if row.subject == subject]
