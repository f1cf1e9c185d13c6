"""The metrics in the text format of Prometheus.

What the database knows is counted there at each scrape, so a restart changes none of it; what only this process knows
(durations, associations, models) begins with it, as Prometheus expects of counters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from itertools import accumulate
from pathlib import Path

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from pulmo_models import __version__
from pulmo_node.domain.browsing import Counts
from pulmo_node.domain.deliveries import DeliveryState
from pulmo_node.domain.series import SeriesState
from pulmo_node.monitoring.gpu import Gpus
from pulmo_node.monitoring.observed import BUCKETS_SECONDS, Durations, Observed, Seen
from pulmo_node.monitoring.readiness import disk_of
from pulmo_node.ports import Clock

OTHER_CALLERS = "other"
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


@dataclass(frozen=True, kw_only=True)
class NodeCollector(Collector):
    """Everything that is measured, at one scrape."""

    counts: Callable[[], Counts]
    observed: Observed
    storage: Path
    destinations: tuple[str, ...]
    callers: frozenset[str]  # the AE titles that are labels of their own
    pipelines: tuple[str, ...]
    gpus: Gpus
    clock: Clock

    def collect(self) -> Iterator[Metric]:
        """Families of samples. Raises `PulmoError` where the database cannot be asked."""
        counts, seen = self.counts(), self.observed.now()
        yield InfoMetricFamily("pulmo_node", "Version of the node", {"version": __version__})
        yield from _received(counts, self.callers)
        yield from _of_database(counts)
        yield from self._queues(counts)
        yield from self._of_process(seen)
        yield from self._of_machine()

    def _queues(self, counts: Counts) -> Iterator[Metric]:
        waiting = _gauge("pulmo_queue_length", "Result objects that wait for a destination", "destination")
        oldest = _gauge("pulmo_queue_oldest_seconds", "Age of the oldest of them", "destination")
        known = {queue.destination: queue for queue in counts.queues}
        for name in sorted({*self.destinations, *known}):
            queue = known.get(name)
            waiting.add_metric([name], queue.waiting if queue else 0)
            oldest.add_metric([name], self._age(queue.oldest_at if queue else None))
        yield waiting
        yield oldest
        yield GaugeMetricFamily(
            "pulmo_analysis_queue_length",
            "Jobs that wait for analysis, the running one among them",
            counts.analysis_waiting,
        )
        yield GaugeMetricFamily(
            "pulmo_analyses_running", "Jobs whose analysis runs at this moment", counts.analysis_running
        )
        yield GaugeMetricFamily(
            "pulmo_analysis_queue_oldest_seconds", "Age of the oldest of them", self._age(counts.analysis_oldest_at)
        )

    def _age(self, at: datetime | None) -> float:
        return 0.0 if at is None else max(0.0, (self.clock.now() - at).total_seconds())

    def _of_process(self, seen: Seen) -> Iterator[Metric]:
        associations = CounterMetricFamily(
            "pulmo_associations", "Associations of peers, by what became of them", labels=["outcome"]
        )
        for outcome in sorted({"accepted", "rejected", "released", "aborted", *seen.associations}):
            associations.add_metric([outcome], seen.associations.get(outcome, 0))
        yield associations
        stages = HistogramMetricFamily("pulmo_stage_seconds", "Duration of the stages of a job", labels=["stage"])
        for stage, durations in sorted(seen.stages.items()):
            stages.add_metric([stage], buckets=_buckets(durations), sum_value=durations.sum_seconds)
        yield stages
        up = _gauge("pulmo_destination_up", "1 where a destination answered last, 0 where it did not", "destination")
        for name, destination in sorted(seen.destinations.items()):
            up.add_metric([name], float(destination.down_since is None))
        yield up
        loaded = _gauge("pulmo_model_loaded", "1 where a pipeline is loaded", "pipeline")
        took = _gauge("pulmo_model_load_seconds", "How long loading it took", "pipeline")
        for label in self.pipelines:
            model = seen.models.get(label)
            ready = model is not None and model.loaded_seconds is not None
            loaded.add_metric([label], float(ready))
            if model is not None and model.loaded_seconds is not None:
                took.add_metric([label], model.loaded_seconds)
        yield loaded
        yield took

    def _of_machine(self) -> Iterator[Metric]:
        disk = disk_of(self.storage)
        if disk is not None:
            yield GaugeMetricFamily("pulmo_disk_free_bytes", "Free space of the storage", disk.free_bytes)
            yield GaugeMetricFamily("pulmo_disk_size_bytes", "Size of the disk of the storage", disk.total_bytes)
        used = _gauge("pulmo_gpu_memory_used_bytes", "Used memory of a GPU, by every program", "gpu")
        total = _gauge("pulmo_gpu_memory_size_bytes", "Memory of a GPU", "gpu")
        for gpu in self.gpus.memory():
            used.add_metric([gpu.index], gpu.used_bytes)
            total.add_metric([gpu.index], gpu.total_bytes)
        yield used
        yield total


def render(collector: NodeCollector) -> bytes:
    """What `/metrics` answers. Raises `PulmoError`."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Described(collector))
    return generate_latest(registry)


class _Described(Collector):
    """Registered without being asked for its families first."""

    def __init__(self, collector: NodeCollector) -> None:
        self._collector = collector

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterable[Metric]:
        return self._collector.collect()


def _received(counts: Counts, callers: frozenset[str]) -> Iterator[Metric]:
    """By AE title, of which anybody may make up any number: those that the configuration does not name are one."""
    sums: dict[tuple[str, str], tuple[int, int]] = {}
    for one in counts.received:
        labels = (one.calling_ae_title if one.calling_ae_title in callers else OTHER_CALLERS, one.status)
        number, size_bytes = sums.get(labels, (0, 0))
        sums[labels] = (number + one.instances, size_bytes + one.size_bytes)
    instances = CounterMetricFamily(
        "pulmo_instances_received", "Instances that peers sent", labels=["calling_ae_title", "status"]
    )
    size = CounterMetricFamily("pulmo_received_bytes", "Their size", labels=["calling_ae_title", "status"])
    for labels, (number, size_bytes) in sums.items():
        instances.add_metric(labels, number)
        if labels[1] != "refused":  # of which nobody knows how much it would have been
            size.add_metric(labels, size_bytes)
    yield instances
    yield size


def _of_database(counts: Counts) -> Iterator[Metric]:
    series = _gauge("pulmo_series", "Series by state", "state")
    for name in (state.value for state in SeriesState):
        series.add_metric([name], counts.series.get(name, 0))
    yield series
    jobs = _gauge("pulmo_jobs", "Jobs by state, and code of the error or rejection where there is one", "state", "code")
    for (state, code), number in sorted(counts.jobs.items()):
        jobs.add_metric([state, code], number)
    yield jobs
    deliveries = _gauge("pulmo_deliveries", "Deliveries by destination and state", "destination", "state")
    for destination in sorted({name for name, _ in counts.deliveries}):
        for delivery_state in DeliveryState:
            number = counts.deliveries.get((destination, delivery_state.value), 0)
            deliveries.add_metric([destination, delivery_state.value], number)
    yield deliveries


def _gauge(name: str, documentation: str, *labels: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, documentation, labels=list(labels))


def _buckets(durations: Durations) -> list[tuple[str, float]]:
    bounds = [*(str(bound) for bound in BUCKETS_SECONDS), "+Inf"]
    return [(bound, float(number)) for bound, number in zip(bounds, accumulate(durations.counts), strict=True)]
