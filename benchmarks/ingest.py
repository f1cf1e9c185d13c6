"""How fast instances are received: the node beside Orthanc and the storage SCPs of dcmtk and pynetdicom.

    python -m benchmarks.ingest [--out bench-out] [--repeats 5] [--quick]

CT slices of 512 x 512 pixels go over one association and over four at once. Two senders: `storescu` of dcmtk, whose
start and reading of files count, and one that has every byte ready and waits for nothing but the answers, which shows
the receiver alone. The servers take turns; every round has new UIDs. TMPDIR says which disk is measured.
"""

from __future__ import annotations

import os
import socket
import statistics
import struct
import subprocess
import tempfile
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from io import BytesIO
from pathlib import Path

from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian
from pynetdicom.dimse_messages import C_STORE_RQ
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.pdu import A_ASSOCIATE_AC
from pynetdicom.presentation import build_context

from benchmarks import ingest_servers, report
from benchmarks.ingest_servers import Server
from tests.network_factory import associate_request, ct_slice, data_set_part, part10

_SLICES = 300
_ASSOCIATIONS = (1, 4)  # Orthanc serves four at a time, by default
_NEWEST = 10**6  # rounds are counted from here, so that every UID has the same length
_HEAD_BYTES = 4096  # of a file, in which all of its UIDs stand
_RELEASE_RQ = struct.pack(">BBII", 5, 0, 4, 0)
_STATUS = b"\x00\x00\x00\x09\x02\x00\x00\x00"  # (0000,0900) in Implicit VR Little Endian, and its length
_ANSWER_SECONDS = 60.0


