"""Many associations at once, and more than the node wants.

Studies of real size come interleaved over associations that all send at the same time, each sending a slice of one
study after a slice of another. Then far more associations than are allowed are asked for at one moment.
"""

from __future__ import annotations

import itertools
import socket
import threading
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from pulmo_node.deliver import DicomSender
from pulmo_node.errors import PulmoError
from pulmo_node.testing import SmallPacs
from tests.faults.hostile import valid_conversation
from tests.faults.node import NodeProcess, wait_for
from tests.faults.studies import Study, make_study, same_data_set, send
from tests.faults.table import Outcome

SENDERS = 10
MOST_ASSOCIATIONS = 12
_END_SECONDS = 1200.0
_MIB = 1 << 20
_ANSWERS = {b"": "no answer", b"\x02": "accepted", b"\x03": "rejected"}  # by the type of the PDU

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
        answers = _crowd(node, MOST_ASSOCIATIONS + refused, sent[0])
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

    def send_own(files: Sequence[Path]) -> None:
        try:
            send(node.peer, files, timeout_seconds=60.0)
        except AssertionError as exc:
            failures.append(str(exc))

    senders = [threading.Thread(target=send_own, args=(order[n::SENDERS],)) for n in range(SENDERS)]
    for sender in senders:
        sender.start()
    for sender in senders:
        sender.join()
    return failures


def _crowd(node: NodeProcess, number: int, study: Study) -> Counter[str]:
    """How that many requests at one moment are answered, each connection held until all have their answer.

    By bare sockets: pynetdicom's requestor may take a rejection for an abort where it is busy.
    """
    request, *_ = valid_conversation(study)
    with ExitStack() as stack:
        crowd = [
            stack.enter_context(socket.create_connection(("127.0.0.1", node.port), timeout=60.0)) for _ in range(number)
        ]
        for each in crowd:
            each.sendall(request)
        return Counter(_ANSWERS.get(each.recv(1), "other") for each in crowd)


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
