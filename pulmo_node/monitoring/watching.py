"""Adapters that stand around the node's own and tell `Observed` what passes; they change nothing of it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from time import perf_counter

from pulmo_models.pipeline import ProgressCallback, no_progress
from pulmo_models.types import PipelineInfo
from pulmo_node.attempt import Analysis, ReadingAhead, SeriesRequest, SeriesResult
from pulmo_node.domain.deliveries import Peer, ResultObject
from pulmo_node.errors import Permanent, PulmoError, Transient
from pulmo_node.monitoring.observed import Observed
from pulmo_node.ports import Journal, ResultLink, ResultSender

log = logging.getLogger(__name__)

_ASSOCIATION = "association "


class WatchedAnalysis:
    """An `Analysis` that is timed; `loaded` tells of its models."""

    def __init__(self, inner: Analysis, observed: Observed) -> None:
        self._inner = inner
        self._observed = observed

    def settings_sha256(self, label: str) -> str:
        """As the analysis has it."""
        return self._inner.settings_sha256(label)

    def info(self, label: str) -> PipelineInfo:
        """As the analysis has it, and whether the pipeline can be loaded."""
        begun = perf_counter()
        try:
            info = self._inner.info(label)
        except Permanent as exc:
            self._observed.model_failed(label, str(exc))
            raise
        self._observed.model_loaded(label, perf_counter() - begun)
        return info

    def warm_up(self, labels: Sequence[str]) -> None:
        """As the analysis has it; each pipeline is loaded first, so that it is seen which of them cannot be."""
        for label in labels:
            self.info(label)
        self._inner.warm_up(labels)

    def read_ahead(self, paths: Sequence[Path]) -> ReadingAhead:
        """As the analysis has it."""
        return self._inner.read_ahead(paths)

    def run(self, request: SeriesRequest, progress: ProgressCallback = no_progress) -> SeriesResult:
        """As the analysis has it, with its stages timed."""
        result = self._inner.run(request, progress)
        for stage, seconds in result.timings_seconds.items():
            self._observed.stage_took(stage, seconds)
        return result

    def stop(self) -> None:
        """As the analysis has it."""
        self._inner.stop()

    def close(self) -> None:
        """As the analysis has it."""
        self._inner.close()


class WatchedSender:
    """A `ResultSender` of which it is seen who answers."""

    def __init__(self, inner: ResultSender, observed: Observed) -> None:
        self._inner = inner
        self._observed = observed

    @contextmanager
    def open(self, peer: Peer) -> Iterator[ResultLink]:
        """As the sender has it."""
        with ExitStack() as stack:
            try:
                link = stack.enter_context(self._inner.open(peer))
            except Transient as exc:
                self._observed.destination_failed(peer.name, str(exc))
                raise
            try:
                yield _WatchedLink(link, peer.name, self._observed)
            except Transient as exc:
                self._observed.destination_failed(peer.name, str(exc))
                raise

    def echo(self, peer: Peer) -> float:
        """As the sender has it."""
        try:
            seconds = self._inner.echo(peer)
        except Transient as exc:
            self._observed.destination_failed(peer.name, str(exc))
            raise
        self._observed.destination_answered(peer.name)
        return seconds


class _WatchedLink:
    def __init__(self, inner: ResultLink, name: str, observed: Observed) -> None:
        self._inner = inner
        self._name = name
        self._observed = observed

    @property
    def commits(self) -> bool:
        return self._inner.commits

    def request_commitment(self, transaction_uid: str, instances: Sequence[tuple[str, str]]) -> None:
        self._inner.request_commitment(transaction_uid, instances)

    def store(self, file: Path, result: ResultObject) -> str:
        begun = perf_counter()
        try:
            status = self._inner.store(file, result)
        except Permanent:
            self._observed.destination_answered(self._name)  # with a refusal
            raise
        self._observed.destination_answered(self._name)
        self._observed.stage_took("deliver", perf_counter() - begun)
        return status


class WatchedJournal:
    """A `Journal` that counts associations, and by `refused` the instances that were not taken."""

    def __init__(self, inner: Journal | None, observed: Observed, refused: Callable[[str, int], None]) -> None:
        self._inner = inner
        self._observed = observed
        self._refused = refused

    def record(self, entries: Sequence[Mapping[str, object]], *, durable: bool = False) -> None:
        """As the journal has it."""
        for entry in entries:
            self._count(entry)
        if self._inner is not None:
            self._inner.record(entries, durable=durable)

    def _count(self, entry: Mapping[str, object]) -> None:
        action = str(entry.get("action", ""))
        if not action.startswith(_ASSOCIATION):
            return
        self._observed.association(action.removeprefix(_ASSOCIATION))
        refused = entry.get("refused", 0)
        if isinstance(refused, int) and refused:
            try:
                self._refused(str(entry.get("calling_ae_title", "")), refused)
            except PulmoError as exc:  # a count that is missing must not disturb an association
                log.warning("%d refused instances are not counted: %s", refused, exc)
