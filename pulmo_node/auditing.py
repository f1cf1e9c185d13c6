"""Puts the audit trail of a configuration together: the file, and where it is wanted DICOM audit messages."""

from __future__ import annotations

import socket
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

from pydicom import dcmread

from pulmo_node.atna import Both, Closable, Destination, Source, SyslogAudit, audit_messages, parse_server
from pulmo_node.audit import AuditTrail
from pulmo_node.config import Config
from pulmo_node.domain.deliveries import PeerTls
from pulmo_node.errors import ConfigError
from pulmo_node.ports import Clock

_MOST_REMEMBERED = 256  # Patient IDs
_LONGEST_PATIENT_ID = 64  # PS3.5, 6.2: LO


def open_trail(config: Config, who: str, clock: Clock) -> Closable:
    """The audit trail. Raises `ConfigError` where the syslog server cannot be understood."""
    file = AuditTrail(config.audit_file, who, clock)
    if not config.audit.syslog:
        return file
    own = config.tls
    tls = PeerTls(ca=config.audit.syslog_ca, certificate=own.certificate, private_key=own.private_key)
    try:
        server = parse_server(config.audit.syslog, tls)
    except ValueError as exc:
        raise ConfigError([f"audit.syslog: {exc}"]) from exc
    source = Source(ae_title=config.node.ae_title, host=socket.gethostname(), site=config.audit.site)
    patients = _Patients(config.storage) if config.audit.syslog_patients else None

    def translate(entry: Mapping[str, object]) -> Iterator[bytes]:
        if patients is not None and entry["action"] == "delete requested":
            patients.of(str(entry["study_instance_uid"]))  # once it is deleted nobody can tell
        return audit_messages(
            entry,
            who,
            source,
            destination_of=partial(_destination, config),
            patient_of=(lambda study: None) if patients is None else patients.of,
        )

    return Both(file, SyslogAudit(server, translate))


def _destination(config: Config, name: str) -> Destination | None:
    peer = config.peers.get(name)
    if peer is None:
        return None
    return Destination(ae_title=peer.ae_title or name, host=peer.host or urlsplit(peer.stow_url).hostname or "")


class _Patients:
    """Patient IDs of studies, from their images."""

    def __init__(self, storage: Path) -> None:
        self._instances = storage / "instances"
        self._known: OrderedDict[str, str] = OrderedDict()
        self._lock = threading.Lock()

    def of(self, study_instance_uid: str) -> str | None:
        """None where there is no image of it that can be read."""
        found = self._known.get(study_instance_uid)
        if found is None:
            found = self._read(study_instance_uid)  # without a lock: others need not wait for the disk
            if found is None:
                return None
            with self._lock:
                self._known[study_instance_uid] = found
                while len(self._known) > _MOST_REMEMBERED:
                    self._known.popitem(last=False)
        return found

    def _read(self, study_instance_uid: str) -> str | None:
        if not study_instance_uid.replace(".", "").isdigit():
            return None  # no UID, so no name of a folder
        for path in (self._instances / study_instance_uid).glob("*/*.dcm"):
            try:
                head = dcmread(path, specific_tags=["PatientID"], stop_before_pixels=True)
                return str(head.get("PatientID", ""))[:_LONGEST_PATIENT_ID]
            except Exception:  # noqa: BLE001, S112
                # Boundary: bytes of a stranger, whatever the parser raises on them. What is told here is committed.
                continue
        return None
