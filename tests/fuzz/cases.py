"""One case of the fuzzing after the other: a spoiled series through receive and assemble, in this process."""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from pynetdicom.association import Association

from pulmo_models.types import Volume
from pulmo_node.assemble import assemble, decoding, describe, find_series
from pulmo_node.errors import Rejected
from pulmo_node.files import FileInstanceStore
from pulmo_node.ports import IncomingInstance, WrittenInstance
from pulmo_node.receive import Receiver, ReceiveSettings
from pulmo_node.store import SqlStore
from pulmo_node.testing import ManualClock
from tests.fuzz.mutations import SLICES, Mutant, Seed, deflated, flip_bits, mutant, seeds, sop_instance_uid, truncate
from tests.network_factory import association, part10

MEMORY_BYTES = 1 << 30
FAULT = "FAULT"  # begins the outcome of a case that must not happen


@dataclass(frozen=True, kw_only=True)
class Case:
    """What became of one case."""

    number: int
    syntax: str
    mutation: str
    outcome: str  # accepted, a code, a status of C-STORE, or a fault
    seconds: float


class _Remembering(FileInstanceStore):
    """An instance store that knows what it wrote last."""

    latest: WrittenInstance | None = None

    def begin(self, **instance: Any) -> IncomingInstance:
        return _Noted(super().begin(**instance), self)


class _Noted:
    """An instance on its way, which tells the store when it has arrived."""

    def __init__(self, incoming: IncomingInstance, store: _Remembering) -> None:
        self._incoming = incoming
        self._store = store
        self.append = incoming.append
        self.discard = incoming.discard

    def finish(self) -> WrittenInstance:
        self._store.latest = self._incoming.finish()
        return self._store.latest


class Bench:
    """A receiver on loopback, an association that sends to it, and the good series."""

    def __init__(self, folder: Path, port: int, instances: _Remembering) -> None:
        self._folder = folder
        self._port = port
        self._instances = instances
        self._association = ExitStack()
        self._sender: Association | None = None
        self.seeds = seeds()
        self._good = [self._written(seed, number) for number, seed in enumerate(self.seeds)]

    def _written(self, seed: Seed, number: int) -> list[Path]:
        folder = self._folder / f"good{number}"
        folder.mkdir()
        data_sets = tuple(deflated(data) for data in seed.data_sets) if seed.syntax.is_deflated else seed.data_sets
        first = Mutant(data_sets=data_sets, touched=())
        return [self._part10(folder / f"{k}.dcm", seed, first, sop_instance_uid(k)) for k in range(len(seed.data_sets))]

    def _part10(self, path: Path, seed: Seed, series: Mutant, uid: str) -> Path:
        k = int(path.stem)
        return part10(
            path,
            series.data_sets[k],
            MediaStorageSOPClassUID=seed.sop_class_uid,
            MediaStorageSOPInstanceUID=uid,
            TransferSyntaxUID=seed.syntax,
        )

    def run(self, number: int, random_seed: int) -> Case:
        """One case, all of it determined by its number and the seed."""
        random = Random(f"{random_seed} {number}")
        which = random.randrange(len(self.seeds))
        seed = self.seeds[which]
        name, series = mutant(random, seed, number)
        start = time.perf_counter()
        with TemporaryDirectory(dir=self._folder) as scratch:
            paths = list(self._good[which])
            for k in series.touched:
                uid = sop_instance_uid(number * SLICES + k + SLICES)
                paths[k] = self._part10(Path(scratch) / f"{k}.dcm", seed, series, uid)
            # A file may come from a folder too, with a spoiled meta header.
            if random.random() < 0.2:
                name += " in a folder"
                outcome = guarded(lambda: from_folder(random, paths, Path(scratch)))
            else:
                outcome = guarded(lambda: self._received(paths, series.touched))
        seconds = time.perf_counter() - start
        return Case(number=number, syntax=seed.syntax.name, mutation=name, outcome=outcome, seconds=seconds)

    def _received(self, paths: list[Path], touched: Sequence[int]) -> str:
        """C-STORE of the first file that was touched; what lies in the store then takes its place in the series."""
        sender = self._connected()
        self._instances.latest = None
        answer = sender.send_c_store(paths[touched[0]])
        if "Status" not in answer:
            return f"{FAULT}: the receiver broke the association"
        if answer.Status != 0x0000:
            if answer.Status in range(0xA700, 0xA800):  # the receiver says that it is at fault
                return f"{FAULT}: {answer.Status:#06x} {answer.get('ErrorComment', '')}"
            return f"refused by the receiver with {answer.Status:#06x}"
        written = self._instances.latest
        if written is None:
            return f"{FAULT}: Success without a file"
        stored = self._instances.absolute(written.path)
        paths[touched[0]] = stored
        try:
            return assembled(paths)
        finally:
            stored.unlink()

    def _connected(self) -> Association:
        if self._sender is None or not self._sender.is_established:
            self._association.close()
            contexts = {(str(seed.sop_class_uid), str(seed.syntax)): None for seed in self.seeds}
            self._sender = self._association.enter_context(association(self._port, *contexts))
        return self._sender

    def close(self) -> None:
        """Release the association."""
        self._association.close()


