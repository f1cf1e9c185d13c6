"""What can be done before there is a job: networks loaded, images of arriving series read and decoded.

Nothing depends on it but the time that a study waits.
"""

from __future__ import annotations

import logging
from datetime import timedelta

from pulmo_node.attempt import Analysis, ReadingAhead
from pulmo_node.config import Config
from pulmo_node.errors import AnalysisLost, PulmoError, Stopped
from pulmo_node.worker.adapters import Adapters

log = logging.getLogger(__name__)

_MODALITY = "CT"  # radiographs are single images
_LATER = timedelta(days=1)


class AheadDuty:
    """Warms up and reads ahead."""

    def __init__(self, config: Config, adapters: Adapters, analysis: Analysis) -> None:
        self._config = config
        self._ports = adapters
        self._analysis = analysis
        self._read: dict[int, int] = {}  # instances that a series had when all of them were read, by its id

    def warm_up(self) -> None:
        """Load the networks of every pipeline that a rule names, and let them run once."""
        labels = self._config.pipelines_of_rules
        begun = self._ports.monotonic_seconds()
        try:
            self._analysis.warm_up(labels)
        except Stopped:
            return
        except PulmoError as exc:  # a job that needs it will say so again
            log.warning("not warmed up: %s", exc)
            return
        log.info("%s warmed up in %.1f s", ", ".join(labels) or "nothing", self._ports.monotonic_seconds() - begun)

    def read_ahead(self) -> bool:
        """Read images of a series that is still arriving, for a moment; False where there is nothing to do now."""
        if not self._config.analysis.read_ahead_mib:
            return False
        arriving = self._ports.series.quiet_series(before=self._ports.clock.now() + _LATER, excluding=())
        self._read = {series.id: self._read[series.id] for series in arriving if series.id in self._read}
        for series in arriving:
            if series.modality != _MODALITY or self._read.get(series.id) == series.number_of_instances:
                continue
            try:
                found = self._analysis.read_ahead(self._ports.files_of(series.series_instance_uid))
            except Stopped:
                return False
            except AnalysisLost as exc:  # its job will have its attempts; it is not asked for twice
                log.warning("series %s not read ahead: %s", series.series_instance_uid, exc)
                found = ReadingAhead.DONE
            if found is ReadingAhead.BUSY:
                return False
            if found is ReadingAhead.MORE:
                return True
            self._read[series.id] = series.number_of_instances
        return False
