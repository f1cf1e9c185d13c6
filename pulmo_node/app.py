"""Composition root: the only place that constructs adapters and puts the node together."""

from __future__ import annotations

import logging
import os
import secrets
import select
import signal
import socket
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType

from pulmo_node import logs, systemd
from pulmo_node.analyse import Analyser
from pulmo_node.atna import Closable
from pulmo_node.attempt import Analysis, LocalAnalysis
from pulmo_node.audit import operator
from pulmo_node.auditing import open_trail
from pulmo_node.commitment import CommitmentScp, CommitmentScu
from pulmo_node.config import Config, TlsSection
from pulmo_node.deidentify import DeidentifyingSender
from pulmo_node.deliver import DicomSender, ResultSenders, StowSender
from pulmo_node.domain.deliveries import Peer
from pulmo_node.domain.retry import RetryPolicy
from pulmo_node.errors import ConfigError, PulmoError, Transient
from pulmo_node.files import FileInstanceStore
from pulmo_node.gaps import GapRepair, Retriever
from pulmo_node.isolation import IsolatedAnalysis, ProcessSettings
from pulmo_node.network.access import Access
from pulmo_node.network.limits import Limits
from pulmo_node.network.tls import ServerTlsSettings
from pulmo_node.observation import Observation
from pulmo_node.outbox import FileOutbox
from pulmo_node.ports import ResultSender
from pulmo_node.receive import Receiver, ReceiveSettings
from pulmo_node.reconcile import reconcile
from pulmo_node.retention import Purge
from pulmo_node.scheduler import Scheduler
from pulmo_node.store import SqlStore
from pulmo_node.worker import Adapters, Worker

log = logging.getLogger(__name__)


class SystemClock:
    """The machine's clock."""

    def now(self) -> datetime:
        """Aware UTC."""
        return datetime.now(UTC)


def open_store(config: Config, who: str | None = None) -> SqlStore:
    """The database of a configuration, migrated to the newest schema. Raises `PulmoError`."""
    _make_storage(config)
    store = SqlStore(config.database_url, SystemClock())
    store.journal = open_audit(config, who)
    return store


def open_audit(config: Config, who: str | None = None) -> Closable:
    """The audit trail; `who` is the operator at the command line where it is not said."""
    return open_trail(config, who or operator(), SystemClock())


def build_purge(config: Config, store: SqlStore) -> Purge:
    """The limits of the storage."""
    limits = config.retention
    return Purge(config.storage, store, SystemClock(), delivered_days=limits.delivered_days, max_gib=limits.max_gib)


def stored_files(config: Config, series_instance_uid: str) -> tuple[tuple[Path, ...], tuple[Path, ...]]:
    """The files of a received series, none where the node does not know it, and one file of every series of its study.

    Raises:
        PulmoError: the database cannot be used.
    """
    instances = FileInstanceStore(config.storage)
    with open_store(config) as store:
        own, study = store.instance_paths(series_instance_uid), store.study_paths(series_instance_uid)
    return tuple(map(instances.absolute, own)), tuple(map(instances.absolute, study))


def stored_results(config: Config, study_instance_uid: str) -> tuple[tuple[str, Path], ...]:
    """Kind and file of each result object of a study that is in use; none where the node knows none.

    Raises:
        PulmoError: the database cannot be used.
    """
    instances = FileInstanceStore(config.storage)
    with open_store(config) as store:
        results = store.results(study_instance_uid)
    return tuple((result.kind, instances.absolute(result.path)) for result in results)


def build_sender(config: Config, reports: CommitmentScu | None = None) -> DicomSender:
    """The DICOM storage SCU; `reports` takes what peers say on storage commitment."""
    delivery = config.delivery
    return DicomSender(
        config.node.ae_title,
        timeout_seconds=delivery.timeout_seconds,
        keep_comments=delivery.error_comments,
        reports=reports,
    )


def build_result_sender(config: Config, reports: CommitmentScu | None = None) -> ResultSender:
    """Whoever speaks to a destination as it is configured: by DICOM or by STOW-RS."""
    web = StowSender(timeout_seconds=config.delivery.timeout_seconds)
    return DeidentifyingSender(ResultSenders(build_sender(config, reports), web))


def build_analyser(config: Config) -> Analyser:
    """The configured pipelines."""
    return Analyser(config.pipelines, config.analysis.device, config.weights_folder)


