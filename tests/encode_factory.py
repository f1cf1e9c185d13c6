"""A small CT series on disk and made-up findings in it, for the tests of the encoder."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from pulmo_models.types import (
    CONCEPT_NAMES,
    AlgorithmStage,
    Axis,
    Concept,
    Findings,
    Mask,
    Nodule,
    PipelineInfo,
    SeriesDescription,
    SliceSource,
    Volume,
)
from pulmo_node.encode import ResultContext

WEIGHTS = "ab" * 32
CONTEXT_TIME = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)

INFO = PipelineInfo(
    label="ct-nodules",
    name="Pulmo CT nodules",
    version="0.1.0",
    weights_name="first",
    weights_sha256=WEIGHTS,
    stages=(
        AlgorithmStage(
            name="HeatmapUNet3D", version="1", weights_sha256="cd" * 32, parameters={"peak_threshold": "0.3"}
        ),
        AlgorithmStage(name="Student2p5D", version="1", weights_sha256="ef" * 32),
    ),
)


def write_series(
    folder: Path,
    *,
    slices: int = 12,
    rows: int = 40,
    columns: int = 48,
    spacing_mm: tuple[float, float, float] = (2.5, 0.8, 0.7),
    attributes: dict[str, Any] | None = None,
    without: Sequence[str] = (),
) -> list[Path]:
    """Axial CT slices from feet to head; `attributes` are set on each, `without` are deleted. Returns the paths."""
    study, series, frame = (generate_uid(entropy_srcs=[str(folder), word]) for word in ("study", "series", "frame"))
    random = np.random.default_rng(5)
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for k in range(slices):
        data_set = Dataset()
        data_set.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
        data_set.SOPClassUID = CTImageStorage
        data_set.SOPInstanceUID = generate_uid(entropy_srcs=[str(folder), f"slice {k}"])
        data_set.StudyInstanceUID, data_set.SeriesInstanceUID, data_set.FrameOfReferenceUID = study, series, frame
        data_set.StudyDate = data_set.AcquisitionDate = "20250102"
        data_set.StudyTime = data_set.AcquisitionTime = "101112"
        data_set.AccessionNumber, data_set.StudyID, data_set.Modality = "ACC1", "1", "CT"
        data_set.ReferringPhysicianName = "Referrer^Test"
        data_set.Manufacturer, data_set.ManufacturerModelName = "Scanner Maker", "Scanner"
        data_set.PatientName, data_set.PatientID = "Phantom^Chest", "P1"
        data_set.PatientBirthDate, data_set.PatientSex = "19600101", "O"
        data_set.SeriesNumber, data_set.InstanceNumber, data_set.AcquisitionNumber = 2, k + 1, 1
        data_set.SliceThickness, data_set.KVP = spacing_mm[0], 120
        data_set.PositionReferenceIndicator = ""
        data_set.ImagePositionPatient = [-20.0, -16.5, -100.0 + k * spacing_mm[0]]
        data_set.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        data_set.PixelSpacing = [spacing_mm[1], spacing_mm[2]]
        data_set.Rows, data_set.Columns = rows, columns
        data_set.SamplesPerPixel, data_set.PhotometricInterpretation = 1, "MONOCHROME2"
        data_set.BitsAllocated, data_set.BitsStored, data_set.HighBit, data_set.PixelRepresentation = 16, 12, 11, 0
        data_set.RescaleIntercept, data_set.RescaleSlope = -1024, 1
        data_set.PixelData = random.integers(100, 300, (rows, columns), dtype=np.uint16).tobytes()
        for keyword, value in (attributes or {}).items():
            setattr(data_set, keyword, value)
        for keyword in without:
            if keyword in data_set:
                delattr(data_set, keyword)
        data_set.file_meta = FileMetaDataset()
        data_set.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        path = folder / f"{k + 1:03d}.dcm"
        data_set.save_as(path, enforce_file_format=True)
        paths.append(path)
    return paths


def read_volume(paths: Sequence[Path], cautions: tuple[str, ...] = ()) -> Volume:
    """A volume of axial single-frame slices, ordered by z; no more than the encoder's tests need."""
    data_sets = sorted(
        ((pydicom.dcmread(path), path) for path in paths), key=lambda pair: float(pair[0].ImagePositionPatient[2])
    )
    first, last = data_sets[0][0], data_sets[-1][0]
    affine = np.eye(4)
    affine[:3, 3] = first.ImagePositionPatient
    row_mm, column_mm = (float(value) for value in first.PixelSpacing)
    affine[:3, 1] = np.array(first.ImageOrientationPatient[3:], dtype=float) * row_mm
    affine[:3, 2] = np.array(first.ImageOrientationPatient[:3], dtype=float) * column_mm
    step = np.array(last.ImagePositionPatient, dtype=float) - np.array(first.ImagePositionPatient, dtype=float)
    affine[:3, 0] = step / (len(data_sets) - 1)
    hu = np.stack(
        [d.pixel_array.astype(np.float32) * float(d.RescaleSlope) + float(d.RescaleIntercept) for d, _ in data_sets]
    )
    return Volume(
        hu=hu,
        affine=affine,
        frame_of_reference_uid=str(first.get("FrameOfReferenceUID") or "2.25.1"),
        series=SeriesDescription(
            study_instance_uid=str(first.StudyInstanceUID),
            series_instance_uid=str(first.SeriesInstanceUID),
            modality="CT",
            series_description=str(first.get("SeriesDescription", "")),
        ),
        sources=tuple(
            SliceSource(sop_class_uid=str(d.SOPClassUID), sop_instance_uid=str(d.SOPInstanceUID), path=str(path))
            for d, path in data_sets
        ),
        cautions=cautions,
    )


