"""Trachea and main bronchi: what of the air in the chest is no lung.

In the slice they are small, as thin as gas and in the middle, while a lung is small near its ends only. On the seven
chest series of the test data, all but bits of what is small in its slice and belongs to them has a median below -890 HU
and lies within 15 mm of the middle between the lungs; of what does not, above -860 HU or 38 mm and more away. Where an
airway touches a lung within the slice, that part of it is not told apart.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pulmo_models.ct.morphology import extent, labels_of, sections_of
from pulmo_models.types import BoolArray

LARGEST_SECTION_MM2 = 900.0  # the trachea of an adult has 150 to 400; two main bronchi and what joins them have more
SMALLEST_MM3 = 500.0
MEDIAN_BELOW_HU = -870.0
OFF_THE_MIDDLE = 0.25  # of the distance between the middles of the two lungs, at most

_FloatVolume = npt.NDArray[np.float32]


def large_airways(
    hu: _FloatVolume, lungs: BoolArray, left: BoolArray, leftward_mm: _FloatVolume, spacing_mm: tuple[float, ...]
) -> BoolArray:
    """The part of ``lungs`` that is trachea or main bronchus; empty where there are not two lungs to lie between.

    ``lungs`` holds air alone, slice by slice; ``leftward_mm`` is the position along the patient's right-to-left axis.
    """
    none = np.zeros_like(lungs)
    on_the_left, on_the_right = lungs & left, lungs & ~left
    if not on_the_left.any() or not on_the_right.any():
        return none
    middles = float(leftward_mm[on_the_left].mean()), float(leftward_mm[on_the_right].mean())
    middle_mm, reach_mm = sum(middles) / 2, OFF_THE_MIDDLE * (middles[0] - middles[1])
    box = extent(lungs)
    labels = labels_of(_small_sections(lungs[box], spacing_mm))
    sizes_mm3 = np.bincount(labels.ravel()) * float(np.prod(spacing_mm))
    sizes_mm3[0] = 0.0
    found = np.zeros(sizes_mm3.shape, dtype=bool)
    for label in np.flatnonzero(sizes_mm3 >= SMALLEST_MM3):
        part = labels == label
        off_mm = abs(float(leftward_mm[box][part].mean()) - middle_mm)
        found[label] = off_mm <= reach_mm and np.median(hu[box][part]) < MEDIAN_BELOW_HU
    airways = none
    airways[box] = found[labels]
    return airways


def _small_sections(lungs: BoolArray, spacing_mm: tuple[float, ...]) -> BoolArray:
    """What is small in its slice."""
    labels = sections_of(lungs)
    sizes_mm2 = np.bincount(labels.ravel()) * spacing_mm[1] * spacing_mm[2]
    sizes_mm2[0] = np.inf
    return (sizes_mm2 < LARGEST_SECTION_MM2)[labels]
