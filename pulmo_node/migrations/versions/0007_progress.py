"""How far the analysis of a job is, while it runs."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    """Add the columns, empty."""
    op.add_column("jobs", sa.Column("step", sa.String(length=32)))
    op.add_column("jobs", sa.Column("share", sa.Double()))
