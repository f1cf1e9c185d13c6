"""The table of findings, filled from the findings.json of the jobs that have results."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Create the table and fill it."""
    table = op.create_table(
        "findings",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("job_id", sa.Integer(), nullable=False),
        sa.Column("segment_number", sa.Integer(), nullable=False),
        sa.Column("tracking_uid", sa.String(length=64), nullable=False),
        sa.Column("centre_x_mm", sa.Double(), nullable=False),
        sa.Column("centre_y_mm", sa.Double(), nullable=False),
        sa.Column("centre_z_mm", sa.Double(), nullable=False),
        sa.Column("long_axis_mm", sa.Double(), nullable=False),
        sa.Column("short_axis_mm", sa.Double(), nullable=False),
        sa.Column("volume_mm3", sa.Double(), nullable=False),
        sa.Column("mean_hu", sa.Double(), nullable=False),
        sa.Column("min_hu", sa.Double()),
        sa.Column("max_hu", sa.Double()),
        sa.Column("laterality", sa.String(length=8)),
        sa.Column("pleura_distance_mm", sa.Double()),
        sa.Column("candidate_score", sa.Double(), nullable=False),
        sa.Column("detection_probability", sa.Double(), nullable=False),
        sa.Column("malignancy_probability", sa.Double(), nullable=False),
        sa.Column("malignancy_bias", sa.Double(), nullable=False),
        sa.Column("concepts", sa.JSON(), nullable=False),
        sa.Column("cautions", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_findings_job_id_jobs"),
        sa.PrimaryKeyConstraint("id", name="pk_findings"),
        sa.UniqueConstraint("job_id", "segment_number", name="uq_findings_job_id"),
    )
    rows = list(_rows(op.get_bind()))
    if rows:
        op.bulk_insert(table, rows)


def _rows(connection: sa.Connection) -> Iterator[dict[str, Any]]:
    """One row for each nodule; a findings.json that cannot be read stays where it is, and has none."""
    jobs = sa.table("jobs", sa.column("id"), sa.column("state"), sa.column("findings"))
    with_results = sa.select(jobs.c.id, jobs.c.findings).where(
        jobs.c.findings.is_not(None), jobs.c.state.not_in(["REJECTED", "QUARANTINED"])
    )
    for job_id, findings_json in connection.execute(with_results.order_by(jobs.c.id)):
        try:
            plain = json.loads(findings_json)
            yield from [_row(job_id, nodule, plain["malignancy_bias"]) for nodule in plain["nodules"]]
        except (ValueError, KeyError, TypeError):
            continue


def _row(job_id: int, nodule: dict[str, Any], malignancy_bias: float) -> dict[str, Any]:
    x, y, z = nodule["centre_lps_mm"]
    same = (
        "segment_number", "tracking_uid", "long_axis_mm", "short_axis_mm", "volume_mm3", "mean_hu", "candidate_score",
        "detection_probability", "malignancy_probability", "concepts", "cautions",
    )  # fmt: skip
    later = ("min_hu", "max_hu", "laterality", "pleura_distance_mm")  # not in findings.json before version 3
    return {
        "job_id": job_id,
        "centre_x_mm": x,
        "centre_y_mm": y,
        "centre_z_mm": z,
        "malignancy_bias": malignancy_bias,
        **{key: nodule[key] for key in same},
        **{key: nodule.get(key) for key in later},
    }