def make_nodule(
    volume: Volume,
    centre: tuple[int, int, int],
    *,
    radius_mm: float = 4.0,
    malignancy: float = 0.55,
    value: float = 3.4,
    seed: int = 1,
) -> Nodule:
    """A sphere around a voxel with made-up scores; the axes run along the row and the column of its centre."""
    random = np.random.default_rng(seed)
    index = np.indices(volume.hu.shape).astype(float)
    steps = np.array(volume.spacing_mm)
    distance_mm = np.sqrt(sum(((index[axis] - centre[axis]) * steps[axis]) ** 2 for axis in range(3)))
    inside = distance_mm <= radius_mm
    corners = np.argwhere(inside)
    low, high = corners.min(axis=0), corners.max(axis=0) + 1
    box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    k, row, column = centre
    half = inside[k, row].nonzero()[0], inside[k, :, column].nonzero()[0]
    long_axis = Axis(
        length_mm=(half[0].max() - half[0].min() + 1) * steps[2] + 1 / 3,
        start=(k, row, half[0].min() - 0.5),
        end=(k, row, half[0].max() + 0.5),
    )
    short_axis = Axis(
        length_mm=(half[1].max() - half[1].min() + 1) * steps[1] - 1 / 3,
        start=(k, half[1].min() - 0.5, column),
        end=(k, half[1].max() + 0.5, column),
    )
    centre_lps = volume.affine @ np.array([*centre, 1.0])
    return Nodule(
        centre_lps_mm=(float(centre_lps[0]), float(centre_lps[1]), float(centre_lps[2])),
        centre_index=centre,
        mask=Mask(origin=(int(low[0]), int(low[1]), int(low[2])), voxels=inside[box]),
        candidate_score=float(random.uniform(0.3, 1)),
        detection_probability=float(random.uniform(0.5, 1)),
        malignancy_probability=malignancy,
        concepts=tuple(
            Concept(name=name, value=value + 0.123456 * i, contribution=float(random.normal()))
            for i, name in enumerate(CONCEPT_NAMES)
        ),
        long_axis=long_axis,
        short_axis=short_axis,
        volume_mm3=float(inside.sum() * steps.prod()),
        mean_hu=float(volume.hu[inside].mean()),
    )


def make_findings(volume: Volume, nodules: Sequence[Nodule] = (), cautions: tuple[str, ...] = ()) -> Findings:
    return Findings(pipeline=INFO, nodules=tuple(nodules), malignancy_bias=-1.23456, cautions=cautions)


def make_context(volume: Volume, **changes: Any) -> ResultContext:
    values: dict[str, Any] = {
        "series_instance_uid": volume.series.series_instance_uid,
        "revision": 1,
        "pipeline": "ct-nodules",
        "settings_sha256": "12" * 32,
        "content_datetime": CONTEXT_TIME,
    }
    return ResultContext(**(values | changes))
