"""Index <-> LPS and padded crops."""

from __future__ import annotations

import numpy as np
import pytest

from pulmo_models.geometry import crop, index_to_lps, lps_to_index

# A scan read from the feet up, rows towards posterior, columns towards the left: spacing 2.5, 0.7, 0.8 mm.
AFFINE = np.array([[0, 0, 0.8, -150.0], [0, 0.7, 0, -170.0], [2.5, 0, 0, -300.0], [0, 0, 0, 1]])


def test_index_to_lps_and_back() -> None:
    assert index_to_lps(AFFINE, (0, 0, 0)) == (-150.0, -170.0, -300.0)
    assert index_to_lps(AFFINE, (10, 20, 30)) == pytest.approx((-126.0, -156.0, -275.0))
    assert lps_to_index(AFFINE, (-126.0, -156.0, -275.0)) == pytest.approx((10, 20, 30))
    assert lps_to_index(AFFINE, index_to_lps(AFFINE, (1.25, -3.5, 7.75))) == pytest.approx((1.25, -3.5, 7.75))


@pytest.mark.parametrize("origin", [(0, 0, 0), (-2, 1, 3), (3, 4, 5), (-9, 0, 0), (2, 0, 40)])
def test_crop_pads_outside(origin: tuple[int, int, int]) -> None:
    array = np.arange(5 * 6 * 7, dtype=np.float32).reshape(5, 6, 7)
    box = crop(array, origin, (4, 3, 5), -1000.0)
    assert box.shape == (4, 3, 5)
    assert box.dtype == np.float32
    for index in np.ndindex(4, 3, 5):
        at = tuple(o + i for o, i in zip(origin, index, strict=True))
        inside = all(0 <= a < s for a, s in zip(at, array.shape, strict=True))
        assert box[index] == (array[at] if inside else -1000.0)