def guarded(run: Callable[[], str]) -> str:
    """The outcome, or what was raised that must not be raised."""
    try:
        return run()
    except Rejected as rejected:
        return str(rejected.code)
    except Exception as exc:  # noqa: BLE001
        return f"{FAULT}: {type(exc).__name__}: {exc}"


def assembled(paths: Sequence[Path]) -> str:
    """As the worker does: describe, then assemble."""
    volume = assemble(paths, describe(paths))
    if not isinstance(volume, Volume):
        return "accepted as a radiograph"
    if not (np.isfinite(volume.hu).all() and np.isfinite(volume.affine).all() and volume.hu.min() >= -1024):
        return f"{FAULT}: a volume that is not finite"
    return "accepted"


def from_folder(random: Random, paths: Sequence[Path], scratch: Path) -> str:
    """As `analyse DIR` does: every series of a folder. One file is spoiled once more, meta header and all."""
    folder = scratch / "folder"
    folder.mkdir()
    for k, path in enumerate(paths):
        (folder / f"{k}.dcm").write_bytes(path.read_bytes())
    victim = folder / f"{random.randrange(len(paths))}.dcm"
    data = bytearray(victim.read_bytes())
    if random.random() < 0.3:
        victim.write_bytes(truncate(random, data, None))  # type: ignore[arg-type]
    else:
        head = flip_bits(random, data[:400], None)  # type: ignore[arg-type]
        victim.write_bytes(head + bytes(data[400:]))
    outcomes = [
        guarded(lambda found=found: assembled(found.paths))  # type: ignore[misc]
        for found in find_series(folder).series
    ]
    return max(outcomes, key=lambda outcome: outcome.startswith(FAULT), default="no series")


@contextmanager
def bench(folder: Path) -> Iterator[Bench]:
    """A bench with real storage and a real database below `folder`."""
    clock = ManualClock()
    with SqlStore(f"sqlite:///{folder / 'node.sqlite'}", clock) as store:
        instances = _Remembering(folder / "storage")
        receiver = Receiver(ReceiveSettings(ae_title="PULMO", port=0), store, instances, clock)
        receiver.start()
        try:
            running = Bench(folder, receiver.port, instances)
            try:
                yield running
            finally:
                running.close()
        finally:
            receiver.stop(drain_seconds=0.0)


def serve(first: int, last: int, random_seed: int) -> None:
    """Run cases within 1 GiB of address space; a line of JSON before and after each, and one of the memory at the end.

    The processes that decode inherit the bound.
    """
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    memory = Path("/dev/shm")  # noqa: S108  # spares the disk: what survives a power cut is tested elsewhere
    where = memory if os.access(memory, os.W_OK) else None
    with TemporaryDirectory(dir=where) as folder, bench(Path(folder)) as running:
        for number in range(first, last):
            print(json.dumps({"begins": number}), flush=True)
            print(json.dumps(asdict(running.run(number, random_seed))), flush=True)
    decoding.end_idle()  # only then does their memory count
    children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss << 10
    print(json.dumps({"peak_bytes": _own_peak_bytes(), "peak_bytes_of_a_decoder": children}), flush=True)


def _own_peak_bytes() -> int:
    """Of this program alone; ru_maxrss begins with that of the process that started it."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return next(int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith("VmHWM:"))


if __name__ == "__main__":
    os.environ.pop("PYTHONFAULTHANDLER", None)
    serve(*(int(argument) for argument in sys.argv[1:4]))
