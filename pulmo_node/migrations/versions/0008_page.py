"""What the page needs: users and sessions, what studies are searched by, and what was received since the beginning."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    """Create the tables; what is still there counts as what was received."""
    op.create_table(
        "users",
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("role", sa.String(length=16), nullable=False),
        sa.Column("password_hash", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_users"),
    )
    op.create_table(
        "sessions",
        sa.Column("token_sha256", sa.String(length=64), nullable=False),
        sa.Column("user_name", sa.String(length=64), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("seen_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["user_name"], ["users.name"], name="fk_sessions_user_name_users", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("token_sha256", name="pk_sessions"),
    )
    op.create_table(
        "catalogue",
        sa.Column("series_id", sa.Integer(), nullable=False),
        sa.Column("accession_digest", sa.String(length=64), nullable=False),
        sa.Column("study_date", sa.String(length=8), nullable=False),
        sa.ForeignKeyConstraint(["series_id"], ["series.id"], name="fk_catalogue_series_id_series", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("series_id", name="pk_catalogue"),
    )
    op.create_index("ix_catalogue_accession_digest", "catalogue", ["accession_digest"])
    op.create_index("ix_catalogue_study_date", "catalogue", ["study_date"])
    op.create_table(
        "received",
        sa.Column("calling_ae_title", sa.String(length=16), nullable=False),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.Column("instances", sa.BigInteger(), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("calling_ae_title", "status", name="pk_received"),
    )
    op.execute(
        "INSERT INTO received (calling_ae_title, status, instances, size_bytes) "
        "SELECT series.calling_ae_title, 'new', count(*), sum(instances.size_bytes) "
        "FROM instances JOIN series ON series.id = instances.series_id GROUP BY series.calling_ae_title"
    )
