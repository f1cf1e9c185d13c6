"""Every radiograph of the test data through both radiograph pipelines, with made-up weights, to its results."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pulmo_models import registry
from pulmo_models.codes import CautionCode
from pulmo_models.cxr import lung_risk
from pulmo_models.cxr.films import normalised
from pulmo_models.cxr.imports import import_lung_risk
from pulmo_models.pipeline import Pipeline
from pulmo_models.types import RadiographSeries
from pulmo_node.encode import ResultOptions, encode_findings
from tests.conftest import data_folder
from tests.cxr_factory import radiograph_of, series_of, write_findings_set
from tests.encode_factory import context_of, measurement_groups, read_object
from tests.film_results import read_films
from tests.models.test_lung_risk import Told

# name: what the results say to be careful of
DICOM_FILES = {
    "dx_chest_pa_monochrome1_j2k_966_fixed": [],
    "cr_chest_pa_monochrome1_RG1_j2k_lossless_masses": [],
    "cr_chest_pa_siim_jpegbaseline": [],
    "cr_chest_pa_siim_FAKE_monochrome1": [CautionCode.LOOKS_INVERTED],
    "cr_chest_pa_monochrome1_440_gdcm": [],
}
# path: what the results say to be careful of; a picture tells no view
UNTOLD = [CautionCode.VIEW_UNKNOWN]
PICTURES = {
    **{f"cxr-lung-risk_dummy/{letter}.png": UNTOLD for letter in "ABCDE"},
    "torchxrayvision_tests/h0001.png": UNTOLD,
    "torchxrayvision_tests/tb0005.png": UNTOLD,
    "torchxrayvision_tests/16747_3_1.jpg": UNTOLD,
    "nih_chestxray14/png/00000129_000.png": UNTOLD,
    "nih_chestxray14/png/00017999_000.png": [*UNTOLD, CautionCode.LOOKS_INVERTED],  # a negative in the collection
}


@pytest.fixture(scope="module")
def pipelines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Pipeline]]:
    folder = tmp_path_factory.mktemp("weights")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lung_risk, "regressor", lambda architecture: Told())
        for number in lung_risk.MEMBERS:
            torch.save({"factor": torch.tensor([0.1 * number])}, folder / f"Lung_Age_081221_{number}.pth")
        sets = {
            "cxr-findings": write_findings_set(folder / "findings"),
            "cxr-lung-risk": import_lung_risk(folder, folder / "risk"),
        }
        yield {label: registry.build(label, {"weights": str(path)}, "cpu") for label, path in sets.items()}


def outcome(series: RadiographSeries, pipelines: dict[str, Pipeline]) -> tuple[list[str], dict[str, float]]:
    """The cautions, equal for both pipelines, and every number that they found."""
    numbers: dict[str, float] = {}
    said = []
    for pipeline in pipelines.values():
        (image,) = pipeline(series).images
        said.append([caution.code for caution in image.cautions])
        numbers.update({score.label: score.probability for score in image.class_scores})
        numbers.update({estimate.label: estimate.value for estimate in image.estimates})
    assert said[0] == said[1]
    assert len(numbers) == 6
    assert all(np.isfinite(value) for value in numbers.values())
    return said[0], numbers


def lung_risk_of(seen: np.ndarray) -> float:
    """What the made-up members make of the film as they see it."""
    mean = float(normalised(seen).mean())
    return lung_risk.score({number: 0.1 * number * mean for number in lung_risk.MEMBERS})


@pytest.mark.parametrize("name", DICOM_FILES)
def test_dicom(name: str, pipelines: dict[str, Pipeline]) -> None:
    series = read_films([data_folder(f"cxr_dicom/{name}.dcm")])
    cautions, numbers = outcome(series, pipelines)
    assert cautions == DICOM_FILES[name]
    expected = lung_risk_of(lung_risk.network_film(series.images[0].pixels, "crop"))
    assert numbers["CXR-Lung-Risk"] == pytest.approx(expected, abs=1e-3)
    findings = pipelines["cxr-findings"](series)
    context = context_of(series.series.series_instance_uid, pipeline="cxr-findings", options=ResultOptions())
    objects = encode_findings(findings, series, context)
    groups = measurement_groups(read_object(objects[0]))
    assert len(groups) == 5
    rows, columns = series.images[0].pixels.shape
    for group in groups:
        (number,) = (item for item in group.ContentSequence if item.ValueType == "NUM")
        column, row = number.ContentSequence[-1].GraphicData
        assert 0 < column <= columns
        assert 0 < row <= rows


@pytest.mark.parametrize("name", PICTURES)
def test_picture(name: str, pipelines: dict[str, Pipeline]) -> None:
    path = Path(data_folder(f"cxr_png/{name}"))
    pixels = np.asarray(Image.open(path).convert("L"), dtype=np.float32)
    series = series_of(radiograph_of(pixels, view="unknown", view_position=""))
    cautions, numbers = outcome(series, pipelines)
    assert cautions == PICTURES[name]
    assert numbers["CXR-Lung-Risk"] == pytest.approx(lung_risk_of(lung_risk.network_film(pixels, "crop")), abs=1e-3)
