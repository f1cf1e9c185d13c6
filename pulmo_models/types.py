"""The values that cross the border of `pulmo_models`: volumes and radiographs in, findings out.

Frames and units. Voxel indices are ``(slice, row, column)``, slices counted along the normal of the image plane.
Patient positions are ``(x, y, z)`` in mm in the DICOM patient coordinate system, LPS (PS3.3 C.7.6.2.1.1: x to the
patient's left, y to posterior, z to head). ``Volume.affine`` maps ``(slice, row, column, 1)`` to ``(x, y, z, 1)``.
"""

from __future__ import annotations

import math
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
class Box:
    """A box along the axes of its volume: its corners as voxel indices (slice, row, column), not rounded.

    An index is that of a voxel's centre.
    """

    low: tuple[float, float, float]
    high: tuple[float, float, float]
    corners_lps_mm: tuple[tuple[float, float, float], tuple[float, float, float]]  # of `low` and `high`

    def voxels(self, shape: tuple[int, ...]) -> Mask:
        """The voxels of a volume of that shape whose centres lie in the box, at least one in each direction."""
        first, count = [], []
        for low, high, size in zip(self.low, self.high, shape, strict=True):
            middle = min(max(round((low + high) / 2), 0), size - 1)
            begin, end = max(0, min(math.ceil(low), middle)), min(size - 1, max(math.floor(high), middle))
            first.append(begin)
            count.append(end - begin + 1)
        z, y, x = first
        return Mask(origin=(z, y, x), voxels=np.ones(count, dtype=bool))


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
    """One finding. Probabilities are 0..1.

    A pipeline that outlines nodules gives ``mask`` and what is measured on it; one that draws boxes gives ``box``,
    whose sides in the plane are the two axes. What a pipeline does not tell is None.
    """

    centre_lps_mm: tuple[float, float, float]  # centroid of the mask, or middle of the box
    centre_index: tuple[int, int, int]  # candidate voxel (slice, row, column)
    mask: Mask | None = None
    box: Box | None = None
    candidate_score: float  # of the first network: peak of the heat map, or score of the box
    detection_probability: float  # of the last network that judges whether it is a nodule
    malignancy_probability: float | None = None
    concepts: tuple[Concept, ...] = ()
    long_axis: Axis  # longest in-plane diameter on the slice of largest area; of a box its longer side
    short_axis: Axis  # longest diameter perpendicular to it on the same slice
    volume_mm3: float | None = None
    mean_hu: float | None = None
    min_hu: float | None = None
    max_hu: float | None = None
    laterality: Laterality | None = None  # of the lung that holds it; None where the lungs were not looked for
    pleura_distance_mm: float | None = None  # from the mask to the surface of the lung; 0 where it touches
    cautions: tuple[Caution, ...] = ()  # on this nodule alone

    def __post_init__(self) -> None:
        if self.mask is None and self.box is None:
            raise ValueError("a nodule has a mask or a box")

    def extent(self, shape: tuple[int, ...]) -> Mask:
        """Where it lies in a volume of that shape: its mask, or the voxels of its box."""
        if self.mask is not None:
            return self.mask
        if self.box is None:
            raise ValueError("a nodule has a mask or a box")
        return self.box.voxels(shape)

    def top_concepts(self, count: int = 3) -> tuple[Concept, ...]:
        """The concepts with the largest contribution by magnitude, largest first."""
        return tuple(sorted(self.concepts, key=lambda c: -abs(c.contribution))[:count])


