"""A disk that fills up while the node receives, completes a series, writes results and records them.

The storage, database included, is a small tmpfs; a file of ballast takes what is free, all or nearly all of it, and is
removed once the node has run into it. Mounting needs root.
"""

from __future__ import annotations

import os
import random
import subprocess
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import Any

from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian
from pynetdicom import AE, build_context, evt

from pulmo_node.dimse import DimseStatus, prepare_connection
from pulmo_node.testing import SmallPacs
from tests.faults.node import AE_TITLE, NodeProcess, wait_for
from tests.faults.studies import Study, make_study, same_data_set
from tests.faults.table import Outcome

DISK_BYTES = 32 * 1024 * 1024
_END_SECONDS = 120.0
_OBJECTS = 2  # of a study: SR and SEG
_FULL = ("No space left on device", "database or disk is full", "disk is full")

CONFIGURATION: dict[str, dict[str, Any]] = {
    # Without the watermark, which would refuse instances while there is still room for everything else.
    "receive": {"quiet_seconds": 0.5, "min_free_bytes": 0, "low_free_bytes": 0},
    # One attempt: a full disk must not cost any.
    "analysis": {"lease_seconds": 5.0, "max_attempts": 1, "first_delay_seconds": 0.2, "max_delay_seconds": 1.0},
    "delivery": {"lease_seconds": 5.0, "max_attempts": 1, "first_delay_seconds": 0.2, "max_delay_seconds": 1.0},
}


class Moment(Enum):
    """When the disk fills up, and how many bytes are left at least and at most."""

    RECEIVE = "while instances come"
    ANALYSIS = "before the series is complete"
    ENCODE = "with room for rows, not for results"
    COMMIT = "with room for results, not for rows"


_LEFT_BYTES = {
    Moment.RECEIVE: (0, 24_000),
    Moment.ANALYSIS: (0, 0),
    Moment.ENCODE: (8_000, 40_000),
    Moment.COMMIT: (40_000, 100_000),
}


class CannotMount(Exception):
    """This machine does not let this user mount a tmpfs."""


@contextmanager
def small_disk(folder: Path, size_bytes: int = DISK_BYTES) -> Iterator[Path]:
    """A file system of that size at `folder`.

    Raises:
        CannotMount: without the right to do so.
    """
    folder.mkdir(parents=True)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size_bytes}", "pulmo-faults", str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    if mounted.returncode != 0:
        raise CannotMount(mounted.stderr.strip())
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


class Ballast:
    """A file that takes what is free of a disk."""

    def __init__(self, disk: Path) -> None:
        self._disk = disk
        self._file = disk / "ballast"

    def fill(self, left_bytes: int) -> None:
        """Leave that much, rounded down to pages."""
        while True:  # what the node writes at this moment may take a part of it
            status = os.statvfs(self._disk)
            wanted = status.f_bavail * status.f_frsize - left_bytes
            if wanted < status.f_frsize:
                return
            with self._file.open("ab") as file:
                try:
                    os.posix_fallocate(file.fileno(), file.tell(), wanted)
                except OSError:
                    continue

    def remove(self) -> None:
        """Give all of it back."""
        self._file.unlink(missing_ok=True)


def run(folder: Path, seed: int, rounds: int) -> Outcome:
    """Each moment that many times, in an order by the seed. Raises `CannotMount`."""
    chance = random.Random(seed)
    moments = [*Moment] * rounds
    chance.shuffle(moments)
    with small_disk(folder / "disk") as disk, SmallPacs(folder / "pacs") as pacs:
        changes = CONFIGURATION | {"node": {"storage": str(disk / "storage")}}
        node = NodeProcess(folder / "node", changes, peers=[pacs.peer])
        scene = _Scene(node, pacs, Ballast(disk), chance)
        with node:
            for number, moment in enumerate(moments):
                if number and number % len(Moment) == 0:  # a fresh write-ahead log, which has to grow for every row
                    node.stop()
                    node.start()
                scene.play(make_study(folder / "studies", seed, number), moment)
            failures = [*scene.failures, *scene.account()]
            if node.stop() != 0:
                failures.append("the node did not end well")
    return Outcome(
        fault="full disk",
        done=f"{len(moments)} times ({'; '.join(moment.value for moment in Moment)}), storage and database on one "
        f"disk of {DISK_BYTES >> 20} MiB",
        found=f"{scene.refused} instances answered with 0xA700 and taken later, "
        f"{len(scene.acknowledged)} acknowledged: 0 lost; the node met the full disk "
        f"{', '.join(f'{n} times in {where}' for where, n in sorted(scene.met.items()))}; every study delivered "
        "after space was made, without a restart",
        failures=tuple(failures),
    )


