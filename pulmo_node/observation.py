"""The part of the composition root that is about being seen: the watching adapters, the page, notifications.

Nothing of the extra `web` is imported unless the configuration asks for the page.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from pulmo_node.attempt import Analysis
from pulmo_node.config import Config
from pulmo_node.errors import ConfigError, PulmoError
from pulmo_node.monitoring.catalogue import Catalogue
from pulmo_node.monitoring.notices import Watch
from pulmo_node.monitoring.notify import Notifier, build_channels
from pulmo_node.monitoring.observed import Observed
from pulmo_node.monitoring.readiness import Readiness
from pulmo_node.monitoring.watching import WatchedAnalysis, WatchedJournal, WatchedSender
from pulmo_node.ports import Clock, InstanceStore, Journal, ResultSender
from pulmo_node.store import SqlStore

if TYPE_CHECKING:
    from pulmo_node.web.server import WebServer

log = logging.getLogger(__name__)

_DUTY_SECONDS = 1.0


class Observation:
    """What surrounds the stages of one node."""

    def __init__(self, config: Config, clock: Clock, store: SqlStore) -> None:
        self._config = config
        self._clock = clock
        self._store = store
        self.observed = Observed(clock)
        self.journal: Journal = WatchedJournal(store.journal, self.observed, store.count_refused)
        self._sender: WatchedSender | None = None
        self._catalogue: Catalogue | None = None
        self._web: WebServer | None = None
        self._notifier: Notifier | None = None
        self._stopping = threading.Event()
        self._threads: list[threading.Thread] = []

    def sender(self, inner: ResultSender) -> ResultSender:
        """The sender, watched."""
        self._sender = WatchedSender(inner, self.observed)
        return self._sender

    def analysis(self, inner: Analysis) -> Analysis:
        """The analysis, watched."""
        return WatchedAnalysis(inner, self.observed)

    def complete(self, instances: InstanceStore, alive: Callable[[], bool]) -> None:
        """Put the page and the notifications together, where they are wanted.

        Raises:
            ConfigError: what they need is not installed, or a certificate cannot be used.
        """
        config = self._config
        if config.notify.wanted:
            watch = Watch(config, self._store, self.observed, self._clock)
            self._notifier = Notifier(watch, build_channels(config.notify), config.notify.batch_seconds)
        if not config.web.enabled:
            return
        self._catalogue = Catalogue(config.storage, self._store, instances)
        readiness = Readiness(
            ask_database=self._store.latest_event_id,
            storage=config.storage,
            min_free_bytes=config.receive.min_free_bytes,
            pipelines=config.pipelines_of_rules,
            loads_first=config.analysis.warm_up,
            observed=self.observed,
            alive=alive,
        )
        self._web = self._built_page(instances, readiness, self._catalogue)

    def _built_page(self, instances: InstanceStore, readiness: Readiness, catalogue: Catalogue) -> WebServer:
        try:
            from pulmo_node.web.access import Sessions  # noqa: PLC0415
            from pulmo_node.web.parts import Parts  # noqa: PLC0415
            from pulmo_node.web.server import WebServer  # noqa: PLC0415
        except ModuleNotFoundError as exc:
            raise ConfigError([f"web.enabled: {exc.name} is not installed; pip install 'pulmo-node[web]'"]) from exc
        if self._sender is None:
            raise RuntimeError("the page needs the sender")
        return WebServer(
            Parts(
                config=self._config,
                store=self._store,
                instances=instances,
                observed=self.observed,
                readiness=readiness,
                catalogue=catalogue,
                sender=self._sender,
                journal=self.journal,
                clock=self._clock,
                sessions=Sessions(self._store, self._config.web.session_minutes),
            )
        )

    @property
    def web_port(self) -> int | None:
        """The TCP port of the page; None where there is none."""
        return self._web.port if self._web is not None else None

    def listen(self) -> None:
        """Serve the page. Raises `Transient` where the address cannot be had."""
        if self._web is not None:
            self._web.start()

    def stop_listening(self) -> None:
        """Close the port of the page."""
        if self._web is not None:
            self._web.stop()

    def start(self) -> None:
        """Begin the duties."""
        if self._catalogue is not None or self._notifier is not None:
            self._run("observation", self._serve_duties)

    def _run(self, name: str, target: Callable[[], None]) -> None:
        thread = threading.Thread(target=target, name=name, daemon=True)
        self._threads.append(thread)
        thread.start()

    def stop(self) -> None:
        """Begin nothing more."""
        self._stopping.set()

    def join(self) -> None:
        """Wait for the end of the duties."""
        for thread in self._threads:
            thread.join()
        self._threads.clear()

    def _serve_duties(self) -> None:
        while not self._stopping.wait(_DUTY_SECONDS):
            if self._catalogue is not None:
                _tried(self._catalogue.update)
            if self._notifier is not None:
                _tried(self._notifier.look)


def _tried(duty: Callable[[], object]) -> None:
    """By itself: a full disk stops the catalogue, and must not keep from anybody that it is full."""
    try:
        duty()
    except PulmoError as exc:  # a locked database or a full disk: the next second tries again
        log.warning("observation: %s", exc)
