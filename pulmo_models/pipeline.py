"""What a pipeline is: a label, an identity and a call from a volume to findings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable

from pulmo_models.types import Findings, PipelineInfo, Radiograph, Volume

ProgressCallback = Callable[[str, float], None]
"""Called with the name of the running step and the share of it that is done, 0..1."""


def no_progress(step: str, share: float) -> None:
    """The callback of a caller who does not watch."""


class Rejection(Exception):
    """A pipeline looked at the pixels and declines the series: not an error, a stated reason.

    ``code`` is stable and machine-readable (``NO_LUNGS``), ``sentence`` is for people.
    """

    def __init__(self, code: str, sentence: str) -> None:
        super().__init__(f"{code}: {sentence}")
        self.code = code
        self.sentence = sentence


class Pipeline(Protocol):
    """A trained analysis, loaded and ready; safe to call for one series after another."""

    @property
    def info(self) -> PipelineInfo:
        """Program, version and weights, as a report names them."""
        ...

    def __call__(self, image: Volume | Radiograph, progress: ProgressCallback = no_progress) -> Findings:
        """Analyse one series.

        Raises:
            Rejection: the pixels are not what the pipeline is for.
            DeviceOutOfMemory: no batch size and no fallback device was enough.
        """
        ...


@runtime_checkable
class WarmsUp(Protocol):
    """A pipeline whose first run takes longer than the others, unless it is warmed up before."""

    def warm_up(self) -> None:
        """Do once what the first series would otherwise wait for. Raises `ModelError`."""
        ...
