"""Sets of weights for the radiograph pipelines, made up, and series of radiographs without files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pulmo_models.cxr.imports import import_findings
from pulmo_models.cxr.networks import classifier
from pulmo_models.types import Radiograph, RadiographSeries, SeriesDescription, SliceSource
from tests.radiograph_factory import film


def write_findings_set(
    folder: Path, architectures: Sequence[str] = ("efficientnet_b0",), name: str = "cxr-findings", **changes: Any
) -> Path:
    """A set of fresh networks by the published trainer's second form of checkpoint; the path of its manifest."""
    paths = []
    folder.mkdir(parents=True, exist_ok=True)
    for number, architecture in enumerate(architectures):
        torch.manual_seed(number)
        paths.append(folder / f"{architecture}-{number}.pth")
        torch.save(classifier(architecture).state_dict(), paths[-1])
    return import_findings(paths, folder, name=name, **changes)


def radiograph_of(pixels: npt.NDArray[np.floating] | None = None, uid: str = "1.2.3", **changes: Any) -> Radiograph:
    """A film with its range of values as display."""
    values = (film() if pixels is None else pixels).astype(np.float32)
    low, high = float(values.min()), float(values.max())
    about: dict[str, Any] = {
        "pixels": values,
        "display": (values - low) / max(high - low, 1e-9),
        "source": SliceSource(sop_class_uid="1.2.840.10008.5.1.4.1.1.1.1", sop_instance_uid=uid),
        "view": "PA",
        "view_position": "PA",
    }
    return Radiograph(**(about | changes))


def series_of(*films: Radiograph) -> RadiographSeries:
    series = SeriesDescription(study_instance_uid="1.2", series_instance_uid="1.2.1", modality="DX")
    return RadiographSeries(images=films, series=series)
