"""Port `CommitmentStore`: requests for storage commitment until they are answered."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

import sqlalchemy as sa

from pulmo_node.domain.commitments import Commitment, KeptInstance
from pulmo_node.store import schema
from pulmo_node.store.database import Database
from pulmo_node.store.moves import add_row

_LONGEST_DELAY = timedelta(days=1)  # beyond any between two attempts to tell a peer


class SqlCommitmentStore(Database):
    """What storage commitment needs."""

    def add_commitment(
        self, transaction_uid: str, calling_ae_title: str, instances: Sequence[tuple[str, str]], *, at: datetime
    ) -> bool:
        """Keep a request, committed on return; False where another one of that peer has the same transaction UID."""
        table = schema.commitments
        wanted = [list(pair) for pair in instances]
        with self._write() as connection:
            known = connection.execute(
                sa.select(table.c.instances).where(
                    table.c.transaction_uid == transaction_uid, table.c.calling_ae_title == calling_ae_title
                )
            ).first()
            if known is not None:
                return bool(known.instances == wanted)
            add_row(
                connection,
                table,
                transaction_uid=transaction_uid,
                calling_ae_title=calling_ae_title,
                instances=wanted,
                attempts=0,
                not_before=at,
            )
            return True

    def due_commitments(self, now: datetime) -> tuple[Commitment, ...]:
        """Requests that are to be answered now, oldest first; also those of a clock that has since been set back."""
        table = schema.commitments
        due = sa.or_(table.c.not_before <= now, table.c.not_before > now + _LONGEST_DELAY)
        with self._read() as connection:
            rows = connection.execute(table.select().where(due).order_by(table.c.id)).all()
        return tuple(
            Commitment(
                id=row.id,
                transaction_uid=row.transaction_uid,
                calling_ae_title=row.calling_ae_title,
                instances=tuple((pair[0], pair[1]) for pair in row.instances),
                attempts=row.attempts,
            )
            for row in rows
        )

    def commitment_deferred(self, commitment: Commitment, not_before: datetime) -> None:
        """The peer could not be told: attempts + 1."""
        table = schema.commitments
        with self._write() as connection:
            connection.execute(
                table.update()
                .where(table.c.id == commitment.id)
                .values(attempts=commitment.attempts + 1, not_before=not_before)
            )

    def commitment_ended(self, commitment: Commitment) -> None:
        """It was answered, or given up."""
        with self._write() as connection:
            connection.execute(schema.commitments.delete().where(schema.commitments.c.id == commitment.id))

    def kept_instance(self, sop_instance_uid: str) -> KeptInstance | None:
        """What is in use under that SOP Instance UID; None where nothing is."""
        table = schema.instances
        query = sa.select(table.c.sop_class_uid, table.c.path, table.c.sha256).where(table.c.purged_at.is_(None))
        with self._read() as connection:
            row = connection.execute(query.where(table.c.sop_instance_uid == sop_instance_uid)).first()
        return None if row is None else KeptInstance(sop_class_uid=row.sop_class_uid, path=row.path, sha256=row.sha256)
