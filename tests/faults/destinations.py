"""Two destinations, one of them in trouble: the healthy one must get everything as if it were alone."""

from __future__ import annotations

import random
from datetime import datetime
from pathlib import Path
from typing import Any

from tests.faults.node import NodeProcess, wait_for
from tests.faults.peers import REFUSING, Trouble, TroubledPacs
from tests.faults.studies import make_study, send
from tests.faults.table import Outcome

_END_SECONDS = 300.0
_OBJECTS = 2  # of a study: SR and SEG

CONFIGURATION: dict[str, dict[str, Any]] = {
    "receive": {"quiet_seconds": 0.3},
    "delivery": {
        "max_attempts": 10_000,
        "first_delay_seconds": 0.3,
        "max_delay_seconds": 2.0,
    },
}


def run(folder: Path, seed: int, rounds: int, attempt_seconds: float = 5.0) -> Outcome:
    """Every trouble that many times, in an order by the seed; studies come until all of them were met.

    `attempt_seconds` is how long the node waits for a peer that says nothing.
    """
    configuration = CONFIGURATION | {"delivery": {**CONFIGURATION["delivery"], "timeout_seconds": attempt_seconds}}
    troubles = [*Trouble] * rounds
    random.Random(seed).shuffle(troubles)
    with (
        TroubledPacs(folder / "troubled", "troubled", troubles) as troubled,
        TroubledPacs(folder / "healthy", "healthy") as healthy,
        NodeProcess(folder / "node", configuration, peers=[troubled.peer, healthy.peer]) as node,
    ):
        studies = 0
        while troubled.troubles_left:
            study = make_study(folder / "studies", seed, studies)
            send(node.peer, study.files)
            studies += 1
            wait_for(lambda: len(healthy.pacs.stored) >= studies * _OBJECTS, _END_SECONDS, "the healthy one")  # noqa: B023
        wait_for(lambda: not _pending(node), _END_SECONDS, "the deliveries to the one in trouble")
        failures = [*_wrong_ends(node, troubles), *_wrong_objects(node, troubled, healthy)]
        longest_seconds = _longest_wait_seconds(node, "healthy")
        (retried,) = node.query("SELECT count(*) FROM deliveries WHERE destination = 'healthy' AND attempts > 0")[0]
        (too_often,) = node.query("SELECT count(*) FROM deliveries WHERE destination = 'healthy' AND attempts > 1")[0]
    if too_often:
        failures.append(f"{too_often} deliveries to the healthy one were tried again more than once")
    if longest_seconds >= 2 * attempt_seconds:
        failures.append(f"the healthy one waited {longest_seconds:.1f} s, more than one attempt too long")
    return Outcome(
        fault="PACS in trouble",
        done=f"two destinations; {len(troubles)} troubles at one of them ({', '.join(each.value for each in Trouble)})",
        found=f"{studies} studies: the healthy one had each result, {retried} of them not at the first attempt, "
        f"at the latest {longest_seconds:.1f} s after it was encoded (an attempt at the other lasts "
        f"{attempt_seconds:g} s); the other had everything in the end but what it had refused",
        failures=tuple(failures),
    )


def _pending(node: NodeProcess) -> int:
    return int(node.query("SELECT count(*) FROM deliveries WHERE state = 'PENDING'")[0][0])


def _wrong_ends(node: NodeProcess, troubles: list[Trouble]) -> list[str]:
    """Deliveries that ended otherwise than the peers' answers say."""
    ends = dict(node.query("SELECT destination || ' ' || state, count(*) FROM deliveries GROUP BY destination, state"))
    refused = sum(trouble in REFUSING for trouble in troubles)
    failures = []
    if ends.get("troubled FAILED", 0) != refused:
        failures.append(f"{ends.get('troubled FAILED', 0)} deliveries failed, {refused} were refused")
    if set(ends) - {"healthy SENT", "troubled SENT", "troubled FAILED"}:
        failures.append(f"deliveries ended as {sorted(ends)}")
    (warned,) = node.query("SELECT count(*) FROM events WHERE state = 'SENT' AND detail LIKE '%: 0xB000:%'")[0]
    coerced = sum(trouble is Trouble.COERCED for trouble in troubles)
    if warned != coerced:
        failures.append(f"{warned} deliveries are recorded with the warning 0xB000, {coerced} were answered so")
    return failures


def _wrong_objects(node: NodeProcess, *destinations: TroubledPacs) -> list[str]:
    """Objects that a PACS has and should not, lacks, or has with other bytes under the same UID."""
    failures = []
    for destination in destinations:
        name = destination.peer.name
        contents: dict[str, set[bytes]] = {}
        for stored in destination.pacs.stored:
            contents.setdefault(stored.sop_instance_uid, set()).add(stored.path.read_bytes())
        failures += [f"{name} has {uid} with different bytes" for uid, all_ in contents.items() if len(all_) > 1]
        states = dict(
            node.query(
                "SELECT results.sop_instance_uid, deliveries.state FROM results "  # noqa: S608
                f"JOIN deliveries ON result_id = results.id WHERE destination = '{name}'"
            )
        )
        # One that was refused may have been taken at an attempt before, its answer lost.
        failures += [f"{name} lacks {uid}" for uid in states if states[uid] == "SENT" and uid not in contents]
        failures += [f"{name} has {uid}, which was never for it" for uid in contents.keys() - states.keys()]
    return failures


def _longest_wait_seconds(node: NodeProcess, destination: str) -> float:
    """From a job's results being encoded to the last of them being sent there."""
    rows = node.query(
        "SELECT encoded.at, sent.at FROM deliveries "  # noqa: S608
        "JOIN events AS sent ON sent.subject = 'delivery ' || deliveries.id AND sent.state = 'SENT' "
        "JOIN events AS encoded ON encoded.subject = 'job ' || deliveries.job_id AND encoded.state = 'ENCODED' "
        f"WHERE destination = '{destination}'"
    )
    assert rows, "nothing was sent"
    return max(
        (datetime.fromisoformat(sent) - datetime.fromisoformat(encoded)).total_seconds() for encoded, sent in rows
    )
