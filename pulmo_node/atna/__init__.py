"""DICOM audit messages (PS3.15 A.5, IHE ATNA) of what the audit trail notes, to a syslog server."""

from __future__ import annotations

from pulmo_node.atna.messages import Destination, Source, audit_messages
from pulmo_node.atna.syslog import Both, Closable, SyslogAudit, SyslogServer, parse_server

__all__ = ["Both", "Closable", "Destination", "Source", "SyslogAudit", "SyslogServer", "audit_messages", "parse_server"]
