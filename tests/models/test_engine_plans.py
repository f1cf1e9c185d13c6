"""The node's plan of windows finds what the published one finds, on every real CT there is."""

from __future__ import annotations

import pytest
import torch

from pulmo_models.ct.engine import choose_engine, set_threads
from pulmo_models.ct.settings import NoduleSettings
from tests.conftest import data_folder
from tests.models.engine_plans import DOUBT, PUBLISHED, REAL_SERIES, Chest, Stages, matched, over_lungs, told

CPU = torch.device("cpu")
OVERLAP = NoduleSettings().overlap


@pytest.fixture(scope="module")
def stages() -> Stages:
    return Stages()


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("series", REAL_SERIES)
def test_the_findings_are_those_of_the_published_windows(series: str, stages: Stages) -> None:
    """The reference is fp32, in all published windows that touch the lungs; what is tested is the default."""
    chest = Chest.read(data_folder(series))
    threads = set_threads()
    exact = choose_engine(stages.detector, CPU, "auto", "fp32").make(stages.detector, CPU, threads)
    second = choose_engine(stages.characteriser, CPU, "auto", "fp32").make(stages.characteriser, CPU, threads)
    quick = choose_engine(stages.detector, CPU, "auto", "auto").make(stages.detector, CPU, threads)
    expected = stages.run(chest, (exact, second), PUBLISHED, 0.0)
    found = stages.run(chest, (quick, second), over_lungs(OVERLAP), DOUBT)
    assert found.windows < expected.windows / 2
    pairs = matched(expected.found, found.found, chest.spacing_mm)
    for one, other in pairs:
        print(f"{told(one)} | {told(other)}")
    lost = [told(f) for f in expected.found if f not in [one for one, _ in pairs]]
    new = [told(f) for f in found.found if f not in [other for _, other in pairs]]
    assert (lost, new) == ([], [])
