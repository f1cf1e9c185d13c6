"""What a data set says that it is, and the meta header under which it is kept."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from datetime import datetime
from io import BytesIO
from typing import Any

from pydicom.filereader import read_dataset
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
        values, _ = _head_values(data_set, transfer_syntax_uid)
    except Exception as exc:
        # Boundary: bytes of a stranger. Whatever the parser raises on them, they cannot be understood.
        raise Refused(DimseStatus.CANNOT_UNDERSTAND, "data set cannot be parsed") from exc
    return _as_head(values)


def find_head(begun: bytes, transfer_syntax_uid: UID) -> InstanceHead | None:
    """As `read_head`, of the first bytes of a data set; None where they do not tell yet."""
    try:
        values, is_whole = _head_values(begun, transfer_syntax_uid)
    except Exception:  # noqa: BLE001 - as in `read_head`; what cannot be parsed may just be cut
        return None
    return _as_head(values) if is_whole else None


def _head_values(data_set: bytes, transfer_syntax_uid: UID) -> tuple[dict[int, str], bool]:
    """Texts of the elements that tell the identity, and whether an element behind all of them was met."""
    behind: list[int] = []

    def is_behind(tag: int, _vr: str | None, _length: int) -> bool:
        if tag > _SERIES_INSTANCE_UID:
            behind.append(tag)
        return bool(behind)

    encoded = _inflated(data_set) if transfer_syntax_uid.is_deflated else data_set
    head = read_dataset(
        BytesIO(encoded),
        transfer_syntax_uid.is_implicit_VR,
        transfer_syntax_uid.is_little_endian,
        stop_when=is_behind,
        specific_tags=[_SOP_CLASS_UID, _SOP_INSTANCE_UID, _MODALITY, _STUDY_INSTANCE_UID, _SERIES_INSTANCE_UID],
    )
    # Raw values: converted ones would be quoted in warnings where they are malformed.
    return {int(tag): _text(head.get_item(tag)) for tag in head.keys()}, bool(behind)  # noqa: SIM118


def _as_head(values: dict[int, str]) -> InstanceHead:
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
    """Preamble and meta header of the Part 10 file in which an instance is kept (PS3.10 7.1).

    By hand, since every instance has one, and pydicom takes longer for it than the disk for the instance.
    """
    elements = b"".join(
        [
            b"\x02\x00\x01\x00OB\x00\x00\x02\x00\x00\x00\x00\x01",  # version
            _element(0x02, b"UI", head.sop_class_uid),
            _element(0x03, b"UI", head.sop_instance_uid),
            _element(0x10, b"UI", transfer_syntax_uid),
            _element(0x12, b"UI", IMPLEMENTATION_CLASS_UID),
            _element(0x13, b"SH", IMPLEMENTATION_VERSION_NAME),
            _element(0x16, b"AE", calling_ae_title),
        ]
    )
    return bytes(128) + b"DICM\x02\x00\x00\x00UL\x04\x00" + struct.pack("<I", len(elements)) + elements


def _element(number: int, vr: bytes, text: str) -> bytes:
    """(0002,number) in Explicit VR Little Endian."""
    value = text.encode("ascii", "replace")
    value += (b"\0" if vr == b"UI" else b" ") * (len(value) % 2)
    return struct.pack("<HH2sH", 2, number, vr, len(value)) + value


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
