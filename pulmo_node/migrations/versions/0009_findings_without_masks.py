"""Findings of a detector that draws boxes: no volume, no attenuation, no malignancy."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"

_NOT_EVERY_PIPELINE_TELLS = ("volume_mm3", "mean_hu", "malignancy_probability", "malignancy_bias")


def upgrade() -> None:
    """Allow NULL in these columns, for which SQLite copies the table, and keep the corners of the box."""
    with op.batch_alter_table("findings") as findings:
        findings.add_column(sa.Column("box_lps_mm", sa.JSON(none_as_null=True)))
        for name in _NOT_EVERY_PIPELINE_TELLS:
            findings.alter_column(name, existing_type=sa.Double(), nullable=True)
