"""What a data set says that it is, and the meta header under which it is kept."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from datetime import datetime
from io import BytesIO
from typing import Any

from pydicom.dataset import FileMetaDataset
from pydicom.filebase import DicomBytesIO
from pydicom.filereader import read_dataset
from pydicom.filewriter import write_file_meta_info
from pydicom.uid import UID

from pulmo_node.dimse import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME, DimseStatus, is_uid
from pulmo_node.domain.series import StoredInstance
from pulmo_node.ports import WrittenInstance

_STUDY_INSTANCE_UID = 0x0020000D
_SERIES_INSTANCE_UID = 0x0020000E
_SOP_CLASS_UID = 0x00080016
_SOP_INSTANCE_UID = 0x00080018
_MODALITY = 0x00080060

_MOST_INFLATED_BYTES = 16 * 1024 * 1024  # of a deflated data set; the head that is read is a few kilobytes


@dataclass(frozen=True, kw_only=True)
class InstanceHead:
    """What a data set says that it is."""

    study_instance_uid: str
    series_instance_uid: str
    sop_instance_uid: str
    sop_class_uid: str
    modality: str


class Refused(Exception):
    """The instance is answered with a failure status; the text becomes the Error Comment."""

    def __init__(self, status: DimseStatus, comment: str) -> None:
        super().__init__(comment)
        self.status = status


def read_head(data_set: bytes, transfer_syntax_uid: UID) -> InstanceHead:
    """Identity of an encoded data set. Nothing behind (0020,000E) is read, and pixel data is never touched.

    Raises:
        Refused: with 0xC000, where it cannot be parsed or a UID is missing or malformed.
    """
    try:
        encoded = _inflated(data_set) if transfer_syntax_uid.is_deflated else data_set
        head = read_dataset(
            BytesIO(encoded),
            transfer_syntax_uid.is_implicit_VR,
            transfer_syntax_uid.is_little_endian,
            stop_when=lambda tag, vr, length: tag > _SERIES_INSTANCE_UID,
            specific_tags=[_SOP_CLASS_UID, _SOP_INSTANCE_UID, _MODALITY, _STUDY_INSTANCE_UID, _SERIES_INSTANCE_UID],
        )
        # Raw values: converted ones would be quoted in warnings where they are malformed.
        values = {int(tag): _text(head.get_item(tag)) for tag in head.keys()}  # noqa: SIM118
    except Exception as exc:
        # Boundary: bytes of a stranger. Whatever the parser raises on them, they cannot be understood.
        raise Refused(DimseStatus.CANNOT_UNDERSTAND, "data set cannot be parsed") from exc
    return InstanceHead(
        study_instance_uid=_checked_uid(values.get(_STUDY_INSTANCE_UID, ""), "Study Instance UID"),
        series_instance_uid=_checked_uid(values.get(_SERIES_INSTANCE_UID, ""), "Series Instance UID"),
        sop_instance_uid=_checked_uid(values.get(_SOP_INSTANCE_UID, ""), "SOP Instance UID"),
        sop_class_uid=_checked_uid(values.get(_SOP_CLASS_UID, ""), "SOP Class UID"),
        modality=values.get(_MODALITY, "")[:16],
    )


def describe(
    head: InstanceHead,
    written: WrittenInstance,
    *,
    transfer_syntax_uid: UID,
    calling_ae_title: str,
    received_at: datetime,
) -> StoredInstance:
    """The row of an instance that lies on the disk."""
    return StoredInstance(
        study_instance_uid=head.study_instance_uid,
        series_instance_uid=head.series_instance_uid,
        sop_instance_uid=head.sop_instance_uid,
        sop_class_uid=head.sop_class_uid,
        transfer_syntax_uid=str(transfer_syntax_uid),
        modality=head.modality,
        calling_ae_title=calling_ae_title,
        path=written.path,
        sha256=written.sha256,
        size_bytes=written.size_bytes,
        received_at=received_at,
    )


def encode_meta(head: InstanceHead, transfer_syntax_uid: UID, calling_ae_title: str) -> bytes:
    """Preamble and meta header of the Part 10 file in which an instance is kept (PS3.10 7.1)."""
    meta = FileMetaDataset()
    meta.FileMetaInformationVersion = b"\x00\x01"
    meta.MediaStorageSOPClassUID = UID(head.sop_class_uid)
    meta.MediaStorageSOPInstanceUID = UID(head.sop_instance_uid)
    meta.TransferSyntaxUID = transfer_syntax_uid
    meta.ImplementationClassUID = IMPLEMENTATION_CLASS_UID
    meta.ImplementationVersionName = IMPLEMENTATION_VERSION_NAME
    meta.SourceApplicationEntityTitle = calling_ae_title
    encoded = DicomBytesIO()
    encoded.is_little_endian = True
    encoded.is_implicit_VR = False
    write_file_meta_info(encoded, meta)
    return b"\x00" * 128 + b"DICM" + encoded.getvalue()


def _text(element: Any) -> str:
    return bytes(element.value or b"").decode("ascii", "replace").strip("\0 ")


def _inflated(data_set: bytes) -> bytes:
    return zlib.decompressobj(-zlib.MAX_WBITS).decompress(data_set, _MOST_INFLATED_BYTES)


def _checked_uid(value: str, name: str) -> str:
    if not value:
        raise Refused(DimseStatus.CANNOT_UNDERSTAND, f"{name} is missing")
    if not is_uid(value):
        raise Refused(DimseStatus.CANNOT_UNDERSTAND, f"{name} is no valid UID")
    return value
