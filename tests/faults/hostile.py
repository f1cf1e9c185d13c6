"""A hostile network: spoiled PDUs and DIMSE messages, and connections that are held without a purpose.

A valid conversation (association request, C-ECHO, C-STORE with its data set, release) is spoiled at one to three
places: bits flipped, bytes cut out, put in or repeated, lengths and types changed, PDUs left out, repeated or swapped;
or bytes by chance are sent. Case n of a seed is always the same.
"""

from __future__ import annotations

import random
import select
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack, suppress
from io import BytesIO
from pathlib import Path
from typing import Any

from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian
from pynetdicom.dimse_messages import C_ECHO_RQ, C_STORE_RQ
from pynetdicom.dimse_primitives import C_ECHO, C_STORE
from pynetdicom.dsutils import encode
from pynetdicom.pdu import A_RELEASE_RQ, P_DATA_TF
from pynetdicom.pdu_primitives import A_RELEASE
from pynetdicom.presentation import build_context

from pulmo_node.deliver import DicomSender
from pulmo_node.dimse import VERIFICATION
from pulmo_node.errors import PulmoError
from pulmo_node.testing import SmallPacs
from tests.faults.node import AE_TITLE, NodeProcess, Resources, wait_for
from tests.faults.studies import Study, make_study, send
from tests.faults.table import Outcome
from tests.network_factory import associate_request

_ATTACKERS = 4
_HOSTILE_ADDRESS = "127.0.0.2"  # honest peers have another, as the limits of the node are by address
_PATIENCE_SECONDS = 0.05  # for answers after all of a case was sent; the node may also wait for more bytes
_HASTY_SHARE = 0.25  # of the cases do not wait for the association to be accepted
_SETTLE_SECONDS = 60.0
_MIB = 1 << 20
_TRACES = (b"Traceback", b'File "', b"Error(", b"pulmo_node", b"site-packages")
"""Signs of a program's inner life; an Error Comment has none of them."""


def run(
    folder: Path, seed: int, *, cases: int, slow: int, most_growth_bytes: int, limit_seconds: float = 5.0
) -> Outcome:
    """That many spoiled conversations from four attackers, then `slow` connections that dribble or say nothing.

    `limit_seconds` is how long the node bears silence, or the lack of a whole request.
    """
    configuration = {
        "receive": {
            "quiet_seconds": 2.0,
            "network_timeout_seconds": limit_seconds,
            "association_request_seconds": limit_seconds,
            "max_associations": 60,
            "max_associations_per_peer": 40,
            "max_connections_per_minute": 1_000_000,
        }
    }
    study = make_study(folder / "studies", seed, 0)
    with SmallPacs(folder / "pacs") as pacs, NodeProcess(folder / "node", configuration, peers=[pacs.peer]) as node:
        pid = node.pid
        conversation = valid_conversation(study)
        failures: list[str] = []
        # What is loaded only once, and the analysis process, are there before anything is measured.
        _deliver(node, study)
        at_rest = node.resources()
        attack(node, conversation, seed, range(min(cases, 100)), failures)
        before = _settled(node, at_rest)
        answers = attack(node, conversation, seed, range(cases), failures)
        after = _settled(node, at_rest)
        served = _slow_loris(node, slow, 3 * limit_seconds, failures)
        _deliver(node, make_study(folder / "studies", seed, 1))
        if not node.running or node.pid != pid:
            failures.append("the node ended")
    growth_bytes = after.rss_bytes - before.rss_bytes
    if growth_bytes > most_growth_bytes:
        failures.append(f"memory grew by {growth_bytes / _MIB:.0f} MiB")
    for what, first, last in (
        ("threads", at_rest.threads, after.threads),
        ("descriptors", at_rest.descriptors, after.descriptors),
    ):
        if last > first + 10:
            failures.append(f"{first} {what} before, {last} afterwards")
    trouble = node.log.read_text()
    if "Traceback" in trouble:
        failures.append("there is a traceback in the log")
    said = ", ".join(f"{number} {what}" for what, number in answers.most_common())
    return Outcome(
        fault="hostile network",
        done=f"{cases} spoiled conversations (PDUs and DIMSE messages), {slow} connections that dribble or say nothing",
        found=f"answered: {said}; memory {growth_bytes / _MIB:+.0f} MiB, descriptors "
        f"{after.descriptors - before.descriptors:+d}, threads {after.threads - before.threads:+d}; honest peers were "
        f"served all the time, {served} of them beside the slow connections; no traceback",
        failures=tuple(failures),
    )


