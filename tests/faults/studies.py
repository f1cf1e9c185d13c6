"""Studies of one CT series each, made by number and seed: the same ones in every run."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid

from pulmo_node.deliver import DicomSender
from pulmo_node.domain.deliveries import Peer
from pulmo_node.errors import Transient
from tests.ct_factory import write_part10
from tests.encode_factory import chest_datasets


@dataclass(frozen=True, kw_only=True)
class Study:
    """A study as its sender has it."""

    study_instance_uid: str
    series_instance_uid: str
    files: tuple[Path, ...]
    sop_instance_uids: tuple[str, ...]  # in the order of the files


_WRITING = threading.Lock()  # the template is one for all threads


@lru_cache(maxsize=4)
def _template(shape: tuple[int, int, int]) -> Sequence[Dataset]:
    return chest_datasets(shape)


def make_study(folder: Path, seed: int, number: int, shape: tuple[int, int, int] = (12, 40, 48)) -> Study:
    """Write a study of `shape` (slices, rows, columns) into a folder of its own below `folder`."""
    own = folder / f"study-{number:04d}"
    own.mkdir(parents=True)
    entropy = f"{seed} {number}"
    study_uid, series_uid, frame_uid = (generate_uid(entropy_srcs=[entropy, what]) for what in ("st", "se", "fr"))
    files, uids = [], []
    with _WRITING:
        for k, dataset in enumerate(_template(shape)):
            dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.FrameOfReferenceUID = (
                study_uid,
                series_uid,
                frame_uid,
            )
            dataset.SOPInstanceUID = generate_uid(entropy_srcs=[entropy, f"sop {k}"])
            dataset.PatientID = f"FAULT-{seed}-{number}"
            path = own / f"{k:04d}.dcm"
            write_part10(dataset, path)
            files.append(path)
            uids.append(str(dataset.SOPInstanceUID))
    return Study(
        study_instance_uid=str(study_uid),
        series_instance_uid=str(series_uid),
        files=tuple(files),
        sop_instance_uids=tuple(uids),
    )


def same_data_set(first: Path, second: Path) -> bool:
    """Whether two Part 10 files hold equal data sets."""
    return bool(dcmread(first) == dcmread(second))


def send(peer: Peer, files: Sequence[Path], timeout_seconds: float = 30.0) -> None:
    """C-STORE the files; fails where one is refused.

    An answer that does not come is asked for once more: pynetdicom's requestor itself can take one off its queue and
    drop it, where its reactor is late to notice that it is to pause.
    """
    missing = list(files)
    for attempt in (1, 2):
        try:
            for answer in DicomSender("SCANNER", timeout_seconds=timeout_seconds).send_files(peer, list(missing)):
                if answer.error is not None:
                    raise AssertionError(f"a store failed: {answer.error}")
                missing.remove(answer.path)
        except Transient as exc:
            if attempt == 2:
                raise AssertionError(f"an association failed: {exc}") from exc
        else:
            return
