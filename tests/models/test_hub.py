"""Download from a hub on this machine: whole, interrupted, refused, damaged."""

from __future__ import annotations

import fcntl
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from pulmo_models.errors import WeightsUnavailable
from pulmo_models.hub import download, resolve
from pulmo_models.published import PULMO
from tests.hub_server import COMMIT, HubServer, hub_in_use

MEBIBYTE = 1 << 20
CONTENT = {
    PULMO.stage1.file: random.Random(1).randbytes(5 * MEBIBYTE + 321),
    PULMO.stage2.file: random.Random(2).randbytes(MEBIBYTE + 12),
}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    files = {}
    for name, content in CONTENT.items():
        files[name] = tmp_path / name
        files[name].write_bytes(content)
    with hub_in_use(monkeypatch, files) as server:
        yield server


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "downloads"


def no_waiting(seconds: float) -> None:
    raise AssertionError(f"waited for {seconds} s")


def test_both_files_come_whole_and_the_commit_is_recorded(hub: HubServer, folder: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    found = download(PULMO, folder, progress=lambda *step: seen.append(step), wait=no_waiting)
    assert found.stage1.read_bytes() == CONTENT[PULMO.stage1.file]
    assert found.stage2.read_bytes() == CONTENT[PULMO.stage2.file]
    assert (found.stage1.name, found.stage2.name) == (PULMO.stage1.file, PULMO.stage2.file)
    assert (found.commit, found.endpoint) == (COMMIT, hub.endpoint)
    for name, content in CONTENT.items():
        steps = [(done, total) for file, done, total in seen if file == name]
        assert len(steps) > 1
        assert steps == sorted(steps)
        assert steps[-1] == (len(content), len(content))


def test_the_second_file_is_that_of_the_commit_of_the_first(hub: HubServer, folder: Path) -> None:
    hub.revisions["v2"] = "f" * 40
    hub.revisions["f" * 40] = "f" * 40
    assert download(PULMO, folder, revision="v2", wait=no_waiting).commit == "f" * 40
    asked = [path.split("/resolve/")[1] for _, path, _, _ in hub.asked if "/resolve/" in path]
    assert asked[0] == f"v2/{PULMO.stage1.file}"
    assert all(path.startswith("f" * 40) for path in asked[1:])
    assert resolve(PULMO, "v2") == "f" * 40


def test_what_lies_there_is_not_transferred_again(hub: HubServer, folder: Path) -> None:
    first = download(PULMO, folder, wait=no_waiting)
    transfers = len(hub.transfers())
    seen: list[tuple[str, int, int]] = []
    assert download(PULMO, folder, progress=lambda *step: seen.append(step), wait=no_waiting) == first
    assert len(hub.transfers()) == transfers == 2
    assert [done == total for _, done, total in seen] == [True, True]


def test_a_broken_transfer_goes_on_where_it_broke(hub: HubServer, folder: Path) -> None:
    hub.cuts = [2 * MEBIBYTE, 2 * MEBIBYTE]
    found = download(PULMO, folder, wait=no_waiting)
    assert found.stage1.read_bytes() == CONTENT[PULMO.stage1.file]
    ranges = [bounds for file, bounds in hub.transfers() if file == PULMO.stage1.file]
    assert ranges == ["", f"bytes={2 * MEBIBYTE}-", f"bytes={4 * MEBIBYTE}-"]


def test_the_next_call_goes_on_where_the_last_one_gave_up(hub: HubServer, folder: Path) -> None:
    hub.cuts = [3 * MEBIBYTE, 0, 0, 0, 0]
    waits: list[float] = []
    with pytest.raises(WeightsUnavailable, match=rf"broke at {3 * MEBIBYTE} of {5 * MEBIBYTE + 321} bytes of stage1"):
        download(PULMO, folder, wait=waits.append)
    assert waits == [1.0, 2.0, 4.0]
    hub.asked.clear()
    found = download(PULMO, folder, wait=no_waiting)
    assert found.stage1.read_bytes() == CONTENT[PULMO.stage1.file]
    assert hub.transfers()[0] == (PULMO.stage1.file, f"bytes={3 * MEBIBYTE}-")


def test_a_store_that_knows_no_ranges_sends_all_again(hub: HubServer, folder: Path) -> None:
    hub.cuts, hub.honour_ranges = [2 * MEBIBYTE], False
    found = download(PULMO, folder, wait=no_waiting)
    assert found.stage1.read_bytes() == CONTENT[PULMO.stage1.file]


def test_a_part_of_another_version_is_not_continued(hub: HubServer, folder: Path) -> None:
    hub.cuts = [2 * MEBIBYTE, 0, 0, 0, 0]
    with pytest.raises(WeightsUnavailable):
        download(PULMO, folder, wait=lambda seconds: None)
    hub.files[PULMO.stage1.file] = bytes(reversed(CONTENT[PULMO.stage1.file]))
    found = download(PULMO, folder, wait=no_waiting)
    assert found.stage1.read_bytes() == hub.files[PULMO.stage1.file]


@pytest.mark.parametrize(
    ("served", "said"),
    [
        (bytes(5 * MEBIBYTE + 321), "its sha256 is"),
        (bytes(9 * MEBIBYTE), "bytes came, not"),
    ],
)
def test_a_damaged_file_is_thrown_away(hub: HubServer, folder: Path, served: bytes, said: str) -> None:
    hub.served[PULMO.stage1.file] = served
    with pytest.raises(WeightsUnavailable, match=rf"stage1_detector_v2\.pth of ariyul/Pulmo arrived damaged: .*{said}"):
        download(PULMO, folder, wait=no_waiting)
    assert [path for path in folder.rglob("*") if path.is_file()] == []
    hub.served.clear()
    download(PULMO, folder, wait=no_waiting)


def test_a_file_outside_of_large_file_storage(hub: HubServer, folder: Path) -> None:
    hub.large_file_storage = False
    hub.cuts = [2 * MEBIBYTE]
    found = download(PULMO, folder, wait=no_waiting)
    assert found.stage1.read_bytes() == CONTENT[PULMO.stage1.file]
    assert hub.transfers()[1] == (PULMO.stage1.file, f"bytes={2 * MEBIBYTE}-")


def test_the_token_is_shown_to_the_hub_and_not_to_its_store(
    hub: HubServer, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_" + "x" * 30)
    download(PULMO, folder, wait=no_waiting)
    with_token = {path.split("/")[1] == "store": token for _, path, _, token in hub.asked}
    assert with_token == {False: True, True: False}


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("repository", r"ariyul/Pulmo on http://127\.0\.0\.1:\d+ does not exist, or needs an access token in HF_TOKEN"),
        ("gated", "is gated: accept its conditions on its page and set HF_TOKEN"),
        ("revision", "has no revision 'main'"),
        ("file", r"has no file student_2p5d_best\.pth at revision"),
        ("no hub", r"http://127\.0\.0\.1:\d+ does not answer as a Hugging Face hub does"),
    ],
)
def test_refusals_are_one_sentence(hub: HubServer, folder: Path, fault: str, said: str) -> None:
    if fault == "repository":
        hub.repository = "somebody/else"
    elif fault == "gated":
        hub.gated = True
    elif fault == "revision":
        hub.revisions.clear()
    elif fault == "file":
        del hub.files[PULMO.stage2.file]
    else:
        hub.revisions["main"] = ""
    with pytest.raises(WeightsUnavailable, match=said) as caught:
        download(PULMO, folder, wait=no_waiting)
    assert "\n" not in str(caught.value)
    assert hub.transfers() == []
    assert not folder.exists()


def test_no_network(hub: HubServer, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    with pytest.raises(WeightsUnavailable, match=r"no connection to http://127\.0\.0\.1:1: ") as caught:
        download(PULMO, folder, wait=no_waiting)
    assert "\n" not in str(caught.value)


def test_two_downloads_at_once_do_not_mix(hub: HubServer, folder: Path) -> None:
    hub.cuts = [2 * MEBIBYTE, 0, 0, 0, 0]
    with pytest.raises(WeightsUnavailable):
        download(PULMO, folder, wait=lambda seconds: None)
    (part,) = folder.rglob("*.part")
    with part.open("ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(WeightsUnavailable, match="is being written by another download"):
            download(PULMO, folder, wait=no_waiting)
    download(PULMO, folder, wait=no_waiting)


def test_a_folder_that_cannot_be_written(hub: HubServer, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(WeightsUnavailable, match="cannot be written: Not a directory"):
        download(PULMO, tmp_path / "file" / "weights", wait=no_waiting)
