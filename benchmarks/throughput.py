"""Studies an hour through a serving node, with series of every size and several transfer syntaxes, and what limits it.

    python -m benchmarks.throughput [--out bench-out] [--quick]

Everything is sent at once, over two associations; time counts from the first byte to the last delivered result, the
quiet period of the last series excluded.
"""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from benchmarks import report
from benchmarks.report import Options, Table, row
from benchmarks.scene import Scene, chest, scene

# Slices and transfer syntax: as many thick and thin series as a day brings, a third of them compressed.
_MIX = ((300, "uncompressed"), (60, "uncompressed"), (120, "JPEG Lossless"), (300, "JPEG 2000"), (120, "uncompressed"),
        (600, "uncompressed"))  # fmt: skip
_QUICK_MIX = ((40, "uncompressed"), (40, "JPEG Lossless"))
_SENDERS = 2


def run(options: Options) -> Table:
    """Send the mix, wait for everything, count."""
    source = chest(options)
    mix = _QUICK_MIX if options.quick else _MIX
    with tempfile.TemporaryDirectory() as scratch, scene(Path(scratch), options) as stage:
        sent: list[tuple[str, Path, str]] = []
        for number, (slices, syntax) in enumerate(mix):
            folder = Path(scratch) / str(number)
            sent.append((source.write(folder, slices, uid_name=str(folder), syntax=syntax), folder, syntax))
        begun = datetime.now(UTC).replace(tzinfo=None)
        _send_all(stage, sent)
        received = datetime.now(UTC).replace(tzinfo=None)
        for study, _, _ in sent:
            stage.wait_until_done(study)
            if not stage.holds_report(study):
                raise SystemExit(f"Orthanc holds no report of study {study}")
        moments = [stage.moments(study) for study, _, _ in sent]
        timings = stage.timings()
    ended = max(each["all sent"] for each in moments)
    seconds = (ended - begun).total_seconds()
    first_queued = min(each["queued"] for each in moments)
    working = (ended - first_queued).total_seconds()
    steps: dict[str, float] = {}
    for each in timings:
        for name, spent in each.items():
            steps[name] = steps.get(name, 0.0) + spent
    delivery = sum((each["all sent"] - each["encoded"]).total_seconds() for each in moments)
    busy = sum(steps.values()) / working
    limiting = max(steps, key=lambda name: steps[name])
    rows = [
        row("studies an hour, from the first job on", [3600 * len(sent) / working], "studies/h"),
        row(
            "studies an hour, receiving and the first quiet period included", [3600 * len(sent) / seconds], "studies/h"
        ),
        row("receiving all of them", [(received - begun).total_seconds()], "s"),
        *(
            row(f"analysis process: {name}", [spent], "s", f"{spent / working:.0%} of the time")
            for name, spent in steps.items()
        ),
        row("delivery, beside the next analysis", [delivery], "s"),
    ]
    return Table(
        name="throughput",
        title="Throughput: mixed series through one node",
        protocol=(
            f"{len(mix)} studies made of {source.name}: "
            + ", ".join(f"{slices} slices {syntax}" for slices, syntax in mix)
            + f"; sent by storescu over {_SENDERS} associations at once to `pulmo-node serve` with its default "
            "configuration, results delivered to Orthanc."
        ),
        rows=tuple(rows),
        notes=(
            f"The analysis process works {busy:.0%} of the time from the first job to the last delivered object; its "
            f"longest step, {limiting}, takes {steps[limiting] / working:.0%} and limits the rate.",
            "Receiving and delivering go on beside it in the node's own process. Encoding does not go on beside the "
            "next analysis: that could save "
            f"{(steps['encode'] + steps['outbox']) / working:.0%} of the time at most, if a processor were idle then.",
        ),
    )


def _send_all(stage: Scene, sent: Sequence[tuple[str, Path, str]]) -> None:
    """Every sender takes its share of the studies, one association each."""
    failed: list[BaseException] = []

    def send(share: Sequence[tuple[str, Path, str]]) -> None:
        try:
            for _, folder, syntax in share:
                stage.send(folder, syntax)
        except BaseException as exc:  # noqa: BLE001 - told by the thread that waits
            failed.append(exc)

    threads = [threading.Thread(target=send, args=(sent[number::_SENDERS],)) for number in range(_SENDERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]


if __name__ == "__main__":
    report.main(run, __doc__)
