"""What is sent: result objects as the outbox keeps them, and any other DICOM files."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from pydicom import dcmread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filereader import read_file_meta_info
from pydicom.uid import UID, ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom.dsutils import encode_file_meta, split_dataset

from pulmo_node.dimse import IMPLEMENTATION_CLASS_UID
from pulmo_node.domain.deliveries import ResultObject
from pulmo_node.errors import Permanent, PulmoError, Transient

_MOST_CONTEXTS = 128  # of one association (PS3.8 9.3.2.2: odd numbers of one byte)
_IDENTITY = ("SOPClassUID", "SOPInstanceUID")


def check_identity(file: Path, result: ResultObject) -> UID:
    """Whether a file of the outbox is the object that `result` speaks of; its transfer syntax.

    Raises:
        Transient: the disk refuses.
        Permanent: there is no such file, it is no DICOM file, or another object.
    """
    try:
        meta = read_file_meta_info(file)
        named = meta.get("MediaStorageSOPClassUID"), meta.get("MediaStorageSOPInstanceUID")
        transfer_syntax_uid = UID(meta.TransferSyntaxUID)
    except FileNotFoundError as exc:
        raise Permanent(f"{file.name} cannot be read: {reason(exc)}") from exc
    except OSError as exc:
        raise Transient(f"{file.name} cannot be read: {reason(exc)}") from exc
    except Exception as exc:
        # Boundary: a damaged file. Whatever the parser raises on it, another attempt changes nothing.
        raise Permanent(f"{file.name} cannot be read: {reason(exc)}") from exc
    if named != (result.sop_class_uid, result.sop_instance_uid):
        raise Permanent(f"{file.name} is not {result.sop_instance_uid}")
    return transfer_syntax_uid


def reason(exc: Exception) -> str:
    """Why a file cannot be read, in words that quote nothing of it."""
    return (exc.strerror if isinstance(exc, OSError) else None) or type(exc).__name__


@dataclass(frozen=True, kw_only=True)
class SentFile:
    """What became of one file of `DicomSender.send_files`."""

    path: Path
    sop_instance_uid: str  # empty where the file is no DICOM instance
    status: str | None  # in words, where the peer stored it
    error: PulmoError | None  # why it did not


@dataclass(frozen=True, kw_only=True)
class Instance:
    """A file as it will be named in the C-STORE command."""

    path: Path
    sop_class_uid: UID
    sop_instance_uid: UID
    transfer_syntax_uid: UID
    meta_agrees: bool  # the meta header is there and says the same


def read_instance(path: Path) -> Instance:
    """Identity of a file, also of one without preamble and meta header. Raises `Permanent`."""
    try:
        head = dcmread(path, stop_before_pixels=True, force=True, specific_tags=list(_IDENTITY))
        sop_class_uid, sop_instance_uid = (UID(str(head.get(keyword) or "")) for keyword in _IDENTITY)
    except OSError as exc:
        raise Permanent(f"{path.name} cannot be read: {reason(exc)}") from exc
    except Exception as exc:
        # Boundary: any file may lie in a folder. Whatever the parser raises on it, it is not one that can be sent.
        raise Permanent(f"{path.name} is no DICOM instance") from exc
    if not sop_class_uid or not sop_instance_uid:
        raise Permanent(f"{path.name} is no DICOM instance")
    meta = head.file_meta
    agrees = (sop_class_uid, sop_instance_uid) == (
        meta.get("MediaStorageSOPClassUID"),
        meta.get("MediaStorageSOPInstanceUID"),
    )
    return Instance(
        path=path,
        sop_class_uid=sop_class_uid,
        sop_instance_uid=sop_instance_uid,
        transfer_syntax_uid=UID(str(meta.get("TransferSyntaxUID") or "")) or _encoding(head),
        meta_agrees=agrees and "TransferSyntaxUID" in meta,
    )


def _encoding(head: Dataset) -> UID:
    """Transfer syntax of a file without meta header, as the parser found it."""
    implicit, little = head.original_encoding
    if implicit:
        return ImplicitVRLittleEndian
    return ExplicitVRLittleEndian if little else ExplicitVRBigEndian


def batches(instances: Sequence[Instance]) -> list[list[Instance]]:
    """Instances in their order, split where an association would need more than 128 presentation contexts."""
    kinds: dict[tuple[UID, UID], int] = {}
    for instance in instances:
        kinds.setdefault((instance.sop_class_uid, instance.transfer_syntax_uid), len(kinds) // _MOST_CONTEXTS)
    numbered = sorted(
        ((kinds[instance.sop_class_uid, instance.transfer_syntax_uid], instance) for instance in instances),
        key=lambda item: item[0],
    )
    return [[instance for _, instance in batch] for _, batch in groupby(numbered, key=lambda item: item[0])]


@contextmanager
def with_true_meta(instance: Instance) -> Iterator[Path]:
    """The file, or a copy with a meta header that agrees with the data set, from which the command is made."""
    if instance.meta_agrees:
        yield instance.path
        return
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = instance.sop_class_uid
    meta.MediaStorageSOPInstanceUID = instance.sop_instance_uid
    meta.TransferSyntaxUID = instance.transfer_syntax_uid
    meta.ImplementationClassUID = IMPLEMENTATION_CLASS_UID
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / instance.path.name
        copy.write_bytes(b"\x00" * 128 + b"DICM" + encode_file_meta(meta) + _data_set(instance.path))
        yield copy


def _data_set(path: Path) -> bytes:
    content = path.read_bytes()
    if content[128:132] != b"DICM":
        return content
    return content[split_dataset(path)[1] :]
