"""The key image of a nodule: axial, coronal and sagittal plane through it, with the outline of its mask.

Drawn from the images and the segmentation on disk when they are first looked at, all nodules of a job at once, since
the volume is read for them; kept in memory for a while.
"""

from __future__ import annotations

import asyncio
import threading
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw
from pydicom.dataset import Dataset
from pydicom.pixels.utils import iter_pixels
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from pulmo_models.types import Volume
from pulmo_node import assemble
from pulmo_node.assemble.files import READ_ERRORS
from pulmo_node.domain.jobs import Job
from pulmo_node.errors import PulmoError
from pulmo_node.reading.report import read_dataset
from pulmo_node.web.parts import NotFound, Parts, parts_of
from pulmo_node.web.studies import detail_of

Floats = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]

_SIDE_PIXELS = 240
_HALF_MM = 30.0  # of what a plane shows, from the nodule's centre
_WINDOW_HU = (-1350.0, 150.0)
_OUTLINE_RGB = (255, 90, 60)
_MOST_VOXELS = 400_000_000
_JOBS_KEPT = 32
_AT_ONCE = 4
_LETTERS = (("R", "L"), ("A", "P"), ("F", "H"))  # towards smaller and larger x, y, z of LPS

_drawing = threading.Lock()  # one volume in memory at a time
_kept: OrderedDict[tuple[str, int, str], Mapping[int, bytes]] = OrderedDict()


def endpoint() -> Callable[[Request], Awaitable[Response]]:
    """The pictures, a few at once: a study may have many, and those that wait must not hold every thread."""
    turns = asyncio.Semaphore(_AT_ONCE)

    async def in_turn(request: Request) -> Response:
        async with turns:
            return await run_in_threadpool(_nodule_picture, request)

    return in_turn


def _nodule_picture(request: Request) -> Response:
    """PNG of one nodule of a job."""
    detail = detail_of(request)
    job = next((job for job in detail.jobs if str(job.id) == request.path_params["job"]), None)
    if job is None:
        raise NotFound("There is no such job.")
    pictures = _pictures(parts_of(request), job)
    picture = next((pictures[number] for number in pictures if str(number) == request.path_params["number"]), None)
    if picture is None:
        raise NotFound("There is no picture of that.")
    return Response(picture, media_type="image/png")


def _pictures(parts: Parts, job: Job) -> Mapping[int, bytes]:
    """The pictures of a job by the number of the nodule; none where images or segmentation are gone."""
    seg = next((result for result in parts.store.job_results(job.id) if result.kind == "seg"), None)
    if seg is None:
        return {}
    key = (str(parts.config.storage), job.id, seg.sha256)
    with _drawing:
        if key not in _kept:
            paths = [parts.instances.absolute(path) for path in parts.store.instance_paths(job.series_instance_uid)]
            try:
                _kept[key] = draw(paths, parts.instances.absolute(seg.path))
            except PulmoError:
                return {}  # purged, or sent again otherwise since; the study's page says so
            while len(_kept) > _JOBS_KEPT:
                _kept.popitem(last=False)
        _kept.move_to_end(key)
        return _kept[key]


def draw(images: list[Path], segmentation: Path) -> dict[int, bytes]:
    """PNG pictures of every tracked segment, by its number.

    Raises:
        PulmoError: images or segmentation cannot be read.
    """
    dataset = read_dataset(segmentation)
    voxels = _voxels_lps_mm(dataset)
    volume = assemble.assemble(images, assemble.describe(images))
    if not isinstance(volume, Volume) or volume.hu.size > _MOST_VOXELS:
        return {}
    inside = {number: _indices(volume, places) for number, places in voxels.items()}
    tracked = [int(segment.SegmentNumber) for segment in dataset.SegmentSequence if "TrackingUID" in segment]
    return {number: _png(volume, inside[number]) for number in tracked if len(inside.get(number, ()))}


def _voxels_lps_mm(dataset: Dataset) -> dict[int, Floats]:
    """Centres of the voxels of each segment, (N, 3) LPS mm (PS3.3 C.7.6.2.1.1)."""
    label_map = dataset.SegmentationType == "LABELMAP"
    shared = dataset.SharedFunctionalGroupsSequence[0]
    found: dict[int, list[Floats]] = {}
    try:
        for groups, frame in zip(dataset.PerFrameFunctionalGroupsSequence, iter_pixels(dataset), strict=True):
            pixels = np.asarray(frame)
            if label_map:
                numbers = [int(number) for number in np.unique(pixels) if number]
            else:
                item = groups.get("SegmentIdentificationSequence") or shared.SegmentIdentificationSequence
                numbers = [int(item[0].ReferencedSegmentNumber)]
            for number in numbers:
                rows, columns = np.nonzero(pixels == number if label_map else pixels)
                found.setdefault(number, []).append(_places(groups, shared, rows, columns))
    except READ_ERRORS as exc:
        raise PulmoError(f"a segmentation cannot be read ({type(exc).__name__})") from exc
    return {number: np.concatenate(places) for number, places in found.items()}