def valid_conversation(study: Study) -> list[bytes]:
    """The PDUs of a peer that opens an association, echoes, stores an instance and releases."""
    contexts = [build_context(VERIFICATION), build_context(CTImageStorage, ExplicitVRLittleEndian)]
    associate = associate_request(contexts, calling="STRANGER", called=AE_TITLE)

    echo, echo_message = C_ECHO(), C_ECHO_RQ()
    echo.MessageID, echo.AffectedSOPClassUID = 1, VERIFICATION
    echo_message.primitive_to_message(echo)

    dataset = dcmread(study.files[0])
    store, store_message = C_STORE(), C_STORE_RQ()
    store.MessageID, store.Priority = 2, 2
    store.AffectedSOPClassUID, store.AffectedSOPInstanceUID = dataset.SOPClassUID, dataset.SOPInstanceUID
    store.DataSet = BytesIO(encode(Dataset(dataset), False, True) or b"")
    store_message.primitive_to_message(store)

    released = A_RELEASE_RQ()
    released.from_primitive(A_RELEASE())
    messages = [*echo_message.encode_msg(1, 16382), *store_message.encode_msg(3, 16382)]
    return [associate, *(_data_pdu(message) for message in messages), released.encode()]


def _data_pdu(primitive: Any) -> bytes:
    pdu = P_DATA_TF()
    pdu.from_primitive(primitive)
    return bytes(pdu.encode())


def spoil(conversation: list[bytes], chance: random.Random) -> list[bytes]:
    """What to send, each part when there was time for an answer to the one before; one to three changes."""
    pdus = [bytearray(pdu) for pdu in conversation]
    for _ in range(chance.randint(1, 3)):
        chance.choice(_CHANGES)(pdus, chance)
    if chance.random() < _HASTY_SHARE:
        return [b"".join(pdus)]
    return [bytes(pdu) for pdu in pdus[:1]] + [b"".join(pdus[1:])]


def _flip_bits(pdus: list[bytearray], chance: random.Random) -> None:
    pdu = chance.choice(pdus)
    for _ in range(chance.randint(1, 8)):
        if pdu:
            pdu[chance.randrange(len(pdu))] ^= 1 << chance.randrange(8)


def _flip_head(pdus: list[bytearray], chance: random.Random) -> None:
    """In the first 120 bytes, where the structure lies."""
    pdu = chance.choice(pdus)
    if pdu:
        pdu[chance.randrange(min(len(pdu), 120))] = chance.randrange(256)


def _change_length(pdus: list[bytearray], chance: random.Random) -> None:
    pdu = chance.choice(pdus)
    if len(pdu) >= 6:
        value = chance.choice((0, 1, len(pdu), len(pdu) * 2, 0x7FFFFFFF, 0xFFFFFFFF, chance.randrange(1 << 32)))
        struct.pack_into(">L", pdu, 2, value)


def _change_inner_length(pdus: list[bytearray], chance: random.Random) -> None:
    pdu = chance.choice(pdus)
    if len(pdu) > 12:
        struct.pack_into(">H", pdu, chance.randrange(6, min(len(pdu) - 2, 200)), chance.choice((0, 1, 0xFFFF, 0x7FFF)))


def _cut(pdus: list[bytearray], chance: random.Random) -> None:
    pdu = chance.choice(pdus)
    start = chance.randrange(len(pdu) + 1)
    del pdu[start : start + chance.randint(1, 64)]


def _truncate(pdus: list[bytearray], chance: random.Random) -> None:
    """The conversation ends within a PDU."""
    last = chance.randrange(len(pdus))
    del pdus[last + 1 :]
    del pdus[last][chance.randrange(len(pdus[last]) + 1) :]
    if not pdus:
        pdus.append(bytearray())


def _insert(pdus: list[bytearray], chance: random.Random) -> None:
    pdu = chance.choice(pdus)
    start = chance.randrange(len(pdu) + 1)
    pdu[start:start] = chance.randbytes(chance.randint(1, 64))


def _repeat_inside(pdus: list[bytearray], chance: random.Random) -> None:
    pdu = chance.choice(pdus)
    start = chance.randrange(len(pdu) + 1)
    pdu[start:start] = pdu[start : start + chance.randint(1, 400)] * chance.randint(1, 20)


def _drop(pdus: list[bytearray], chance: random.Random) -> None:
    if len(pdus) > 1:
        del pdus[chance.randrange(len(pdus))]


def _repeat(pdus: list[bytearray], chance: random.Random) -> None:
    number = chance.randrange(len(pdus))
    pdus[number:number] = [bytearray(pdus[number]) for _ in range(chance.randint(1, 5))]


def _swap(pdus: list[bytearray], chance: random.Random) -> None:
    one, other = chance.randrange(len(pdus)), chance.randrange(len(pdus))
    pdus[one], pdus[other] = pdus[other], pdus[one]


def _change_type(pdus: list[bytearray], chance: random.Random) -> None:
    pdu = chance.choice(pdus)
    if pdu:
        pdu[0] = chance.randrange(256)


