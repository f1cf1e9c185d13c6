"""Tables of the store. A change here comes with a migration in `pulmo_node/migrations/versions`."""

from __future__ import annotations

from datetime import UTC, datetime

import sqlalchemy as sa
from sqlalchemy.engine import Dialect

HEAD_REVISION = "0008"
"""The newest migration; a database at this revision is opened without loading Alembic."""

UID_LENGTH = 64  # PS3.5, 6.2: UI


class UtcDateTime(sa.types.TypeDecorator[datetime]):
    """Aware UTC in and out; SQLite, which has no time zones, holds it without one."""

    impl = sa.DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Raises `ValueError` for a naive time: it could mean any zone."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("a time without a time zone cannot be stored")
        value = value.astimezone(UTC)
        return value.replace(tzinfo=None) if dialect.name == "sqlite" else value

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """The time in UTC."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if dialect.name == "sqlite" else value.astimezone(UTC)


metadata = sa.MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
        "ix": "ix_%(table_name)s_%(column_0_name)s",
    }
)

series = sa.Table(
    "series",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("study_instance_uid", sa.String(UID_LENGTH), nullable=False, index=True),
    sa.Column("series_instance_uid", sa.String(UID_LENGTH), nullable=False, unique=True),
    sa.Column("modality", sa.String(16), nullable=False),
    sa.Column("calling_ae_title", sa.String(16), nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("revision", sa.Integer, nullable=False),
    sa.Column("number_of_instances", sa.Integer, nullable=False),
    sa.Column("last_instance_at", UtcDateTime, nullable=False),
    sa.Column("note", sa.Text),
    sa.Column("updated_at", UtcDateTime, nullable=False),
    sa.Column("priority", sa.Integer, nullable=False, server_default="0"),  # asked for by an operator
    sa.Index("ix_series_state", "state", "last_instance_at"),
    sqlite_autoincrement=True,  # an id is never used again, so that a line in a log stays true
)

instances = sa.Table(
    "instances",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("series_id", sa.ForeignKey("series.id"), nullable=False, index=True),
    sa.Column("sop_instance_uid", sa.String(UID_LENGTH), nullable=False, unique=True),
    sa.Column("sop_class_uid", sa.String(UID_LENGTH), nullable=False),
    sa.Column("transfer_syntax_uid", sa.String(UID_LENGTH), nullable=False),
    sa.Column("path", sa.Text, nullable=False),
    sa.Column("sha256", sa.String(64), nullable=False),
    sa.Column("size_bytes", sa.BigInteger, nullable=False),
    sa.Column("received_at", UtcDateTime, nullable=False),
    sa.Column("purged_at", UtcDateTime),  # its file was removed; sent again, it is there again
)

jobs = sa.Table(
    "jobs",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("series_id", sa.ForeignKey("series.id"), nullable=False),
    sa.Column("revision", sa.Integer, nullable=False),
    sa.Column("pipeline", sa.String(128), nullable=False),
    sa.Column("destinations", sa.JSON, nullable=False),  # names of configured peers
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("not_before", UtcDateTime),
    sa.Column("reason_code", sa.String(64)),
    sa.Column("reason", sa.Text),
    sa.Column("worker_id", sa.String(128)),
    sa.Column("lease_until", UtcDateTime),
    sa.Column("findings", sa.Text),
    sa.Column("created_at", UtcDateTime, nullable=False),
    sa.Column("updated_at", UtcDateTime, nullable=False),
    sa.Column("priority", sa.Integer, nullable=False, server_default="0"),
    sa.Column("takeovers", sa.Integer, nullable=False, server_default="0"),  # leases that ended with their node
    sa.Column("step", sa.String(32)),  # that is running under the lease
    sa.Column("share", sa.Double),  # of that step, 0 to 1
    sa.UniqueConstraint("series_id", "revision", "pipeline"),
    sa.Index("ix_jobs_state", "state", "id"),
    sqlite_autoincrement=True,
)

results = sa.Table(
    "results",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("job_id", sa.ForeignKey("jobs.id"), nullable=False),
    sa.Column("kind", sa.String(16), nullable=False),
    sa.Column("sop_class_uid", sa.String(UID_LENGTH), nullable=False),
    sa.Column("sop_instance_uid", sa.String(UID_LENGTH), nullable=False),
    sa.Column("series_instance_uid", sa.String(UID_LENGTH), nullable=False),
    sa.Column("path", sa.Text, nullable=False),
    sa.Column("sha256", sa.String(64), nullable=False),
    # False once the job was analysed again and this object is no part of the new results
    sa.Column("in_use", sa.Boolean, nullable=False),
    sa.UniqueConstraint("job_id", "sop_instance_uid"),
)

findings = sa.Table(
    "findings",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("job_id", sa.ForeignKey("jobs.id"), nullable=False),
    sa.Column("segment_number", sa.Integer, nullable=False),
    sa.Column("tracking_uid", sa.String(UID_LENGTH), nullable=False),
    sa.Column("centre_x_mm", sa.Double, nullable=False),
    sa.Column("centre_y_mm", sa.Double, nullable=False),
    sa.Column("centre_z_mm", sa.Double, nullable=False),
    sa.Column("long_axis_mm", sa.Double, nullable=False),
    sa.Column("short_axis_mm", sa.Double, nullable=False),
    sa.Column("volume_mm3", sa.Double, nullable=False),
    sa.Column("mean_hu", sa.Double, nullable=False),
    sa.Column("min_hu", sa.Double),
    sa.Column("max_hu", sa.Double),
    sa.Column("laterality", sa.String(8)),
    sa.Column("pleura_distance_mm", sa.Double),
    sa.Column("candidate_score", sa.Double, nullable=False),
    sa.Column("detection_probability", sa.Double, nullable=False),
    sa.Column("malignancy_probability", sa.Double, nullable=False),
    sa.Column("malignancy_bias", sa.Double, nullable=False),
    sa.Column("concepts", sa.JSON, nullable=False),
    sa.Column("cautions", sa.JSON, nullable=False),
    sa.UniqueConstraint("job_id", "segment_number"),
)
"""The nodules of a job's latest results; the columns from `segment_number` on are the fields of `Finding`."""

