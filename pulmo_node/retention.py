"""What leaves the storage: studies that are erased on demand, images of delivered studies by age and size.

Erasure moves the files out of the way before their rows go: a crash in between leaves rows whose files are gone, which
the next start tells, and never a file that the next start would adopt. A purge marks the rows first: a crash in between
leaves files that are found again.
"""

from __future__ import annotations

import logging
import os
import shutil
from datetime import timedelta
from pathlib import Path
from uuid import uuid4

from pydicom import dcmread
from pydicom.errors import InvalidDicomError

from pulmo_node.durable import disk_refusal
from pulmo_node.errors import Permanent, Transient
from pulmo_node.files import remove_abandoned
from pulmo_node.ports import Clock, Journal, MaintenanceStore, StudyFiles

log = logging.getLogger(__name__)

GIB = 1024**3


def erase_study(storage: Path, store: MaintenanceStore, journal: Journal, study_instance_uid: str) -> StudyFiles | None:
    """Remove images, results, findings and history of a study; the audit entry stays. None where it is unknown.

    Raises:
        Transient: it is still being received, or disk or database refuse.
    """
    files = store.study_files(study_instance_uid)
    if files is None:
        return None
    entry = {"study_instance_uid": study_instance_uid, "series": files.series}
    counts = {"images": len(files.instances), "results": len(files.results)}
    journal.record([{"action": "delete requested", **entry, **counts}], durable=True)
    forgotten = _forgotten(storage, store, study_instance_uid)
    gone: list[Path] = []

    def set_aside(now: StudyFiles) -> None:
        folders = {_folder(storage, path) for path in (*now.instances, *now.results)} | forgotten
        gone.extend(_set_aside(storage, folder) for folder in sorted(folders) if folder.is_dir())

    try:
        store.erase(study_instance_uid, set_aside)
        for folder in gone:
            shutil.rmtree(folder)
    except OSError as exc:
        raise Transient(f"study {study_instance_uid} is not wholly deleted: {exc.strerror}") from exc
    journal.record([{"action": "deleted", **entry, **counts}], durable=True)
    return files


def _folder(storage: Path, path: str) -> Path:
    """The folder to be removed for a file: instances/<study> or outbox/<key>, and nothing above them.

    Raises:
        Permanent: the path has another shape.
    """
    match path.split("/"):
        case ["instances", study, _, _] if study.strip("."):
            return storage / "instances" / study
        case ["outbox", key, _] if key.strip("."):
            return storage / "outbox" / key
    raise Permanent(f"{path} is no path of an image or result; nothing is removed")


def _forgotten(storage: Path, store: MaintenanceStore, study_instance_uid: str) -> set[Path]:
    """Folders of the outbox that no row knows (their job was superseded first) and that speak of the study."""
    known = {(storage / path).parent for path in store.known_outbox_paths()}
    found = set()
    for folder in (storage / "outbox").iterdir() if (storage / "outbox").is_dir() else ():
        objects = sorted(folder.glob("*.dcm")) if folder not in known else []
        if objects and _study_of(objects[0]) == study_instance_uid:
            found.add(folder)
    return found


def _study_of(file: Path) -> str | None:
    try:
        return str(dcmread(file, specific_tags=["StudyInstanceUID"], stop_before_pixels=True).StudyInstanceUID)
    except (OSError, InvalidDicomError, AttributeError):
        return None


def _set_aside(storage: Path, folder: Path) -> Path:
    """Into the folder of what is never read and cleared in the end, in one step."""
    target = storage / "incoming" / f"{uuid4().hex}.part"
    target.parent.mkdir(exist_ok=True)
    folder.rename(target)
    os.utime(target)  # it is not abandoned
    return target


class Purge:
    """Removes the images of studies that are through, by age and by the size of all. Results and findings stay."""

    def __init__(
        self, storage: Path, store: MaintenanceStore, clock: Clock, *, delivered_days: float, max_gib: float
    ) -> None:
        """`delivered_days` and `max_gib`: 0 for no limit."""
        self._storage = storage
        self._store = store
        self._clock = clock
        self._delivered_days = delivered_days
        self._max_bytes = max_gib * GIB

    def sweep(self) -> None:
        """Remove what a crash during a purge left. Before the receiver starts: a purged image may come again.

        Raises:
            Transient: disk or database refuse.
        """
        for path in self._store.purged_paths():
            try:
                (self._storage / path).unlink(missing_ok=True)
            except OSError as exc:
                raise Transient(f"{path}: {exc.strerror}") from exc

    def due(self) -> tuple[str, ...]:
        """Study Instance UIDs of what is to be purged now, the longest untouched first."""
        if not self._delivered_days and not self._max_bytes:
            return ()
        before = self._clock.now() - timedelta(days=self._delivered_days)
        excess = self._store.stored_bytes() - self._max_bytes if self._max_bytes else 0
        due = []
        for study in self._store.purgeable():
            old = self._delivered_days and study.touched_at <= before
            if old or excess > 0:
                due.append(study.study_instance_uid)
                excess -= study.size_bytes
        return tuple(due)

    def run(self) -> int:
        """Purge what is due; the number of studies. Also removes what a killed process left half written.

        Raises:
            Transient: disk or database refuse.
        """
        with disk_refusal(f"clearing {self._storage / 'incoming'}"):
            remove_abandoned(self._storage)
        studies = self.due()
        for study in studies:
            paths = self._store.purge(study)
            try:
                for folder in self._remove(study):
                    shutil.rmtree(folder)
            except OSError as exc:
                raise Transient(f"purge of study {study}: {exc.strerror}") from exc
            log.info("study %s: %d images purged", study, len(paths))
        return len(studies)

    def _remove(self, study: str) -> list[Path]:
        """Take the files of a purged study away, those that were kept aside with them; folders that remain to be
        removed. Where images have come since the rows were marked, nothing but what is marked still."""
        with self._store.removing_purged(study) as purged:
            if not purged.all_gone:
                for path in purged.paths:
                    (self._storage / path).unlink(missing_ok=True)
                return []
            folders = sorted({_folder(self._storage, path) for path in purged.paths})
            return [_set_aside(self._storage, folder) for folder in folders if folder.is_dir()]
