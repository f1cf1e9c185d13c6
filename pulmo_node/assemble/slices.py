"""One frame after the other, from its file to Hounsfield units.

Input: frames. Output: float32 HU ``(rows, columns)``, and where they tell nothing of the patient. Threads may share a
reader: compressed frames are decoded in other processes, so several threads gain what there are processors.
"""

from __future__ import annotations

from pathlib import Path
from threading import Lock

import numpy as np
import numpy.typing as npt
from pydicom import Dataset
from pydicom.pixels.processing import apply_modality_lut

from pulmo_models.codes import RejectionCode
from pulmo_node.assemble.files import translated
from pulmo_node.assemble.frames import Frame
from pulmo_node.assemble.headers import SeriesFiles
from pulmo_node.assemble.pixels import (
    AIR_HU,
    IntegerArray,
    native_values,
    padding_mask,
    read_pixel_module,
    stored_values,
    write_hu,
)
from pulmo_node.errors import Rejected

Float32Array = npt.NDArray[np.float32]
BoolArray = npt.NDArray[np.bool_]


class SliceReader:
    """Reads the pixels of frames; multi-frame objects stay in memory, still encoded, as long as the reader lives."""

    def __init__(self, files: SeriesFiles | None = None) -> None:
        self.files = files or SeriesFiles()
        self._multi_frame: dict[Path, Dataset] = {}
        self._lock = Lock()

    def hu(self, frame: Frame) -> Float32Array:
        """HU of one frame. Raises `Rejected` as `write_into`."""
        out = np.empty((frame.rows, frame.columns), dtype=np.float32)
        self.write_into(frame, out)
        return out

    def write_into(self, frame: Frame, out: Float32Array) -> None:
        """Decode one frame into ``out``, nothing below -1024 HU.

        Raises:
            Rejected: UNREADABLE, UNSUPPORTED_PIXELS or DECODE_FAILED.
        """
        if frame.rescale is None:
            out[...], _ = self.hu_and_known(frame)
        else:
            dataset, stored = self._stored(frame)
            write_hu(stored, dataset, frame.rescale, out)

    def hu_and_known(self, frame: Frame) -> tuple[Float32Array, BoolArray]:
        """HU of one frame, and where they are measured: neither declared padding nor below -1024 HU."""
        dataset, stored = self._stored(frame)
        slope, intercept = frame.rescale or (1.0, 0.0)
        hu = (_through_lut(frame, stored, dataset) if frame.rescale is None else stored) * np.float64(slope) + intercept
        known: BoolArray = hu >= AIR_HU
        padding = padding_mask(stored, dataset)
        if padding is not None:
            known &= ~padding
        return np.where(known, hu, AIR_HU).astype(np.float32), known

    def _stored(self, frame: Frame) -> tuple[Dataset, IntegerArray]:
        header = self.files.header(frame.path)
        stored = self.files.take_stored(frame.path)
        if stored is None and frame.frame_number is None:
            stored = native_values(header)
        if stored is not None:
            return header.dataset, stored
        dataset = self._dataset(frame)
        stored = stored_values(frame.path, dataset, frame.frame_number)
        if stored.shape != (frame.rows, frame.columns):
            raise Rejected(RejectionCode.UNREADABLE, f"{frame.label} changed while it was read", file=frame.path.name)
        return dataset, stored

    def _dataset(self, frame: Frame) -> Dataset:
        if frame.frame_number is None:
            return read_pixel_module(frame.path)
        with self._lock:
            if frame.path not in self._multi_frame:
                self._multi_frame[frame.path] = read_pixel_module(frame.path)
            return self._multi_frame[frame.path]


def _through_lut(frame: Frame, stored: IntegerArray, dataset: Dataset) -> IntegerArray:
    """HU by the Modality LUT. Its entries are unsigned (PS3.3 C.11.1.1.1), which has no room for air: of 16 bits they
    are read as signed, since no HU is beyond 32767."""
    with translated(frame.path):
        values: IntegerArray = apply_modality_lut(stored, dataset)
    return values.view(np.int16) if values.dtype == np.uint16 else values
