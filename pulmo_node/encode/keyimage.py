"""Slices as pictures: the key slice of a mask in the lung window, whole and enlarged, with its outline.

Pixels of the picture are square in mm whatever the spacing of the image. Rows and columns stand as in the source;
the letters at the edges (R, L, A, P, H, F) name the directions of the patient (PS3.3 C.7.6.1.1.1).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from pulmo_models.types import Axis, Mask, Volume

LUNG_WINDOW_HU = (-600.0, 1500.0)  # centre, width
OUTLINE_RGB = (255, 80, 60)
AXIS_RGB = (255, 220, 60)
MINIMUM_FIELD_MM = 50.0
CAPTION_PIXELS = 26
TEXT_RGB = (235, 235, 235)

Box = tuple[float, float, float, float]  # left, top, right, bottom in source pixels; pixel n covers n to n + 1


def render_mask(volume: Volume, mask: Mask, caption: str, size: int = 480) -> Image.Image:
    """RGB picture, ``2 * size`` wide and ``size`` plus a caption high: the whole slice on the left, the mask right."""
    picture = Image.new("RGB", (2 * size, size + CAPTION_PIXELS))
    for number, view in enumerate(render_views(volume, mask, size)):
        picture.paste(view, (number * size, 0))
    ImageDraw.Draw(picture).text((8, size + 5), caption, fill=TEXT_RGB, font=ImageFont.load_default(size=14))
    return picture


def render_views(
    volume: Volume, mask: Mask, size: int, axes: Sequence[Axis] = (), *, wanted: int | None = None
) -> tuple[Image.Image, Image.Image]:
    """The whole slice with a frame around the mask, and the mask enlarged with its outline; ``size`` pixels square.

    The slice is that of `key_slice`; axes on it are drawn as lines.
    """
    slice_index, plane = key_slice(volume, mask, wanted)
    grey = window(volume.hu[slice_index])
    _, row_mm, column_mm = volume.spacing_mm
    rows, columns = grey.shape
    whole = square_box(columns / 2, rows / 2, max(rows * row_mm, columns * column_mm), (row_mm, column_mm))
    near = _nodule_box(plane, (row_mm, column_mm))
    overview, detail = panel(grey, whole, size), panel(grey, near, size)
    corners = [_to_panel(x, y, whole, size) for x, y in (near[:2], near[2:])]
    ImageDraw.Draw(overview).rectangle([*corners[0], *corners[1]], outline=OUTLINE_RGB, width=2)
    draw_directions(overview, volume.affine[:3, 1], volume.affine[:3, 2])
    _draw_outline(detail, plane, near)
    for axis in axes:
        if round(axis.start[0]) == slice_index:
            ends = [_to_panel(point[2] + 0.5, point[1] + 0.5, near, size) for point in (axis.start, axis.end)]
            ImageDraw.Draw(detail).line(ends, fill=AXIS_RGB, width=1)
    return overview, detail


def key_slice(volume: Volume, mask: Mask, wanted: int | None = None) -> tuple[int, npt.NDArray[np.bool_]]:
    """Index of the ``wanted`` slice, or where the mask is not on it of that of its largest area (the first of equals).

    With it the mask on that slice, bool (rows, columns) of the volume.
    """
    areas = mask.voxels.sum(axis=(1, 2))
    z = -1 if wanted is None else wanted - mask.origin[0]
    if not 0 <= z < len(areas) or not areas[z]:
        z = int(areas.argmax())
    plane = np.zeros(volume.hu.shape[1:], dtype=bool)
    plane[mask.slices[1:]] = mask.voxels[z]
    return mask.origin[0] + z, plane


def window(hu: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    """HU as grey levels in the lung window."""
    centre, width = LUNG_WINDOW_HU
    grey: npt.NDArray[np.uint8] = (np.clip((hu - (centre - width / 2)) / width, 0, 1) * 255).round().astype(np.uint8)
    return grey


def square_box(x: float, y: float, field_mm: float, spacing_mm: tuple[float, float]) -> Box:
    """The box of a field that is square in mm around a point; ``spacing_mm`` is along (y, x)."""
    half_x, half_y = field_mm / 2 / spacing_mm[1], field_mm / 2 / spacing_mm[0]
    return x - half_x, y - half_y, x + half_x, y + half_y


def _nodule_box(plane: npt.NDArray[np.bool_], spacing_mm: tuple[float, float]) -> Box:
    """A square field around the mask, at least `MINIMUM_FIELD_MM` and twice the nodule."""
    rows, columns = np.nonzero(plane)
    top, bottom, left, right = rows.min(), rows.max() + 1, columns.min(), columns.max() + 1
    extent_mm = max((bottom - top) * spacing_mm[0], (right - left) * spacing_mm[1])
    field_mm = max(MINIMUM_FIELD_MM, 2.0 * float(extent_mm))
    return square_box(float(left + right) / 2, float(top + bottom) / 2, field_mm, spacing_mm)


def panel(grey: npt.NDArray[np.uint8], box: Box, size: int) -> Image.Image:
    """The part of an image that lies in the box, ``size`` pixels wide and high; black beside the image."""
    left, top, right, bottom = box
    to_source = ((right - left) / size, 0.0, left, 0.0, (bottom - top) / size, top)
    image = Image.fromarray(grey)
    return image.transform((size, size), Image.Transform.AFFINE, to_source, resample=Image.Resampling.BICUBIC).convert(
        "RGB"
    )


def _to_panel(x: float, y: float, box: Box, size: int) -> tuple[float, float]:
    left, top, right, bottom = box
    return (x - left) / (right - left) * size, (y - top) / (bottom - top) * size


def _draw_outline(panel: Image.Image, plane: npt.NDArray[np.bool_], box: Box) -> None:
    """Draw the edges between voxels inside and outside of the mask."""
    draw = ImageDraw.Draw(panel)
    padded = np.pad(plane, 1)
    for row, column in np.argwhere(padded[:, 1:] != padded[:, :-1]):  # an edge left of column `column`
        ends = ((column, row - 1), (column, row))
        draw.line([_to_panel(x, y, box, panel.width) for x, y in ends], fill=OUTLINE_RGB, width=2)
    for row, column in np.argwhere(padded[1:] != padded[:-1]):  # an edge above row `row`
        ends = ((column - 1, row), (column, row))
        draw.line([_to_panel(x, y, box, panel.width) for x, y in ends], fill=OUTLINE_RGB, width=2)


def draw_directions(
    picture: Image.Image, down_lps: npt.NDArray[np.float64], right_lps: npt.NDArray[np.float64]
) -> None:
    """Letters of the patient's directions at the middle of each edge."""
    size = picture.width
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(size=16)
    for text, anchor, place in (
        (direction(-right_lps), "lm", (6, size / 2)),
        (direction(right_lps), "rm", (size - 6, size / 2)),
        (direction(-down_lps), "mt", (size / 2, 6)),
        (direction(down_lps), "mb", (size / 2, size - 6)),
    ):
        draw.text(place, text, fill=TEXT_RGB, font=font, anchor=anchor, stroke_width=2, stroke_fill=(0, 0, 0))


def direction(step_lps: npt.NDArray[np.float64]) -> str:
    """The letter of the patient's direction that a vector in LPS points to most."""
    axis = int(np.abs(step_lps).argmax())
    return ("LPH" if math.copysign(1, step_lps[axis]) > 0 else "RAF")[axis]
