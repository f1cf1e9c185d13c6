"""How fast the receiver is: associations at the same time, and the comparison of disk and database at the start.

    python -m benchmarks.receiving associations --number 10 --slices 100
    python -m benchmarks.receiving reconcile --instances 100000

`associations` sends CT slices of 512 x 512 pixels from processes of their own, as fast as the node answers; each answer
stands for file and row on disk. `reconcile` makes the files and rows of that many instances first, 300 in a series.
Both work in a temporary folder: set TMPDIR to the disk that is to be measured.
"""

from __future__ import annotations

import argparse
import hashlib
import multiprocessing
import os
import resource
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian
from sqlalchemy import create_engine

from pulmo_node.app import SystemClock
from pulmo_node.deliver import DicomSender
from pulmo_node.domain.deliveries import Peer
from pulmo_node.files import FileInstanceStore
from pulmo_node.receive import InstanceHead, Receiver, ReceiveSettings, encode_meta
from pulmo_node.reconcile import reconcile
from pulmo_node.store import SqlStore, schema
from tests.network_factory import ct_slice, encoded, part10

_IN_SERIES = 300


def send(port: int, files: list[Path]) -> tuple[float, float]:
    """Seconds from the first request to the last answer, by the clock of the machine."""
    began = time.time()
    peer = Peer(name="node", ae_title="PULMO", host="127.0.0.1", port=port)
    results = list(DicomSender(f"CT{os.getpid()}").send_files(peer, files))
    if any(result.error for result in results):
        raise SystemExit(f"not stored: {next(result.error for result in results if result.error)}")
    return began, time.time()


def measure_associations(folder: Path, number: int, slices: int) -> None:
    """Send from `number` processes at once, one series each, and print instances a second."""
    jobs = []
    for sender in range(number):
        series = f"1.2.826.0.1.3680043.8.498.{sender + 10}"
        files = []
        for index in range(slices):
            data_set = ct_slice(index + 1, series=series)
            data_set.Rows = data_set.Columns = 512
            data_set.PixelData = os.urandom(512) * 1024
            files.append(part10(folder / f"{sender}-{index}.dcm", data_set))
        jobs.append(files)
    with SqlStore(f"sqlite:///{folder / 'node.sqlite'}", SystemClock()) as store:
        instances = FileInstanceStore(folder / "storage")
        receiver = Receiver(ReceiveSettings(ae_title="PULMO", port=0), store, instances, SystemClock())
        receiver.start()
        with multiprocessing.get_context("spawn").Pool(number) as pool:
            spans = pool.starmap(send, [(receiver.port, files) for files in jobs])
        receiver.stop()
    seconds = max(end for _, end in spans) - min(begin for begin, _ in spans)
    total = number * slices
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"{number} associations, {total} instances: {total / seconds:.0f} a second, {seconds:.1f} s, RSS {peak:.0f} MiB"
    )


def measure_reconcile(folder: Path, number: int) -> None:
    """Make files and rows of that many instances, take one of each away, and print how long the comparison takes."""
    store = SqlStore(f"sqlite:///{folder / 'node.sqlite'}", SystemClock())
    instances = FileInstanceStore(folder / "storage")
    rows: list[dict[str, Any]] = []
    series_rows: list[dict[str, Any]] = []
    for index in range(number):
        series_id, in_series = divmod(index, _IN_SERIES)
        data_set = ct_slice(in_series, series=f"1.2.826.0.1.{series_id + 1}", study=f"1.2.826.0.2.{series_id + 1}")
        head = InstanceHead(
            study_instance_uid=data_set.StudyInstanceUID, series_instance_uid=data_set.SeriesInstanceUID,
            sop_instance_uid=data_set.SOPInstanceUID, sop_class_uid=CTImageStorage, modality="CT",
        )  # fmt: skip
        path = instances.path_of(head.study_instance_uid, head.series_instance_uid, head.sop_instance_uid)
        content = encoded(data_set)
        instances.absolute(path).parent.mkdir(parents=True, exist_ok=True)
        meta = encode_meta(head, ExplicitVRLittleEndian, "CT")
        instances.absolute(path).write_bytes(meta + content)
        at = datetime.now(UTC)
        if in_series == 0:
            series_rows.append(
                {
                    "id": series_id + 1, "study_instance_uid": head.study_instance_uid,
                    "series_instance_uid": head.series_instance_uid, "modality": "CT", "calling_ae_title": "CT",
                    "state": "COMPLETE", "revision": 1, "number_of_instances": _IN_SERIES, "last_instance_at": at,
                    "updated_at": at,
                }
            )  # fmt: skip
        rows.append(
            {
                "series_id": series_id + 1, "sop_instance_uid": head.sop_instance_uid, "sop_class_uid": CTImageStorage,
                "transfer_syntax_uid": ExplicitVRLittleEndian, "path": path, "received_at": at,
                "sha256": hashlib.sha256(content).hexdigest(), "size_bytes": len(meta) + len(content),
            }
        )  # fmt: skip
    with create_engine(f"sqlite:///{folder / 'node.sqlite'}").begin() as connection:
        connection.execute(schema.series.insert(), series_rows)
        connection.execute(schema.instances.insert(), rows[1:])
    instances.absolute(rows[-1]["path"]).unlink()
    for what in ("with one file too many and one too few", "again"):
        began = time.monotonic()
        result = reconcile(instances, store, SystemClock())
        seconds = time.monotonic() - began
        print(f"{number} instances, {what}: {seconds:.2f} s, {result.adopted} adopted, {result.lost} lost")
    store.close()


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="what", required=True)
    associations = commands.add_parser("associations")
    associations.add_argument("--number", type=int, default=10)
    associations.add_argument("--slices", type=int, default=100)
    comparison = commands.add_parser("reconcile")
    comparison.add_argument("--instances", type=int, default=100_000)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if chosen.what == "associations":
            measure_associations(Path(folder), chosen.number, chosen.slices)
        else:
            measure_reconcile(Path(folder), chosen.instances)


if __name__ == "__main__":
    main()
