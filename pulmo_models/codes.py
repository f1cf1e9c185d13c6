"""Every code that tells why a series was refused, or what about a result asks for caution.

They are stable and machine-readable. README.md tells the meaning and the cure of each, which a test checks.
"""

from __future__ import annotations

from enum import StrEnum


class RejectionCode(StrEnum):
    """Why there is no result."""

    UNREADABLE = "UNREADABLE"
    DECODE_FAILED = "DECODE_FAILED"
    UNSUPPORTED_PIXELS = "UNSUPPORTED_PIXELS"
    UNSUPPORTED_MODALITY = "UNSUPPORTED_MODALITY"
    NO_IMAGES = "NO_IMAGES"
    NOT_FOR_PRESENTATION = "NOT_FOR_PRESENTATION"
    SEVERAL_SERIES = "SEVERAL_SERIES"
    PATIENT_CONFLICT = "PATIENT_CONFLICT"
    NO_FRAME_OF_REFERENCE = "NO_FRAME_OF_REFERENCE"
    SEVERAL_FRAMES_OF_REFERENCE = "SEVERAL_FRAMES_OF_REFERENCE"
    BAD_ORIENTATION = "BAD_ORIENTATION"
    NOT_AXIAL = "NOT_AXIAL"
    SHIFTED_SLICES = "SHIFTED_SLICES"
    BAD_PIXEL_SPACING = "BAD_PIXEL_SPACING"
    DUPLICATE_UID = "DUPLICATE_UID"
    DUPLICATE_POSITION = "DUPLICATE_POSITION"
    MISSING_SLICE = "MISSING_SLICE"
    IRREGULAR_SPACING = "IRREGULAR_SPACING"
    TOO_FEW_SLICES = "TOO_FEW_SLICES"
    TOO_THICK = "TOO_THICK"
    TOO_LARGE = "TOO_LARGE"
    RESCALE_MISSING = "RESCALE_MISSING"
    NOT_HU = "NOT_HU"
    NO_LUNGS = "NO_LUNGS"
    NOT_FRONTAL = "NOT_FRONTAL"


class CautionCode(StrEnum):
    """What about a result asks for caution."""

    THICK_SLICES = "THICK_SLICES"
    JOINED_ACQUISITIONS = "JOINED_ACQUISITIONS"
    SET_ASIDE = "SET_ASIDE"  # objects that are no axial images of the volume, or no radiographs
    REPEATED_IMAGES = "REPEATED_IMAGES"  # exact repetitions
    OTHER_VOLUMES = "OTHER_VOLUMES"  # the series holds further volumes that were not analysed
    RESAMPLED = "RESAMPLED"  # slices at uneven distances
    GAP_FILLED = "GAP_FILLED"  # one missing slice was interpolated
    RESHEARED = "RESHEARED"  # gantry tilt
    TOUCHES_INTERPOLATED = "TOUCHES_INTERPOLATED"  # a nodule on an interpolated slice
    PARTIAL_LUNGS = "PARTIAL_LUNGS"
    CPU_FALLBACK = "CPU_FALLBACK"
    TOO_MANY_NODULES = "TOO_MANY_NODULES"
    LOOKS_INVERTED = "LOOKS_INVERTED"  # a radiograph that is, or may be, shown as its negative
    VIEW_UNKNOWN = "VIEW_UNKNOWN"  # a radiograph of which nothing tells that it is frontal
