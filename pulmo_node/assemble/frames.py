"""The images of a CT series as one flat list: single-frame objects one each, multi-frame objects one a frame.

Input: Part 10 files. Output: `Headers`: `Frame` values, read from headers only, and what was set aside with the reason.
PS3.3 A.3 (CT Image), A.38 (Enhanced CT), A.70 (Legacy Converted Enhanced CT), C.7.6.16 (functional groups),
C.8.2.1.1.1 and C.8.15.2 (image types of CT and Enhanced CT).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydicom import Dataset
from pydicom.uid import CTImageStorage, EnhancedCTImageStorage, LegacyConvertedEnhancedCTImageStorage

from pulmo_models.types import Acquisition
from pulmo_node.assemble.files import numbers, read_header, text, texts, translated
from pulmo_node.assemble.headers import SeriesFiles

CT_CLASSES = (CTImageStorage, EnhancedCTImageStorage, LegacyConvertedEnhancedCTImageStorage)

FARTHEST_MM = 100_000.0

PROJECTIONS = frozenset({"MIP", "MINIP", "PROJECTION IMAGE", "VRT", "VOLUME_RENDER", "MAXIMUM", "MINIMUM"})
"""Image types whose pixels are no attenuation at their place: projections through a slab, and renderings."""

SCREENS = frozenset({"SCREEN SAVE", "SCREENSAVE", "SCREENSHOT", "DOSE_INFO"})


@dataclass(frozen=True, kw_only=True, eq=False)
class Frame:
    """One image as its header tells it. Lengths in mm, positions and cosines in LPS."""

    path: Path
    sop_class_uid: str
    sop_instance_uid: str
    frame_number: int | None  # 1-based, None for single-frame objects
    frame_of_reference_uid: str
    rows: int
    columns: int
    position_lps_mm: npt.NDArray[np.float64]  # centre of the first voxel
    row_and_column_cosines: npt.NDArray[np.float64]  # as ImageOrientationPatient
    pixel_spacing_mm: tuple[float, float]  # between rows, between columns
    rescale: tuple[float, float] | None  # slope, intercept; None where absent, and where a Modality LUT takes its place
    rescale_type: str  # unit of the values after the rescale or the Modality LUT
    modality_lut: bool
    image_type: tuple[str, ...]
    kernel: str
    acquisition_number: str
    temporal_position: str  # temporal position, cardiac phase or trigger time
    stack_id: str
    acquired: str  # date and time of acquisition, sorts as text
    instance_number: int  # 0 where there is none; the frame number in multi-frame objects
    acquisition: Acquisition = field(default_factory=Acquisition)  # for the record, no rule looks at it

    @property
    def label(self) -> str:
        """File name, with the frame where there are several."""
        return self.path.name if self.frame_number is None else f"{self.path.name} frame {self.frame_number}"


@dataclass(frozen=True, kw_only=True)
class SetAside:
    """An object or file that takes no part, and why."""

    file: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Belonging:
    """Whose and of which series an object is, set aside or not."""

    file: str
    patient: bytes = field(repr=False)  # digest of the patient ID, so that the ID itself goes no further
    series_instance_uid: str


@dataclass(frozen=True, kw_only=True)
class Headers:
    """What the headers of a CT series hold."""

    frames: tuple[Frame, ...]
    set_aside: tuple[SetAside, ...]
    belongings: tuple[Belonging, ...]  # one a file


def read_headers(paths: Sequence[Path], files: SeriesFiles) -> Headers:
    """Read the headers of a CT series.

    Raises:
        Rejected: UNREADABLE, for a file that pydicom cannot parse.
    """
    frames: list[Frame] = []
    aside: list[SetAside] = []
    belongings: list[Belonging] = []
    for path in paths:
        header = files.header(path)
        dataset, has_pixels = header.dataset, header.has_pixels
        with translated(path):
            belongings.append(_belonging(path, dataset))
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
    return Headers(frames=tuple(frames), set_aside=tuple(aside), belongings=tuple(belongings))


def read_belonging(path: Path) -> Belonging:
    """Whose object a file is.

    Raises:
        Rejected: UNREADABLE.
    """
    dataset, _ = read_header(path, ("PatientID", "SeriesInstanceUID"))
    with translated(path):
        return _belonging(path, dataset)


def _belonging(path: Path, dataset: Dataset) -> Belonging:
    return Belonging(
        file=path.name,
        patient=hashlib.sha256(text(dataset, "PatientID").encode()).digest(),
        series_instance_uid=text(dataset, "SeriesInstanceUID"),
    )


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


_CONVERTED = ("UnassignedPerFrameConvertedAttributesSequence", "UnassignedSharedConvertedAttributesSequence")
"""Where Legacy Converted objects keep what has no place in a functional group (PS3.3 A.70, C.7.6.16)."""


def _in_group(groups: tuple[Dataset, ...], macro: str, keyword: str) -> Dataset:
    """The data set that holds an attribute: the macro of the frame, else the shared one, else the top level."""
    for name in (macro, *_CONVERTED) if len(groups) > 1 else ():  # single-frame objects have no groups
        for group in groups:
            items = group.get(name)
            if items and keyword in items[0]:
                return items[0]  # type: ignore[no-any-return]
    return groups[-1]


def _frame(path: Path, dataset: Dataset, number: int | None, groups: tuple[Dataset, ...]) -> Frame | str:
    """One frame, or the reason why it is set aside."""
    image_type = _image_type(dataset, groups)
    reason = _set_aside_by_type(image_type)
    if reason:
        return reason
    position = numbers(_in_group(groups, "PlanePositionSequence", "ImagePositionPatient"), "ImagePositionPatient", 3)
    cosines = numbers(
        _in_group(groups, "PlaneOrientationSequence", "ImageOrientationPatient"), "ImageOrientationPatient", 6
    )
    if position is None or cosines is None:
        return "no position or orientation in the patient"
    if np.abs(position).max() > FARTHEST_MM:
        raise ValueError(f"ImagePositionPatient lies more than {FARTHEST_MM / 1000:.0f} m from the origin")
    spacing = numbers(_in_group(groups, "PixelMeasuresSequence", "PixelSpacing"), "PixelSpacing", 2)
    rescale, rescale_type = _rescale(dataset, groups)
    content = _in_group(groups, "FrameContentSequence", "FrameAcquisitionNumber")
    acquisition = _acquisition(dataset, groups, image_type)
    return Frame(
        path=path,
        sop_class_uid=str(dataset.SOPClassUID),
        sop_instance_uid=str(dataset.SOPInstanceUID),
        frame_number=number,
        frame_of_reference_uid=text(dataset, "FrameOfReferenceUID"),
        rows=int(dataset.Rows),
        columns=int(dataset.Columns),
        position_lps_mm=position,
        row_and_column_cosines=cosines,
        pixel_spacing_mm=(0.0, 0.0) if spacing is None else (float(spacing[0]), float(spacing[1])),
        rescale=rescale,
        rescale_type=rescale_type,
        modality_lut=bool(dataset.get("ModalityLUTSequence")),
        image_type=image_type,
        kernel=acquisition.kernel,
        acquisition_number=text(content, "FrameAcquisitionNumber") or text(dataset, "AcquisitionNumber"),
        temporal_position=_temporal_position(groups),
        stack_id=text(_in_group(groups, "FrameContentSequence", "StackID"), "StackID"),
        acquired=_acquired(dataset, groups),
        instance_number=number or int(_recorded(dataset, "InstanceNumber") or 0),
        acquisition=acquisition,
    )


def _image_type(dataset: Dataset, groups: tuple[Dataset, ...]) -> tuple[str, ...]:
    frame_type = texts(_in_group(groups, "CTImageFrameTypeSequence", "FrameType"), "FrameType")
    return tuple(value.upper() for value in frame_type or texts(dataset, "ImageType"))


def _set_aside_by_type(image_type: tuple[str, ...]) -> str:
    """Why images of that type are no part of a volume, whatever their geometry says; "" where they may be."""
    if "LOCALIZER" in image_type:
        return "a localizer"
    for values, what in ((PROJECTIONS, "a projection through a slab"), (SCREENS, "a picture of a screen")):
        found = values.intersection(image_type)
        if found:
            return f"{what} (image type {', '.join(sorted(found))})"
    return ""


def _rescale(dataset: Dataset, groups: tuple[Dataset, ...]) -> tuple[tuple[float, float] | None, str]:
    """Slope and intercept with the unit that they lead to; of a Modality LUT the unit alone (PS3.3 C.11.1)."""
    lut = dataset.get("ModalityLUTSequence")
    if lut:
        return None, text(lut[0], "ModalityLUTType") or "an unnamed Modality LUT"
    values = _in_group(groups, "PixelValueTransformationSequence", "RescaleSlope")
    slope, intercept = numbers(values, "RescaleSlope", 1), numbers(values, "RescaleIntercept", 1)
    rescale = None if slope is None or intercept is None else (float(slope[0]), float(intercept[0]))
    return rescale, text(values, "RescaleType")


def _temporal_position(groups: tuple[Dataset, ...]) -> str:
    """What tells phases of one scan apart: temporal position, cardiac phase, trigger time."""
    places = (
        ("FrameContentSequence", "TemporalPositionIndex"),
        ("FrameContentSequence", "TemporalPositionIdentifier"),
        ("CardiacSynchronizationSequence", "NominalPercentageOfCardiacPhase"),
        ("CardiacSynchronizationSequence", "TriggerTime"),
    )
    return "/".join(text(_in_group(groups, macro, keyword), keyword) for macro, keyword in places)


def _acquired(dataset: Dataset, groups: tuple[Dataset, ...]) -> str:
    content = _in_group(groups, "FrameContentSequence", "FrameAcquisitionDateTime")
    return (
        text(content, "FrameAcquisitionDateTime")
        or text(dataset, "AcquisitionDateTime")
        or text(dataset, "AcquisitionDate") + text(dataset, "AcquisitionTime")
    )


def _acquisition(dataset: Dataset, groups: tuple[Dataset, ...], image_type: tuple[str, ...]) -> Acquisition:
    reconstruction = "CTReconstructionSequence"
    agents = dataset.get("ContrastBolusAgentSequence")
    return Acquisition(
        kernel=text(_in_group(groups, reconstruction, "ConvolutionKernel"), "ConvolutionKernel"),
        contrast_agent=text(_in_group(groups, reconstruction, "ContrastBolusAgent"), "ContrastBolusAgent")
        or (text(agents[0], "CodeMeaning") if agents else ""),
        slice_thickness_mm=_recorded(_in_group(groups, "PixelMeasuresSequence", "SliceThickness"), "SliceThickness"),
        reconstruction_diameter_mm=_recorded(
            _in_group(groups, reconstruction, "ReconstructionDiameter"), "ReconstructionDiameter"
        ),
        patient_position=text(dataset, "PatientPosition"),
        image_type=image_type,
        number=text(dataset, "AcquisitionNumber"),
    )


def _recorded(dataset: Dataset, keyword: str) -> float | None:
    """A number that no rule depends on: one that cannot be understood is taken as absent."""
    with suppress(ValueError, TypeError, OverflowError):
        found = numbers(dataset, keyword, 1)
        return None if found is None else float(found[0])
    return None
