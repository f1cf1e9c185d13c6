"""Open the database: engine, transactions, migrations, and the translation of SQLAlchemy's errors.

SQLite runs with WAL, enforced foreign keys and synchronous=FULL, so that a committed row survives a power cut.
Every writing transaction takes the write lock at its start (BEGIN IMMEDIATE; on PostgreSQL an advisory lock), so
that what it reads is still true when it writes. Both databases thus behave the same: one writer at a time.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, Self

import sqlalchemy as sa
from sqlalchemy import exc as sa_exc
from sqlalchemy.engine import Connection, Engine

from pulmo_node.errors import ConfigError, DiskFull, Permanent, Transient
from pulmo_node.ports import Clock, Journal
from pulmo_node.store.schema import HEAD_REVISION

log = logging.getLogger(__name__)

BUSY_SECONDS = 30.0
CLOCK_SET_BACK = timedelta(hours=1)
"""A time this far in the future tells that the clock was set back; below that, clocks merely differ."""

HAPPENED = "pulmo_happened"  # in the `info` of a connection: the events of its transaction
_WRITING = "pulmo_writing"  # execution option of the engine that writes
_ADVISORY_LOCK = 0x50554C4D  # "PULM"
_ALEMBIC = threading.Lock()  # Alembic keeps what it is working on in module variables
_MIGRATIONS = Path(__file__).resolve().parent.parent / "migrations"


class Database:
    """The open database at its newest schema; base of the three parts of `SqlStore`."""

    def __init__(self, url: str, clock: Clock) -> None:
        """Open and, where needed, create or migrate.

        Raises:
            ConfigError: the URL cannot be used, or a newer version of the node wrote the database.
            Transient: the database cannot be reached or is locked.
        """
        self._clock = clock
        self.journal: Journal | None = None  # told of every event that was committed
        self._engine = _engine(url)
        self._writing_engine = self._engine.execution_options(**{_WRITING: True})
        # Threads of this process queue here, in order; SQLite's own waiting is by chance and may starve one of them.
        self._writer = threading.Lock()
        self._migrate()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the pooled connections; the last one out checkpoints the WAL."""
        self._engine.dispose()

    def check(self) -> str:
        """The schema revision in use, after a write lock was had and, with SQLite, pages and references were checked.

        Raises:
            Transient: the database is locked, read-only, or cannot be reached.
            Permanent: it is damaged.
        """
        with self._write() as connection:
            revision = _revision(connection)
        if revision != HEAD_REVISION:
            raise Permanent(f"database: schema revision {revision}, expected {HEAD_REVISION}")
        if self._engine.dialect.name == "sqlite":
            with self._read() as connection:
                check_sqlite(connection.exec_driver_sql)
        return revision

    @contextmanager
    def _read(self) -> Iterator[Connection]:
        with _translated(), self._engine.begin() as connection:
            yield connection

    @contextmanager
    def _write(self) -> Iterator[Connection]:
        """A transaction that holds the write lock; committed on leaving, rolled back by an exception."""
        with _translated(), self._writer, self._writing_engine.begin() as connection:
            happened: list[dict[str, object]] = []
            connection.info[HAPPENED] = happened
            yield connection
        if self.journal is not None and happened:
            self._tell(self.journal, happened)

    def _tell(self, journal: Journal, happened: Sequence[dict[str, object]]) -> None:
        entries = [{**event, "action": f"{event['subject']} {event['event']}"} for event in happened]
        for entry in entries:
            del entry["subject"], entry["event"]
        try:
            journal.record(entries)
        except Transient as exc:  # it is committed: that the audit misses it must not undo it
            log.error("%d events are missing in the audit: %s", len(entries), exc)

    def _migrate(self) -> None:
        with self._read() as connection:
            if _revision(connection) == HEAD_REVISION:
                return
        with self._write() as connection:  # another process that opens the database now waits here
            _upgrade(connection)


def _engine(url: str) -> Engine:
    try:
        parsed = sa.make_url(url)
        if parsed.get_backend_name() == "sqlite":
            return _sqlite_engine(parsed)
        if parsed.drivername == "postgresql":
            parsed = parsed.set(drivername="postgresql+psycopg")  # the driver that the extra `postgresql` installs
        engine = sa.create_engine(parsed, pool_pre_ping=True)
    except (sa_exc.ArgumentError, ModuleNotFoundError) as exc:
        raise ConfigError([f"database.url: {exc}"]) from exc
    if engine.dialect.name != "postgresql":
        raise ConfigError([f"database.url: {engine.dialect.name} is not supported, only sqlite and postgresql are"])
    sa.event.listen(engine, "connect", _prepare_postgresql)
    sa.event.listen(engine, "begin", _begin_postgresql)
    return engine


