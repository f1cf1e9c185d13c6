"""The images of a CT series as one flat list: single-frame objects one each, multi-frame objects one a frame.

Input: Part 10 files. Output: `Frame` values, read from headers only, and what was set aside with the reason.
PS3.3 A.3 (CT Image), A.38 (Enhanced CT), A.70 (Legacy Converted Enhanced CT), C.7.6.16 (functional groups).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydicom import Dataset
from pydicom.uid import CTImageStorage, EnhancedCTImageStorage, LegacyConvertedEnhancedCTImageStorage

from pulmo_node.assemble.files import numbers, read_header, text, texts, translated

CT_CLASSES = (CTImageStorage, EnhancedCTImageStorage, LegacyConvertedEnhancedCTImageStorage)

HEADER_KEYWORDS = (
    "SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "PatientID", "Modality", "ImageType", "AcquisitionNumber",
    "ConvolutionKernel", "FrameOfReferenceUID", "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing",
    "Rows", "Columns", "SamplesPerPixel", "NumberOfFrames", "RescaleIntercept", "RescaleSlope", "RescaleType",
    "ModalityLUTSequence", "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True, eq=False)
class Frame:
    """One axial image as its header tells it. Lengths in mm, positions and cosines in LPS."""

    path: Path
    sop_class_uid: str
    sop_instance_uid: str
    frame_number: int | None  # 1-based, None for single-frame objects
    series_instance_uid: str
    patient: bytes = field(repr=False)  # digest of the patient ID, so that the ID itself goes no further
    frame_of_reference_uid: str
    acquisition_number: str
    kernel: str
    rows: int
    columns: int
    position_lps_mm: npt.NDArray[np.float64]  # centre of the first voxel
    row_and_column_cosines: npt.NDArray[np.float64]  # as ImageOrientationPatient
    pixel_spacing_mm: tuple[float, float]  # between rows, between columns
    rescale: tuple[float, float] | None  # slope, intercept
    rescale_type: str

    @property
    def label(self) -> str:
        """File name, with the frame where there are several."""
        return self.path.name if self.frame_number is None else f"{self.path.name} frame {self.frame_number}"


@dataclass(frozen=True, kw_only=True)
class SetAside:
    """An object or file that takes no part, and why."""

    file: str
    reason: str


def read_frames(paths: Sequence[Path]) -> tuple[list[Frame], list[SetAside]]:
    """Read the headers of a CT series.

    Raises:
        Rejected: UNREADABLE, for a file that pydicom cannot parse.
    """
    frames: list[Frame] = []
    aside: list[SetAside] = []
    for path in paths:
        dataset, has_pixels = read_header(path, HEADER_KEYWORDS)
        with translated(path):
            reason = _not_an_image(dataset, has_pixels)
            if reason:
                aside.append(SetAside(file=path.name, reason=reason))
                continue
            for number, groups in _functional_groups(dataset):
                found = _frame(path, dataset, number, groups)
                if isinstance(found, Frame):
                    frames.append(found)
                else:
                    where = path.name if number is None else f"{path.name} frame {number}"
                    aside.append(SetAside(file=where, reason=found))
    return frames, aside


def _not_an_image(dataset: Dataset, has_pixels: bool) -> str:
    """Why an object as a whole is no CT image; "" where it is one."""
    if dataset.get("SOPClassUID") not in CT_CLASSES:
        return f"not a CT image but {getattr(dataset.get('SOPClassUID'), 'name', 'without SOP class')}"
    if not has_pixels:
        return "no pixel data"
    if dataset.get("SamplesPerPixel", 1) != 1:
        return "a colour image"
    return ""


def _functional_groups(dataset: Dataset) -> list[tuple[int | None, tuple[Dataset, ...]]]:
    """Frame number and the data sets to look an attribute up in, the most specific first."""
    if dataset.SOPClassUID == CTImageStorage:
        return [(None, (dataset,))]
    shared = tuple(dataset.get("SharedFunctionalGroupsSequence") or ())
    per_frame = dataset.get("PerFrameFunctionalGroupsSequence") or ()
    if len(per_frame) != int(dataset.get("NumberOfFrames") or 1):
        raise ValueError(f"{len(per_frame)} per-frame functional groups for {dataset.get('NumberOfFrames')} frames")
    return [(number, (own, *shared, dataset)) for number, own in enumerate(per_frame, start=1)]


def _in_group(groups: tuple[Dataset, ...], macro: str, keyword: str) -> Dataset:
    """The data set that holds an attribute: the macro of the frame, else the shared one, else the top level."""
    for group in groups:
        items = group.get(macro)
        if items and keyword in items[0]:
            return items[0]  # type: ignore[no-any-return]
    return groups[-1]


def _frame(path: Path, dataset: Dataset, number: int | None, groups: tuple[Dataset, ...]) -> Frame | str:
    """One frame, or the reason why it is set aside."""
    image_type = texts(_in_group(groups, "CTImageFrameTypeSequence", "FrameType"), "FrameType") or texts(
        dataset, "ImageType"
    )
    if "LOCALIZER" in image_type:
        return "a localizer"
    position = numbers(_in_group(groups, "PlanePositionSequence", "ImagePositionPatient"), "ImagePositionPatient", 3)
    cosines = numbers(
        _in_group(groups, "PlaneOrientationSequence", "ImageOrientationPatient"), "ImageOrientationPatient", 6
    )
    if position is None or cosines is None:
        return "no position or orientation in the patient"
    spacing = numbers(_in_group(groups, "PixelMeasuresSequence", "PixelSpacing"), "PixelSpacing", 2)
    values = _in_group(groups, "PixelValueTransformationSequence", "RescaleSlope")
    slope, intercept = numbers(values, "RescaleSlope", 1), numbers(values, "RescaleIntercept", 1)
    content = _in_group(groups, "FrameContentSequence", "FrameAcquisitionNumber")
    return Frame(
        path=path,
        sop_class_uid=str(dataset.SOPClassUID),
        sop_instance_uid=str(dataset.SOPInstanceUID),
        frame_number=number,
        series_instance_uid=text(dataset, "SeriesInstanceUID"),
        patient=hashlib.sha256(text(dataset, "PatientID").encode()).digest(),
        frame_of_reference_uid=text(dataset, "FrameOfReferenceUID"),
        acquisition_number=text(content, "FrameAcquisitionNumber") or text(dataset, "AcquisitionNumber"),
        kernel=text(_in_group(groups, "CTReconstructionSequence", "ConvolutionKernel"), "ConvolutionKernel"),
        rows=int(dataset.Rows),
        columns=int(dataset.Columns),
        position_lps_mm=position,
        row_and_column_cosines=cosines,
        pixel_spacing_mm=(0.0, 0.0) if spacing is None else (float(spacing[0]), float(spacing[1])),
        rescale=None if slope is None or intercept is None else (float(slope[0]), float(intercept[0])),
        rescale_type="MODALITY LUT" if dataset.get("ModalityLUTSequence") else text(values, "RescaleType"),
    )
