"""Durable files: what is written survives, what a full disk or a crash leaves does no harm."""

from __future__ import annotations

import errno
import hashlib
import os
import resource
import shutil
import signal
import struct
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from pulmo_node.errors import DiskFull, Permanent, Transient
from pulmo_node.files import FileInstanceStore
from pulmo_node.outbox import FileOutbox
from pulmo_node.ports import OutboxItem, WrittenInstance
from tests.integration.store_scene import run_threads

STUDY, SERIES, SOP = "1.2.840.1", "1.2.840.1.1", "1.2.840.1.1.1"
DATA_SET = bytes(range(256)) * 40


def meta_header(transfer_syntax_uid: str = "1.2.840.10008.1.2.1") -> bytes:
    value = transfer_syntax_uid.encode().ljust(len(transfer_syntax_uid) + len(transfer_syntax_uid) % 2, b"\0")
    element = b"\x02\x00\x10\x00UI" + struct.pack("<H", len(value)) + value
    return bytes(128) + b"DICM" + b"\x02\x00\x00\x00UL\x04\x00" + struct.pack("<I", len(element)) + element


META = meta_header()


def write(
    store: FileInstanceStore,
    data_set: bytes = DATA_SET,
    *,
    study: str = STUDY,
    series: str = SERIES,
    sop: str = SOP,
    meta: bytes = META,
) -> WrittenInstance:
    return store.write(
        study_instance_uid=study, series_instance_uid=series, sop_instance_uid=sop, meta=meta, data_set=data_set
    )


