"""Series, assembled: volumes and radiographs, and what their files say. Frames and units: `pulmo_models.types`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.floating[Any]]

BoolArray = npt.NDArray[np.bool_]

Laterality = Literal["left", "right"]  # the patient's


@dataclass(frozen=True, kw_only=True)
class SliceSource:
    """The image behind one slice of a volume, so that a result can point back at it."""

    sop_class_uid: str
    sop_instance_uid: str
    frame_number: int | None = None  # 1-based, None for single-frame objects
    path: str | None = None  # Part 10 file, where there is one


@dataclass(frozen=True, kw_only=True)
class SourceFrame(SliceSource):
    """An acquired image and where its pixels lie. Positions and steps are LPS mm.

    The centre of pixel ``(row, column)`` lies at ``origin + row * row_step + column * column_step``.
    """

    rows: int
    columns: int
    origin_lps_mm: tuple[float, float, float]
    row_step_lps_mm: tuple[float, float, float]  # from one row to the next
    column_step_lps_mm: tuple[float, float, float]  # from one column to the next
    instance_number: int | None = None  # by which a viewer lists it; of a frame, that of the frame


@dataclass(frozen=True, kw_only=True)
class Caution:
    """What was repaired or is unusual; travels into the report."""

    code: str  # stable and machine-readable
    sentence: str  # for people

    def __str__(self) -> str:
        return self.sentence


@dataclass(frozen=True, kw_only=True)
class SeriesDescription:
    """What a selection rule or a pipeline may ask of a series without looking at pixels."""

    study_instance_uid: str
    series_instance_uid: str
    modality: str
    sop_class_uids: tuple[str, ...] = ()
    calling_ae_title: str = ""
    body_part_examined: str = ""
    series_description: str = ""
    view_position: str = ""
    image_type: tuple[str, ...] = ()
    number_of_instances: int = 0


@dataclass(frozen=True, kw_only=True)
class Acquisition:
    """How the images of a volume were made, as their headers tell it: "" or None where they do not. For the record."""

    kernel: str = ""  # ConvolutionKernel
    contrast_agent: str = ""  # ContrastBolusAgent
    slice_thickness_mm: float | None = None  # as the header tells it; the grid never uses it
    reconstruction_diameter_mm: float | None = None
    patient_position: str = ""  # HFS, FFP, ...
    image_type: tuple[str, ...] = ()
    number: str = ""  # AcquisitionNumber


@dataclass(frozen=True, kw_only=True, eq=False)
class Volume:
    """A CT series as one regular grid.

    ``hu`` is float32 ``(slices, rows, columns)`` in Hounsfield units; ``affine`` is float64 4 x 4 and maps voxel
    index ``(slice, row, column)`` to LPS mm. ``frames`` are the acquired images in order along the normal. Where
    ``native`` holds, voxel ``(k, r, c)`` is pixel ``(r, c)`` of ``frames[k]``; else a gap was filled, or the grid was
    resampled or resheared, and `pulmo_models.mapping` leads from a voxel to the images.
    """

    hu: npt.NDArray[np.float32]
    affine: npt.NDArray[np.float64]
    frame_of_reference_uid: str
    series: SeriesDescription
    frames: tuple[SourceFrame, ...]
    native: bool = True
    interpolated: tuple[int, ...] = ()  # slices that fill a gap: no image was acquired there
    acquisition: Acquisition = field(default_factory=Acquisition)  # of the first frame
    cautions: tuple[Caution, ...] = ()

    def __post_init__(self) -> None:
        if self.hu.ndim != 3:
            raise ValueError(f"hu must be (slices, rows, columns), not {self.hu.shape}")
        if self.hu.dtype != np.float32:
            raise ValueError(f"hu must be float32, not {self.hu.dtype}")
        if self.affine.shape != (4, 4):
            raise ValueError(f"affine must be 4 x 4, not {self.affine.shape}")
        if not self.frames:
            raise ValueError("a volume is made of at least one frame")
        if self.native and len(self.frames) != self.hu.shape[0]:
            raise ValueError(f"{len(self.frames)} frames for {self.hu.shape[0]} slices")

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Distance between neighbouring voxel centres along (slice, row, column), from the affine."""
        steps = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(steps[0]), float(steps[1]), float(steps[2])


View = Literal["PA", "AP", "frontal", "lateral", "other", "unknown"]
"""How the rays went through a chest; ``frontal`` where it is PA or AP, and which of the two is not told."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Radiograph:
    """A projection radiograph, twice: float32 ``(rows, columns)``, larger is brighter (MONOCHROME2 sense).

    ``pixels`` are the values of the detector system (after the Modality LUT), ``display`` what its file asks a viewer
    to show of them (after the VOI LUT), 0 black to 1 white. Padding is as dark as the darkest pixel.
    """

    pixels: npt.NDArray[np.float32]
    display: npt.NDArray[np.float32]
    source: SliceSource
    view: View = "unknown"
    view_position: str = ""  # as the file has it
    spacing_mm: tuple[float, float] | None = None  # (row, column), None where the file gives none
    spacing_plane: Literal["patient", "detector"] | None = None  # where it holds; the detector's is magnified
    pixel_aspect: float = 1.0  # height of a pixel over its width
    cautions: tuple[Caution, ...] = ()  # on this image alone

    def __post_init__(self) -> None:
        for name in ("pixels", "display"):
            values: npt.NDArray[np.float32] = getattr(self, name)
            if values.ndim != 2 or values.dtype != np.float32:
                raise ValueError(f"{name} must be float32 (rows, columns), not {values.dtype} {values.shape}")
        if self.pixels.shape != self.display.shape:
            raise ValueError("pixels and display must be of one shape")


@dataclass(frozen=True, kw_only=True, eq=False)
class RadiographSeries:
    """The radiographs of one series that can be analysed, in the order of their instance numbers."""

    images: tuple[Radiograph, ...]
    series: SeriesDescription
    cautions: tuple[Caution, ...] = ()  # what was set aside, and why

    def __post_init__(self) -> None:
        if not self.images:
            raise ValueError("a series of radiographs has at least one")


Image = Volume | RadiographSeries
"""What a pipeline is given: a series, assembled."""