def _sqlite_engine(url: sa.URL) -> Engine:
    if url.database in {None, "", ":memory:"}:
        raise ConfigError(["database.url: SQLite needs a file, since the node's state must outlive the process"])
    try:
        Path(str(url.database)).parent.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise ConfigError([f"database.url: {exc.strerror}: {exc.filename}"]) from exc
    engine = sa.create_engine(url, connect_args={"timeout": BUSY_SECONDS})
    sa.event.listen(engine, "connect", _prepare_sqlite)
    sa.event.listen(engine, "begin", _begin_sqlite)
    return engine


def _prepare_sqlite(connection: Any, _record: object) -> None:
    connection.isolation_level = None  # the driver begins no transaction by itself: `_begin_sqlite` does
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout = {int(BUSY_SECONDS * 1000)}")
    cursor.execute("PRAGMA foreign_keys = ON")
    cursor.execute("PRAGMA synchronous = FULL")
    use_write_ahead_log(cursor)
    cursor.close()


def use_write_ahead_log(cursor: sqlite3.Cursor) -> None:
    """Set the journal mode, waiting for others that open the new database at the same moment.

    Two connections that both want the change would wait for each other, so SQLite refuses one of them at once, whatever
    its busy timeout. Once it is done, the mode stands in the file and nothing is changed any more.
    """
    give_up = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            cursor.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as exc:
            if exc.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > give_up:
                raise
            time.sleep(0.01)
        else:
            return


def check_sqlite(execute: Any) -> None:
    """Pages, indices and references of an SQLite database. Raises `Permanent` where one is wrong."""
    (verdict,) = execute("PRAGMA integrity_check(1)").fetchone()
    if verdict != "ok":
        raise Permanent(f"database: damaged: {verdict}")
    if execute("PRAGMA foreign_key_check").fetchone() is not None:
        raise Permanent("database: damaged: a row refers to one that is not there")


def _begin_sqlite(connection: Connection) -> None:
    writing = connection.get_execution_options().get(_WRITING, False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writing else "BEGIN")


def _prepare_postgresql(connection: Any, _record: object) -> None:
    """Texts of peers may hold NUL, which SQLite keeps and PostgreSQL refuses: one such series would stop all."""
    from psycopg.types.string import StrDumperUnknown  # noqa: PLC0415 - of the extra `postgresql`

    class WithoutNul(StrDumperUnknown):
        def dump(self, obj: str) -> Any:
            return super().dump(obj.replace("\0", "?"))

    connection.adapters.register_dumper(str, WithoutNul)


def _begin_postgresql(connection: Connection) -> None:
    if connection.get_execution_options().get(_WRITING, False):
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_ADVISORY_LOCK})")


def _revision(connection: Connection) -> str | None:
    if not sa.inspect(connection).has_table("alembic_version"):
        return None
    revision: str | None = connection.execute(sa.text("SELECT version_num FROM alembic_version")).scalar()
    return revision


def _upgrade(connection: Connection) -> None:
    """Bring the schema to its newest revision within the transaction of `connection`."""
    from alembic import command  # noqa: PLC0415 - a third of a second that a current database need not pay
    from alembic.config import Config  # noqa: PLC0415
    from alembic.script import ScriptDirectory  # noqa: PLC0415

    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    current = _revision(connection)
    if current is not None and current not in known:
        raise ConfigError(
            [f"database.url: the database has schema revision {current}; this version knows none above {HEAD_REVISION}"]
        )
    with _ALEMBIC:
        command.upgrade(config, "head")


@contextmanager
def _translated() -> Iterator[None]:
    """SQLAlchemy's errors as the node's; the statement and its parameters stay out of the text."""
    try:
        yield
    except (sa_exc.OperationalError, sa_exc.TimeoutError) as exc:  # locked, full, unreachable, no free connection
        line = _first_line(exc)
        raise (DiskFull if "is full" in line or "No space" in line else Transient)(f"database: {line}") from exc
    except sa_exc.SQLAlchemyError as exc:
        raise Permanent(f"database: {_first_line(exc)}") from exc


def _first_line(exc: sa_exc.SQLAlchemyError) -> str:
    cause = exc.orig if isinstance(exc, sa_exc.DBAPIError) and exc.orig is not None else exc
    return str(cause).partition("\n")[0]
