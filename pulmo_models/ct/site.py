"""Where in the lungs a nodule lies: in the left or the right one, and how far from the pleura.

Input: the mask of a nodule and the lungs of its volume. The surface of the lungs is known on a grid of about 2 mm, and
runs straight over the hilum and over masses on the pleura of up to 24 mm (`pulmo_models.ct.lungs`); fissures are not
looked for. So the distance is to be read as about 2 mm exact. Pure numpy and SimpleITK.
"""

from __future__ import annotations

import numpy as np

from pulmo_models.ct.lungs import LungRegion
from pulmo_models.ct.morphology import box_around, distance_mm
from pulmo_models.types import BoolArray, Laterality, Mask

MARGINS_MM = (12.0, 36.0, 108.0, 324.0)  # looked at in turn: most nodules are near, and a large box costs time


def laterality(nodule: Mask, region: LungRegion) -> Laterality:
    """The lung that holds most of a nodule, or is nearest to it."""
    return "left" if region.left[nodule.slices][nodule.voxels].mean() > 0.5 else "right"


def pleura_distance_mm(nodule: Mask, region: LungRegion, spacing_mm: tuple[float, float, float]) -> float | None:
    """Shortest way from a nodule to the surface of its lung, between the faces of voxels; 0 where it touches.

    The border of the volume is no pleura. None where the lung has no surface within the volume.
    """
    is_left = laterality(nodule, region) == "left"
    for margin_mm in MARGINS_MM:
        box = box_around(nodule.slices, spacing_mm, region.mask.shape, margin_mm)
        outside = ~(region.proper[box] & (region.left[box] == is_left))
        if outside.any():
            # Voxels that touch are 0 apart: from the centre of one to the nearest centre of those around the other.
            distance = distance_mm(_with_neighbours(outside), spacing_mm)
            inner = tuple(
                slice(found.start - wide.start, found.stop - wide.start)
                for found, wide in zip(nodule.slices, box, strict=True)
            )
            shortest = float(distance[inner][nodule.voxels].min())
            if shortest <= margin_mm:
                return shortest
    return None


def _with_neighbours(mask: BoolArray) -> BoolArray:
    """The mask with the 26 neighbours of each of its voxels."""
    for axis in range(mask.ndim):
        grown = mask.copy()
        along, before = np.moveaxis(grown, axis, 0), np.moveaxis(mask, axis, 0)
        along[1:] |= before[:-1]
        along[:-1] |= before[1:]
        mask = grown
    return mask