deliveries = sa.Table(
    "deliveries",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("job_id", sa.ForeignKey("jobs.id"), nullable=False, index=True),
    sa.Column("result_id", sa.ForeignKey("results.id"), nullable=False),
    sa.Column("destination", sa.String(64), nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("not_before", UtcDateTime),
    sa.Column("reason", sa.Text),
    sa.Column("worker_id", sa.String(128)),
    sa.Column("lease_until", UtcDateTime),
    sa.Column("updated_at", UtcDateTime, nullable=False),
    sa.Column("commitment_uid", sa.String(UID_LENGTH), index=True),
    sa.Column("commitment_until", UtcDateTime),
    sa.UniqueConstraint("result_id", "destination"),
    sa.Index("ix_deliveries_state", "state", "destination", "job_id"),
    sqlite_autoincrement=True,
)
sa.Index(  # of the few that wait: looked through every second
    "ix_deliveries_commitment_until",
    deliveries.c.commitment_until,
    sqlite_where=deliveries.c.commitment_until.is_not(None),
    postgresql_where=deliveries.c.commitment_until.is_not(None),
)

events = sa.Table(
    "events",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("at", UtcDateTime, nullable=False),
    sa.Column("study_instance_uid", sa.String(UID_LENGTH), nullable=False, index=True),
    sa.Column("series_instance_uid", sa.String(UID_LENGTH)),
    sa.Column("subject", sa.String(64), nullable=False),
    sa.Column("event", sa.String(32), nullable=False),
    sa.Column("state", sa.String(16)),
    sa.Column("detail", sa.Text),
)

commitments = sa.Table(
    "commitments",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("transaction_uid", sa.String(UID_LENGTH), nullable=False),
    sa.Column("calling_ae_title", sa.String(16), nullable=False),
    sa.Column("instances", sa.JSON, nullable=False),  # pairs of SOP Class UID and SOP Instance UID
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("not_before", UtcDateTime, nullable=False),
    sa.UniqueConstraint("transaction_uid", "calling_ae_title"),
)
"""Requests for storage commitment that are still to be answered; the answered ones are gone."""

users = sa.Table(
    "users",
    metadata,
    sa.Column("name", sa.String(64), primary_key=True),
    sa.Column("role", sa.String(16), nullable=False),
    sa.Column("password_hash", sa.Text, nullable=False),
    sa.Column("created_at", UtcDateTime, nullable=False),
)
"""Who may log in to the page."""

sessions = sa.Table(
    "sessions",
    metadata,
    sa.Column("token_sha256", sa.String(64), primary_key=True),
    sa.Column("user_name", sa.ForeignKey("users.name", ondelete="CASCADE"), nullable=False),
    sa.Column("created_at", UtcDateTime, nullable=False),
    sa.Column("seen_at", UtcDateTime, nullable=False),
)

catalogue = sa.Table(
    "catalogue",
    metadata,
    sa.Column("series_id", sa.ForeignKey("series.id", ondelete="CASCADE"), primary_key=True, autoincrement=False),
    sa.Column("accession_digest", sa.String(64), nullable=False, index=True),  # keyed, so it names nobody by itself
    sa.Column("study_date", sa.String(8), nullable=False, index=True),  # YYYYMMDD
)
"""What studies are searched by. Empty values: the images do not say, or none of them is on disk any more."""

received = sa.Table(
    "received",
    metadata,
    sa.Column("calling_ae_title", sa.String(16), primary_key=True),
    sa.Column("status", sa.String(16), primary_key=True),
    sa.Column("instances", sa.BigInteger, nullable=False),
    sa.Column("size_bytes", sa.BigInteger, nullable=False),
)
"""What was received since the beginning; it only grows, also where studies are erased."""
