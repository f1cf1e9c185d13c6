"""One attempt at one series: assemble, analyse, encode, and lay the objects into the outbox.

Input: the files of a series and what identifies its results. Output: result objects that are durable in the outbox.
Errors: those of the stages. `LocalAnalysis` does it where it is called, `pulmo_node.isolation` in a process of its own.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Protocol

from pulmo_models.pipeline import ProgressCallback, no_progress
from pulmo_models.types import PipelineInfo
from pulmo_node import assemble, encode
from pulmo_node.analyse import Analyser
from pulmo_node.domain.deliveries import ResultObject
from pulmo_node.ports import Outbox, OutboxItem


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

    def run(self, request: SeriesRequest) -> SeriesResult:
        """Analyse one series.

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

    def __init__(self, analyser: Analyser, outbox: Outbox, progress: ProgressCallback = no_progress) -> None:
        self._analyser = analyser
        self._outbox = outbox
        self._progress = progress

    def settings_sha256(self, label: str) -> str:
        """Digest of a pipeline's settings."""
        return self._analyser.settings_sha256(label)

    def info(self, label: str) -> PipelineInfo:
        """Identity of a pipeline; loads it. Raises `Permanent`."""
        return self._analyser.info(label)

    def run(self, request: SeriesRequest) -> SeriesResult:
        """Analyse one series. Raises `Rejected`, `Transient`, `Permanent`."""
        timings: dict[str, float] = {}
        self._progress("assemble", 0.0)
        with _timed(timings, "assemble"):
            assemble.check_one_patient(list(request.study_paths))
            paths = list(request.paths)
            image = assemble.assemble(paths, assemble.describe(paths))
        findings = self._analyser.analyse(request.pipeline, image, self._progress)
        timings.update(findings.timings_seconds)
        self._progress("encode", 0.0)
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
