"""Port `JobStore`, second part: deliveries that were sent and count only once the peer has committed itself to them."""

from __future__ import annotations

from datetime import datetime

import sqlalchemy as sa

from pulmo_node.domain.deliveries import Delivery, DeliveryEvent, DeliveryState
from pulmo_node.domain.jobs import JobState
from pulmo_node.store import schema
from pulmo_node.store.database import CLOCK_SET_BACK, Database
from pulmo_node.store.moves import job_by_id, move_delivery, settle_job
from pulmo_node.store.rows import DELIVERIES, to_delivery

_UNWANTED = (JobState.SUPERSEDED.value, JobState.CANCELLED.value)


class SqlAwaitingStore(Database):
    """What storage commitment as SCU needs (PS3.4 J)."""

    def uncommitted(self, destination: str) -> int:
        """The number of sent deliveries that count only once committed, and that were not asked for yet."""
        query = sa.select(sa.func.count()).where(*_unasked(destination))
        with self._read() as connection:
            return int(connection.scalar(query) or 0)

    def commitment_asked(self, destination: str, transaction_uid: str) -> tuple[Delivery, ...]:
        """Give every delivery that was not asked for this Transaction UID; those that have it now.

        Before the request is sent, so that no report can come before it is known.
        """
        table = schema.deliveries
        with self._write() as connection:
            connection.execute(table.update().where(*_unasked(destination)).values(commitment_uid=transaction_uid))
            query = DELIVERIES.where(table.c.commitment_uid == transaction_uid).order_by(table.c.id)
            return tuple(to_delivery(row) for row in connection.execute(query))

    def commitment_not_asked(self, transaction_uid: str) -> None:
        """The request was lost with its association: it is made again, under another Transaction UID."""
        table = schema.deliveries
        waiting = (table.c.commitment_until.is_not(None), table.c.commitment_uid == transaction_uid)
        with self._write() as connection:
            connection.execute(table.update().where(*waiting).values(commitment_uid=None))

    def commitment_waived(self, destination: str) -> int:
        """The peer no longer offers commitment: what was not asked for counts as delivered; the number."""
        table = schema.deliveries
        unasked = _unasked(destination)
        at = self._clock.now()
        with self._write() as connection:
            rows = connection.execute(sa.select(table.c.id, table.c.job_id).where(*unasked)).all()
            connection.execute(table.update().where(*unasked).values(commitment_until=None))
            for job_id in sorted({row.job_id for row in rows}):
                settle_job(connection, job_id, at=at)
        return len(rows)

    def deliveries_of_transaction(self, transaction_uid: str) -> tuple[Delivery, ...]:
        """What was asked for under that Transaction UID, also what is committed already."""
        table = schema.deliveries
        taken = (DeliveryState.SENT.value, DeliveryState.COMMITTED.value)
        query = DELIVERIES.where(table.c.commitment_uid == transaction_uid, table.c.state.in_(taken))
        with self._read() as connection:
            return tuple(to_delivery(row) for row in connection.execute(query.order_by(table.c.id)))

    def overdue_commitments(self, destination: str, now: datetime) -> tuple[Delivery, ...]:
        """Sent deliveries whose time to be committed is over, or was told by a clock that has since been set back."""
        table = schema.deliveries
        over = sa.or_(table.c.commitment_until <= now, table.c.updated_at > now + CLOCK_SET_BACK)
        query = DELIVERIES.where(*_waiting(destination), over)
        with self._read() as connection:
            return tuple(to_delivery(row) for row in connection.execute(query.order_by(schema.deliveries.c.id)))

    def delivery_committed(self, delivery: Delivery) -> None:
        """SENT -> COMMITTED; the job follows to DONE when this was its last. Raises `StaleJob`."""
        at = self._clock.now()
        with self._write() as connection:
            job = job_by_id(connection, delivery.job_id)
            move_delivery(connection, delivery, DeliveryEvent.COMMITTED, at=at, job=job)
            settle_job(connection, job.id, at=at)

    def delivery_not_committed(self, delivery: Delivery, reason: str, not_before: datetime | None) -> bool:
        """SENT -> PENDING, attempts + 1; SENT -> FAILED without `not_before`. Raises `StaleJob`.

        False where nobody wants it any more (its job was superseded or cancelled, or has other results): it stays SENT.
        """
        at = self._clock.now()
        table, results = schema.deliveries, schema.results
        with self._write() as connection:
            job = job_by_id(connection, delivery.job_id)
            of_result = sa.select(table.c.result_id).where(table.c.id == delivery.id).scalar_subquery()
            in_use = connection.scalar(sa.select(results.c.in_use).where(results.c.id == of_result))
            if job.state.value in _UNWANTED or not in_use:
                connection.execute(table.update().where(table.c.id == delivery.id).values(commitment_until=None))
                return False
            event = DeliveryEvent.FAILED if not_before is None else DeliveryEvent.NOT_COMMITTED
            changes = {"attempts": delivery.attempts + 1, "reason": reason, "not_before": not_before}
            detail = reason if not_before is None else f"{reason}; again not before {not_before:%Y-%m-%dT%H:%M:%S%z}"
            move_delivery(connection, delivery, event, at=at, job=job, detail=detail, changes=changes)
            settle_job(connection, job.id, at=at)
            return True


def _waiting(destination: str) -> tuple[sa.ColumnElement[bool], ...]:
    table = schema.deliveries
    sent = table.c.state == DeliveryState.SENT.value
    return (table.c.commitment_until.is_not(None), table.c.destination == destination, sent)


def _unasked(destination: str) -> tuple[sa.ColumnElement[bool], ...]:
    return (*_waiting(destination), schema.deliveries.c.commitment_uid.is_(None))