@dataclass(frozen=True, kw_only=True, eq=False)
class HeatMap:
    """How much each part of a radiograph spoke for a label, float32 ``(h, w)`` from 0 to 1, coarser than the image.

    Its cells divide ``box`` evenly: first row, first column, end row, end column in pixels of the image, edges of
    pixels and not their centres; it may reach beyond the image. Outside of it the network saw nothing.
    """

    values: npt.NDArray[np.float32]
    box: tuple[float, float, float, float]

    @property
    def peak(self) -> tuple[float, float]:
        """Centre of the strongest cell as (row, column) of the image, not rounded; 0.0 is a pixel's centre."""
        index = np.unravel_index(int(np.argmax(self.values)), self.values.shape)
        first_row, first_column, end_row, end_column = self.box
        height, width = self.values.shape
        row = first_row + (index[0] + 0.5) * (end_row - first_row) / height
        column = first_column + (index[1] + 0.5) * (end_column - first_column) / width
        return float(row - 0.5), float(column - 0.5)

    def on_image(self, rows: int, columns: int) -> npt.NDArray[np.float32]:
        """The map on the pixels of the image, linear between the centres of its cells, 0 outside of its box."""
        first_row, first_column, end_row, end_column = self.box
        down, down_inside = _linear(rows, first_row, end_row, self.values.shape[0])
        along, along_inside = _linear(columns, first_column, end_column, self.values.shape[1])
        full = down @ self.values.astype(np.float64) @ along.T
        return (full * np.outer(down_inside, along_inside)).astype(np.float32)


def _linear(pixels: int, first: float, end: float, cells: int) -> tuple[npt.NDArray[np.float64], BoolArray]:
    """Weights ``(pixels, cells)`` of linear interpolation along one axis, and which pixels lie within the cells."""
    centres = np.arange(pixels) + 0.5
    place = np.clip((centres - first) / (end - first) * cells - 0.5, 0, cells - 1)
    low = np.minimum(place.astype(int), max(cells - 2, 0))
    weights = np.zeros((pixels, cells))
    weights[np.arange(pixels), low] = 1 - (place - low)
    if cells > 1:
        weights[np.arange(pixels), low + 1] = place - low
    return weights, (centres >= first) & (centres <= end)


@dataclass(frozen=True, kw_only=True, eq=False)
class ClassScore:
    """A score of a classification pipeline for one image."""

    label: str
    probability: float  # 0..1
    threshold: float = 0.5  # from which the finding counts as present
    heat_map: HeatMap | None = None

    @property
    def positive(self) -> bool:
        """Whether the finding counts as present."""
        return self.probability >= self.threshold


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A number that a regression pipeline gives for one image."""

    label: str
    value: float
    unit: str  # UCUM
    group: str = ""  # where the publication sorts the value into groups
    note: str = ""  # what must be said with the number
    centre: tuple[float, float] | None = None  # (row, column): where a viewer may show it; None: the image's centre


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageFindings:
    """What a pipeline found in one radiograph."""

    source: SliceSource  # that of the radiograph
    class_scores: tuple[ClassScore, ...] = ()
    estimates: tuple[Estimate, ...] = ()
    cautions: tuple[Caution, ...] = ()  # on this image alone


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
    subject: str = "nodules"  # of its results, as the descriptions of their series name it
    description: str = "Detection, measurement and characterisation of lung nodules"
    series_base: int = 9000  # the series of its results have the next numbers: each pipeline its own


@dataclass(frozen=True, kw_only=True, eq=False)
class Findings:
    """What a pipeline found in one series. Its nodules all have masks, or none has."""

    pipeline: PipelineInfo
    nodules: tuple[Nodule, ...] = ()
    images: tuple[ImageFindings, ...] = ()  # of a radiograph pipeline, one for each radiograph that it analysed
    lungs: Mapping[Laterality, Mask] = field(default_factory=dict)  # where the pipeline looked for them
    malignancy_bias: float | None = 0.0  # difference of the malignancy head: logit = sum of contributions + bias
    conclusions: tuple[
        str, ...
    ] = ()  # of a pipeline that looks for no nodules, a sentence each: its result is the lungs
    cautions: tuple[Caution, ...] = ()  # of the volume and of the analysis
    timings_seconds: Mapping[str, float] = field(default_factory=dict)
    device: str = "cpu"
    computation: Mapping[str, str] = field(default_factory=dict)  # engine, precision, windows ...: for the record

    def __post_init__(self) -> None:
        if len({nodule.mask is None for nodule in self.nodules}) > 1:
            raise ValueError("some of the nodules have masks and others have none")

    @property
    def outlined(self) -> bool:
        """Whether there are nodules, with masks."""
        return bool(self.nodules) and self.nodules[0].mask is not None
