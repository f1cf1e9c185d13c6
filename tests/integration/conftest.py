"""Databases for the tests of the store: each runs on SQLite and on PostgreSQL, where Debian's `postgresql` is there."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from pulmo_node.store import SqlStore
from pulmo_node.store.schema import metadata
from tests.integration.store_scene import SetClock, new_database


def _programs() -> Path | None:
    """The folder of initdb and pg_ctl, which Debian keeps off the path."""
    versions = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    found = shutil.which("initdb")
    return versions[-1].parent if versions else Path(found).parent if found else None


@pytest.fixture(scope="session")
def postgresql_url() -> Iterator[str]:
    """A server of its own on a Unix socket, with an empty database at the newest schema."""
    programs = _programs()
    if programs is None:
        pytest.skip("postgresql is not installed")
    as_user = {"user": "postgres", "group": "postgres"} if os.geteuid() == 0 else {}  # it refuses to run as root
    folder = Path(tempfile.mkdtemp(prefix="pulmo-pg-"))  # the path of a socket must be short
    if as_user:
        shutil.chown(folder, **as_user)

    def run(*command: str) -> None:
        subprocess.run(
            command, cwd=folder, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT, timeout=300, **as_user
        )

    data = str(folder / "data")
    run(str(programs / "initdb"), "--no-sync", "-A", "trust", "-U", "pulmo", "-E", "UTF8", data)
    # Durability is PostgreSQL's own business; without it the tests are quick.
    options = f"-c listen_addresses='' -c unix_socket_directories={folder} -c fsync=off"
    run(str(programs / "pg_ctl"), "-D", data, "-l", str(folder / "log"), "-o", options, "-w", "start")
    try:
        url = f"postgresql://pulmo@/postgres?host={folder}"
        SqlStore(url, SetClock()).close()
        yield url
    finally:
        run(str(programs / "pg_ctl"), "-D", data, "-m", "immediate", "stop")
        shutil.rmtree(folder)


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database at the newest schema, once on each system."""
    if request.param == "sqlite":
        return new_database(tmp_path)
    url: str = request.getfixturevalue("postgresql_url")
    engine = sa.create_engine(sa.make_url(url).set(drivername="postgresql+psycopg"))
    names = ", ".join(table.name for table in metadata.sorted_tables)
    with engine.begin() as connection:
        connection.exec_driver_sql(f"TRUNCATE {names} RESTART IDENTITY CASCADE")
    engine.dispose()
    return url
