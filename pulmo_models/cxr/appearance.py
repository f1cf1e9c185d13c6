"""Whether a frontal chest radiograph looks like its negative: some files say MONOCHROME1 and hold MONOCHROME2.

In a chest that is shown right, spine and heart are brighter than the lungs beside them, and so is what lies below the
diaphragm. Measured on the 487 films of the NIH pack (one of them a negative): tests/models/test_cxr_appearance.py.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image

_SIZE = 64
_DOUBT = -0.2  # of the whole range of the film: what a rotated or a half empty film still reaches


def looks_inverted(display: npt.NDArray[np.float32]) -> bool:
    """Whether ``(rows, columns)``, larger is brighter, is more likely the negative of a frontal chest film."""
    return _contrast(display) < _DOUBT


def _contrast(display: npt.NDArray[np.float32]) -> float:
    """Brightness of the middle and of what lies below, each against the lungs, in shares of the film's range."""
    low, high = np.percentile(display, (1, 99))
    scaled = np.clip((display - low) / max(float(high - low), 1e-9), 0, 1)
    small = np.asarray(Image.fromarray((scaled * 255).astype(np.uint8)).resize((_SIZE, _SIZE), Image.Resampling.BOX))
    film = small.astype(np.float64) / 255
    lungs = (film[16:48, 12:24].mean() + film[16:48, 40:52].mean()) / 2
    return float(film[16:48, 28:36].mean() + film[52:62, 20:44].mean() - 2 * lungs)
