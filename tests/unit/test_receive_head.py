"""The head of a data set while it comes, and the meta header under which it is kept."""

from __future__ import annotations

from io import BytesIO

import pytest
from pydicom import dcmread
from pydicom.dataset import FileMetaDataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_file_meta_info
from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from pulmo_node.dimse import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from pulmo_node.receive.head import InstanceHead, encode_meta, find_head, read_head
from tests.network_factory import ct_slice, encoded


@pytest.mark.parametrize("sop_instance_uid", ["1.2.3", "1.2.34"])
@pytest.mark.parametrize("calling", ["A", "SCANNER 12"])
def test_the_meta_header_is_what_pydicom_writes(sop_instance_uid: str, calling: str) -> None:
    head = InstanceHead(
        study_instance_uid="1.2", series_instance_uid="1.3", sop_instance_uid=sop_instance_uid,
        sop_class_uid="1.2.840.10008.5.1.4.1.1.2", modality="CT",
    )  # fmt: skip
    meta = FileMetaDataset()
    meta.FileMetaInformationVersion = b"\x00\x01"
    meta.MediaStorageSOPClassUID = UID(head.sop_class_uid)
    meta.MediaStorageSOPInstanceUID = UID(sop_instance_uid)
    meta.TransferSyntaxUID = ImplicitVRLittleEndian
    meta.ImplementationClassUID = IMPLEMENTATION_CLASS_UID
    meta.ImplementationVersionName = IMPLEMENTATION_VERSION_NAME
    meta.SourceApplicationEntityTitle = calling
    stream = DicomBytesIO()
    stream.is_little_endian, stream.is_implicit_VR = True, False
    write_file_meta_info(stream, meta)
    written = encode_meta(head, ImplicitVRLittleEndian, calling)
    assert written == bytes(128) + b"DICM" + stream.getvalue()
    assert dcmread(BytesIO(written)).file_meta.MediaStorageSOPInstanceUID == sop_instance_uid


def test_the_head_is_found_as_soon_as_it_is_whole_and_not_before() -> None:
    content = encoded(ct_slice())
    whole = read_head(content, ExplicitVRLittleEndian)
    found = [find_head(content[:length], ExplicitVRLittleEndian) for length in range(len(content))]
    first = next(length for length, head in enumerate(found) if head is not None)
    assert set(found[:first]) == {None}
    assert set(found[first:]) == {whole}
    behind_series = content.index(b"\x20\x00\x13\x00")  # (0020,0013) follows (0020,000E)
    assert behind_series < first <= behind_series + 8
