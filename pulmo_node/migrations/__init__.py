"""Alembic migrations of the store; run by `pulmo_node.store` when it opens a database."""
