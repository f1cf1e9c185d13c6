"""A small CT series on disk and made-up findings in it, for the tests of the encoder."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from pydicom import dcmread
from pydicom.dataset import Dataset

from pulmo_models.codes import CautionCode
from pulmo_models.types import (
    CONCEPT_NAMES,
    AlgorithmStage,
    Axis,
    Caution,
    Concept,
    Findings,
    Mask,
    Nodule,
    PipelineInfo,
    Volume,
)
from pulmo_node.assemble import assemble, describe
from pulmo_node.encode import EncodedObject, ResultContext, ResultOptions
from tests.ct_factory import ct_datasets, write_datasets

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


def chest_datasets(shape: tuple[int, int, int] = (12, 40, 48), **geometry: Any) -> list[Dataset]:
    """CT slices of noise; `geometry` as `ct_datasets`."""
    hu = np.random.default_rng(5).integers(-900, 100, shape).astype(float)
    datasets = ct_datasets(hu, **{"spacing_mm": (2.5, 0.8, 0.7), **geometry})
    for dataset in datasets:
        dataset.AccessionNumber, dataset.PatientBirthDate, dataset.PatientSex = "ACC1", "19600101", "O"
        dataset.ManufacturerModelName, dataset.AcquisitionDate, dataset.AcquisitionTime = (
            "Scanner",
            "20260101",
            "120101",
        )
        dataset.ReferringPhysicianName = "Referrer^Test"
        dataset.SliceThickness, dataset.KVP = 2.5, 120
    return datasets


def write_volume(datasets: Sequence[Dataset], folder: Path) -> Volume:
    """Write the data sets as files and assemble them."""
    return read_volume(write_datasets(datasets, folder, seed=1))


def read_volume(paths: Sequence[Path]) -> Volume:
    volume = assemble(paths, describe(paths))
    assert isinstance(volume, Volume)
    return volume


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
        min_hu=float(volume.hu[inside].min()),
        max_hu=float(volume.hu[inside].max()),
    )


def make_findings(volume: Volume, nodules: Sequence[Nodule] = (), cautions: tuple[str, ...] = ()) -> Findings:
    """Findings with cautions of these sentences; their code is THICK_SLICES."""
    made = tuple(Caution(code=CautionCode.THICK_SLICES, sentence=sentence) for sentence in cautions)
    return Findings(pipeline=INFO, nodules=tuple(nodules), malignancy_bias=-1.23456, cautions=made)


def make_context(volume: Volume, **changes: Any) -> ResultContext:
    """A context without key images, unless `changes` say otherwise: pictures take longer than the rest of a test."""
    return context_of(volume.series.series_instance_uid, **changes)


def context_of(series_instance_uid: str, **changes: Any) -> ResultContext:
    values: dict[str, Any] = {
        "series_instance_uid": series_instance_uid,
        "revision": 1,
        "pipeline": "ct-nodules",
        "settings_sha256": "12" * 32,
        "content_datetime": CONTEXT_TIME,
        "options": ResultOptions(key_images=False),
    }
    return ResultContext(**(values | changes))


def read_object(encoded: EncodedObject) -> Dataset:
    """The object as a receiver sees it: from its bytes."""
    return dcmread(BytesIO(encoded.content))


def items_named(item: Dataset, meaning: str) -> list[Dataset]:
    """Direct children of a content item with that concept name."""
    return [
        child for child in item.get("ContentSequence", []) if child.ConceptNameCodeSequence[0].CodeMeaning == meaning
    ]


def measurement_groups(report: Dataset) -> list[Dataset]:
    (measurements,) = items_named(report, "Imaging Measurements")
    return items_named(measurements, "Measurement Group")
