"""Alembic calls this file; the connection comes from `pulmo_node.store.database`, within its own transaction."""

from __future__ import annotations

from alembic import context

from pulmo_node.store.schema import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
with context.begin_transaction():
    context.run_migrations()