def build_analysis(config: Config) -> Analysis:
    """Where the series of a node are analysed: in a process of its own, unless the configuration says otherwise."""
    if not config.analysis.isolated:
        ahead_bytes = config.analysis.read_ahead_mib << 20
        return LocalAnalysis(build_analyser(config), FileOutbox(config.storage), ahead_bytes)
    return IsolatedAnalysis(
        ProcessSettings(
            pipelines=config.pipelines,
            device=config.analysis.device,
            weights_folder=config.weights_folder,
            storage=config.storage,
            log_level=config.log.level,
            silence_seconds=config.analysis.silence_seconds,
            limit_seconds=config.analysis.limit_seconds,
            read_ahead_bytes=config.analysis.read_ahead_mib << 20,
        )
    )


def configure_logging(config: Config) -> None:
    """One line per event on standard error; libraries only from WARNING on."""
    logs.configure(config.log.level)


class Node:
    """The running service: receiver, worker and scheduler on one configuration."""

    def __init__(self, config: Config) -> None:
        self.config = config
        clock = SystemClock()
        store = open_store(config)
        self.audit = store.journal = open_audit(config, who=f"node {config.node.ae_title}")
        instances = FileInstanceStore(config.storage, min_free_bytes=config.receive.min_free_bytes)
        self._commitment = CommitmentScp(
            store,
            instances,
            build_sender(config),
            clock,
            peer_of=lambda ae_title: _peer_of(config, ae_title),
            retry=config.delivery.retry,
        )
        reports = CommitmentScu(store, clock, config.delivery.retry)
        self.receiver = Receiver(_receive_settings(config), store, instances, clock, self._commitment, reports)
        self.observation = Observation(config, clock, store)
        self.receiver.journal = self.observation.journal
        adapters = Adapters(
            clock=clock,
            series=store,
            jobs=store,
            instances=instances,
            outbox=FileOutbox(config.storage),
            sender=self.observation.sender(build_result_sender(config, reports)),
            transfers=self.receiver,
            commitment=reports,
            gaps=_gap_repair(config, store),
        )
        # Unique per process, so that a restarted node never mistakes a dead worker's lease for its own.
        worker_id = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
        self.store = store
        self._instances = instances
        analysis = self.observation.analysis(build_analysis(config))
        self.worker = Worker(config, adapters, analysis, worker_id)
        self._purge = build_purge(config, store)
        self._scheduler = Scheduler(self.worker, tuple(config.peers), self._purge.run)
        self.observation.complete(instances, lambda: self._scheduler.alive)

    def __enter__(self) -> Node:
        reconcile(self._instances, self.store, SystemClock())
        self._purge.sweep()
        self.start_receiving()
        self.start_working()
        self._note("node started")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop_receiving()
        self._note("node stopped")
        self.stop_working()
        log.info("stopped")

    def _note(self, action: str) -> None:
        try:
            self.audit.record([{"action": action}])
        except PulmoError as exc:
            log.error("%s", exc)

    def start_receiving(self) -> None:
        """Listen. Raises `PulmoError`; nothing is started then."""
        self.receiver.start()
        try:
            self.observation.listen()
        except PulmoError:
            self.receiver.stop()
            raise
        log.info("%s listens on %s:%d", self.config.node.ae_title, self.config.node.bind, self.receiver.port)

    def stop_receiving(self) -> None:
        """Let open associations finish and close the ports."""
        self.observation.stop_listening()
        self.receiver.stop()

    def start_working(self) -> None:
        """Complete, analyse, deliver, purge, answer requests for storage commitment."""
        self._commitment.start()
        self._scheduler.start()
        self.observation.start()

    def stop_working(self) -> None:
        """Finish what is running, within the limit, and close the database."""
        self.observation.stop()
        self._commitment.stop()
        self._scheduler.stop(self.config.node.drain_seconds)
        self.observation.join()
        self.store.close()
        self.audit.close()

    @property
    def alive(self) -> bool:
        """Whether the duties still run."""
        return self._scheduler.alive


