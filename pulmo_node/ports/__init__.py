"""What the stages need of the outside world. Adapters: `files`, `store`, `deliver`; for tests: `testing`.

A module for each consumer: `node` (all of them), `receiving`, `commitment`, `working`, `delivering`,
`administration`, `maintenance`.
"""

from __future__ import annotations

from pulmo_node.ports.administration import AdminStore, EventRow, PurgedSeries, StudyDetail, StudySummary
from pulmo_node.ports.commitment import AwaitingStore, CommitmentReports, CommitmentSender, CommitmentStore
from pulmo_node.ports.delivering import ResultLink, ResultSender
from pulmo_node.ports.maintenance import MaintenanceStore, PurgeableStudy, PurgedFiles, StudyFiles
from pulmo_node.ports.node import Clock, Journal
from pulmo_node.ports.receiving import (
    IncomingInstance,
    InstanceStore,
    ReceiveStore,
    ReconcileStore,
    Transfers,
    WrittenInstance,
)
from pulmo_node.ports.working import JobStore, Outbox, OutboxItem

__all__ = [
    "AdminStore",
    "AwaitingStore",
    "Clock",
    "CommitmentReports",
    "CommitmentSender",
    "CommitmentStore",
    "EventRow",
    "IncomingInstance",
    "InstanceStore",
    "JobStore",
    "Journal",
    "MaintenanceStore",
    "Outbox",
    "OutboxItem",
    "PurgeableStudy",
    "PurgedFiles",
    "PurgedSeries",
    "ReceiveStore",
    "ReconcileStore",
    "ResultLink",
    "ResultSender",
    "StudyDetail",
    "StudyFiles",
    "StudySummary",
    "Transfers",
    "WrittenInstance",
]
