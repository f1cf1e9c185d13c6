"""Persistence on SQLAlchemy: SQLite (WAL) by default, PostgreSQL by URL.

In reading order: `schema` (the tables), `database` (connections, transactions, migrations), `rows` (rows as values),
`moves` (the one way in which a state changes), then a module for each port: `receiving`, `working` with `awaiting`,
`administration`, `reconciling`, `maintenance`, `committing`, and for the page `browsing`, `counting`, `accounts`.
"""

from __future__ import annotations

from pulmo_node.store.accounts import SqlAccountStore
from pulmo_node.store.administration import SqlAdminStore
from pulmo_node.store.awaiting import SqlAwaitingStore
from pulmo_node.store.browsing import SqlBrowseStore
from pulmo_node.store.committing import SqlCommitmentStore
from pulmo_node.store.counting import SqlCountStore
from pulmo_node.store.maintenance import SqlMaintenanceStore
from pulmo_node.store.receiving import SqlReceiveStore
from pulmo_node.store.reconciling import SqlReconcileStore
from pulmo_node.store.working import SqlJobStore


class SqlStore(
    SqlReceiveStore,
    SqlJobStore,
    SqlAwaitingStore,
    SqlAdminStore,
    SqlReconcileStore,
    SqlMaintenanceStore,
    SqlCommitmentStore,
    SqlBrowseStore,
    SqlCountStore,
    SqlAccountStore,
):
    """Every port of the store on one database; safe to share between threads.

    Constructed with a database URL and a clock. Every method may raise `Transient` (locked, full, unreachable) and
    `Permanent` (damaged).
    """


__all__ = ["SqlStore"]
