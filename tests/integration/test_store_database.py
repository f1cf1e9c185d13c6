"""The database file: pragmas, migrations, other versions, damage, and what survives."""

from __future__ import annotations

import logging
import sqlite3
import subprocess
import sys
import threading
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from pulmo_node.errors import ConfigError, Permanent, StaleJob, Transient
from pulmo_node.store import SqlStore, database
from pulmo_node.store.schema import HEAD_REVISION, metadata
from tests.conftest import ROOT
from tests.integration.store_scene import STUDY, Scene, SetClock, instance, new_database, result, run_threads


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "var" / "pulmo.sqlite"


@pytest.fixture
def url(path: Path) -> str:
    return f"sqlite:///{path}"


class TestSqlite:
    def test_pragmas_hold_on_every_connection(self, url: str) -> None:
        expected = {"journal_mode": "wal", "foreign_keys": 1, "synchronous": 2, "busy_timeout": 30_000}
        with SqlStore(url, SetClock()) as store, store._read() as first, store._read() as second:
            for connection in (first, second):
                found = {name: connection.exec_driver_sql(f"PRAGMA {name}").scalar() for name in expected}
                assert found == expected

    def test_a_row_without_its_series_is_refused(self, url: str) -> None:
        orphan = (
            "INSERT INTO instances VALUES (1, 99, '1.2', '1', '1', 'p', 's', 1, '2026-01-01 00:00:00.000000', NULL)"
        )
        with (
            SqlStore(url, SetClock()) as store,
            pytest.raises(Permanent, match="FOREIGN KEY"),
            store._write() as connection,
        ):
            connection.exec_driver_sql(orphan)

    def test_a_writer_holds_the_lock_from_its_first_statement(self, url: str, path: Path) -> None:
        with SqlStore(url, SetClock()) as store, store._write():
            other = sqlite3.connect(path, timeout=0, isolation_level=None)
            with pytest.raises(sqlite3.OperationalError, match="locked"):
                other.execute("BEGIN IMMEDIATE")
            other.close()

    def test_a_reader_does_not_wait_for_a_writer(self, url: str) -> None:
        with SqlStore(url, SetClock()) as store:
            Scene(store, SetClock()).receive()
            with store._write() as connection:
                connection.exec_driver_sql("DELETE FROM events")
                assert len(store.studies()) == 1

    def test_locked_by_another_process_for_too_long(
        self, url: str, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(database, "BUSY_SECONDS", 0.01)
        with SqlStore(url, SetClock()) as store:
            other = sqlite3.connect(path, isolation_level=None)
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(Transient, match="database is locked"):
                store.record_instance(instance())
            other.execute("ROLLBACK")
            other.close()
            store.record_instance(instance())

    def test_a_full_disk_is_transient_and_leaves_nothing(self, url: str) -> None:
        with SqlStore(url, SetClock()) as store:
            scene = Scene(store, SetClock())
            scene.receive(1)
            with store._read() as connection:
                pages = connection.exec_driver_sql("PRAGMA page_count").scalar()
                connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}")
            before = scene.study()
            received = 1
            with pytest.raises(Transient, match="database or disk is full"):  # noqa: PT012 - when is up to the pages
                for number in range(2, 2000):
                    scene.receive(number)
                    received = number
                    before = scene.study()
            assert scene.study() == before
            assert len(store.instance_paths(instance().series_instance_uid)) == received

    def test_an_exception_rolls_everything_back(self, url: str) -> None:
        with SqlStore(url, SetClock()) as store:
            scene = Scene(store, SetClock())
            job = scene.queued()
            before = scene.study()
            twice = [result("sr"), result("sr")]
            with pytest.raises(Permanent, match="UNIQUE"):
                store.job_encoded(job, twice, "{}")
            assert scene.study() == before

    def test_error_texts_hold_no_parameters(self, url: str) -> None:
        with SqlStore(url, SetClock()) as store:
            job = Scene(store, SetClock()).queued()
            with pytest.raises(Permanent) as raised:
                store.job_encoded(job, [result("sr"), result("sr")], '{"malignancy_bias": 0, "of": "DOE^JANE"}')
            assert "DOE" not in str(raised.value)
            assert "INSERT" not in str(raised.value)