def serve(config: Config, reread: Callable[[], Config]) -> None:
    """Run the node until SIGINT or SIGTERM; SIGHUP puts the configuration that `reread` gives in the place of this one.

    Raises:
        PulmoError: the node cannot start.
    """
    threading.excepthook = logs.thread_ended  # its own would print what a peer sent
    signals = _received_signals(signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    watchdog = systemd.watchdog_seconds()
    node = Node(config).__enter__()
    systemd.notify("READY=1")
    while True:
        ready, _, _ = select.select([signals], [], [], None if watchdog is None else watchdog / 2)
        if not ready:
            if node.alive:
                systemd.notify("WATCHDOG=1")
            continue
        if signals.recv(1)[0] != signal.SIGHUP:
            break
        systemd.notify("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")
        node = replaced(node, reread)
        systemd.notify("READY=1")
    systemd.notify("STOPPING=1")
    node.__exit__(None, None, None)


def _received_signals(*numbers: signal.Signals) -> socket.socket:
    """A socket that yields a byte, its number, for each signal from now on.

    Waiting for a lock would miss one that comes in the moment before the wait begins.
    """
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    signal.set_wakeup_fd(writer.detach())
    for number in numbers:
        signal.signal(number, lambda *_: None)
    return reader


def replaced(node: Node, reread: Callable[[], Config]) -> Node:
    """A running node on the new configuration, or the same node, still running, where that cannot be used.

    Whatever runs goes on to its end with the configuration that it began with.
    """
    try:
        config = reread()
        _check_same_state(node.config, config)
        successor = Node(config)
    except PulmoError as exc:
        log.error("the configuration stays as it was: %s", exc)
        return node
    stays_open = successor.receiver.listens_like(node.receiver)
    stop, start = (
        (node.observation.stop_listening, successor.observation.listen)
        if stays_open
        else (node.stop_receiving, successor.start_receiving)
    )
    stop()
    try:
        start()
    except PulmoError as exc:
        log.error("the configuration stays as it was: %s", exc)
        successor.store.close()
        (node.observation.listen if stays_open else node.start_receiving)()
        return node
    if stays_open:
        successor.receiver.take_over(node.receiver)
    node.stop_working()
    successor.start_working()
    logs.configure(config.log.level)
    log.info("the configuration was replaced")
    successor._note("configuration replaced")
    return successor


def _check_same_state(before: Config, after: Config) -> None:
    """What cannot be changed while the node runs: where its state lies."""
    problems = []
    if after.storage != before.storage:
        problems.append("node.storage: changing it needs a restart")
    if after.database_url != before.database_url:
        problems.append("database.url: changing it needs a restart")
    if problems:
        raise ConfigError(problems)


def _receive_settings(config: Config) -> ReceiveSettings:
    receive, tls = config.receive, config.tls
    own = (config.node.ae_title,) if receive.require_called_ae_title else ()
    return ReceiveSettings(
        ae_title=config.node.ae_title,
        bind=config.node.bind,
        port=config.node.port,
        access=Access(
            calling=receive.accept_calling, called=own + receive.accept_called, networks=receive.accept_networks
        ),
        limits=Limits(
            associations=receive.max_associations,
            associations_per_peer=receive.max_associations_per_peer,
            connections_per_minute=receive.max_connections_per_minute,
            request_seconds=receive.association_request_seconds,
            silence_seconds=receive.network_timeout_seconds,
            association_seconds=receive.max_association_seconds,
            association_bytes=receive.max_association_bytes,
            message_bytes=receive.max_instance_bytes,
            bytes_in_flight=receive.max_bytes_in_flight,
            slowest_bytes_per_second=receive.slowest_bytes_per_second,
        ),
        max_pdu=receive.max_pdu_bytes,
        tls=_server_tls(tls) if tls.certificate else None,
    )


def _server_tls(tls: TlsSection) -> ServerTlsSettings:
    return ServerTlsSettings(
        certificate=Path(tls.certificate),
        private_key=Path(tls.private_key),
        client_ca=Path(tls.client_ca) if tls.client_ca else None,
    )


def _peer_of(config: Config, ae_title: str) -> Peer | None:
    name = config.peer_of_ae_title(ae_title)
    if name is None or config.peers[name].stow_url:  # which has no port for DICOM
        return None
    return config.peer(name)


def _gap_repair(config: Config, store: SqlStore) -> GapRepair | None:
    if not any(peer.gap_repair for peer in config.peers.values()):
        return None

    def peer_of(ae_title: str) -> Peer | None:
        name = config.peer_of_ae_title(ae_title)
        return config.peer(name) if name is not None and config.peers[name].gap_repair else None

    first = config.receive.gap_delay_seconds
    retry = RetryPolicy(
        max_attempts=config.receive.gap_attempts, first_delay_seconds=first, max_delay_seconds=10 * first
    )
    retriever = Retriever(build_sender(config).associate, config.node.ae_title)
    return GapRepair(retriever, retry, peer_of=peer_of, instance_uids=store.instance_uids)


def _make_storage(config: Config) -> None:
    try:
        config.storage.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise Transient(f"storage directory {config.storage}: {exc.strerror}") from exc
