"""Composition root: the only place that constructs adapters and puts the node together."""

from __future__ import annotations

import logging
import os
import secrets
import signal
import socket
import threading
import warnings
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType

from pulmo_node.analyse import Analyser
from pulmo_node.config import Config
from pulmo_node.deliver import DicomSender
from pulmo_node.errors import Transient
from pulmo_node.files import FileInstanceStore, FileOutbox
from pulmo_node.receive import Receiver, ReceiveSettings
from pulmo_node.scheduler import Scheduler
from pulmo_node.store import SqlStore
from pulmo_node.worker import Adapters, Worker

log = logging.getLogger(__name__)


class SystemClock:
    """The machine's clock."""

    def now(self) -> datetime:
        """Aware UTC."""
        return datetime.now(UTC)


def open_store(config: Config) -> SqlStore:
    """The database of a configuration, migrated to the newest schema. Raises `PulmoError`."""
    _make_storage(config)
    return SqlStore(config.database_url, SystemClock())


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


def build_sender(config: Config) -> DicomSender:
    """The DICOM storage SCU."""
    return DicomSender(config.node.ae_title, timeout_seconds=config.delivery.timeout_seconds)


def build_analyser(config: Config) -> Analyser:
    """The configured pipelines."""
    return Analyser(config.pipelines, config.analysis.device, config.weights_folder)


def configure_logging(config: Config) -> None:
    """One line per event on standard error; libraries only from WARNING on."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s", force=True)
    logging.getLogger("pulmo_node").setLevel(config.log.level)
    logging.getLogger("pulmo_models").setLevel(config.log.level)
    quiet_libraries()


def quiet_libraries() -> None:
    """Let pydicom say nothing of the values that it reads."""
    # It quotes the values that it complains of, and they may be a patient's.
    logging.getLogger("pydicom").setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", module="pydicom")


class Node:
    """The running service: receiver, worker and scheduler on one configuration."""

    def __init__(self, config: Config) -> None:
        self.config = config
        clock = SystemClock()
        store = open_store(config)
        instances = FileInstanceStore(config.storage)
        self.receiver = Receiver(_receive_settings(config), store, instances, clock)
        adapters = Adapters(
            clock=clock,
            series=store,
            jobs=store,
            instances=instances,
            outbox=FileOutbox(config.storage),
            sender=build_sender(config),
            transfers=self.receiver,
        )
        # Unique per process, so that a restarted node never mistakes a dead worker's lease for its own.
        worker_id = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
        self.store = store
        self.worker = Worker(config, adapters, build_analyser(config), worker_id)
        self._scheduler = Scheduler(self.worker, tuple(config.peers))

    def __enter__(self) -> Node:
        self.receiver.start()
        self._scheduler.start()
        log.info("%s listens on %s:%d", self.config.node.ae_title, self.config.node.bind, self.receiver.port)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.receiver.stop()
        self._scheduler.stop()
        self.store.close()
        log.info("stopped")


def serve(config: Config) -> None:
    """Run the node until SIGINT or SIGTERM."""
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    with Node(config):
        stop.wait()


def _receive_settings(config: Config) -> ReceiveSettings:
    return ReceiveSettings(
        ae_title=config.node.ae_title,
        bind=config.node.bind,
        port=config.node.port,
        accept_calling=config.receive.accept_calling,
        require_called=config.receive.require_called_ae_title,
        max_associations=config.receive.max_associations,
        max_pdu=config.receive.max_pdu_bytes,
        network_timeout_seconds=config.receive.network_timeout_seconds,
    )


def _make_storage(config: Config) -> None:
    try:
        config.storage.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise Transient(f"storage directory {config.storage}: {exc.strerror}") from exc
