"""The images of one series, split into stacks that could each be a volume.

Input: frames. Output: lists of frames that are alike, do not overlap in time or acquisition, and lie at different
positions. Nothing is decoded but images at one position. The rules are told in docs/assembly.md.
"""

from __future__ import annotations

import hashlib
import math
from bisect import bisect_left, insort
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pulmo_models.codes import RejectionCode
from pulmo_node.assemble.frames import Frame
from pulmo_node.assemble.geometry import SHIFT_TOLERANCE_MM, Axes, along_normal_mm, in_plane_mm
from pulmo_node.assemble.levels import POSITION_TAG
from pulmo_node.assemble.slices import SliceReader
from pulmo_node.errors import Rejected

Float64Array = npt.NDArray[np.float64]

SAME_POSITION_MM = 0.01  # closer than this along the normal, two slices are at one position
COSINE_TOLERANCE = 1e-4  # of direction cosines between slices: 0.04 mm at the far corner
SPACING_TOLERANCE_MM = 2e-4  # of pixel spacing between slices: 0.1 mm over 512 pixels


@dataclass(frozen=True, kw_only=True)
class Stack:
    """Frames at different positions, and those left out because they repeat one of them voxel by voxel."""

    frames: tuple[Frame, ...]
    repeated: tuple[Frame, ...] = ()


def alike(frames: Sequence[Frame]) -> list[list[Frame]]:
    """Split by matrix, pixel spacing, orientation, convolution kernel and image type, in the order of first sight."""
    groups: dict[tuple[object, ...], list[Frame]] = {}
    for frame in frames:
        groups.setdefault((frame.rows, frame.columns, frame.kernel, frame.image_type), []).append(frame)
    return [parallel for group in groups.values() for parallel in _parallel(group)]


def _parallel(frames: Sequence[Frame]) -> Iterator[list[Frame]]:
    """Frames of one orientation and pixel spacing: each group is near its first frame."""
    values = np.array([[*frame.row_and_column_cosines, *frame.pixel_spacing_mm] for frame in frames])
    tolerance = np.array([COSINE_TOLERANCE] * 6 + [SPACING_TOLERANCE_MM] * 2)
    left = np.arange(len(frames))
    while left.size:
        near = (np.abs(values[left] - values[left[0]]) <= tolerance).all(axis=1)
        yield [frames[k] for k in left[near]]
        left = left[~near]


def apart(frames: Sequence[Frame], axes: Axes) -> list[list[Frame]]:
    """Split by acquisition, by temporal position and by stack where these overlap in space.

    Step-and-shoot scanners count one acquisition for every table position: what follows one another along the normal
    stays together. Phases and repeated scans overlap, and each of their acquisitions joins the first run that it
    does not overlap.
    """
    keys: tuple[Callable[[Frame], str], ...] = (
        lambda frame: frame.acquisition_number,
        lambda frame: frame.temporal_position,
        lambda frame: frame.stack_id,
    )
    groups = [list(frames)]
    for key in keys:
        groups = [run for group in groups for run in _runs(group, axes, key)]
    return groups


def _runs(frames: Sequence[Frame], axes: Axes, key: Callable[[Frame], str]) -> list[list[Frame]]:
    """Frames of equal key stay together; keys are joined, in ascending order, as long as their ranges are apart."""
    distance = along_normal_mm(frames, axes)
    members: dict[str, list[int]] = {}
    for k, frame in enumerate(frames):
        members.setdefault(key(frame), []).append(k)
    runs: list[tuple[list[tuple[float, float]], list[Frame]]] = []
    for value in sorted(members, key=natural):
        inside = members[value]
        extent = float(distance[inside].min()), float(distance[inside].max())
        taken, run = next((run for run in runs if not _overlaps(extent, run[0])), ([], []))
        if not run:
            runs.append((taken, run))
        insort(taken, extent)
        run.extend(frames[k] for k in inside)
    return [run for _, run in runs]


def natural(value: str) -> tuple[tuple[float, str], ...]:
    """Sorts numbers as numbers, before texts."""
    return tuple(_number_or_text(part) for part in value.split("/"))


def _number_or_text(part: str) -> tuple[float, str]:
    try:
        number = float(part)
    except ValueError:
        return math.inf, part
    return (number, "") if math.isfinite(number) else (math.inf, part)


def _overlaps(extent: tuple[float, float], taken: Sequence[tuple[float, float]]) -> bool:
    """Whether a range meets one of several sorted ones that do not overlap."""
    at = bisect_left(taken, extent)
    before = at > 0 and taken[at - 1][1] >= extent[0] - SAME_POSITION_MM
    after = at < len(taken) and taken[at][0] <= extent[1] + SAME_POSITION_MM
    return before or after


