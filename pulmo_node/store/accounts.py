"""Port `AccountStore`: users of the page and their sessions."""

from __future__ import annotations

from datetime import datetime

import sqlalchemy as sa

from pulmo_node.domain.accounts import Role, Session, User
from pulmo_node.store import schema
from pulmo_node.store.database import Database
from pulmo_node.store.rows import AnyRow


class SqlAccountStore(Database):
    """Who may log in, and who has."""

    def users(self) -> tuple[User, ...]:
        """All of them, by name."""
        with self._read() as connection:
            return tuple(_user(row) for row in connection.execute(schema.users.select().order_by(schema.users.c.name)))

    def user(self, name: str) -> User | None:
        """One of them; None where there is none of that name."""
        with self._read() as connection:
            row = connection.execute(schema.users.select().where(schema.users.c.name == name)).first()
        return None if row is None else _user(row)

    def put_user(self, user: User) -> None:
        """Add a user, or replace the one of that name, whose sessions end."""
        with self._write() as connection:
            connection.execute(schema.users.delete().where(schema.users.c.name == user.name))
            connection.execute(
                schema.users.insert().values(
                    name=user.name,
                    role=user.role.value,
                    password_hash=user.password_hash,
                    created_at=user.created_at,
                )
            )

    def remove_user(self, name: str) -> bool:
        """Remove a user with all sessions; False where there is none of that name."""
        with self._write() as connection:
            return connection.execute(schema.users.delete().where(schema.users.c.name == name)).rowcount == 1

    def begin_session(self, token_sha256: str, name: str, at: datetime) -> None:
        """Keep a login."""
        values = {"token_sha256": token_sha256, "user_name": name, "created_at": at, "seen_at": at}
        with self._write() as connection:
            connection.execute(schema.sessions.insert().values(**values))

    def session(self, token_sha256: str) -> Session | None:
        """The login of a token; None where there is none, or no longer."""
        sessions, users = schema.sessions, schema.users
        query = (
            sa.select(users, sessions.c.created_at.label("begun_at"), sessions.c.seen_at)
            .join_from(sessions, users, sessions.c.user_name == users.c.name)
            .where(sessions.c.token_sha256 == token_sha256)
        )
        with self._read() as connection:
            row = connection.execute(query).first()
        return None if row is None else Session(user=_user(row), created_at=row.begun_at, seen_at=row.seen_at)

    def touch_session(self, token_sha256: str, at: datetime) -> None:
        """It was used."""
        table = schema.sessions
        with self._write() as connection:
            connection.execute(table.update().where(table.c.token_sha256 == token_sha256).values(seen_at=at))

    def end_session(self, token_sha256: str) -> None:
        """Log out."""
        with self._write() as connection:
            connection.execute(schema.sessions.delete().where(schema.sessions.c.token_sha256 == token_sha256))

    def end_sessions(self, *, seen_before: datetime) -> None:
        """Forget those that nobody uses."""
        with self._write() as connection:
            connection.execute(schema.sessions.delete().where(schema.sessions.c.seen_at < seen_before))


def _user(row: AnyRow) -> User:
    return User(name=row.name, role=Role(row.role), password_hash=row.password_hash, created_at=row.created_at)