class TestReopening:
    def test_everything_is_kept(self, url: str) -> None:
        clock = SetClock()
        with SqlStore(url, clock) as store:
            Scene(store, clock).encoded("sr", "seg")
            before = store.study(STUDY)
        with SqlStore(url, clock) as store:
            assert store.study(STUDY) == before
            assert [each.result.kind for each in Scene(store, clock).claim_deliveries()] == ["sr", "seg"]

    def test_what_was_committed_survives_a_kill(self, url: str) -> None:
        """The child dies by SIGKILL in the middle of a transaction that follows a committed one."""
        program = (
            "import os, signal, sys\n"
            "from tests.integration.store_scene import Scene, SetClock, SqlStore\n"
            "store = SqlStore(sys.argv[1], SetClock())\n"
            "scene = Scene(store, SetClock())\n"
            "scene.queued()\n"
            "with store._write() as connection:\n"
            "    connection.exec_driver_sql('DELETE FROM events')\n"
            "    os.kill(os.getpid(), signal.SIGKILL)\n"
        )
        ended = subprocess.run([sys.executable, "-c", program, url], cwd=ROOT, check=False, timeout=300)
        assert ended.returncode == -9
        clock = SetClock()
        with SqlStore(url, clock) as store:
            scene = Scene(store, clock)
            assert [row.event for row in scene.study().events] == ["instance", "quiet", "queued"]
            assert scene.no_claim()
            clock.advance(hours=1)
            assert scene.claim().takeovers == 1


class TestMigrations:
    def test_the_tables_are_those_of_the_migrations(self, url: str) -> None:
        with SqlStore(url, SetClock()) as store, store._read() as connection:
            context = MigrationContext.configure(connection, opts={"compare_type": True})
            assert compare_metadata(context, metadata) == []
            names = set(sa.inspect(connection).get_table_names())
        assert names == {*metadata.tables, "alembic_version"}

    def test_the_newest_migration_is_the_one_that_the_code_expects(self, url: str) -> None:
        scripts = ScriptDirectory(str(database._MIGRATIONS))
        assert scripts.get_heads() == [HEAD_REVISION]
        with SqlStore(url, SetClock()) as store:
            assert store.check() == HEAD_REVISION

    def test_opened_by_many_at_once(self, url: str) -> None:
        barrier = threading.Barrier(6)
        revisions: list[str] = []

        def run() -> None:
            barrier.wait(timeout=180)
            with SqlStore(url, SetClock()) as store:
                revisions.append(store.check())

        run_threads([run] * 6)
        assert revisions == [HEAD_REVISION] * 6

    @pytest.mark.parametrize(("code", "times"), [(sqlite3.SQLITE_BUSY, 4), (sqlite3.SQLITE_BUSY_RECOVERY, 4), (1, 1)])
    def test_a_busy_change_of_the_journal_mode_is_tried_again(self, code: int, times: int) -> None:
        class Cursor:
            calls = 0

            def execute(self, statement: str) -> None:
                assert statement == "PRAGMA journal_mode = WAL"
                self.calls += 1
                if self.calls < 4:
                    error = sqlite3.OperationalError("refused")
                    error.sqlite_errorcode = code
                    raise error

        cursor: Any = Cursor()
        with nullcontext() if times > 1 else pytest.raises(sqlite3.OperationalError, match="refused"):
            database.use_write_ahead_log(cursor)
        assert cursor.calls == times

    def test_a_database_of_a_newer_version_is_left_alone(self, path: Path, url: str) -> None:
        SqlStore(url, SetClock()).close()
        with sqlite3.connect(path) as connection:
            connection.execute("UPDATE alembic_version SET version_num = '9999'")
        with pytest.raises(ConfigError, match="schema revision 9999"):
            SqlStore(url, SetClock())
        with sqlite3.connect(path) as connection:
            assert connection.execute("SELECT version_num FROM alembic_version").fetchone() == ("9999",)

    def test_a_migration_that_fails_leaves_nothing(self, path: Path, url: str) -> None:
        path.parent.mkdir()
        with sqlite3.connect(path) as connection:
            connection.execute("CREATE TABLE deliveries (id INTEGER)")
        with pytest.raises(Transient, match="deliveries already exists"):
            SqlStore(url, SetClock())
        with sqlite3.connect(path) as connection:
            tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        assert tables == ["deliveries"]

    def test_logging_stays_as_it_was(self, url: str) -> None:
        before = {name: (log.level, log.handlers[:]) for name, log in loggers().items()}
        SqlStore(url, SetClock()).close()
        after = {name: (log.level, log.handlers[:]) for name, log in loggers().items() if name in before}
        assert after == before
        assert not logging.getLogger("pulmo_node").disabled

    def test_alembic_is_not_loaded_for_a_current_database(self, tmp_path: Path) -> None:
        url = new_database(tmp_path)
        program = (
            "import sys\n"
            "from pulmo_node.store import SqlStore\n"
            f"with SqlStore({url!r}, None) as store:\n"
            "    store.studies()\n"
            "sys.exit('alembic' in sys.modules)\n"
        )
        assert subprocess.run([sys.executable, "-c", program], check=False, timeout=300).returncode == 0


