"""What storage commitment needs, as SCP (peers ask whether the node keeps their images) and as SCU."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Protocol

from pulmo_node.domain.commitments import Commitment, CommitmentReport, KeptInstance
from pulmo_node.domain.deliveries import Delivery, Peer


class CommitmentStore(Protocol):
    """What storage commitment as SCP needs."""

    def add_commitment(
        self, transaction_uid: str, calling_ae_title: str, instances: Sequence[tuple[str, str]], *, at: datetime
    ) -> bool:
        """Keep a request, committed on return; False where another one of that peer has the same transaction UID."""
        ...

    def due_commitments(self, now: datetime) -> tuple[Commitment, ...]:
        """Requests that are to be answered now, oldest first."""
        ...

    def commitment_deferred(self, commitment: Commitment, not_before: datetime) -> None:
        """The peer could not be told: attempts + 1."""
        ...

    def commitment_ended(self, commitment: Commitment) -> None:
        """It was answered, or given up."""
        ...

    def kept_instance(self, sop_instance_uid: str) -> KeptInstance | None:
        """What is in use under that SOP Instance UID; None where nothing is."""
        ...


class CommitmentSender(Protocol):
    """Tells peers of the instances that the node keeps."""

    def report_commitment(self, peer: Peer, report: CommitmentReport) -> None:
        """Raises `Transient` where the peer cannot be told."""
        ...


class AwaitingStore(Protocol):
    """What storage commitment as SCU needs: deliveries that were sent and count only once committed."""

    def uncommitted(self, destination: str) -> int:
        """The number of those that were not asked for yet."""
        ...

    def commitment_asked(self, destination: str, transaction_uid: str) -> tuple[Delivery, ...]:
        """Give those that were not asked for this Transaction UID, before the request is sent; what has it now."""
        ...

    def commitment_not_asked(self, transaction_uid: str) -> None:
        """The request was lost: it is made again, under another Transaction UID."""
        ...

    def commitment_waived(self, destination: str) -> int:
        """The peer no longer offers commitment: what was not asked for counts as delivered; the number."""
        ...

    def deliveries_of_transaction(self, transaction_uid: str) -> tuple[Delivery, ...]:
        """What was asked for under that Transaction UID, also what is committed already."""
        ...

    def overdue_commitments(self, destination: str, now: datetime) -> tuple[Delivery, ...]:
        """Those whose time to be committed is over."""
        ...

    def delivery_committed(self, delivery: Delivery) -> None:
        """SENT -> COMMITTED; the job follows to DONE when this was its last. Raises StaleJob."""
        ...

    def delivery_not_committed(self, delivery: Delivery, reason: str, not_before: datetime | None) -> bool:
        """SENT -> PENDING, attempts + 1; SENT -> FAILED without `not_before`. Raises StaleJob.

        False where nobody wants it any more (its job was superseded or cancelled, or has other results): it stays SENT.
        """
        ...


class CommitmentReports(Protocol):
    """Where the reports of peers arrive, on whatever association."""

    def on_n_event_report(self, event: Any) -> tuple[int, None]:
        """Status of the answer; `event` is one of pynetdicom's."""
        ...
