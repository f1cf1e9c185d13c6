"""Deliveries that wait for storage commitment."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Add the columns; what was sent before counts as delivered."""
    op.add_column("deliveries", sa.Column("commitment_uid", sa.String(length=64)))
    op.add_column("deliveries", sa.Column("commitment_until", sa.DateTime(timezone=True)))
    op.create_index("ix_deliveries_commitment_uid", "deliveries", ["commitment_uid"])
    waiting = sa.text("commitment_until IS NOT NULL")
    op.create_index(
        "ix_deliveries_commitment_until",
        "deliveries",
        ["commitment_until"],
        sqlite_where=waiting,
        postgresql_where=waiting,
    )
