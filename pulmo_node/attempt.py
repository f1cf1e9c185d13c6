"""One attempt at one series: assemble, analyse, encode, and lay the objects into the outbox.

Input: the files of a series and what identifies its results. Output: result objects that are durable in the outbox.
Errors: those of the stages. `LocalAnalysis` does it where it is called, `pulmo_node.isolation` in a process of its own.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Protocol

from pulmo_models.pipeline import ProgressCallback, no_progress
from pulmo_models.types import PipelineInfo
from pulmo_node import assemble, encode
from pulmo_node.analyse import Analyser
from pulmo_node.domain.deliveries import ResultObject
from pulmo_node.ports import Outbox, OutboxItem
from pulmo_node.rehearsal import rehearse

_MOMENT_SECONDS = 0.5  # that a series may have to wait for reading ahead


@dataclass(frozen=True, kw_only=True)
class SeriesRequest:
    """A series to be analysed."""

    pipeline: str
    paths: tuple[Path, ...]  # its files
    study_paths: tuple[Path, ...]  # one file of every series of its study
    context: encode.ResultContext
    outbox_key: str


@dataclass(frozen=True, kw_only=True)
class SeriesResult:
    """What lies in the outbox after an attempt."""

    objects: tuple[ResultObject, ...]
    findings_json: str
    timings_seconds: Mapping[str, float]


class ReadingAhead(StrEnum):
    """What became of reading ahead."""

    BUSY = "busy"  # a series is being analysed: nothing was read
    MORE = "more"  # the moment was over before the files
    DONE = "done"  # all is read that there is room for


class Analysis(Protocol):
    """Where series are analysed."""

    def settings_sha256(self, label: str) -> str:
        """Digest of a pipeline's settings."""
        ...

    def info(self, label: str) -> PipelineInfo:
        """Identity of a pipeline; loads it.

        Raises:
            Permanent: the pipeline cannot be loaded.
            AnalysisLost: the process that was asked ended.
            Stopped: `stop` was called meanwhile.
        """
        ...

    def warm_up(self, labels: Sequence[str]) -> None:
        """Load these pipelines, let their networks run once, and rehearse a report. Raises as `info`; `Transient`."""
        ...

    def read_ahead(self, paths: Sequence[Path]) -> ReadingAhead:
        """Read files of a series that is still arriving, for a moment, unless a series is being analysed.

        A series that is to be analysed meanwhile waits for that moment at most.

        Raises:
            AnalysisLost: the process that was asked ended.
            Stopped: `stop` was called meanwhile.
        """
        ...

    def run(self, request: SeriesRequest, progress: ProgressCallback = no_progress) -> SeriesResult:
        """Analyse one series; `progress` gets the running step and the share of it that is done.

        Raises:
            Rejected, Transient, Permanent: of the stages.
            AnalysisLost: the process that was asked ended.
            Stopped: `stop` was called meanwhile.
        """
        ...

    def stop(self) -> None:
        """Break off what is running, from another thread; nothing can be asked afterwards."""
        ...

    def close(self) -> None:
        """Give up what is held, once nothing is running any more."""
        ...


class LocalAnalysis:
    """In the process and thread of the caller: a crash of a decoder or a network ends that process."""

    def __init__(self, analyser: Analyser, outbox: Outbox, read_ahead_bytes: int = 0) -> None:
        """`read_ahead_bytes` limits what `read_ahead` keeps."""
        self._analyser = analyser
        self._outbox = outbox
        self._ahead = assemble.ReadAhead(read_ahead_bytes)
        self._working = threading.Lock()

    def settings_sha256(self, label: str) -> str:
        """Digest of a pipeline's settings."""
        return self._analyser.settings_sha256(label)

    def info(self, label: str) -> PipelineInfo:
        """Identity of a pipeline; loads it. Raises `Permanent`."""
        return self._analyser.info(label)

    def warm_up(self, labels: Sequence[str]) -> None:
        """Load these pipelines, let their networks run once, and rehearse a report. Raises `Permanent`, `Transient`."""
        with self._working:
            for label in labels:
                self._analyser.warm_up(label)
            rehearse()

    def read_ahead(self, paths: Sequence[Path]) -> ReadingAhead:
        """Read files of a series that is still arriving, for a moment, unless a series is being analysed."""
        if not self._working.acquire(blocking=False):
            return ReadingAhead.BUSY
        try:
            return ReadingAhead.MORE if self._ahead.read(paths, _MOMENT_SECONDS) else ReadingAhead.DONE
        finally:
            self._working.release()

    def run(self, request: SeriesRequest, progress: ProgressCallback = no_progress) -> SeriesResult:
        """Analyse one series. Raises `Rejected`, `Transient`, `Permanent`."""
        with self._working:
            return self._run(request, progress)

    def _run(self, request: SeriesRequest, progress: ProgressCallback) -> SeriesResult:
        timings: dict[str, float] = {}
        progress("assemble", 0.0)
        with _timed(timings, "assemble"):
            assemble.check_one_patient(list(request.study_paths))
            paths = list(request.paths)
            files = self._ahead.take(paths)
            series = assemble.describe(paths, files=files)
            image = assemble.assemble(paths, series, files, partial(progress, "assemble"))
        findings = self._analyser.analyse(request.pipeline, image, progress)
        timings.update(findings.timings_seconds)
        progress("encode", 0.0)
        with _timed(timings, "encode"):
            items = [outbox_item(each) for each in encode.encode_findings(findings, image, request.context)]
            plain = encode.findings_to_json(findings, image, request.context)
        with _timed(timings, "outbox"):
            objects, findings_json = self._outbox.put(request.outbox_key, items, json.dumps(plain))
        return SeriesResult(objects=objects, findings_json=findings_json, timings_seconds=timings)

    def stop(self) -> None:
        """Nothing can be broken off here: the caller's own thread is at work."""

    def close(self) -> None:
        """Nothing is held."""


def outbox_item(encoded: encode.EncodedObject) -> OutboxItem:
    """An encoded object as the outbox takes it."""
    return OutboxItem(
        kind=encoded.kind,
        sop_class_uid=encoded.sop_class_uid,
        sop_instance_uid=encoded.sop_instance_uid,
        series_instance_uid=encoded.series_instance_uid,
        content=encoded.content,
    )


@contextmanager
def _timed(timings: dict[str, float], name: str) -> Iterator[None]:
    begun = perf_counter()
    try:
        yield
    finally:
        timings[name] = perf_counter() - begun
