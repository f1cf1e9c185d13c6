"""What studies are searched by: the accession number and the study date of a series, read from one of its images.

An accession number leads to a patient, and the database names none: what is kept is its keyed digest (HMAC-SHA-256),
which finds a whole number that somebody types and tells nothing to whoever reads the database without the key.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import pydicom

from pulmo_node.assemble.files import READ_ERRORS
from pulmo_node.errors import Transient
from pulmo_node.ports import InstanceStore

_KEY_FILE = "catalogue.key"
_AT_ONCE = 200


class CatalogueStore(Protocol):
    """What the catalogue needs of the database."""

    def uncatalogued(self, *, after: int, limit: int) -> tuple[tuple[int, str], ...]:
        """Series behind that id which are not in the catalogue: id, and path of one instance on disk (else empty)."""
        ...

    def add_to_catalogue(self, entries: Sequence[tuple[int, str, str]]) -> None:
        """Entries of series id, digest of the accession number and study date."""
        ...


class Catalogue:
    """Keeps the catalogue up to date; one thread at a time."""

    def __init__(self, storage: Path, store: CatalogueStore, instances: InstanceStore) -> None:
        """Reads the key, or makes one. Raises `Transient` where the disk refuses."""
        self._store = store
        self._instances = instances
        self._key = _key(storage / _KEY_FILE)
        self._seen = 0  # ids are never used again, so nothing before is looked at twice

    def digest(self, accession_number: str) -> str:
        """What the database knows of an accession number; empty for none."""
        text = accession_number.strip()
        return hmac.new(self._key, text.encode(), hashlib.sha256).hexdigest() if text else ""

    def update(self) -> int:
        """Take up series that came since, at most so many that it takes no longer than a second; their number."""
        found = self._store.uncatalogued(after=self._seen, limit=_AT_ONCE)
        if found:
            self._store.add_to_catalogue([self._entry(number, path) for number, path in found])
            self._seen = found[-1][0]
        return len(found)

    def _entry(self, series_id: int, path: str) -> tuple[int, str, str]:
        accession_number, study_date = _read(self._instances.absolute(path)) if path else ("", "")
        return series_id, self.digest(accession_number), study_date


def _read(path: Path) -> tuple[str, str]:
    """Accession number and study date, empty where they are missing or malformed."""
    try:
        header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=["AccessionNumber", "StudyDate"])
        accession_number, date = str(header.get("AccessionNumber") or ""), str(header.get("StudyDate") or "")
    except READ_ERRORS:
        return "", ""
    date = date.replace(".", "")  # as ACR-NEMA wrote it
    return accession_number, date if len(date) == 8 and date.isascii() and date.isdigit() else ""


def _key(path: Path) -> bytes:
    try:
        if not path.exists():
            part = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
            descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            try:
                os.write(descriptor, secrets.token_bytes(32))
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            try:
                os.link(part, path)  # the first of two nodes wins
            except FileExistsError:
                pass
            finally:
                part.unlink()
        return path.read_bytes()
    except OSError as exc:
        raise Transient(f"{path}: {exc.strerror}") from exc
