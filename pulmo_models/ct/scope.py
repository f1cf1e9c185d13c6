"""Whether a result may be taken at its word: lungs that the volume cuts off, nodules on slices that nobody acquired.

Input: the mask of the lungs, or of a nodule, with its volume. Output: cautions. Pure numpy.
"""

from __future__ import annotations

import numpy as np

from pulmo_models.codes import CautionCode
from pulmo_models.types import BoolArray, Caution, Mask, Volume

CUT_SHARE = 0.05  # of the largest cross-section: less at the first or last slice is trachea, or the very tip
USUAL_HEIGHT_MM = 237.0  # mean of five complete series of adults (200 to 279 mm), counted by CUT_SHARE
TAPER_MM = 60.0  # how far a cross-section as large as the largest is taken to go on at least


def partial_lungs(volume: Volume, lungs: BoolArray) -> Caution | None:
    """PARTIAL_LUNGS where the first or last slice cuts the lungs; ``lungs`` is on the grid of the volume.

    The covered share is one of height: what is seen, over what is seen and what is missing. Missing is what lacks to a
    usual height of 237 mm, at least 60 mm times the cross-section at the cut over the largest one. On parts of five
    complete series (20 to 90 % of the lungs) it was off by 0.04 on average and by 0.14 at most.
    """
    area = lungs.sum(axis=(1, 2), dtype=np.float64)
    shares = area / area.max()
    seen = np.flatnonzero(shares > CUT_SHARE)
    spacing_mm = volume.spacing_mm[0]
    first, last = ("foot", "head") if volume.affine[2, 0] > 0 else ("head", "foot")
    cut = {end: float(shares[k]) for end, k in ((first, 0), (last, -1)) if shares[k] > CUT_SHARE}
    if not cut:
        return None
    seen_mm = float(seen[-1] - seen[0] + 1) * spacing_mm
    missing_mm = max(TAPER_MM * sum(cut.values()), USUAL_HEIGHT_MM - seen_mm)
    ends = " and ".join(f"{end} end" for end in sorted(cut, reverse=True))
    sentence = (
        f"The lungs are cut off at the {ends} of the volume: about {seen_mm / (seen_mm + missing_mm):.0%} of their "
        f"height is covered (estimated from a usual height of {USUAL_HEIGHT_MM:.0f} mm and the cross-section at the "
        "cut); nodules outside of it cannot be found."
    )
    return Caution(code=CautionCode.PARTIAL_LUNGS, sentence=sentence)


def touches_interpolated(volume: Volume, mask: Mask) -> Caution | None:
    """TOUCHES_INTERPOLATED where a nodule's mask lies on slices that fill a gap."""
    layers = np.flatnonzero(mask.voxels.any(axis=(1, 2))) + mask.origin[0]
    count = int(np.isin(layers, volume.interpolated).sum())
    if not count:
        return None
    sentence = (
        f"{count} of the {len(layers)} slices of this nodule {'was' if count == 1 else 'were'} interpolated, since no "
        "image was acquired there: its size, volume and density are uncertain."
    )
    return Caution(code=CautionCode.TOUCHES_INTERPOLATED, sentence=sentence)
