"""The source images of a result: their headers, read without pixels, and what is copied from them.

highdicom is given a bare header (`bare_header`) without any patient attribute: it would refuse a missing or odd
value, and warn about a patient's name by quoting it. The patient and study attributes are copied afterwards, as the
source has them (`finish.finish`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from copy import deepcopy
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pydicom
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.uid import CTImageStorage
from pydicom.valuerep import DS

from pulmo_models.types import SeriesDescription, SliceSource, SourceFrame, Volume
from pulmo_node.errors import Permanent

_IDENTITY = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")

_TYPE_2_PATIENT_AND_STUDY = (
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "PatientSex",
    "StudyDate",
    "StudyTime",
    "AccessionNumber",
    "ReferringPhysicianName",
    "StudyID",
)

_KEPT = (
    "SOPClassUID",
    "SOPInstanceUID",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "Modality",
    "FrameOfReferenceUID",
    "PositionReferenceIndicator",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "PixelSpacing",
    "SliceThickness",
    "Rows",
    "Columns",
    "NumberOfFrames",
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
    "LossyImageCompression",
    "LossyImageCompressionRatio",
    "LossyImageCompressionMethod",
    # equipment that acquired the images
    "Manufacturer",
    "ManufacturerModelName",
    "SoftwareVersions",
    "DeviceSerialNumber",
    "StationName",
    "InstitutionName",
    "InstitutionAddress",
    "InstitutionalDepartmentName",
    "AcquisitionDateTime",
    "AcquisitionDate",
    "AcquisitionTime",
)


def read_header(source: SliceSource) -> Dataset:
    """The data set of a source image without its pixels.

    Raises:
        Permanent: there is no file, or it cannot be read, or it is not the instance that the source names.
    """
    if source.path is None:
        raise Permanent(f"instance {source.sop_instance_uid} has no file to refer to")
    header = _read(source.path)
    found = header.SOPInstanceUID
    if found != source.sop_instance_uid:
        raise Permanent(f"{source.path} holds instance {found}, not {source.sop_instance_uid} (0008,0018)")
    return header


def read_series(paths: Iterable[Path]) -> tuple[Dataset | None, tuple[SliceSource, ...]]:
    """The first readable header of a series, and every instance that can be read; broken files are passed over."""
    header: Dataset | None = None
    sources = []
    for path in paths:
        try:
            found = _read(path, None if header is None else list(_IDENTITY))
        except Permanent:
            continue  # a rejected series may well hold a broken file; the others know the patient too
        header = header or found
        sources.append(
            SliceSource(
                sop_class_uid=str(found.SOPClassUID), sop_instance_uid=str(found.SOPInstanceUID), path=str(path)
            )
        )
    return header, tuple(sources)


def _read(path: str | Path, keywords: list[str] | None = None) -> Dataset:
    """The header of a file, or only those elements of it. Raises `Permanent`."""
    try:
        header = pydicom.dcmread(path, stop_before_pixels=True, force=True, specific_tags=keywords)
        missing = [keyword for keyword in _IDENTITY if not header.get(keyword)]
    except (OSError, InvalidDicomError, ValueError, NotImplementedError, AttributeError, EOFError) as exc:
        raise Permanent(f"{path} cannot be read: {type(exc).__name__}") from exc
    if missing:
        raise Permanent(f"{path} is no DICOM instance: {', '.join(missing)} missing")
    return header


def bare_header(header: Dataset) -> Dataset:
    """What a derived object needs of a source image, with empty patient and study attributes."""
    bare = Dataset()
    for keyword in _KEPT:
        if keyword in header and not header[keyword].is_empty:
            bare[keyword] = header[keyword]
    for keyword in _TYPE_2_PATIENT_AND_STUDY:
        setattr(bare, keyword, "")
    return bare


def image_header(header: Dataset, *, frame_of_reference_uid: str, slice_spacing_mm: float) -> Dataset:
    """`bare_header` completed with what highdicom asks of the source of a segmentation.

    A missing frame of reference or slice thickness is filled in from the volume; pixel measures and orientation
    that a multi-frame object repeats in each frame are moved to its shared groups (PS3.3 C.7.6.16.2).
    """
    bare = bare_header(header)
    if not bare.get("FrameOfReferenceUID"):
        bare.FrameOfReferenceUID = frame_of_reference_uid
    if "PerFrameFunctionalGroupsSequence" not in bare:
        if bare.get("SliceThickness") is None:
            bare.SliceThickness = f"{slice_spacing_mm:.6g}"
        return bare
    shared = (
        deepcopy(bare.SharedFunctionalGroupsSequence[0]) if bare.get("SharedFunctionalGroupsSequence") else Dataset()
    )
    first_frame = bare.PerFrameFunctionalGroupsSequence[0]
    for keyword in ("PixelMeasuresSequence", "PlaneOrientationSequence"):
        if keyword not in shared and keyword in first_frame:
            shared[keyword] = first_frame[keyword]
    bare.SharedFunctionalGroupsSequence = [shared]
    return bare


def frame_as_image(
    header: Dataset, frame: SourceFrame, *, frame_of_reference_uid: str, slice_spacing_mm: float
) -> Dataset:
    """A frame of a multi-frame object as the header of a CT image of its own, under the UID of its object."""
    bare = bare_header(header)
    for keyword in ("NumberOfFrames", "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"):
        if keyword in bare:
            del bare[keyword]
    row_step, column_step = np.array(frame.row_step_lps_mm), np.array(frame.column_step_lps_mm)
    between_rows_mm, between_columns_mm = float(np.linalg.norm(row_step)), float(np.linalg.norm(column_step))
    cosines = (*(column_step / between_columns_mm).tolist(), *(row_step / between_rows_mm).tolist())
    bare.SOPClassUID = CTImageStorage
    bare.FrameOfReferenceUID = frame_of_reference_uid
    bare.ImagePositionPatient = [DS(value, auto_format=True) for value in frame.origin_lps_mm]
    bare.ImageOrientationPatient = [DS(value, auto_format=True) for value in cosines]
    bare.PixelSpacing = [DS(value, auto_format=True) for value in (between_rows_mm, between_columns_mm)]
    bare.SliceThickness = DS(slice_spacing_mm, auto_format=True)
    return bare


def library_images(volume: Volume) -> list[Dataset]:
    """The images of a volume as the image library of a report (PS3.16 TID 1600) is made from them, in their order.

    Raises:
        Permanent: a file cannot be read.
    """
    images = []
    for source in {frame.sop_instance_uid: frame for frame in volume.frames}.values():
        image = image_header(
            read_header(source),
            frame_of_reference_uid=volume.frame_of_reference_uid,
            slice_spacing_mm=volume.spacing_mm[0],
        )
        if source.frame_number is not None:
            image.Modality = ""  # position and spacing belong to its frames: no cross-sectional image to highdicom
        images.append(image)
    return images


def evidence_items(series: SeriesDescription, sources: Iterable[SliceSource]) -> list[Dataset]:
    """One reference per instance of the series, for the evidence sequence; frames of one object count once."""
    return [
        reference(series.study_instance_uid, series.series_instance_uid, sop_class_uid, sop_instance_uid)
        for sop_class_uid, sop_instance_uid in dict.fromkeys((s.sop_class_uid, s.sop_instance_uid) for s in sources)
    ]


def reference(study_uid: str, series_uid: str, sop_class_uid: str, sop_instance_uid: str) -> Dataset:
    """The four UIDs by which highdicom refers to an instance."""
    item = Dataset()
    item.StudyInstanceUID, item.SeriesInstanceUID = study_uid, series_uid
    item.SOPClassUID, item.SOPInstanceUID = sop_class_uid, sop_instance_uid
    return item


def frame_positions_mm(header: Dataset, frame_numbers: Sequence[int]) -> npt.NDArray[np.float64]:
    """Image positions of frames (1-based) of a multi-frame object, LPS mm, shape (frames, 3)."""
    groups = header.PerFrameFunctionalGroupsSequence
    return np.array(
        [groups[n - 1].PlanePositionSequence[0].ImagePositionPatient for n in frame_numbers], dtype=np.float64
    )
