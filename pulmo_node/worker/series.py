"""From quiet series to queued jobs: what is complete is looked at once, and the rules say which pipelines it gets."""

from __future__ import annotations

import logging
from datetime import datetime, timedelta

from pulmo_node import assemble, select
from pulmo_node.config import Config
from pulmo_node.domain.series import Series
from pulmo_node.errors import Rejected, StaleJob
from pulmo_node.worker.adapters import Adapters

log = logging.getLogger(__name__)


def complete_quiet_series(config: Config, adapters: Adapters) -> int:
    """Complete every series that is quiet, and queue its jobs; the number of jobs queued."""
    before = adapters.clock.now() - timedelta(seconds=config.receive.quiet_seconds)
    busy = adapters.transfers.series_in_transfer()
    queued = 0
    for series in adapters.series.quiet_series(before=before, excluding=busy):
        if adapters.gaps is not None and adapters.gaps.holds_back(series):
            continue
        selection = _select(config, adapters, series)
        try:
            adapters.series.complete_series(series, selection.jobs, selection.note)
        except StaleJob:
            continue  # an instance came meanwhile: the next check sees the series again
        queued += len(selection.jobs)
        log.info(
            "series %s revision %d complete: %d instances, %d jobs%s",
            series.series_instance_uid,
            series.revision,
            series.number_of_instances,
            len(selection.jobs),
            f" ({selection.note})" if selection.note else "",
        )
    return queued


def next_quiet_at(config: Config, adapters: Adapters, within: timedelta) -> datetime | None:
    """When the next series becomes quiet that does so within that time; None where none does."""
    now, quiet = adapters.clock.now(), timedelta(seconds=config.receive.quiet_seconds)
    coming = adapters.series.quiet_series(before=now - quiet + within, excluding=())
    return min((at for series in coming if (at := series.last_instance_at + quiet) > now), default=None)


def _select(config: Config, adapters: Adapters, series: Series) -> select.Selection:
    paths = adapters.files_of(series.series_instance_uid)
    missing = sum(not path.is_file() for path in paths)
    if missing:
        note = f"{missing} of {len(paths)} images were purged: send them again, then requeue the study"
        return select.Selection(jobs=(), note=note)
    try:
        description = assemble.describe(paths, series.calling_ae_title)
    except Rejected as exc:
        return select.Selection(jobs=(), note=str(exc))
    return select.select(config, description)
