"""What a convolution kernel was made for, by the names that the manufacturers give them.

Only the choice between volumes of one series looks at it: soft tissue and lung kernels suit the analysis, those for
bone and edges raise the noise and overshoot at every border.
"""

from __future__ import annotations

import re
from enum import IntEnum


class KernelUse(IntEnum):
    """In the order in which equal volumes are preferred."""

    SOFT = 0
    LUNG = 1
    UNKNOWN = 2
    SHARP = 3


_BY_NAME = {
    # GE
    "SOFT": KernelUse.SOFT,
    "STANDARD": KernelUse.SOFT,
    "CHEST": KernelUse.SOFT,
    "DETAIL": KernelUse.SOFT,
    "LUNG": KernelUse.LUNG,
    "BONE": KernelUse.SHARP,
    "BONEPLUS": KernelUse.SHARP,
    "EDGE": KernelUse.SHARP,
    "ULTRA": KernelUse.SHARP,
    # Philips
    "A": KernelUse.SOFT,
    "B": KernelUse.SOFT,
    "C": KernelUse.SOFT,
    "D": KernelUse.LUNG,
    "L": KernelUse.LUNG,
    "E": KernelUse.SHARP,
}
_CANON = re.compile(r"FC(\d)\d")
_CANON_BY_TENS = {0: KernelUse.SOFT, 1: KernelUse.SOFT, 3: KernelUse.SHARP, 5: KernelUse.LUNG, 8: KernelUse.SHARP}
_SIEMENS = re.compile(r"[A-Z][A-Z]?(\d\d)[A-Z]?")  # B30f, Br40d, I70f: the number is the sharpness


def kernel_use(name: str) -> KernelUse:
    """What the kernel of that name is for; of several values (``Br40d\\\\3``) the first is the name."""
    first = name.split("\\", maxsplit=1)[0].strip().upper()
    canon = _CANON.fullmatch(first)
    if canon:
        return _CANON_BY_TENS.get(int(canon[1]), KernelUse.UNKNOWN)
    siemens = _SIEMENS.fullmatch(first)
    if siemens:
        sharpness = int(siemens[1])
        return KernelUse.SOFT if sharpness < 50 else KernelUse.LUNG if sharpness < 80 else KernelUse.SHARP
    return _BY_NAME.get(first, KernelUse.UNKNOWN)