class Slices:
    """Files of one series for each association; before each round they get other UIDs, in place."""

    def __init__(self, folder: Path, number: int, associations: int) -> None:
        self.folders = [folder / str(index) for index in range(associations)]
        self._round = _NEWEST
        for index, each in enumerate(self.folders):
            each.mkdir(parents=True)
            series = f"1.2.826.0.1.3680043.8.498.{associations}.{index}.{self._round}"
            for slice_number in range(number // associations):
                data_set = ct_slice(10_000 + slice_number, series=series, study=series + ".1")
                data_set.Rows = data_set.Columns = 512
                data_set.PixelData = os.urandom(512) * 1024
                part10(each / f"{slice_number:04}.dcm", data_set)
        self.number = sum(len(self.files(index)) for index in range(associations))

    def files(self, association: int) -> list[Path]:
        """What one association sends, in order."""
        return sorted(self.folders[association].iterdir())

    def renew(self) -> None:
        """Other UIDs of the same length."""
        old, new = (f".{number}".encode() for number in (self._round, self._round + 1))
        self._round += 1
        for index in range(len(self.folders)):
            for path in self.files(index):
                with path.open("r+b") as file:
                    head = file.read(_HEAD_BYTES)
                    file.seek(0)
                    file.write(head.replace(old, new))


def send_storescu(server: Server, slices: Slices) -> float:
    """Seconds from the start of the `storescu` processes, one for each association, to the end of the last."""
    command = ["storescu", "-q", "-R", "-aec", server.ae_title, "127.0.0.1", str(server.port), "+sd"]

    def send() -> None:
        environment = {**os.environ, "TCP_NODELAY": "1"}
        running = [
            subprocess.Popen([*command, str(folder)], env=environment, stdin=subprocess.DEVNULL)
            for folder in slices.folders
        ]
        failed = [process.args for process in running if process.wait() != 0]
        if failed:
            raise SystemExit(f"{failed[0]!r} failed; see {server.log}")

    return report.seconds_of(send)


def send_prepared(server: Server, slices: Slices) -> float:
    """Seconds from the first request on open associations to the last answer; all PDUs lie in memory before."""
    with ExitStack() as stack:
        senders = [stack.enter_context(_Prepared(server, slices.files(index))) for index in range(len(slices.folders))]
        threads = [threading.Thread(target=sender.send) for sender in senders]

        def send() -> None:
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()

        seconds = report.seconds_of(send)
    if not all(sender.done for sender in senders):
        raise SystemExit(f"an instance was not stored; see {server.log}")
    return seconds


class _Prepared:
    """One association, opened on entering, whose requests are bytes already."""

    def __init__(self, server: Server, files: Sequence[Path]) -> None:
        self.done = False
        self._server = server
        self._files = files
        self._requests: list[bytes] = []

    def __enter__(self) -> _Prepared:
        self._socket = socket.create_connection(("127.0.0.1", self._server.port), timeout=_ANSWER_SECONDS)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._stream = self._socket.makefile("rb")
        contexts = [build_context(CTImageStorage, ExplicitVRLittleEndian)]
        self._socket.sendall(associate_request(contexts, calling="PREPARED", called=self._server.ae_title))
        answer = A_ASSOCIATE_AC()
        answer.decode(self._read_pdu())
        most = (answer.user_information and answer.user_information.maximum_length) or 131_072
        self._requests = [_store_request(path, number + 1, most) for number, path in enumerate(self._files)]
        return self

    def __exit__(self, *_: object) -> None:
        with self._socket:
            self._socket.sendall(_RELEASE_RQ)
            self._read_pdu()

    def send(self) -> None:
        """Everything, one instance after the answer to the one before."""
        for request in self._requests:
            self._socket.sendall(request)
            answer = self._read_pdu()
            at = answer.find(_STATUS)
            if at < 0 or answer[at + len(_STATUS) :][:2] != b"\x00\x00":
                return
        self.done = True

    def _read_pdu(self) -> bytes:
        header = self._stream.read(6)
        (length,) = struct.unpack(">2xI", header)
        return header + self._stream.read(length)


def _store_request(path: Path, message_id: int, most_bytes: int) -> bytes:
    """The PDUs of a C-STORE request, each with one presentation data value of at most that many bytes."""
    content = path.read_bytes()
    data_set = data_set_part(path)
    uid = content[:_HEAD_BYTES].partition(b"\x08\x00\x18\x00UI")[2]
    request, message = C_STORE(), C_STORE_RQ()
    request.MessageID, request.Priority = message_id, 2
    request.AffectedSOPClassUID = CTImageStorage
    request.AffectedSOPInstanceUID = uid[2 : 2 + uid[0]].rstrip(b"\0").decode()
    request.DataSet = BytesIO(b"\0\0")  # only that there is one
    message.primitive_to_message(request)
    command = next(message.encode_msg(1, 0)).presentation_data_value_list[0][1]
    fragment_bytes = most_bytes - 6
    starts = range(0, len(data_set), fragment_bytes)
    values = [b"\x00" + data_set[start : start + fragment_bytes] for start in starts]
    values[-1] = b"\x02" + values[-1][1:]
    return b"".join(struct.pack(">BxIIB", 4, len(v) + 5, len(v) + 1, 1) + v for v in [command, *values])


def measure(server: Server, send: Callable[[Server, Slices], float], slices: Slices, cpu: list[float]) -> float:
    """Instances a second; what nobody waits for on the disk is written before, so that it disturbs no other."""
    slices.renew()
    server.clear()
    os.sync()
    before, used = server.stored(), server.cpu_seconds()
    seconds = send(server, slices)
    cpu.append((server.cpu_seconds() - used) * 1000 / slices.number)
    if server.stored() - before != slices.number:
        raise SystemExit(f"{server.name} keeps {server.stored() - before} of {slices.number} instances")
    return slices.number / seconds


def run(options: report.Options) -> Sequence[report.Table]:
    """Rates of both senders, and memory."""
    missing = ingest_servers.missing()
    if missing is not None:
        raise report.Unavailable(missing)
    number = 40 if options.quick else _SLICES
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        servers = [
            stack.enter_context(ingest_servers.node(folder / "node")),
            stack.enter_context(ingest_servers.orthanc(folder / "orthanc", synchronised=True)),
            stack.enter_context(ingest_servers.orthanc(folder / "orthanc-unsafe", synchronised=False)),
            stack.enter_context(ingest_servers.dcmtk(folder / "dcmtk")),
            stack.enter_context(ingest_servers.pynetdicom(folder / "pynetdicom")),
        ]
        slices = {count: Slices(folder / "sent" / str(count), number, count) for count in _ASSOCIATIONS}
        # Memory first: later it holds what earlier rounds have left. And the first of all is nobody's usual speed.
        return [
            memory(servers, slices[max(_ASSOCIATIONS)]),
            rates("ingest", "`storescu` of dcmtk 3.6", send_storescu, servers, slices, options),
            rates("ingest-receiver", "a sender with every PDU ready", send_prepared, servers, slices, options),
        ]


def rates(
    name: str,
    sender: str,
    send: Callable[[Server, Slices], float],
    servers: Sequence[Server],
    slices: dict[int, Slices],
    options: report.Options,
) -> report.Table:
    """Instances a second of every server, over one association and over several."""
    rows: list[report.Row] = []
    cpu_milliseconds: dict[str, dict[str, float]] = {}
    for count, sent in slices.items():
        cpu: dict[str, list[float]] = {server.name: [] for server in servers}
        sides = {server.name: partial(measure, server, send, sent, cpu[server.name]) for server in servers}
        samples = report.in_turn(sides, options.repeats)
        cpu_milliseconds[str(count)] = {name: statistics.median(values) for name, values in cpu.items()}
        words = "1 association" if count == 1 else f"{count} associations"
        measured = [
            report.row(
                f"{server.name}, {words}",
                samples[server.name],
                "instances/s",
                f"Success promises: {server.promise}; {cpu_milliseconds[str(count)][server.name]:.1f} ms of processor",
            )
            for server in servers
        ]
        ours, *others = measured
        rows.append(report.compared(ours, others[0], higher_is_better=True))
        rows += [report.compared(other, ours, higher_is_better=True) for other in others]
    (number,) = {sent.number for sent in slices.values()}
    return report.Table(
        name=name,
        title=f"Receiving, from {sender}",
        protocol=(
            f"{number} CT slices of 0.5 MB, on one association and shared among {max(slices)} at once, over loopback "
            f"with TCP_NODELAY, from {sender}; {options.repeats} rounds in which the servers take turns, new UIDs each "
            "time; page cache written back (sync) before each measurement. The processor time is that of the server's "
            "processes for one instance, its background work included."
        ),
        rows=tuple(rows),
        facts={"cpu_milliseconds_per_instance": cpu_milliseconds},
    )


def memory(servers: Sequence[Server], slices: Slices) -> report.Table:
    """What associations that all send at once cost each server, which has just been started."""
    rows = []
    for server in servers:
        if server.name == "dcmtk storescp":
            continue
        slices.renew()
        idle_mib = server.forget_peak()
        send_prepared(server, slices)
        grown_mib = (server.peak_mib() - idle_mib) / len(slices.folders)
        rows.append(report.row(server.name, [grown_mib], "MiB", f"{idle_mib:.0f} MiB before"))
    return report.Table(
        name="ingest-memory",
        title="Memory of an association",
        protocol=(
            f"{len(slices.folders)} associations send {slices.number} CT slices of 0.5 MB at once, the first that the "
            "server gets; how far the resident memory of its processes rises at its peak above what it was before, for "
            "each association: code and caches that are loaded for the first instance are part of it. dcmtk's storescp "
            "has a process for each association, which is gone before it can be asked."
        ),
        rows=tuple(rows),
    )


if __name__ == "__main__":
    report.main(run, __doc__)