def _noise(pdus: list[bytearray], chance: random.Random) -> None:
    pdus[chance.randrange(len(pdus))][:] = chance.randbytes(chance.randint(0, 2000))


_CHANGES: tuple[Callable[[list[bytearray], random.Random], None], ...] = (
    _flip_bits, _flip_head, _flip_head, _change_length, _change_inner_length, _cut, _truncate, _insert, _repeat_inside,
    _drop, _repeat, _swap, _change_type, _noise,
)  # fmt: skip


def attack(node: NodeProcess, conversation: list[bytes], seed: int, cases: range, failures: list[str]) -> Counter[str]:
    """Every case, shared by the attackers, while an honest peer echoes; how the node answered."""
    answers: Counter[str] = Counter()
    lock = threading.Lock()

    def attacker(own: range) -> None:
        for number in own:
            answer = _converse(node.port, spoil(conversation, random.Random(f"{seed} {number}")))
            with lock:
                answers[_kind(answer)] += 1
                if any(trace in answer for trace in _TRACES):
                    failures.append(f"case {number}: the answer tells of the program's inner life")

    attackers = [threading.Thread(target=attacker, args=(cases[n::_ATTACKERS],)) for n in range(_ATTACKERS)]
    for each in attackers:
        each.start()
    honest = DicomSender("HONEST", timeout_seconds=30.0)
    while any(each.is_alive() for each in attackers):
        try:
            honest.echo(node.peer)
        except PulmoError as exc:
            failures.append(f"an honest peer was not served: {exc}")
        attackers[0].join(0.5)
    return answers


def _converse(port: int, parts: list[bytes]) -> bytes:
    """Send, and what came back until the node closed or said nothing more."""
    answer = b""
    # The node may close whenever it likes.
    with suppress(ConnectionError, TimeoutError), _connect(port) as peer:
        for part in parts:
            peer.sendall(part)
            while select.select([peer], [], [], _PATIENCE_SECONDS)[0]:
                chunk = peer.recv(65536)
                if not chunk:
                    return answer
                answer += chunk
                if part is not parts[-1]:
                    break
    return answer


def _connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=30.0, source_address=(_HOSTILE_ADDRESS, 0))


def _kind(answer: bytes) -> str:
    """The last PDU of an answer, by name."""
    kinds = {2: "accepted", 3: "rejected", 4: "data", 6: "released", 7: "aborted"}
    last, position = 0, 0
    while position + 6 <= len(answer):
        last = answer[position]
        position += 6 + int.from_bytes(answer[position + 2 : position + 6], "big")
    return kinds.get(last, "no answer")


def _settled(node: NodeProcess, at_rest: Resources) -> Resources:
    """What the node holds once the connections have ended; the database's pool and a few threads come and go."""

    def settled() -> bool:
        now = node.resources()
        return now.descriptors <= at_rest.descriptors + 10 and now.threads <= at_rest.threads + 10

    with suppress(AssertionError):  # what is left then is told by the caller
        wait_for(settled, _SETTLE_SECONDS, "the end of the connections")
    return node.resources()


def _slow_loris(node: NodeProcess, number: int, seconds: float, failures: list[str]) -> int:
    """Hold connections, half of them dribbling an association request; how often an honest peer was served beside."""
    served = 0
    request = bytes.fromhex("0100000000ff") + bytes(255)
    with ExitStack() as stack:
        slow = [stack.enter_context(_connect(node.port)) for _ in range(number)]
        until = time.monotonic() + seconds
        position = 0
        while time.monotonic() < until:
            for each in slow[::2]:
                try:
                    each.send(request[position : position + 1])
                except OSError:
                    continue  # the node has had enough of it
            position = min(position + 1, len(request) - 1)
            try:
                DicomSender("HONEST", timeout_seconds=2.0).echo(node.peer)
                served += 1
            except PulmoError as exc:
                failures.append(f"an honest peer was not served beside {number} slow connections: {exc}")
                break
            time.sleep(0.3)
        held = [each for each in slow if not _closed(each)]
        if held:
            failures.append(f"{len(held)} of {number} slow connections are held after three times the time limit")
    return served


def _closed(connection: socket.socket) -> bool:
    connection.setblocking(False)
    try:
        while connection.recv(4096):
            pass
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def _deliver(node: NodeProcess, study: Study) -> None:
    """Send a study as an honest peer and wait for its result; fails where there is none."""
    send(node.peer, study.files)
    state = (
        "SELECT jobs.state FROM jobs JOIN series ON series.id = series_id "  # noqa: S608
        f"WHERE series_instance_uid = '{study.series_instance_uid}'"
    )
    wait_for(lambda: node.query(state) == [("DONE",)], 180.0, "the result of an honest peer's study")