def files_below(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


class Disk:
    """Records what is synchronised, and refuses from a chosen call on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.synchronised: list[Path] = []
        self.refuse: Callable[[Path], bool] = lambda path: False
        self._fsync = os.fsync
        monkeypatch.setattr(os, "fsync", self.fsync)

    def fsync(self, descriptor: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        if self.refuse(path):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._fsync(descriptor)
        self.synchronised.append(path)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(monkeypatch)


@pytest.fixture
def storage(tmp_path: Path) -> Path:
    return tmp_path / "storage"


@pytest.fixture
def store(storage: Path) -> FileInstanceStore:
    return FileInstanceStore(storage)


class TestInstances:
    def test_the_bytes_are_those_of_the_peer(self, store: FileInstanceStore, storage: Path) -> None:
        written = write(store)
        assert written.path == f"instances/{STUDY}/{SERIES}/{SOP}.dcm"
        assert store.absolute(written.path) == storage / written.path
        assert store.absolute(written.path).read_bytes() == META + DATA_SET
        assert written.sha256 == hashlib.sha256(DATA_SET).hexdigest()
        assert written.size_bytes == len(META) + len(DATA_SET)
        assert files_below(storage) == [written.path]

    def test_file_and_every_folder_are_synchronised(self, store: FileInstanceStore, storage: Path, disk: Disk) -> None:
        written = write(store)
        *parents, file, folder = disk.synchronised
        series = storage / "instances" / STUDY / SERIES
        assert parents == [series.parent, storage / "instances", storage]
        assert file.parent == storage / "incoming"
        assert folder == series
        assert store.absolute(written.path).is_file()

    def test_the_parents_of_a_known_folder_are_not_synchronised_again(
        self, store: FileInstanceStore, storage: Path, disk: Disk
    ) -> None:
        write(store)
        disk.synchronised.clear()
        write(store, sop="1.2")
        file, folder = disk.synchronised
        assert file.parent == storage / "incoming"
        assert folder == storage / "instances" / STUDY / SERIES

    def test_the_parents_are_synchronised_again_by_the_next_process_and_after_a_purge(
        self, store: FileInstanceStore, storage: Path, disk: Disk
    ) -> None:
        series = storage / "instances" / STUDY / SERIES
        write(store)
        disk.synchronised.clear()
        write(FileInstanceStore(storage))
        assert series.parent in disk.synchronised
        shutil.rmtree(series)
        disk.synchronised.clear()
        write(store)
        assert series.parent in disk.synchronised

    def test_the_file_has_its_name_only_after_it_was_synchronised(
        self, store: FileInstanceStore, storage: Path, disk: Disk
    ) -> None:
        named_too_early = []

        def look(path: Path) -> bool:
            if path.parent == storage / "incoming":
                named_too_early.extend(files_below(storage / "instances"))
                assert path.read_bytes() == META + DATA_SET
            return False

        disk.refuse = look
        write(store)
        assert named_too_early == []

    def test_equal_bytes_again_keep_the_file(self, store: FileInstanceStore, storage: Path) -> None:
        first = write(store)
        before = store.absolute(first.path).stat()
        again = write(store, meta=meta_header("1.2.840.10008.1.2.4.70"))  # the meta header is ours, not the peer's
        assert again.path == first.path
        assert again.sha256 == first.sha256
        after = store.absolute(first.path).stat()
        assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
        assert files_below(storage) == [first.path]

    def test_a_file_that_is_there_is_synchronised_again(self, store: FileInstanceStore, disk: Disk) -> None:
        """Another association may have named it and not yet synchronised the folder."""
        write(store)
        disk.synchronised.clear()
        written = write(store)
        assert store.absolute(written.path).parent in disk.synchronised

    def test_other_bytes_are_kept_beside_the_first_once(self, store: FileInstanceStore, storage: Path) -> None:
        first = write(store)
        other = write(store, b"other bytes!")
        third = write(store, b"third bytes!")
        assert write(store, b"other bytes!") == other
        digest = hashlib.sha256(b"other bytes!").hexdigest()
        assert other.sha256 == digest
        assert other.path == f"instances/{STUDY}/{SERIES}/{SOP}.conflict-{digest[:32]}.dcm"
        assert store.absolute(first.path).read_bytes() == META + DATA_SET
        assert store.absolute(other.path).read_bytes() == META + b"other bytes!"
        assert files_below(storage) == sorted([first.path, other.path, third.path])

    def test_bytes_that_end_like_the_first_are_other_bytes(self, store: FileInstanceStore) -> None:
        first = write(store)
        assert write(store, DATA_SET[10:]).path != first.path

    def test_a_truncated_file_is_not_taken_for_the_instance(self, store: FileInstanceStore) -> None:
        first = write(store)
        os.truncate(store.absolute(first.path), 100)
        again = write(store)
        assert again.path != first.path
        assert store.absolute(again.path).read_bytes() == META + DATA_SET

    def test_two_associations_with_other_bytes_at_once_lose_neither(
        self, store: FileInstanceStore, storage: Path
    ) -> None:
        contents = [f"bytes number {number}".encode() for number in range(8)] * 2
        barrier = threading.Barrier(len(contents))
        written: list[tuple[bytes, WrittenInstance]] = []

        def send(content: bytes) -> None:
            barrier.wait(timeout=180)
            written.append((content, write(store, content)))

        run_threads([partial(send, content) for content in contents])
        assert len(written) == len(contents)
        assert all(store.absolute(item.path).read_bytes() == META + content for content, item in written)
        assert len(files_below(storage)) == 8
        assert sum(".conflict-" not in path for path in files_below(storage)) == 1

    def test_meta_without_its_group_length_is_refused(self, store: FileInstanceStore, storage: Path) -> None:
        with pytest.raises(ValueError, match="File Meta Information"):
            write(store, meta=META + b"\0\0")
        assert files_below(storage) == []


HOSTILE = [
    "",
    ".",
    "..",
    "...",
    "../../x",
    "/etc/passwd",
    "1.2/../../../x",
    "1.2\n",
    "1.2\0",
    "1" * 65,
    "9" * 200,
    "\N{ARABIC-INDIC DIGIT ONE}.2",
    "\udcff",
]


class TestHostileNames:
    @pytest.mark.parametrize("uid", HOSTILE)
    def test_a_uid_never_leaves_its_folder(self, store: FileInstanceStore, storage: Path, uid: str) -> None:
        before = set(storage.parent.rglob("*"))
        written = write(store, study=uid, series=uid, sop=uid)
        path = store.absolute(written.path)
        assert path.resolve().relative_to(storage.resolve()).parts[0] == "instances"
        assert len(Path(written.path).parts) == 4
        assert path.read_bytes() == META + DATA_SET
        new = {each for each in storage.parent.rglob("*") if each not in before}
        assert all(each.is_relative_to(storage / "instances") for each in new)

    def test_each_uid_has_a_file_of_its_own(self, store: FileInstanceStore, storage: Path) -> None:
        for uid in HOSTILE:
            write(store, sop=uid)
        assert len(files_below(storage)) == len(HOSTILE)

    @pytest.mark.parametrize("uid", ["1", "1.2.3", "0" * 64, "1." * 32])
    def test_a_uid_of_the_standard_is_its_own_name(self, store: FileInstanceStore, uid: str) -> None:
        assert Path(write(store, sop=uid).path).name == f"{uid}.dcm"

    @pytest.mark.parametrize("key", ["../x", "", "..", ".hidden", "a/b", "x" * 200, "a b", "key\n"])
    def test_a_key_never_leaves_the_outbox(self, storage: Path, key: str) -> None:
        outbox = FileOutbox(storage)
        results, _ = outbox.put(key, [item("sr", "2.25.1")], "{}")
        path = storage / results[0].path
        assert path.read_bytes() == b"sr 2.25.1"
        assert path.resolve().parent.parent == (storage / "outbox").resolve()
        assert outbox.get(key) == (results, "{}")


class TestFullDisk:
    def test_refused_while_synchronising_the_file(self, store: FileInstanceStore, storage: Path, disk: Disk) -> None:
        disk.refuse = lambda path: path.parent == storage / "incoming"
        with pytest.raises(Transient, match=f"writing instance {SOP}: No space left on device"):
            write(store)
        assert files_below(storage) == []

    def test_refused_while_writing(self, store: FileInstanceStore, storage: Path) -> None:
        """In the data set, in the meta header, in a result: the kernel lets no file grow beyond some bytes."""
        limit = resource.getrlimit(resource.RLIMIT_FSIZE)
        ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (len(META) + 2, limit[1]))
            with pytest.raises(DiskFull, match=f"writing instance {SOP}: File too large"):
                write(store)
            resource.setrlimit(resource.RLIMIT_FSIZE, (2, limit[1]))
            with pytest.raises(DiskFull, match=f"writing instance {SOP}: File too large"):
                write(store)
            with pytest.raises(DiskFull, match="writing outbox key: File too large"):
                FileOutbox(storage).put("key", [item("sr", "2.25.1")], "{}")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limit)
            signal.signal(signal.SIGXFSZ, ignored)
        assert files_below(storage) == []
        assert list((storage / "incoming").iterdir()) == []
        assert write(store).path == f"instances/{STUDY}/{SERIES}/{SOP}.dcm"

    @pytest.mark.parametrize("folder", ["instances", f"instances/{STUDY}/{SERIES}"])
    def test_refused_while_synchronising_a_folder(
        self, store: FileInstanceStore, storage: Path, disk: Disk, folder: str
    ) -> None:
        """The file may stay, whole, but the caller must not answer Success; sent again, it is."""
        disk.refuse = lambda path: path == storage / folder
        with pytest.raises(Transient, match="No space left on device"):
            write(store)
        disk.refuse = lambda path: False
        written = write(store)
        assert files_below(storage) == [written.path]
        assert store.absolute(written.path).read_bytes() == META + DATA_SET

    def test_refused_while_naming_the_file(
        self, store: FileInstanceStore, storage: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(source: Path, target: Path) -> None:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))

        with monkeypatch.context() as patched:
            patched.setattr(os, "link", refuse)
            with pytest.raises(Transient, match="Read-only file system"):
                write(store)
        assert files_below(storage) == []

    def test_a_storage_that_cannot_be_created(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_bytes(b"")
        with pytest.raises(Transient, match="preparing storage"):
            FileInstanceStore(tmp_path / "file" / "storage")


class TestAfterACrash:
    def test_an_unfinished_file_is_no_instance(self, store: FileInstanceStore, storage: Path) -> None:
        part = storage / "incoming" / "left.part"
        part.write_bytes(META + DATA_SET[:10])
        written = write(FileInstanceStore(storage))
        assert store.absolute(written.path).read_bytes() == META + DATA_SET
        assert files_below(storage / "instances") == [f"{STUDY}/{SERIES}/{SOP}.dcm"]

    def test_only_what_is_surely_abandoned_is_removed(self, storage: Path) -> None:
        FileOutbox(storage)
        fresh, old, old_folder = (storage / "incoming" / name for name in ("fresh.part", "old.part", "folder.part"))
        fresh.write_bytes(b"being written by another process")
        old.write_bytes(b"left by a crash")
        old_folder.mkdir()
        (old_folder / "2.25.1.dcm").write_bytes(b"left by a crash")
        for path in (old, old_folder):
            os.utime(path, (0, 0))
        FileInstanceStore(storage)
        assert files_below(storage / "incoming") == ["fresh.part"]
        assert not old_folder.exists()

    def test_an_unfinished_outbox_folder_is_not_read(self, storage: Path) -> None:
        outbox = FileOutbox(storage)
        part = storage / "incoming" / "left.part"
        part.mkdir()
        (part / "objects.json").write_text("[]")
        assert outbox.get("key") is None
        results, _ = outbox.put("key", [item("sr", "2.25.1")], "{}")
        assert [result.kind for result in results] == ["sr"]


def item(kind: str, uid: str, content: bytes | None = None) -> OutboxItem:
    return OutboxItem(
        kind=kind,
        sop_class_uid="1.2.840.10008.5.1.4.1.1.88.34",
        sop_instance_uid=uid,
        series_instance_uid=f"{uid}.0",
        content=f"{kind} {uid}".encode() if content is None else content,
    )


class TestOutbox:
    ITEMS = (item("sr", "2.25.1"), item("seg", "2.25.2"))

    def test_what_is_put_is_what_is_there(self, storage: Path) -> None:
        results, findings = FileOutbox(storage).put("series-1-ct", self.ITEMS, '{"nodules": "µ"}')
        assert findings == '{"nodules": "µ"}'
        assert [(result.kind, result.sop_instance_uid, result.path) for result in results] == [
            ("sr", "2.25.1", "outbox/series-1-ct/2.25.1.dcm"),
            ("seg", "2.25.2", "outbox/series-1-ct/2.25.2.dcm"),
        ]
        for result, put in zip(results, self.ITEMS, strict=True):
            assert (storage / result.path).read_bytes() == put.content
            assert result.sha256 == hashlib.sha256(put.content).hexdigest()
            assert (result.sop_class_uid, result.series_instance_uid) == (put.sop_class_uid, put.series_instance_uid)
        assert FileOutbox(storage).get("series-1-ct") == (results, findings)
        assert files_below(storage / "incoming") == []

    def test_nothing_there(self, storage: Path) -> None:
        assert FileOutbox(storage).get("series-1-ct") is None

    def test_a_second_put_returns_the_first(self, storage: Path, disk: Disk) -> None:
        outbox = FileOutbox(storage)
        first = outbox.put("key", self.ITEMS, "first")
        disk.synchronised.clear()
        assert outbox.put("key", [item("sr", "2.25.1", b"another analysis")], "second") == first
        assert storage / "outbox" in disk.synchronised  # who put the first may have died before it did so
        assert (storage / "outbox/key/2.25.1.dcm").read_bytes() == b"sr 2.25.1"

    def test_two_workers_at_once_agree(self, storage: Path) -> None:
        barrier = threading.Barrier(6)
        got = []

        def put(number: int) -> None:
            outbox = FileOutbox(storage)
            barrier.wait(timeout=180)
            got.append(outbox.put("key", [item("sr", "2.25.1", b"%d" % number)], str(number)))

        run_threads([partial(put, number) for number in range(6)])
        assert len(got) == 6
        assert len(set(got)) == 1
        results, findings = got[0]
        assert (storage / results[0].path).read_bytes() == findings.encode()
        assert files_below(storage / "incoming") == []

    def test_every_file_and_folder_is_synchronised(self, storage: Path, disk: Disk) -> None:
        outbox = FileOutbox(storage)
        disk.synchronised.clear()
        outbox.put("key", self.ITEMS, "{}")
        names = [path.name for path in disk.synchronised]
        assert names[:4] == ["2.25.1.dcm", "2.25.2.dcm", "findings.json", "objects.json"]
        assert disk.synchronised[4].parent == storage / "incoming"
        assert disk.synchronised[5:] == [storage / "outbox", storage]

    @pytest.mark.parametrize("refused", ["2.25.1.dcm", "2.25.2.dcm", "findings.json", "objects.json"])
    def test_whole_or_not_at_all(self, storage: Path, disk: Disk, refused: str) -> None:
        outbox = FileOutbox(storage)
        disk.refuse = lambda path: path.name == refused
        with pytest.raises(Transient, match="writing outbox key: No space left on device"):
            outbox.put("key", self.ITEMS, "{}")
        assert outbox.get("key") is None
        assert files_below(storage) == []
        disk.refuse = lambda path: False
        assert len(outbox.put("key", self.ITEMS, "{}")[0]) == 2

    def test_two_objects_with_one_uid_are_refused(self, storage: Path) -> None:
        with pytest.raises(Permanent, match="one SOP Instance UID"):
            FileOutbox(storage).put("key", [item("sr", "2.25.1"), item("seg", "2.25.1")], "{}")
        assert files_below(storage) == []

    @pytest.mark.parametrize("index", ["[{", '[{"kind": "sr"}]', "[1]"])
    def test_a_damaged_index_is_named(self, storage: Path, index: str) -> None:
        outbox = FileOutbox(storage)
        outbox.put("key", self.ITEMS, "{}")
        (storage / "outbox/key/objects.json").write_text(index)
        with pytest.raises(Permanent, match=r"outbox key/objects\.json is damaged"):
            outbox.get("key")

    def test_what_is_not_as_it_was_put_is_told(self, storage: Path) -> None:
        outbox = FileOutbox(storage)
        (sr, seg), _ = outbox.put("key", self.ITEMS, "{}")
        outbox.check(sr)
        outbox.check(seg)
        path = storage / sr.path
        path.write_bytes(path.read_bytes()[:-1])
        with pytest.raises(Permanent, match=r"outbox/key/2\.25\.1\.dcm is damaged"):
            outbox.check(sr)
        path.unlink()
        with pytest.raises(Permanent, match=r"outbox/key/2\.25\.1\.dcm is gone"):
            outbox.check(sr)
        outbox.check(seg)
