"""How fast the page answers with ten thousand studies in the database.

    python -m benchmarks.web [--out bench-out] [--repeats 5] [--quick]

Each study has two series of 300 images, a job on each with one finding, an image on the disk, and two deliveries;
states are mixed. Of the studies on the first page and around the middle, every image has its row and its event, of
the others one image and ten events. Every page is asked for over loopback by an operator who is logged in, one
request after the other, in turn; what is measured is the time until the last byte of the page is there.
"""

from __future__ import annotations

import tempfile
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import httpx2

from benchmarks import report
from benchmarks.report import Options, Table
from pulmo_node.app import Node, SystemClock
from pulmo_node.config import resolve
from pulmo_node.domain.accounts import Role, User
from pulmo_node.store import SqlStore, schema
from pulmo_node.web.access import hash_password
from pulmo_node.web.studies import PAGE_SIZE
from tests.ct_factory import write_datasets
from tests.encode_factory import chest_datasets
from tests.integration.store_scene import findings_json, nodule
from tests.web.served import PASSWORD, Visitor

Rows = list[dict[str, Any]]

_STUDIES, _QUICK_STUDIES = 10_000, 500
_IMAGES = 300
_LIMIT_SECONDS = 0.2  # what a person does not feel as waiting
_JOB_STATES = ("DONE",) * 90 + (
    "FAILED",
    "REJECTED",
    "QUEUED",
    "ENCODED",
    "CANCELLED",
    "QUARANTINED",
    "DONE",
    "DONE",
    "DONE",
    "DONE",
)
_START = datetime(2026, 1, 1, tzinfo=UTC)