def single(frames: Sequence[Frame], axes: Axes, reader: SliceReader) -> list[Stack]:
    """Leave out exact repetitions, and split what lies several times at every position.

    Raises:
        Rejected: DUPLICATE_POSITION where images at one position differ and nothing tells which belong together,
            DUPLICATE_UID where different slices share a UID; the codes of decoding.
    """
    kept: list[list[Frame]] = []
    copies: list[tuple[Frame, Frame]] = []  # the copy, and the image that it repeats
    for images in _at_one_position(frames, axes):
        distinct, found = _distinct(images, reader)
        kept.append(distinct)
        copies.extend(found)
    count = len(kept[0])
    if all(len(images) == 1 for images in kept):
        stacks = [[images[0] for images in kept]]
    elif len(kept) > 1 and all(len(images) == count for images in kept):
        stacks = _by_rank(kept, axes)
    else:
        raise _unclear(next(images for images in kept if len(images) > 1))
    for stack in stacks:
        _check_unique_uids(stack)
    return [_with_copies(stack, copies) for stack in stacks]


def _with_copies(stack: Sequence[Frame], copies: Sequence[tuple[Frame, Frame]]) -> Stack:
    inside = set(map(id, stack))
    return Stack(frames=tuple(stack), repeated=tuple(copy for copy, image in copies if id(image) in inside))


def _at_one_position(frames: Sequence[Frame], axes: Axes) -> list[list[Frame]]:
    distance = along_normal_mm(frames, axes)
    order = sorted(range(len(frames)), key=lambda k: (distance[k], frames[k].sop_instance_uid, frames[k].label))
    positions: list[list[Frame]] = []
    last_mm = -np.inf
    for k in order:
        if distance[k] - last_mm > SAME_POSITION_MM:
            positions.append([])
            last_mm = distance[k]
        positions[-1].append(frames[k])
    return positions


def _distinct(images: Sequence[Frame], reader: SliceReader) -> tuple[list[Frame], list[tuple[Frame, Frame]]]:
    """Images at one position, and (copy, image) where one repeats another: same place in the plane, same HU."""
    if len(images) == 1:
        return list(images), []
    distinct: list[tuple[Frame, bytes]] = []
    copies: list[tuple[Frame, Frame]] = []
    for image in images:
        digest = hashlib.sha256(reader.hu(image).data).digest()
        repeats = (frame for frame, other in distinct if digest == other and _same_place(image, frame))
        if (repeated := next(repeats, None)) is not None:
            copies.append((image, repeated))
        else:
            distinct.append((image, digest))
    return [frame for frame, _ in distinct], copies


def _same_place(one: Frame, other: Frame) -> bool:
    return bool(np.allclose(one.position_lps_mm, other.position_lps_mm, rtol=0, atol=SAME_POSITION_MM))


def _by_rank(positions: Sequence[Sequence[Frame]], axes: Axes) -> list[list[Frame]]:
    """Stacks of the first, second, ... image of every position, by the first attribute that tells them apart."""
    for values, least in _attributes(positions, axes):
        order = np.argsort(values, axis=1, kind="stable")
        ranked = np.take_along_axis(values, order, axis=1)
        if _tells_apart(ranked, least):
            return [
                [images[row[rank]] for images, row in zip(positions, order, strict=True)]
                for rank in range(values.shape[1])
            ]
    raise _unclear(positions[0])


def _attributes(positions: Sequence[Sequence[Frame]], axes: Axes) -> Iterator[tuple[Float64Array, float]]:
    """Numbers ``(positions, images)`` to rank by, and the least step that counts: place in the plane, time, number."""
    in_plane = np.array([in_plane_mm(images, axes) for images in positions])
    yield in_plane[:, :, 1], SHIFT_TOLERANCE_MM
    yield in_plane[:, :, 0], SHIFT_TOLERANCE_MM
    times = {time: k for k, time in enumerate(sorted({frame.acquired for images in positions for frame in images}))}
    yield np.array([[times[frame.acquired] for frame in images] for images in positions], dtype=np.float64), 0.0
    yield np.array([[frame.instance_number for frame in images] for images in positions], dtype=np.float64), 0.0


def _tells_apart(ranked: Float64Array, least: float) -> bool:
    """Whether the ranks are separate ranges, or always the same step apart (to `least`)."""
    steps = np.diff(ranked, axis=1)
    if steps.min() <= least:
        return False
    ranges = (ranked[:, 1:].min(axis=0) - ranked[:, :-1].max(axis=0) > least).all()
    return bool(ranges or np.ptp(steps, axis=0).max() <= least)


def _unclear(images: Sequence[Frame]) -> Rejected:
    return Rejected(
        RejectionCode.DUPLICATE_POSITION,
        f"{images[1].label} and {images[0].label} lie at one position and differ, and nothing tells which of them "
        "belongs to the other slices",
        file=images[1].path.name,
        tag=POSITION_TAG,
    )


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
