"""Leases of a job that ended with their node are counted apart from failed attempts."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """Add the column; what was counted as an attempt before stays one."""
    op.add_column("jobs", sa.Column("takeovers", sa.Integer(), nullable=False, server_default="0"))