def _places(groups: Dataset, shared: Dataset, rows: Any, columns: Any) -> Floats:
    def of(name: str) -> Dataset:
        item: Dataset = (groups.get(name) or shared[name].value)[0]
        return item

    origin = np.array(of("PlanePositionSequence").ImagePositionPatient, dtype=float)
    cosines = np.array(of("PlaneOrientationSequence").ImageOrientationPatient, dtype=float)
    between_rows, between_columns = (float(value) for value in of("PixelMeasuresSequence").PixelSpacing)
    along_row = np.outer(columns * between_columns, cosines[:3])
    down = np.outer(rows * between_rows, cosines[3:])
    return np.asarray(origin + along_row + down, dtype=np.float64)


def _indices(volume: Volume, places: Floats) -> Indices:
    """The voxels of places in LPS mm, those outside of the volume left out."""
    inverse = np.linalg.inv(volume.affine)
    index = np.rint(places @ inverse[:3, :3].T + inverse[:3, 3]).astype(np.int64)
    inside = np.all((index >= 0) & (index < volume.hu.shape), axis=1)
    return np.asarray(index[inside], dtype=np.int64)


def _png(volume: Volume, index: Indices) -> bytes:
    centre = np.rint(index.mean(axis=0)).astype(int)
    box = _box(volume, centre)
    inside = _mask_in(box, index)
    picture = Image.new("RGB", (3 * _SIDE_PIXELS, _SIDE_PIXELS))
    for normal in range(3):  # across slices: axial; across rows: coronal; across columns: sagittal
        picture.paste(_plane(volume, box, inside, centre, normal), (normal * _SIDE_PIXELS, 0))
    buffer = BytesIO()
    picture.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def _box(volume: Volume, centre: Any) -> tuple[slice, slice, slice]:
    reach = np.ceil(_HALF_MM / np.array(volume.spacing_mm)).astype(int)
    low = np.maximum(centre - reach, 0)
    high = np.minimum(centre + reach + 1, volume.hu.shape)
    return slice(low[0], high[0]), slice(low[1], high[1]), slice(low[2], high[2])


def _mask_in(box: tuple[slice, slice, slice], index: Any) -> npt.NDArray[np.bool_]:
    start = np.array([part.start for part in box])
    shape = tuple(int(part.stop - part.start) for part in box)
    inside = np.zeros(shape, dtype=bool)
    moved = index - start
    moved = moved[np.all((moved >= 0) & (moved < shape), axis=1)]
    inside[tuple(moved.T)] = True
    return inside


def _plane(
    volume: Volume, box: tuple[slice, slice, slice], inside: npt.NDArray[np.bool_], centre: Any, normal: int
) -> Image.Image:
    """One plane, turned so that a reader sees the patient from the feet, from the front, from the left."""
    at = int(centre[normal] - box[normal].start)
    grey = np.take(volume.hu[box], at, axis=normal)
    mask = np.take(inside, at, axis=normal)
    axes = [axis for axis in (0, 1, 2) if axis != normal]  # down, then right
    steps_mm, letters = [], []
    for place, axis in enumerate(axes):
        towards = int(np.argmax(np.abs(volume.affine[:3, axis])))
        rising = volume.affine[towards, axis] > 0
        wanted = not (place == 0 and towards == 2)  # feet below; else towards left and back
        if rising != wanted:
            grey, mask = np.flip(grey, place), np.flip(mask, place)
        low, high = _LETTERS[towards]
        letters.append((low, high) if wanted else (high, low))
        steps_mm.append(volume.spacing_mm[axis])
    height_mm, width_mm = grey.shape[0] * steps_mm[0], grey.shape[1] * steps_mm[1]
    scale = _SIDE_PIXELS / (2 * _HALF_MM)
    size = (max(1, round(width_mm * scale)), max(1, round(height_mm * scale)))
    low_hu, high_hu = _WINDOW_HU
    shades = np.clip((grey - low_hu) / (high_hu - low_hu) * 255, 0, 255).astype(np.uint8)
    image = Image.fromarray(shades).resize(size, Image.Resampling.BILINEAR).convert("RGB")
    outline = np.asarray(Image.fromarray(mask.astype(np.uint8) * 255).resize(size, Image.Resampling.NEAREST)) > 0
    pixels = np.array(image)
    pixels[_edge(outline)] = _OUTLINE_RGB
    whole = Image.new("RGB", (_SIDE_PIXELS, _SIDE_PIXELS))
    whole.paste(Image.fromarray(pixels), ((_SIDE_PIXELS - size[0]) // 2, (_SIDE_PIXELS - size[1]) // 2))
    _letter(whole, letters)
    return whole


def _edge(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    padded = np.pad(mask, 1)
    inner = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return np.asarray(mask & ~inner)


def _letter(picture: Image.Image, letters: list[tuple[str, str]]) -> None:
    draw = ImageDraw.Draw(picture)
    middle, far = _SIDE_PIXELS // 2, _SIDE_PIXELS - 12
    (top, bottom), (left, right) = letters
    for text, place in ((top, (middle, 2)), (bottom, (middle, far)), (left, (2, middle)), (right, (far, middle))):
        draw.text(place, text, fill=(255, 255, 255), stroke_width=1, stroke_fill=(0, 0, 0))
