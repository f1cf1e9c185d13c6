"""What would become of a series: the volumes that it holds, which of them is taken and why, and what is set aside.

Input: the files of one series. Output: `SeriesPlan`. Headers are read, and pixels of images at one position only.
The rules are told in docs/assembly.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np

from pulmo_models.codes import CautionCode, RejectionCode
from pulmo_models.types import Caution
from pulmo_node.assemble import stacks
from pulmo_node.assemble.choice import choose
from pulmo_node.assemble.frames import Frame, Headers, SetAside, read_belonging, read_headers
from pulmo_node.assemble.geometry import Axes, Grid, common_axes, regular_grid
from pulmo_node.assemble.levels import POSITION_TAG
from pulmo_node.assemble.planned import PlannedVolume, SeriesPlan, listing
from pulmo_node.assemble.slices import SliceReader
from pulmo_node.errors import Rejected

MINIMUM_SLICES = 8  # with 3 mm slices, less than a nodule and its surroundings
MAX_SPACING_MM = 10.0
CAUTION_SPACING_MM = 3.0
MAX_SIDE_PIXELS = 4096
MAX_VOXELS = 2_000_000_000  # 8 GB of float32
PIXEL_SPACING_RANGE_MM = (0.05, 5.0)
MAX_SLOPE, MAX_INTERCEPT = 1000.0, 100_000.0  # far beyond any scanner
_ONE_PATIENT = (RejectionCode.PATIENT_CONFLICT, "patient IDs", "(0010,0020) PatientID")
HU_NAMES = ("", "HU", "HOUNSFIELD", "HOUNSFIELD UNIT", "HOUNSFIELD UNITS", "HOUNDSFIELD UNIT")  # the last as seen


def plan_ct(
    paths: Sequence[Path], *, minimum_slices: int = MINIMUM_SLICES, reader: SliceReader | None = None
) -> SeriesPlan:
    """Split a CT series into stacks, try each, and choose one.

    Args:
        paths: Part 10 files of one series, in any order.
        minimum_slices: stacks of fewer images are refused.
        reader: shared with a later reading of the pixels, and its headers with whoever described the series.

    Raises:
        Rejected: nothing can be said of any stack: UNREADABLE, PATIENT_CONFLICT, SEVERAL_SERIES or
            SEVERAL_FRAMES_OF_REFERENCE.
    """
    reader = reader or SliceReader()
    headers = read_headers(paths, reader.files)
    _check_one_subject(headers)
    tried = [volume for frames in stacks.alike(headers.frames) for volume in _volumes(frames, minimum_slices, reader)]
    volumes, rejection = choose(tried, minimum_slices)
    return SeriesPlan(
        volumes=volumes,
        set_aside=headers.set_aside,
        rejection=rejection and _with_left_out(rejection, headers.set_aside),
    )


def _check_one_subject(headers: Headers) -> None:
    """One patient, one series, not more than one frame of reference. The patient IDs themselves are never told."""
    belongings = headers.belongings
    _check_equal([(b.file, b.file, b.patient) for b in belongings], *_ONE_PATIENT)
    _check_equal(
        [(b.file, b.file, b.series_instance_uid) for b in belongings],
        RejectionCode.SEVERAL_SERIES,
        "series",
        "(0020,000E) SeriesInstanceUID",
    )
    _check_equal(
        [(frame.path.name, frame.label, frame.frame_of_reference_uid) for frame in headers.frames],
        RejectionCode.SEVERAL_FRAMES_OF_REFERENCE,
        "frames of reference",
        "(0020,0052) FrameOfReferenceUID",
    )


def _check_equal(found: Sequence[tuple[str, str, object]], code: RejectionCode, what: str, tag: str) -> None:
    """Refuse where values of (file, label, value) differ."""
    count = len({value for _, _, value in found})
    if count > 1:
        file, label, _ = next(item for item in found if item[2] != found[0][2])
        raise Rejected(
            code,
            f"the images belong to {count} different {what}: {label} differs from {found[0][1]}",
            file=file,
            tag=tag,
        )


def check_one_patient(paths: Sequence[Path]) -> None:
    """Compare the patient IDs of files that should belong to one patient, such as one of every series of a study.

    Files that cannot be read are passed over; they are refused with their own series.

    Raises:
        Rejected: PATIENT_CONFLICT. The IDs themselves are never told.
    """
    belongings = []
    for path in paths:
        with suppress(Rejected):
            belongings.append(read_belonging(path))
    _check_equal([(b.file, b.file, b.patient) for b in belongings], *_ONE_PATIENT)


def _with_left_out(rejected: Rejected, aside: Sequence[SetAside]) -> Rejected:
    """What was left out may be the very cause: a cut-off file has no pixel data and leaves a gap."""
    if not aside:
        return rejected
    left_out = listing([f"{item.file}: {item.reason}" for item in aside], most=5)
    sentence = f"{rejected.sentence} (left out before: {left_out})"
    return Rejected(rejected.code, sentence, file=rejected.file, tag=rejected.tag)


def _volumes(frames: Sequence[Frame], minimum_slices: int, reader: SliceReader) -> list[PlannedVolume]:
    """Frames that are alike: what they make, one or more volumes or refusals."""
    try:
        _check_pixels(frames)
        axes = common_axes(frames)
        runs = stacks.apart(frames, axes)
    except Rejected as rejected:
        return [_refused(frames, rejected)]
    found = []
    for run in runs:
        try:
            _check_values(run)
            singles = stacks.single(run, axes, reader)
        except Rejected as rejected:
            found.append(_refused(run, rejected))
            continue
        found.extend(_volume(stack, axes, minimum_slices) for stack in singles)
    return found


def _volume(stack: stacks.Stack, axes: Axes, minimum_slices: int) -> PlannedVolume:
    try:
        grid = regular_grid(stack.frames, axes)
        _check_extent(grid, minimum_slices)
    except Rejected as rejected:
        return replace(_refused(stack.frames, rejected), repeated=stack.repeated)
    return PlannedVolume(
        frames=grid.frames,
        repeated=stack.repeated,
        grid=grid,
        rejection=None,
        extent_mm=_extent_mm(grid.frames),
        cautions=_cautions(grid, stack.repeated),
    )


def _refused(frames: Sequence[Frame], rejected: Rejected) -> PlannedVolume:
    return PlannedVolume(frames=tuple(frames), repeated=(), grid=None, rejection=rejected, extent_mm=_extent_mm(frames))


def _extent_mm(frames: Sequence[Frame]) -> float:
    cosines = frames[0].row_and_column_cosines
    normal = np.cross(cosines[:3], cosines[3:])
    return float(np.ptp([frame.position_lps_mm @ normal for frame in frames]))


def _check_pixels(frames: Sequence[Frame]) -> None:
    """Plausible pixel spacing and matrix, before anything is decoded."""
    first = frames[0]
    low, high = PIXEL_SPACING_RANGE_MM
    if not all(low <= side <= high for side in first.pixel_spacing_mm):
        raise Rejected(
            RejectionCode.BAD_PIXEL_SPACING,
            f"the pixel spacing of {first.label} is missing or not between {low} and {high} mm",
            file=first.path.name,
            tag="(0028,0030) PixelSpacing",
        )
    _check_size((1, first.rows, first.columns), first)  # how many of them make one volume is not known yet


def _check_size(shape: tuple[int, int, int], first: Frame) -> None:
    slices, rows, columns = shape
    sides = 1 <= first.rows <= MAX_SIDE_PIXELS and 1 <= first.columns <= MAX_SIDE_PIXELS
    if not sides or slices * rows * columns > MAX_VOXELS:
        raise Rejected(
            RejectionCode.TOO_LARGE,
            f"a volume of {slices} x {rows} x {columns} voxels is outside what a CT series can be",
            file=first.path.name,
            tag="(0028,0010) Rows",
        )


def _check_values(frames: Sequence[Frame]) -> None:
    """The stored values of every frame must lead to HU."""
    for frame in frames:
        if frame.rescale_type.upper() not in HU_NAMES:
            raise Rejected(
                RejectionCode.NOT_HU,
                f"the pixel values of {frame.label} are {frame.rescale_type}, not Hounsfield units",
                file=frame.path.name,
                tag="(0028,3004) ModalityLUTType" if frame.modality_lut else "(0028,1054) RescaleType",
            )
        if frame.rescale and (abs(frame.rescale[0]) > MAX_SLOPE or abs(frame.rescale[1]) > MAX_INTERCEPT):
            raise Rejected(
                RejectionCode.NOT_HU,
                f"the rescale of {frame.label} cannot lead to Hounsfield units: slope {frame.rescale[0]:g}, intercept "
                f"{frame.rescale[1]:g}",
                file=frame.path.name,
                tag="(0028,1053) RescaleSlope",
            )
        if not frame.modality_lut and (frame.rescale is None or frame.rescale[0] == 0):
            raise Rejected(
                RejectionCode.RESCALE_MISSING,
                f"{frame.label} has no rescale slope and intercept, or a slope of 0, so its values cannot become HU",
                file=frame.path.name,
                tag="(0028,1053) RescaleSlope",
            )


def _check_extent(grid: Grid, minimum_slices: int) -> None:
    """Enough slices, close enough, not too many, in a named coordinate system."""
    first = grid.frames[0]
    if not first.frame_of_reference_uid:
        raise Rejected(
            RejectionCode.NO_FRAME_OF_REFERENCE,
            "the images name no frame of reference, so no result could be placed in the patient",
            file=first.path.name,
            tag="(0020,0052) FrameOfReferenceUID",
        )
    if len(grid.frames) < minimum_slices:
        raise Rejected(
            RejectionCode.TOO_FEW_SLICES,
            f"{len(grid.frames)} slices are fewer than the {minimum_slices} that an analysis needs",
            file=first.path.name,
        )
    if grid.spacing_mm > MAX_SPACING_MM + 0.01:
        raise Rejected(
            RejectionCode.TOO_THICK,
            f"the slices are {grid.spacing_mm:.1f} mm apart, more than {MAX_SPACING_MM:.0f} mm",
            file=first.path.name,
            tag=POSITION_TAG,
        )
    _check_size(grid.shape, first)


def _cautions(grid: Grid, repeated: Sequence[Frame]) -> tuple[Caution, ...]:
    """What asks for caution in the volume itself."""
    cautions = list(grid.repairs)
    if grid.spacing_mm > CAUTION_SPACING_MM + 0.01:
        sentence = (
            f"The slices are {grid.spacing_mm:.1f} mm apart; small nodules may be missed and volumes are less exact."
        )
        cautions.append(Caution(code=CautionCode.THICK_SLICES, sentence=sentence))
    acquisitions = {frame.acquisition_number for frame in grid.frames}
    if len(acquisitions) > 1:
        sentence = f"The volume joins {len(acquisitions)} acquisitions that follow one another."
        cautions.append(Caution(code=CautionCode.JOINED_ACQUISITIONS, sentence=sentence))
    if repeated:
        listed = listing([frame.label for frame in repeated])
        sentence = f"Left out as exact repetitions ({len(repeated)}): {listed}."
        cautions.append(Caution(code=CautionCode.REPEATED_IMAGES, sentence=sentence))
    return tuple(cautions)