def loggers() -> dict[str, logging.Logger]:
    known = {name: logging.getLogger(name) for name in ("alembic", "sqlalchemy", "pulmo_node")}
    return {"root": logging.getLogger(), **known}


class TestUnusable:
    @pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:", "nonsense", "oracle+nodriver://x/y", ""])
    def test_a_url_that_cannot_be_used(self, url: str) -> None:
        with pytest.raises(ConfigError, match=r"database\.url"):
            SqlStore(url, SetClock())

    def test_a_folder_that_cannot_be_made(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_bytes(b"")
        with pytest.raises(ConfigError, match=r"database\.url"):
            SqlStore(f"sqlite:///{tmp_path}/file/pulmo.sqlite", SetClock())

    def test_a_file_that_is_no_database(self, path: Path, url: str) -> None:
        path.parent.mkdir()
        path.write_bytes(b"not a database at all" * 500)
        with pytest.raises(Permanent, match="not a database"):
            SqlStore(url, SetClock())

    def test_check_needs_to_write(self, url: str, path: Path) -> None:
        with SqlStore(url, SetClock()) as store:
            with sqlite3.connect(path) as connection:
                connection.execute("UPDATE alembic_version SET version_num = '9999'")
            with pytest.raises(Permanent, match="schema revision 9999"):
                store.check()

    def test_domain_errors_pass_unchanged(self, url: str) -> None:
        with SqlStore(url, SetClock()) as store:
            scene = Scene(store, SetClock())
            job = scene.queued()
            store.cancel(STUDY)
            with pytest.raises(StaleJob):
                store.job_quarantined(job, "late")


class TestPostgresql:
    def test_a_server_that_does_not_answer_is_transient_and_the_password_is_not_told(self, tmp_path: Path) -> None:
        with pytest.raises(Transient) as caught:
            SqlStore(f"postgresql://pulmo:hidden@/pulmo?host={tmp_path}", SetClock())
        assert "hidden" not in str(caught.value)

    def test_several_that_open_a_new_database_at_once_migrate_it_once(self, postgresql_url: str) -> None:
        engine = sa.create_engine(sa.make_url(postgresql_url).set(drivername="postgresql+psycopg"))
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.exec_driver_sql("CREATE DATABASE fresh")
        engine.dispose()
        url = postgresql_url.replace("/postgres?", "/fresh?")

        def open_it() -> None:
            with SqlStore(url, SetClock()) as store:
                assert store.check() == HEAD_REVISION

        run_threads([open_it] * 4)
