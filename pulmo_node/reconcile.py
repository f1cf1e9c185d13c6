"""Reconcile: at the start of the node, what lies on disk is compared with what the database knows.

Input: the instance store and the database. Output: rows for files that had none (the node died between file and row, or
an older database was restored), and series reopened whose files are gone. Errors: `Transient` where disk or database
refuse. A file that is none of the node's own is told and left alone.
"""

from __future__ import annotations

import hashlib
import logging
import time
from dataclasses import dataclass
from io import BytesIO

from pydicom import dcmread
from pydicom.uid import UID

from pulmo_node.domain.series import StoredInstance
from pulmo_node.errors import Permanent
from pulmo_node.files import FileInstanceStore
from pulmo_node.ports import Clock, ReconcileStore, WrittenInstance
from pulmo_node.receive import Refused, describe, read_head

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Reconciled:
    """What the comparison came to."""

    files: int
    adopted: int  # files that got a row, or the event of a conflict
    foreign: int  # files that are none of the node's own
    lost: int  # rows whose file is gone
    reopened: tuple[str, ...]  # Series Instance UIDs of these


def reconcile(instances: FileInstanceStore, store: ReconcileStore, clock: Clock) -> Reconciled:
    """Compare and repair. Before the receiver starts: a file that is being received would look like one without row."""
    began = time.monotonic()
    in_use, known = store.recorded_paths()
    on_disk = set(instances.paths())
    lost = in_use - on_disk
    reopened = store.drop_lost(lost)
    adopted = foreign = 0
    for path in sorted(on_disk - in_use - known):
        try:
            store.record_instance(_described(path, instances, clock))
            adopted += 1
        except (Permanent, Refused) as exc:
            foreign += 1
            log.warning("%s is no instance of the node's own and is left alone: %s", path, exc)
    for series_instance_uid in reopened:
        log.error("series %s reopened: files are gone from the disk", series_instance_uid)
    log.info(
        "%d instances on disk, %d adopted, %d rows without file, %d other files; compared in %.1f s",
        len(on_disk), adopted, len(lost), foreign, time.monotonic() - began,
    )  # fmt: skip
    return Reconciled(files=len(on_disk), adopted=adopted, foreign=foreign, lost=len(lost), reopened=reopened)


def _described(path: str, instances: FileInstanceStore, clock: Clock) -> StoredInstance:
    """The row of a file. Raises `Permanent` or `Refused` where it is not what `Receiver` writes under that name."""
    meta_bytes, data_set = instances.read(path)
    try:
        meta = dcmread(BytesIO(meta_bytes)).file_meta
        transfer_syntax_uid = UID(str(meta["TransferSyntaxUID"].value))
        calling_ae_title = str(meta.get("SourceApplicationEntityTitle", ""))
    except Exception as exc:
        # Boundary: any file may lie there. Whatever the parser raises on it, it is not one of ours.
        raise Permanent("its meta header cannot be read") from exc
    head = read_head(data_set, transfer_syntax_uid)
    plain = instances.path_of(head.study_instance_uid, head.series_instance_uid, head.sop_instance_uid)
    digest = hashlib.sha256(data_set).hexdigest()
    if path not in (plain, instances.conflict_path(plain, digest)):
        raise Permanent("its name does not agree with its UIDs")
    return describe(
        head,
        WrittenInstance(path=path, sha256=digest, size_bytes=len(meta_bytes) + len(data_set)),
        transfer_syntax_uid=transfer_syntax_uid,
        calling_ae_title=calling_ae_title,
        received_at=clock.now(),
    )
