"""CT files to one `Volume`, or `Rejected` with the first reason why they are not one regular axial volume.

Input: the files of one series in any order. Output: HU ascending along the normal (row cosines x column cosines).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydicom import Dataset

from pulmo_models.codes import CautionCode, RejectionCode
from pulmo_models.types import Caution, SeriesDescription, SourceFrame, Volume
from pulmo_node.assemble.frames import Frame, SetAside, read_frames
from pulmo_node.assemble.geometry import SAME_POSITION_MM, Axes, Grid, along_normal_mm, common_axes, regular_grid
from pulmo_node.assemble.pixels import read_pixel_module, stored_values, write_hu
from pulmo_node.errors import Rejected

Float32Array = npt.NDArray[np.float32]

MINIMUM_SLICES = 8  # with 3 mm slices, less than a nodule and its surroundings
MAX_SPACING_MM = 10.0
CAUTION_SPACING_MM = 3.0
MAX_SIDE_PIXELS = 4096
MAX_VOXELS = 2_000_000_000  # 8 GB of float32
PIXEL_SPACING_RANGE_MM = (0.05, 5.0)
HU_NAMES = ("", "HU", "HOUNSFIELD", "HOUNSFIELD UNIT", "HOUNSFIELD UNITS", "HOUNDSFIELD UNIT")  # the last as seen


def assemble_ct(paths: Sequence[Path], series: SeriesDescription, *, minimum_slices: int = MINIMUM_SLICES) -> Volume:
    """Assemble one regular, near axial CT volume.

    Args:
        paths: Part 10 files of one series, in any order.
        series: what `describe` said of them; goes into the volume.
        minimum_slices: fewer are refused.

    Returns:
        float32 HU, nothing below -1024; ``sources[k]`` is the image behind slice ``k``; the affine is right-handed in
        (column, row, slice) terms.

    Raises:
        Rejected: see docs/assembly.md for every code.
    """
    frames, aside = read_frames(paths)
    try:
        grid, repeated = _one_stack(frames, minimum_slices)
    except Rejected as rejected:
        if not aside:
            raise
        # What was left out may be the very cause: a cut-off file has no pixel data and leaves a gap.
        left_out = "; ".join(f"{item.file}: {item.reason}" for item in aside[:5])
        more = f" and {len(aside) - 5} more" if len(aside) > 5 else ""
        sentence = f"{rejected.sentence} (left out before: {left_out}{more})"
        raise Rejected(rejected.code, sentence, file=rejected.file, tag=rejected.tag) from rejected
    return Volume(
        hu=_read_hu(grid),
        affine=grid.affine,
        frame_of_reference_uid=grid.frames[0].frame_of_reference_uid,
        series=series,
        frames=tuple(_source(frame) for frame in grid.frames),
        cautions=_cautions(grid, aside, repeated),
    )


def _one_stack(frames: Sequence[Frame], minimum_slices: int) -> tuple[Grid, list[Frame]]:
    """The grid of the frames, and those left out as repetitions; only images at one position are decoded here."""
    if not frames:
        raise Rejected(RejectionCode.NO_IMAGES, "the series holds no CT image that has pixels and a position")
    _check_one_subject(frames)
    _check_grid(frames)
    _check_values(frames)
    axes = common_axes(frames)
    _check_one_acquisition(frames, axes)
    kept, repeated = _without_duplicates(frames, axes)
    grid = regular_grid(kept, axes)
    _check_extent(grid, minimum_slices)
    return grid, repeated


def _check_one_subject(frames: Sequence[Frame]) -> None:
    """One patient, one series, not more than one frame of reference. The patient IDs themselves are never told."""
    rules: tuple[tuple[RejectionCode, str, str, Callable[[Frame], object]], ...] = (
        (RejectionCode.PATIENT_CONFLICT, "patient IDs", "(0010,0020) PatientID", lambda f: f.patient),
        (RejectionCode.SEVERAL_SERIES, "series", "(0020,000E) SeriesInstanceUID", lambda f: f.series_instance_uid),
        (
            RejectionCode.SEVERAL_FRAMES_OF_REFERENCE,
            "frames of reference",
            "(0020,0052) FrameOfReferenceUID",
            lambda f: f.frame_of_reference_uid,
        ),
    )
    for code, what, tag, key in rules:
        values = {key(frame) for frame in frames}
        if len(values) > 1:
            other = next(frame for frame in frames if key(frame) != key(frames[0]))
            raise Rejected(
                code,
                f"the images belong to {len(values)} different {what}: {other.label} differs from {frames[0].label}",
                file=other.path.name,
                tag=tag,
            )


def _check_grid(frames: Sequence[Frame]) -> None:
    """Equal rows, columns and pixel spacing, all of them plausible."""
    first = frames[0]
    for frame in frames:
        low, high = PIXEL_SPACING_RANGE_MM
        if not all(low <= side <= high for side in frame.pixel_spacing_mm):
            raise Rejected(
                RejectionCode.BAD_PIXEL_SPACING,
                f"the pixel spacing of {frame.label} is missing or not between {low} and {high} mm",
                file=frame.path.name,
                tag="(0028,0030) PixelSpacing",
            )
        if (frame.rows, frame.columns) != (first.rows, first.columns):
            raise Rejected(
                RejectionCode.INCONSISTENT_GRID,
                f"{frame.label} has {frame.rows} x {frame.columns} pixels and "
                f"{first.label} {first.rows} x {first.columns}",
                file=frame.path.name,
                tag="(0028,0010) Rows",
            )
        # Over 512 pixels, 2e-4 mm add up to 0.1 mm at the far edge.
        if not np.allclose(frame.pixel_spacing_mm, first.pixel_spacing_mm, rtol=0, atol=2e-4):
            raise Rejected(
                RejectionCode.INCONSISTENT_GRID,
                f"{frame.label} has another pixel spacing than {first.label}",
                file=frame.path.name,
                tag="(0028,0030) PixelSpacing",
            )
    if not (1 <= first.rows <= MAX_SIDE_PIXELS and 1 <= first.columns <= MAX_SIDE_PIXELS):
        raise _too_large(frames)
    if first.rows * first.columns * len(frames) > MAX_VOXELS:
        raise _too_large(frames)


def _too_large(frames: Sequence[Frame]) -> Rejected:
    first = frames[0]
    return Rejected(
        RejectionCode.TOO_LARGE,
        f"{len(frames)} images of {first.rows} x {first.columns} pixels are outside what a CT series can be",
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
                tag="(0028,1054) RescaleType",
            )
        if frame.rescale is None or frame.rescale[0] == 0:
            raise Rejected(
                RejectionCode.RESCALE_MISSING,
                f"{frame.label} has no rescale slope and intercept, or a slope of 0, so its values cannot become HU",
                file=frame.path.name,
                tag="(0028,1053) RescaleSlope",
            )


def _check_one_acquisition(frames: Sequence[Frame], axes: Axes) -> None:
    """Refuse acquisitions that overlap in space, and several kernels.

    Step-and-shoot scanners count one acquisition for every table position; such acquisitions follow one another along
    the normal and are one volume. Phases and repeated scans overlap.
    """
    kernels = {frame.kernel for frame in frames}
    if len(kernels) > 1:
        raise Rejected(
            RejectionCode.SEVERAL_KERNELS,
            f"the series mixes {len(kernels)} convolution kernels ({', '.join(sorted(kernels))})",
            tag="(0018,1210) ConvolutionKernel",
        )
    distance = along_normal_mm(frames, axes)
    numbers = np.array([frame.acquisition_number for frame in frames])
    ranges = sorted((distance[numbers == n].min(), distance[numbers == n].max(), n) for n in np.unique(numbers))
    for (_, end, before), (start, _, after) in pairwise(ranges):
        if start <= end + SAME_POSITION_MM:
            raise Rejected(
                RejectionCode.SEVERAL_ACQUISITIONS,
                f"the series holds {len(ranges)} acquisitions that overlap in space (number {before or 'none'} and "
                f"number {after or 'none'}), such as phases or a repeated scan",
                file=frames[int(np.flatnonzero(numbers == after)[0])].path.name,
                tag="(0020,0012) AcquisitionNumber",
            )


def _without_duplicates(frames: Sequence[Frame], axes: Axes) -> tuple[list[Frame], list[Frame]]:
    """Frames at different positions, and those left out because they repeat one of them voxel by voxel."""
    distance = along_normal_mm(frames, axes)
    order = sorted(range(len(frames)), key=lambda k: (distance[k], frames[k].sop_instance_uid, frames[k].label))
    kept: list[Frame] = []
    repeated: list[Frame] = []
    last_mm = -np.inf
    for k in order:
        frame = frames[k]
        if distance[k] - last_mm > SAME_POSITION_MM:
            kept.append(frame)
            last_mm = distance[k]
        elif _equal(kept[-1], frame):
            repeated.append(frame)
        else:
            raise Rejected(
                RejectionCode.DUPLICATE_POSITION,
                f"{frame.label} and {kept[-1].label} lie at one position and differ",
                file=frame.path.name,
                tag="(0020,0032) ImagePositionPatient",
            )
    _check_unique_uids(kept)
    return kept, repeated


def _check_unique_uids(frames: Sequence[Frame]) -> None:
    """A result points at its slice by UID, so two slices may not share one."""
    seen: dict[tuple[str, int | None], Frame] = {}
    for frame in frames:
        other = seen.setdefault((frame.sop_instance_uid, frame.frame_number), frame)
        if other is not frame:
            raise Rejected(
                RejectionCode.DUPLICATE_UID,
                f"{other.label} and {frame.label} are different slices with one SOP Instance UID",
                file=frame.path.name,
                tag="(0008,0018) SOPInstanceUID",
            )


def _equal(one: Frame, other: Frame) -> bool:
    """Whether two frames are the same image: same place within the plane and the same HU."""
    if not np.allclose(one.position_lps_mm, other.position_lps_mm, rtol=0, atol=SAME_POSITION_MM):
        return False
    slices = np.empty((2, one.rows, one.columns), dtype=np.float32)
    for frame, out in zip((one, other), slices, strict=True):
        _decode_into(frame, read_pixel_module(frame.path), out)
    return bool(np.array_equal(slices[0], slices[1]))


def _check_extent(grid: Grid, minimum_slices: int) -> None:
    """Enough slices, close enough, in a named coordinate system."""
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
    if grid.spacing_mm > MAX_SPACING_MM:
        raise Rejected(
            RejectionCode.TOO_THICK,
            f"the slices are {grid.spacing_mm:.1f} mm apart, more than {MAX_SPACING_MM:.0f} mm",
            file=first.path.name,
            tag="(0020,0032) ImagePositionPatient",
        )


def _read_hu(grid: Grid) -> Float32Array:
    """Decode every frame straight into the volume; of single-frame files, one is in memory at a time.

    One thread: gdcm and pyjpegls hold the interpreter lock and openjpeg brings threads of its own, so a pool gained
    nothing (docs/assembly.md has the figures).
    """
    first = grid.frames[0]
    hu = np.empty((len(grid.frames), first.rows, first.columns), dtype=np.float32)
    multi_frame: dict[Path, Dataset] = {}
    for frame, out in zip(grid.frames, hu, strict=True):
        dataset = multi_frame.get(frame.path) or read_pixel_module(frame.path)
        if frame.frame_number is not None:
            multi_frame[frame.path] = dataset
        _decode_into(frame, dataset, out)
    return hu


def _decode_into(frame: Frame, dataset: Dataset, out: Float32Array) -> None:
    stored = stored_values(frame.path, dataset, frame.frame_number)
    if frame.rescale is None or stored.shape != out.shape:
        raise Rejected(RejectionCode.UNREADABLE, f"{frame.label} changed while it was read", file=frame.path.name)
    write_hu(stored, dataset, frame.rescale, out)


def _source(frame: Frame) -> SourceFrame:
    row, column = frame.row_and_column_cosines[:3], frame.row_and_column_cosines[3:]
    between_rows_mm, between_columns_mm = frame.pixel_spacing_mm
    return SourceFrame(
        sop_class_uid=frame.sop_class_uid,
        sop_instance_uid=frame.sop_instance_uid,
        frame_number=frame.frame_number,
        path=str(frame.path),
        rows=frame.rows,
        columns=frame.columns,
        origin_lps_mm=_triple(frame.position_lps_mm),
        row_step_lps_mm=_triple(column * between_rows_mm),
        column_step_lps_mm=_triple(row * between_columns_mm),
    )


def _triple(vector: npt.NDArray[np.float64]) -> tuple[float, float, float]:
    return float(vector[0]), float(vector[1]), float(vector[2])


def _cautions(grid: Grid, aside: Sequence[SetAside], repeated: Sequence[Frame]) -> tuple[Caution, ...]:
    cautions = []
    if grid.spacing_mm > CAUTION_SPACING_MM + 0.01:
        sentence = (
            f"The slices are {grid.spacing_mm:.1f} mm apart; small nodules may be missed and volumes are less exact."
        )
        cautions.append(Caution(code=CautionCode.THICK_SLICES, sentence=sentence))
    acquisitions = {frame.acquisition_number for frame in grid.frames}
    if len(acquisitions) > 1:
        sentence = f"The volume joins {len(acquisitions)} acquisitions that follow one another."
        cautions.append(Caution(code=CautionCode.JOINED_ACQUISITIONS, sentence=sentence))
    if aside:
        listed = "; ".join(f"{item.file}: {item.reason}" for item in aside)
        cautions.append(
            Caution(code=CautionCode.SET_ASIDE, sentence=f"Left out of the volume ({len(aside)}): {listed}.")
        )
    if repeated:
        listed = ", ".join(frame.label for frame in repeated)
        sentence = f"Left out as exact repetitions ({len(repeated)}): {listed}."
        cautions.append(Caution(code=CautionCode.REPEATED_IMAGES, sentence=sentence))
    return tuple(cautions)
