"""The outbox: encoded results, until they are sent and as long as their study is kept.

Input: encoded objects. Output: files below the storage directory that survive a power cut from the moment the call
returns. Errors: `Transient` where the disk refuses, `Permanent` where what lies there is damaged. Layout below the
storage directory::

    outbox/<key>/<sop>.dcm, findings.json, objects.json    what one job yielded
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from uuid import uuid4

from pulmo_node.domain.deliveries import ResultObject
from pulmo_node.durable import disk_refusal, fsync_folder, fsync_upwards, write_durably
from pulmo_node.errors import Permanent, Transient
from pulmo_node.files import prepare_storage, uid_name
from pulmo_node.ports import OutboxItem

_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


class FileOutbox:
    """Encoded result objects, one folder a job (port `Outbox`)."""

    def __init__(self, storage: Path) -> None:
        self._storage = storage
        self._outbox = storage / "outbox"
        self._incoming = prepare_storage(storage, "outbox")

    def put(self, key: str, items: Sequence[OutboxItem], findings_json: str) -> tuple[tuple[ResultObject, ...], str]:
        """Write the objects of one job, whole or not at all; what lies under `key` already is returned instead.

        Raises:
            Transient: the disk refuses.
            Permanent: two objects have one SOP Instance UID.
        """
        found = self.get(key)
        if found is not None:
            with disk_refusal(f"synchronising outbox {_key_name(key)}"):
                fsync_upwards(self._outbox, self._storage)  # who put it may have died before doing so
            return found
        results = self._results(key, items)
        part = self._incoming / f"{uuid4().hex}.part"
        with disk_refusal(f"writing outbox {_key_name(key)}"):
            try:
                part.mkdir()
                for item, result in zip(items, results, strict=True):
                    write_durably(part / Path(result.path).name, item.content)
                write_durably(part / "findings.json", findings_json.encode())
                index = [asdict(result) for result in results]
                write_durably(part / "objects.json", json.dumps(index, indent=1).encode())
                fsync_folder(part)
                _rename_folder(part, self._outbox / _key_name(key))
                fsync_upwards(self._outbox, self._storage)
            finally:
                shutil.rmtree(part, ignore_errors=True)
        written = self.get(key)
        if written is None:
            raise Transient(f"outbox {_key_name(key)} vanished while it was being written")
        return written

    def get(self, key: str) -> tuple[tuple[ResultObject, ...], str] | None:
        """What lies under `key`, or None.

        Raises:
            Transient: it cannot be read.
            Permanent: its index is damaged.
        """
        folder = self._outbox / _key_name(key)
        if not folder.is_dir():
            return None
        with disk_refusal(f"reading outbox {folder.name}"):
            index = (folder / "objects.json").read_bytes()
            findings_json = (folder / "findings.json").read_bytes().decode()
        try:
            return tuple(ResultObject(**entry) for entry in json.loads(index)), findings_json
        except (ValueError, TypeError) as exc:
            raise Permanent(f"outbox {folder.name}/objects.json is damaged: {exc}") from exc

    def check(self, result: ResultObject) -> None:
        """Whether an object is what was put here, byte for byte.

        Raises:
            Transient: the disk refuses.
            Permanent: it is gone, or its bytes have changed.
        """
        with disk_refusal(f"reading {result.path}"):
            try:
                file = (self._storage / result.path).open("rb")
            except FileNotFoundError as exc:
                raise Permanent(f"{result.path} is gone") from exc
            with file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != result.sha256:
            raise Permanent(f"{result.path} is damaged: its digest is not the one of the object that was encoded")

    def discard(self, key: str) -> None:
        """Remove what lies under `key`: its study was erased meanwhile. Raises `Transient`."""
        with disk_refusal(f"removing outbox {_key_name(key)}"):
            if (self._outbox / _key_name(key)).is_dir():
                shutil.rmtree(self._outbox / _key_name(key))

    def _results(self, key: str, items: Sequence[OutboxItem]) -> tuple[ResultObject, ...]:
        results = tuple(
            ResultObject(
                kind=item.kind,
                sop_class_uid=item.sop_class_uid,
                sop_instance_uid=item.sop_instance_uid,
                series_instance_uid=item.series_instance_uid,
                path=f"outbox/{_key_name(key)}/{uid_name(item.sop_instance_uid)}.dcm",
                sha256=hashlib.sha256(item.content).hexdigest(),
            )
            for item in items
        )
        if len({result.path for result in results}) != len(results):
            raise Permanent(f"outbox {_key_name(key)}: two objects have one SOP Instance UID")
        return results


def _key_name(key: str) -> str:
    if _KEY.fullmatch(key):
        return key
    return f"sha256-{hashlib.sha256(key.encode(errors='surrogatepass')).hexdigest()}"


def _rename_folder(source: Path, target: Path) -> None:
    """Give the folder its name, unless another worker was first; its objects then stay as they are."""
    try:
        source.rename(target)
    except OSError:
        if not target.is_dir():
            raise
