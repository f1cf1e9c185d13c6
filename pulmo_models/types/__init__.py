"""The values that cross the border of `pulmo_models`: volumes and radiographs in, findings out.

Frames and units. Voxel indices are ``(slice, row, column)``, slices counted along the normal of the image plane.
Patient positions are ``(x, y, z)`` in mm in the DICOM patient coordinate system, LPS (PS3.3 C.7.6.2.1.1: x to the
patient's left, y to posterior, z to head). ``Volume.affine`` maps ``(slice, row, column, 1)`` to ``(x, y, z, 1)``.
"""

from __future__ import annotations

from pulmo_models.types.films import ClassScore, Estimate, HeatMap, ImageFindings
from pulmo_models.types.findings import AlgorithmStage, Findings, PipelineInfo
from pulmo_models.types.images import (
    Acquisition,
    BoolArray,
    Caution,
    FloatArray,
    Image,
    Laterality,
    Radiograph,
    RadiographSeries,
    SeriesDescription,
    SliceSource,
    SourceFrame,
    View,
    Volume,
)
from pulmo_models.types.nodules import CONCEPT_NAMES, CONCEPT_RANGES, Axis, Box, Concept, Mask, Nodule

__all__ = [
    "CONCEPT_NAMES",
    "CONCEPT_RANGES",
    "Acquisition",
    "AlgorithmStage",
    "Axis",
    "BoolArray",
    "Box",
    "Caution",
    "ClassScore",
    "Concept",
    "Estimate",
    "Findings",
    "FloatArray",
    "HeatMap",
    "Image",
    "ImageFindings",
    "Laterality",
    "Mask",
    "Nodule",
    "PipelineInfo",
    "Radiograph",
    "RadiographSeries",
    "SeriesDescription",
    "SliceSource",
    "SourceFrame",
    "View",
    "Volume",
]