def pages(studies: int) -> dict[str, str]:
    """Name and address of everything that is asked for."""
    study = f"1.2.3.{studies // 2}"
    day = (_START + timedelta(minutes=studies // 2)).date().isoformat()
    return {
        "list, first page": "/",
        "list, a page in the middle": f"/?page={studies // 50}",
        "list, failed studies": "/?state=FAILED",
        "list, done studies": "/?state=DONE",
        "list, beginning of a UID": f"/?uid={study[:-2]}",
        "list, accession number": f"/?accession={studies // 2:064d}",
        "list, one day": f"/?date_from={day}&date_to={day}",
        "study": f"/studies/{study}",
        "destinations": "/destinations",
        "pipelines and weights": "/pipelines",
        "metrics": "/metrics",
        "readiness": "/readyz",
    }


def run(options: Options) -> Table:
    """Fill a database and ask for every page in turn."""
    studies = _QUICK_STUDIES if options.quick else _STUDIES
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        storage = folder / "node"
        peers = {"pacs": {"ae_title": "PACS", "host": "127.0.0.1", "port": 9}}
        config = resolve(
            {
                "node": {"port": 0, "storage": str(storage)},
                "web": {"enabled": True, "port": 0},
                "peers": peers,
                "log": {"level": "ERROR"},
            },
            base=folder,
        )
        storage.mkdir()
        file = write_datasets(chest_datasets()[:1], folder / "image")[0]
        (storage / "image.dcm").write_bytes(file.read_bytes())
        with SqlStore(config.database_url, SystemClock()) as store:
            _fill(store, studies)
        node = Node(config)
        node.start_receiving()  # without comparing disk and database first: one file stands for all images
        node.start_working()
        try:
            samples = _measure(node, pages(studies), max(5, 3 * options.repeats))
        finally:
            node.stop_receiving()
            node.stop_working()
    rows = tuple(report.row(name, seconds, "s") for name, seconds in samples.items())
    slow = [row.name for row in rows if row.median > _LIMIT_SECONDS]
    return Table(
        name="web",
        title=f"The page with {studies} studies",
        protocol=" ".join((__doc__ or "").split("\n\n", 2)[2].split()).replace("ten thousand", str(studies)),
        rows=rows,
        notes=(f"Slower than {_LIMIT_SECONDS * 1000:.0f} ms: {', '.join(slow) or 'none'}.",),
        facts={"studies": studies, "slow": slow},
    )


def _measure(node: Node, addresses: dict[str, str], repeats: int) -> dict[str, list[float]]:
    user = User(name="otto", role=Role.OPERATOR, password_hash=hash_password(PASSWORD), created_at=SystemClock().now())
    node.store.put_user(user)
    with Visitor(node) as visitor:
        visitor.log_in("otto")

        def ask(address: str) -> float:
            answers: list[httpx2.Response] = []
            seconds = report.seconds_of(lambda: answers.append(visitor.client.get(address)))
            if answers[0].status_code not in (200, 503):
                raise SystemExit(f"{address} answers {answers[0].status_code}")
            return seconds

        for address in addresses.values():
            ask(address)  # templates and pages of the database are read once
        return report.in_turn({name: partial(ask, at) for name, at in addresses.items()}, repeats)


def _fill(store: SqlStore, studies: int) -> None:
    series: Rows = []
    jobs: Rows = []
    instances: Rows = []
    catalogue: Rows = []
    results: Rows = []
    deliveries: Rows = []
    events: Rows = []
    text = findings_json(nodule())
    later = datetime.now(UTC) + timedelta(minutes=55)  # of an hour, beyond which the clock counts as set back
    for number in range(studies):
        study, at = f"1.2.3.{number}", _START + timedelta(minutes=number)
        for which in (0, 1):
            key = 2 * number + which + 1
            uid = f"{study}.{which}"
            state = _JOB_STATES[(7 * number + which) % len(_JOB_STATES)]
            series.append(
                {
                    "id": key, "study_instance_uid": study, "series_instance_uid": uid, "modality": "CT",
                    "calling_ae_title": "CT", "state": "COMPLETE", "revision": 1, "number_of_instances": _IMAGES,
                    "last_instance_at": at, "updated_at": at,
                }
            )  # fmt: skip
            whole = number >= studies - PAGE_SIZE or abs(number - studies // 2) <= 2 * PAGE_SIZE
            instances.extend(
                {
                    "series_id": key, "sop_instance_uid": f"{uid}.{image}", "sop_class_uid": "1.2",
                    "path": "image.dcm", "transfer_syntax_uid": "1.2", "sha256": "0" * 64,
                    "size_bytes": 527_000, "received_at": at,
                }
                for image in range(_IMAGES if whole else 1)
            )  # fmt: skip
            jobs.append(
                {
                    "id": key, "series_id": key, "revision": 1, "pipeline": "ct-nodules", "destinations": ["pacs"],
                    "state": state, "attempts": 0, "findings": text, "created_at": at, "updated_at": at,
                    "reason_code": "ANALYSIS_FAILED" if state == "FAILED" else None,
                    "not_before": later if state == "QUEUED" else None,
                }
            )  # fmt: skip
            catalogue.append(
                {"series_id": key, "accession_digest": f"{number:064d}", "study_date": at.strftime("%Y%m%d")}
            )
            results.append(
                {
                    "id": key, "job_id": key, "kind": "sr", "sop_class_uid": "1.2", "sop_instance_uid": f"{uid}.9",
                    "series_instance_uid": f"{uid}.8", "path": "outbox/none.dcm", "sha256": "0" * 64, "in_use": True,
                }
            )  # fmt: skip
            deliveries.append(
                {
                    "id": key, "job_id": key, "result_id": key, "destination": "pacs", "attempts": 1, "updated_at": at,
                    "state": "PENDING" if state == "ENCODED" else "SENT",
                    "not_before": later if state == "ENCODED" else None,
                }
            )  # fmt: skip
            events.extend(
                {
                    "at": at, "study_instance_uid": study, "series_instance_uid": uid, "subject": "series",
                    "event": "instance", "state": "RECEIVING", "detail": f"{uid}.{image}",
                }
                for image in range(_IMAGES if whole else 10)
            )  # fmt: skip
    tables = {
        schema.series: series, schema.instances: instances, schema.jobs: jobs, schema.catalogue: catalogue,
        schema.results: results, schema.deliveries: deliveries, schema.events: events,
    }  # fmt: skip
    with store._write() as connection:
        for table, rows in tables.items():
            connection.execute(table.insert(), rows)


if __name__ == "__main__":
    report.main(run, __doc__)
