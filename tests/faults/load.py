"""Many associations at once, and more than the node wants.

Studies of real size come interleaved over associations that all send at the same time, each sending a slice of one
study after a slice of another. Then far more associations than are allowed are asked for at one moment.
"""

from __future__ import annotations

import itertools
import threading
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pynetdicom import AE, build_context

from pulmo_node.deliver import DicomSender
from pulmo_node.dimse import VERIFICATION
from pulmo_node.errors import PulmoError
from pulmo_node.testing import SmallPacs
from tests.faults.node import NodeProcess, wait_for
from tests.faults.studies import Study, make_study, same_data_set
from tests.faults.table import Outcome

SENDERS = 10
MOST_ASSOCIATIONS = 12
_END_SECONDS = 1200.0
_MIB = 1 << 20

CONFIGURATION: dict[str, dict[str, Any]] = {
    "receive": {"quiet_seconds": 3.0, "max_associations": MOST_ASSOCIATIONS, "max_associations_per_peer": 1000},
    "analysis": {"lease_seconds": 30.0},
}


def run(
    folder: Path, seed: int, *, studies: int, shape: tuple[int, int, int], refused: int, most_rss_bytes: int
) -> Outcome:
    """Studies of that `shape` (slices, rows, columns) over ten associations; then `refused` too many."""
    sent = [make_study(folder / "studies", seed, number, shape) for number in range(studies)]
    with SmallPacs(folder / "pacs") as pacs, NodeProcess(folder / "node", CONFIGURATION, peers=[pacs.peer]) as node:
        failures = _send_interleaved(node, sent)
        receiving = node.resources()
        wait_for(lambda: _done(node) == studies, _END_SECONDS, "the results of the load")
        peak_bytes = max(receiving.peak_rss_bytes, node.resources().peak_rss_bytes)
        answers = _crowd(node, MOST_ASSOCIATIONS + refused)
        wait_for(lambda: _echo(node), 60.0, "an answer after the crowd had gone")
        failures += _lost(node, sent)
    if peak_bytes > most_rss_bytes:
        failures.append(f"peak memory {peak_bytes / _MIB:.0f} MiB, more than {most_rss_bytes / _MIB:.0f} MiB")
    if answers != Counter(accepted=MOST_ASSOCIATIONS, rejected=refused):
        failures.append(f"{MOST_ASSOCIATIONS + refused} associations at once: {dict(answers)}")
    slices, rows, columns = shape
    return Outcome(
        fault="load",
        done=f"{SENDERS} associations at once, {studies} studies of {slices} slices of {rows}x{columns} interleaved; "
        f"then {refused} associations beyond the limit of {MOST_ASSOCIATIONS}",
        found=f"{studies * slices} instances, no failed store, every study analysed; peak memory "
        f"{receiving.peak_rss_bytes / _MIB:.0f} MiB while receiving, {peak_bytes / _MIB:.0f} MiB in all; "
        f"{answers['rejected']} associations rejected, {answers['accepted']} served",
        failures=tuple(failures),
    )


def _send_interleaved(node: NodeProcess, studies: Sequence[Study]) -> list[str]:
    """Slice 0 of every study, then slice 1 ...; sender n takes every tenth of them."""
    order = list(itertools.chain.from_iterable(zip(*(study.files for study in studies), strict=True)))
    failures: list[str] = []

    def send(files: Sequence[Path]) -> None:
        try:
            for answer in DicomSender("SCANNER", timeout_seconds=120.0).send_files(node.peer, files):
                if answer.error is not None:
                    failures.append(f"a store failed: {answer.error}")
        except PulmoError as exc:
            failures.append(f"an association failed: {exc}")

    senders = [threading.Thread(target=send, args=(order[n::SENDERS],)) for n in range(SENDERS)]
    for sender in senders:
        sender.start()
    for sender in senders:
        sender.join()
    return failures


def _crowd(node: NodeProcess, number: int) -> Counter[str]:
    """How that many requests at one moment are answered, each association held until all have their answer."""
    answers: Counter[str] = Counter()
    answered, lock = threading.Barrier(number), threading.Lock()

    def ask() -> None:
        entity = AE(ae_title="CROWD")
        entity.acse_timeout = entity.connection_timeout = 60.0
        association = entity.associate("127.0.0.1", node.port, contexts=[build_context(VERIFICATION)])
        with lock:
            answers[_answer(association)] += 1
        answered.wait()
        if association.is_established:
            association.release()

    crowd = [threading.Thread(target=ask) for _ in range(number)]
    for each in crowd:
        each.start()
    for each in crowd:
        each.join()
    return answers


def _answer(association: Any) -> str:
    if association.is_established:
        return "accepted"
    return "rejected" if association.is_rejected else "no answer"


def _echo(node: NodeProcess) -> bool:
    try:
        DicomSender("SCANNER").echo(node.peer)
    except PulmoError:
        return False
    return True


def _done(node: NodeProcess) -> int:
    return int(node.query("SELECT count(*) FROM jobs WHERE state = 'DONE'")[0][0])


def _lost(node: NodeProcess, studies: Sequence[Study]) -> list[str]:
    stored = dict(node.query("SELECT sop_instance_uid, path FROM instances"))
    return [
        f"instance {uid} is not there as it was sent"
        for study in studies
        for uid, file in zip(study.sop_instance_uids, study.files, strict=True)
        if uid not in stored or not same_data_set(file, node.storage / stored[uid])
    ]
