"""Stored values of a radiograph to what its detector measured and to what its file asks a viewer to show.

Input: a Part 10 file. Output: two float32 arrays, larger is brighter. PS3.3 C.11.1 (Modality LUT), C.11.2 (VOI LUT:
tables, and the functions LINEAR, LINEAR_EXACT and SIGMOID), C.7.6.3.1.2 (Photometric Interpretation).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydicom import Dataset
from pydicom.uid import ExplicitVRBigEndian

from pulmo_models.codes import RejectionCode
from pulmo_node.assemble.files import numbers, text, texts, translated
from pulmo_node.assemble.headers import PIXEL_KEYWORDS
from pulmo_node.assemble.pixels import padding_mask, read_pixel_module, stored_values
from pulmo_node.errors import Rejected

FloatImage = npt.NDArray[np.float64]

_VOI_KEYWORDS = ("VOILUTSequence", "WindowCenter", "WindowWidth", "VOILUTFunction")


def read_brightness(path: Path) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Values and display of the one frame of a radiograph, as :class:`pulmo_models.types.Radiograph` has them.

    A VOI LUT goes before a window, the first of several is used; without either the display is the range of the
    values. MONOCHROME1 is inverted after both.

    Raises:
        Rejected: UNREADABLE, UNSUPPORTED_PIXELS or DECODE_FAILED.
    """
    dataset = read_pixel_module(path, (*PIXEL_KEYWORDS, *_VOI_KEYWORDS))
    _check(path, dataset)
    stored = stored_values(path, dataset)
    with translated(path):
        padding = padding_mask(stored, dataset)
        if padding is not None and (padding.all() or not padding.any()):
            padding = None
        values = _modality(stored, dataset)
        seen = values if padding is None else values[~padding]
        shown = _voi(values, dataset, float(seen.min()), float(seen.max()))
        if text(dataset, "PhotometricInterpretation") == "MONOCHROME1":
            values, shown = seen.max() + seen.min() - values, 1 - shown
        if padding is not None:
            values[padding], shown[padding] = values[~padding].min(), shown[~padding].min()
    return values.astype(np.float32), shown.astype(np.float32)


def _check(path: Path, dataset: Dataset) -> None:
    with translated(path):
        samples, frames = int(dataset.get("SamplesPerPixel") or 1), int(dataset.get("NumberOfFrames") or 1)
        photometric = text(dataset, "PhotometricInterpretation")
    if samples != 1 or photometric not in ("MONOCHROME1", "MONOCHROME2"):
        sentence, tag = f"{path.name} is no greyscale image", "(0028,0004) PhotometricInterpretation"
    elif frames != 1:
        sentence, tag = f"{path.name} holds {frames} frames, not one", "(0028,0008) NumberOfFrames"
    else:
        return
    raise Rejected(RejectionCode.UNSUPPORTED_PIXELS, sentence, file=path.name, tag=tag)


def _modality(stored: npt.NDArray[np.integer], dataset: Dataset) -> FloatImage:
    """The table where there is one, else the rescale where both its numbers are there."""
    if dataset.get("ModalityLUTSequence"):
        return _looked_up(stored, dataset, "ModalityLUTSequence")[0]
    slope, intercept = numbers(dataset, "RescaleSlope", 1), numbers(dataset, "RescaleIntercept", 1)
    if slope is None or intercept is None:
        return stored.astype(np.float64)
    return stored.astype(np.float64) * float(slope[0]) + float(intercept[0])


def _voi(values: FloatImage, dataset: Dataset, smallest: float, largest: float) -> FloatImage:
    """0 (black, were it MONOCHROME2) to 1."""
    if dataset.get("VOILUTSequence"):
        found, bits = _looked_up(values, dataset, "VOILUTSequence")
        return found / float(2**bits - 1)
    centres, widths = texts(dataset, "WindowCenter"), texts(dataset, "WindowWidth")
    if centres and widths:
        return _window(values, float(centres[0]), float(widths[0]), text(dataset, "VOILUTFunction"))
    shown: FloatImage = np.clip((values - smallest) / max(largest - smallest, 1e-9), 0, 1)
    return shown


def _looked_up(values: npt.NDArray[np.generic], dataset: Dataset, keyword: str) -> tuple[FloatImage, int]:
    """The first table of that sequence applied, and the bits of its entries.

    What lies below or above the table takes its first or last entry (C.11.1.1.1, C.11.2.1.1). Entries of 8 bits may
    be stored in bytes or in words: the length of the data tells which. Where values are signed, the value that the
    table begins with is signed too, whatever representation the file gives it.
    """
    item = dataset[keyword].value[0]
    entries, first, bits = (int(number) for number in item.LUTDescriptor)
    entries, data = entries or 1 << 16, item.LUTData
    if first >= 1 << 15 and (dataset.PixelRepresentation or values.min() < 0):
        first -= 1 << 16
    if isinstance(data, bytes):
        order = ">" if dataset.file_meta.TransferSyntaxUID == ExplicitVRBigEndian else "<"
        table = np.frombuffer(data, np.uint8 if len(data) < 2 * entries else np.dtype(f"{order}u2"))[:entries]
    else:
        table = np.asarray(data, dtype=np.int64)
    if len(table) != entries or not 1 <= bits <= 16:
        raise ValueError(f"a table of {keyword} does not hold the entries that its descriptor says")
    index = np.clip(np.rint(values.astype(np.float64)) - first, 0, entries - 1).astype(np.int64)
    return table.astype(np.float64)[index], bits


def _window(values: FloatImage, centre: float, width: float, function: str) -> FloatImage:
    if not (np.isfinite(centre) and np.isfinite(width)) or width <= 0:
        raise ValueError("WindowWidth must be positive and finite")
    if function == "SIGMOID":
        return np.asarray(1 / (1 + np.exp(np.clip(-4 * (values - centre) / width, -700, 700))))
    if function == "LINEAR_EXACT":
        return np.clip((values - centre) / width + 0.5, 0, 1)
    if width <= 1:
        return (values > centre - 0.5).astype(np.float64)
    return np.clip((values - (centre - 0.5)) / (width - 1) + 0.5, 0, 1)
