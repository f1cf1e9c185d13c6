"""The values that cross the border of `pulmo_models`: volumes and radiographs in, findings out.

Frames and units. Voxel indices are ``(slice, row, column)``, slices counted along the normal of the image plane.
Patient positions are ``(x, y, z)`` in mm in the DICOM patient coordinate system, LPS (PS3.3 C.7.6.2.1.1: x to the
patient's left, y to posterior, z to head). ``Volume.affine`` maps ``(slice, row, column, 1)`` to ``(x, y, z, 1)``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.floating[Any]]
BoolArray = npt.NDArray[np.bool_]

CONCEPT_NAMES = (
    "subtlety",
    "internalStructure",
    "calcification",
    "sphericity",
    "margin",
    "lobulation",
    "spiculation",
    "texture",
)
"""The eight LIDC-IDRI ratings in the order of the characteriser's outputs."""

CONCEPT_RANGES: Mapping[str, tuple[int, int]] = {
    "subtlety": (1, 5),
    "internalStructure": (1, 4),
    "calcification": (1, 6),
    "sphericity": (1, 5),
    "margin": (1, 5),
    "lobulation": (1, 5),
    "spiculation": (1, 5),
    "texture": (1, 5),
}
"""Smallest and largest rating that the LIDC-IDRI protocol allows for each concept."""


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


@dataclass(frozen=True, kw_only=True, eq=False)
class Radiograph:
    """A projection radiograph, float32 ``(rows, columns)``, larger is brighter (MONOCHROME2 sense)."""

    pixels: npt.NDArray[np.float32]
    spacing_mm: tuple[float, float] | None  # (row, column), None where the file gives none
    view_position: str
    series: SeriesDescription
    source: SliceSource


@dataclass(frozen=True, kw_only=True, eq=False)
class Mask:
    """A binary mask on the grid of its volume, stored as the box that holds it.

    ``voxels`` is bool ``(slices, rows, columns)`` of the box; ``origin`` is the volume index of its first voxel.
    """

    origin: tuple[int, int, int]
    voxels: BoolArray

    def __post_init__(self) -> None:
        if self.voxels.ndim != 3 or self.voxels.dtype != np.bool_:
            raise ValueError("mask voxels must be a 3D bool array")
        if not self.voxels.any():
            raise ValueError("an empty mask is not a mask")

    @property
    def slices(self) -> tuple[slice, slice, slice]:
        """Index of the box in the volume."""
        z, y, x = self.origin
        d, h, w = self.voxels.shape
        return slice(z, z + d), slice(y, y + h), slice(x, x + w)

    def to_volume(self, shape: tuple[int, ...]) -> BoolArray:
        """The mask on the whole grid of a volume of that shape."""
        full = np.zeros(shape, dtype=bool)
        full[self.slices] = self.voxels
        return full


@dataclass(frozen=True, kw_only=True)
class Axis:
    """An in-plane diameter: its length and the two end points as voxel indices (slice, row, column), not rounded.

    An index is that of a voxel's centre, so 0.0 is the centre of the first row or column.
    """

    length_mm: float
    start: tuple[float, float, float]
    end: tuple[float, float, float]


@dataclass(frozen=True, kw_only=True)
class Concept:
    """One radiological concept of the bottleneck, as the LIDC-IDRI readers rated it."""

    name: str  # one of CONCEPT_NAMES
    value: float  # on the LIDC scale, unrounded and not clipped
    contribution: float  # weight difference x network output: summand of the malignancy logit

    @property
    def rating(self) -> int:
        """The nearest rating that the LIDC protocol allows."""
        low, high = CONCEPT_RANGES[self.name]
        return int(min(max(round(self.value), low), high))


@dataclass(frozen=True, kw_only=True, eq=False)
class Nodule:
    """One finding. Probabilities are 0..1."""

    centre_lps_mm: tuple[float, float, float]  # centroid of the mask
    centre_index: tuple[int, int, int]  # candidate voxel (slice, row, column)
    mask: Mask
    candidate_score: float  # stage 1, peak of the heat map
    detection_probability: float  # stage 2
    malignancy_probability: float  # stage 2
    concepts: tuple[Concept, ...]
    long_axis: Axis  # longest in-plane diameter on the slice of largest area
    short_axis: Axis  # longest diameter perpendicular to it on the same slice
    volume_mm3: float
    mean_hu: float
    min_hu: float
    max_hu: float
    laterality: Laterality | None = None  # of the lung that holds it; None where the lungs were not looked for
    pleura_distance_mm: float | None = None  # from the mask to the surface of the lung; 0 where it touches
    cautions: tuple[Caution, ...] = ()  # on this nodule alone

    def top_concepts(self, count: int = 3) -> tuple[Concept, ...]:
        """The concepts with the largest contribution by magnitude, largest first."""
        return tuple(sorted(self.concepts, key=lambda c: -abs(c.contribution))[:count])


@dataclass(frozen=True, kw_only=True)
class ClassScore:
    """A score of a classification pipeline."""

    label: str
    probability: float


@dataclass(frozen=True, kw_only=True)
class AlgorithmStage:
    """One trained network of a pipeline, as a report identifies it."""

    name: str
    version: str
    weights_sha256: str
    parameters: Mapping[str, str] = field(default_factory=dict)  # thresholds and the like


@dataclass(frozen=True, kw_only=True)
class PipelineInfo:
    """Which program with which weights made a set of findings."""

    label: str  # registry key, for example "ct-nodules"
    name: str  # for people
    version: str
    weights_name: str
    weights_sha256: str  # over the digests of all its files, in order
    stages: tuple[AlgorithmStage, ...] = ()


@dataclass(frozen=True, kw_only=True, eq=False)
class Findings:
    """What a pipeline found in one series."""

    pipeline: PipelineInfo
    nodules: tuple[Nodule, ...] = ()
    class_scores: tuple[ClassScore, ...] = ()
    lungs: Mapping[Laterality, Mask] = field(default_factory=dict)  # where the pipeline looked for them
    malignancy_bias: float = 0.0  # bias difference of the malignancy head: logit = sum of contributions + bias
    cautions: tuple[Caution, ...] = ()  # of the volume and of the analysis
    timings_seconds: Mapping[str, float] = field(default_factory=dict)
    device: str = "cpu"
    computation: Mapping[str, str] = field(default_factory=dict)  # engine, precision, windows ...: for the record
