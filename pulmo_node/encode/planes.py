"""A picture of a whole volume: its three middle planes in the lung window, at true proportions in mm.

The image plane stands as in the source; the two planes across it have the head on top. All three have one scale. The
letters at the edges (R, L, A, P, H, F) name the directions of the patient (PS3.3 C.7.6.1.1.1).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from pulmo_models.types import Volume
from pulmo_node.encode.keyimage import (
    CAPTION_PIXELS,
    OUTLINE_RGB,
    TEXT_RGB,
    direction,
    draw_directions,
    panel,
    square_box,
    window,
)

_PLANES = {"L": "sagittal", "R": "sagittal", "A": "coronal", "P": "coronal", "H": "axial", "F": "axial"}


@dataclass(frozen=True, kw_only=True, eq=False)
class _Plane:
    hu: npt.NDArray[np.float32]  # (rows, columns) of the picture
    down_lps: npt.NDArray[np.float64]  # from one row to the next, mm
    right_lps: npt.NDArray[np.float64]

    @property
    def spacing_mm(self) -> tuple[float, float]:
        return float(np.linalg.norm(self.down_lps)), float(np.linalg.norm(self.right_lps))

    def from_middle_mm(self, step_lps_mm: npt.NDArray[np.float64]) -> tuple[float, float]:
        """A step from the middle of the volume as mm to the right and down on the picture."""
        down_mm, right_mm = self.spacing_mm
        return float(step_lps_mm @ self.right_lps / right_mm), float(step_lps_mm @ self.down_lps / down_mm)

    @property
    def name(self) -> str:
        return _PLANES[direction(np.cross(self.down_lps, self.right_lps))]


def render_planes(
    volume: Volume, caption: str, size: int = 400, marks: Mapping[str, tuple[float, float, float]] | None = None
) -> Image.Image:
    """RGB picture, ``3 * size`` wide and ``size`` plus a caption high.

    ``marks`` are places in LPS mm by their names; each is shown on all three planes, as seen along their normals.
    """
    planes = _planes(volume)
    field_mm = max(n * step for plane in planes for n, step in zip(plane.hu.shape, plane.spacing_mm, strict=True))
    middle = volume.affine @ [*((n - 1) / 2 for n in volume.hu.shape), 1]
    picture = Image.new("RGB", (len(planes) * size, size + (CAPTION_PIXELS if caption else 0)))
    font = ImageFont.load_default(size=14)
    for number, plane in enumerate(planes):
        rows, columns = plane.hu.shape
        view = panel(window(plane.hu), square_box(columns / 2, rows / 2, field_mm, plane.spacing_mm), size)
        draw_directions(view, plane.down_lps, plane.right_lps)
        draw = ImageDraw.Draw(view)
        draw.text((6, 6), plane.name, fill=TEXT_RGB, font=font, stroke_width=2, stroke_fill=(0, 0, 0))
        for name, place in (marks or {}).items():
            x, y = (size / 2 + mm * size / field_mm for mm in plane.from_middle_mm(np.array(place) - middle[:3]))
            draw.ellipse([x - 7, y - 7, x + 7, y + 7], outline=OUTLINE_RGB, width=2)
            draw.text((x + 9, y), name, fill=OUTLINE_RGB, font=font, anchor="lm", stroke_width=2, stroke_fill=(0, 0, 0))
        picture.paste(view, (number * size, 0))
    ImageDraw.Draw(picture).text((8, size + 5), caption, fill=TEXT_RGB, font=font)
    return picture


def _planes(volume: Volume) -> tuple[_Plane, _Plane, _Plane]:
    """The middle plane across each axis of the volume."""
    slice_step, row_step, column_step = (volume.affine[:3, axis].copy() for axis in range(3))
    k, row, column = (n // 2 for n in volume.hu.shape)
    upwards = slice_step[2] > 0  # the head is at the last slice, which goes to the top
    order = slice(None, None, -1 if upwards else 1)
    down = -slice_step if upwards else slice_step
    return (
        _Plane(hu=volume.hu[k], down_lps=row_step, right_lps=column_step),
        _Plane(hu=volume.hu[order, row, :], down_lps=down, right_lps=column_step),
        _Plane(hu=volume.hu[order, :, column], down_lps=down, right_lps=row_step),
    )
