"""What is found in one radiograph: scores, heat maps, estimates. Pixel indices are ``(row, column)``."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pulmo_models.types.images import BoolArray, Caution, SliceSource


@dataclass(frozen=True, kw_only=True, eq=False)
class HeatMap:
    """How much each part of a radiograph spoke for a label, float32 ``(h, w)`` from 0 to 1, coarser than the image.

    Its cells divide ``box`` evenly: first row, first column, end row, end column in pixels of the image, edges of
    pixels and not their centres; it may reach beyond the image. Outside of it the network saw nothing.
    """

    values: npt.NDArray[np.float32]
    box: tuple[float, float, float, float]

    @property
    def peak(self) -> tuple[float, float]:
        """Centre of the strongest cell as (row, column) of the image, not rounded; 0.0 is a pixel's centre."""
        index = np.unravel_index(int(np.argmax(self.values)), self.values.shape)
        first_row, first_column, end_row, end_column = self.box
        height, width = self.values.shape
        row = first_row + (index[0] + 0.5) * (end_row - first_row) / height
        column = first_column + (index[1] + 0.5) * (end_column - first_column) / width
        return float(row - 0.5), float(column - 0.5)

    def on_image(self, rows: int, columns: int) -> npt.NDArray[np.float32]:
        """The map on the pixels of the image, linear between the centres of its cells, 0 outside of its box."""
        first_row, first_column, end_row, end_column = self.box
        down, down_inside = _linear(rows, first_row, end_row, self.values.shape[0])
        along, along_inside = _linear(columns, first_column, end_column, self.values.shape[1])
        full = down @ self.values.astype(np.float64) @ along.T
        return (full * np.outer(down_inside, along_inside)).astype(np.float32)


def _linear(pixels: int, first: float, end: float, cells: int) -> tuple[npt.NDArray[np.float64], BoolArray]:
    """Weights ``(pixels, cells)`` of linear interpolation along one axis, and which pixels lie within the cells."""
    centres = np.arange(pixels) + 0.5
    place = np.clip((centres - first) / (end - first) * cells - 0.5, 0, cells - 1)
    low = np.minimum(place.astype(int), max(cells - 2, 0))
    weights = np.zeros((pixels, cells))
    weights[np.arange(pixels), low] = 1 - (place - low)
    if cells > 1:
        weights[np.arange(pixels), low + 1] = place - low
    return weights, (centres >= first) & (centres <= end)


@dataclass(frozen=True, kw_only=True, eq=False)
class ClassScore:
    """A score of a classification pipeline for one image."""

    label: str
    probability: float  # 0..1
    threshold: float = 0.5  # from which the finding counts as present
    heat_map: HeatMap | None = None

    @property
    def positive(self) -> bool:
        """Whether the finding counts as present."""
        return self.probability >= self.threshold


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A number that a regression pipeline gives for one image."""

    label: str
    value: float
    unit: str  # UCUM
    group: str = ""  # where the publication sorts the value into groups
    note: str = ""  # what must be said with the number
    centre: tuple[float, float] | None = None  # (row, column): where a viewer may show it; None: the image's centre


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageFindings:
    """What a pipeline found in one radiograph."""

    source: SliceSource  # that of the radiograph
    class_scores: tuple[ClassScore, ...] = ()
    estimates: tuple[Estimate, ...] = ()
    cautions: tuple[Caution, ...] = ()  # on this image alone
