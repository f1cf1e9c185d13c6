"""Stage 3: a volume or radiograph in, findings out.

Pipelines are built on first use and kept, so the weights are read and verified once. Errors of the models are
translated: a pipeline's `Rejection` becomes `Rejected`, out of memory becomes `Transient`, unusable weights or a
missing device become `Permanent`.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pulmo_models import registry
from pulmo_models.errors import DeviceOutOfMemory, ModelError
from pulmo_models.pipeline import Pipeline, ProgressCallback, Rejection, WarmsUp, no_progress
from pulmo_models.types import Findings, PipelineInfo, Radiograph, Volume
from pulmo_models.weights import load_set, locate
from pulmo_node.errors import Permanent, Rejected, Transient


class Analyser:
    """The configured pipelines, each loaded once. Safe to call from several threads; analyses run one at a time."""

    def __init__(
        self, pipelines: Mapping[str, Mapping[str, Any]], device: str, weights_folder: Path | None = None
    ) -> None:
        self._settings = pipelines
        self._device = device
        self._weights_folder = weights_folder  # besides the sets that come with the package
        self._built: dict[str, Pipeline] = {}
        self._lock = threading.Lock()

    def settings_sha256(self, label: str) -> str:
        """Digest of a pipeline's settings, thresholds of its weights included: part of the identity of its results."""
        table = dict(self._settings.get(label, {}))
        if isinstance(name := table.get("weights"), str):
            with suppress(ModelError):  # a job whose weights are missing fails for that, not for its identity
                table["operating_point"] = asdict(load_set(name, self._weights_folder).operating_point)
        return hashlib.sha256(json.dumps(table, sort_keys=True).encode()).hexdigest()

    def info(self, label: str) -> PipelineInfo:
        """Identity of a pipeline; loads it. Raises `Permanent`."""
        with self._lock:
            return self._pipeline(label).info

    def warm_up(self, label: str) -> None:
        """Load a pipeline and let its networks run once. Raises `Transient`, `Permanent`."""
        with self._lock:
            pipeline = self._pipeline(label)
            if isinstance(pipeline, WarmsUp):
                with _translated():
                    pipeline.warm_up()

    def analyse(self, label: str, image: Volume | Radiograph, progress: ProgressCallback = no_progress) -> Findings:
        """Run one pipeline.

        Raises:
            Rejected: the pixels are not what the pipeline is for.
            Transient: the device is out of memory.
            Permanent: the pipeline cannot be loaded.
        """
        with self._lock:
            pipeline = self._pipeline(label)
            with _translated():
                return pipeline(image, progress)

    def _pipeline(self, label: str) -> Pipeline:
        if label not in self._built:
            try:
                self._built[label] = registry.build(label, self._located(label), self._device)
            except ModelError as exc:
                raise Permanent(f"pipeline {label} cannot be loaded: {exc}") from exc
        return self._built[label]

    def _located(self, label: str) -> dict[str, Any]:
        """The table of a pipeline, the name of its weights replaced by where they lie."""
        table = dict(self._settings.get(label, {}))
        if isinstance(name := table.get("weights"), str):
            table["weights"] = str(locate(name, self._weights_folder))
        return table


@contextmanager
def _translated() -> Iterator[None]:
    """What a pipeline raises, as errors of the node."""
    try:
        yield
    except Rejection as exc:
        raise Rejected(exc.code, exc.sentence) from exc
    except DeviceOutOfMemory as exc:
        raise Transient(str(exc)) from exc
