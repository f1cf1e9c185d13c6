"""Priority of series and jobs; when the file of an instance was purged."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Add the columns; what is there is routine and has its files."""
    for table in ("series", "jobs"):
        op.add_column(table, sa.Column("priority", sa.Integer(), nullable=False, server_default="0"))
    op.add_column("instances", sa.Column("purged_at", sa.DateTime(timezone=True)))