class _Scene:
    """One node on a small disk, and what it has acknowledged."""

    def __init__(self, node: NodeProcess, pacs: SmallPacs, ballast: Ballast, chance: random.Random) -> None:
        self.acknowledged: dict[str, Path] = {}
        self.refused = 0
        self.met: Counter[str] = Counter()
        self.failures: list[str] = []
        self._studies: list[Study] = []
        self._node, self._pacs, self._ballast, self._chance = node, pacs, ballast, chance

    def play(self, study: Study, moment: Moment) -> None:
        """Send it, fill the disk, make room, and wait until its results are in the PACS."""
        read = len(self._log())
        self._studies.append(study)
        left_bytes = self._chance.randint(*_LEFT_BYTES[moment])
        last = len(study.files)
        fill_after = self._chance.randrange(1, last) if moment is Moment.RECEIVE else last
        missing = self._send(study.files, fill_after, left_bytes)
        if not missing:  # where what is left is enough for all the rest, there is nothing to be felt
            wait_for(lambda: self._felt(read) or self._delivered(), _END_SECONDS, f"the full disk, {moment.value}")
        self._ballast.remove()
        self._note(self._log()[read:])
        if missing and self._send(missing, 0, 0):
            self.failures.append("instances were refused though there was room again")
        wait_for(self._delivered, _END_SECONDS, f"the results of a study after a full disk, {moment.value}")
        if not self._node.running:
            self.failures.append("the node ended")

    def account(self) -> list[str]:
        """Acknowledged instances that are not there, results that are there twice."""
        stored = dict(self._node.query("SELECT sop_instance_uid, path FROM instances"))
        failures = [
            f"instance {uid} was acknowledged and is lost"
            for uid, file in self.acknowledged.items()
            if uid not in stored or not same_data_set(file, self._node.storage / stored[uid])
        ]
        in_pacs: dict[str, set[bytes]] = {}
        for each in self._pacs.stored:
            in_pacs.setdefault(each.sop_instance_uid, set()).add(each.path.read_bytes())
        if len(in_pacs) != len(self._studies) * _OBJECTS or any(len(contents) > 1 for contents in in_pacs.values()):
            failures.append(f"{len(in_pacs)} results in the PACS of {len(self._studies)} studies")
        return failures

    def _send(self, files: Sequence[Path], fill_after: int, left_bytes: int) -> list[Path]:
        """Fill the disk after so many answers (0: not at all); the files that were answered with 0xA700."""
        refused = []
        entity = AE(ae_title="SCANNER")
        entity.dimse_timeout = entity.acse_timeout = _END_SECONDS
        contexts = [build_context(CTImageStorage, ExplicitVRLittleEndian)]
        handlers: list[evt.EventHandlerType] = [(evt.EVT_CONN_OPEN, prepare_connection, [_END_SECONDS])]
        association = entity.associate(
            "127.0.0.1", self._node.port, contexts=contexts, ae_title=AE_TITLE, evt_handlers=handlers
        )
        for number, file in enumerate(files, start=1):
            dataset = dcmread(file)
            answer = association.send_c_store(dataset) if association.is_established else Dataset()
            status = answer.get("Status")
            if status == DimseStatus.SUCCESS:
                self.acknowledged[str(dataset.SOPInstanceUID)] = file
            else:
                refused.append(file)
                if status != DimseStatus.OUT_OF_RESOURCES:
                    self.failures.append(f"an instance was answered with {status}")
            if number == fill_after:
                self._ballast.fill(left_bytes)
        association.release()
        self.refused += len(refused)
        return refused

    def _delivered(self) -> bool:
        return len({each.sop_instance_uid for each in self._pacs.stored}) >= len(self._studies) * _OBJECTS

    def _log(self) -> str:
        return self._node.log.read_text()

    def _felt(self, since: int) -> bool:
        return any(text in self._log()[since:] for text in _FULL)

    def _note(self, log: str) -> None:
        for line in log.splitlines():
            if any(text in line for text in _FULL):
                where = "the database" if "database" in line else "receiving" if "instance" in line else "the outbox"
                self.met[where] += 1
