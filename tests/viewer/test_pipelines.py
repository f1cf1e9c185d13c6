"""A CT and a radiograph of one patient through one node with every pipeline, opened in OHIF."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.encode_factory import measurement_groups
from tests.pipelines_scene import DESCRIPTIONS, Outcome, analysed, made_study, real_networks, real_study, stand_ins
from tests.viewer.driver import Drive, drive
from tests.viewer.stand import ViewerStand, missing

pytestmark = [pytest.mark.viewer, pytest.mark.timeout(3600)]

SCENES = {"stand-ins": (stand_ins, made_study), "real-networks": (real_networks, real_study)}
DETECTORS = ("Pulmo nodules SR", "Pulmo RetinaNet nodules SR")
FILMS = ("Pulmo chest findings SR", "Pulmo lung risk SR")


@dataclass(frozen=True, kw_only=True)
class Shown:
    """What the node sent, and the study in OHIF."""

    scene: str
    outcome: Outcome
    stand: ViewerStand
    url: str

    def drive(self, name: str, *only: str) -> Drive:
        driven = drive(self.url, ROOT / "viewer-out" / f"pipelines-{self.scene}-{name}", only or ("none",))
        assert driven.report["failures"] == []
        assert driven.report["page"] == {"errors": [], "exceptions": [], "refused": [], "left": []}
        return driven

    def report(self, description: str) -> dict[str, object]:
        """One report, opened, as OHIF tells it."""
        driven = self.drive(description.replace(" ", "-"), str(self.outcome.reports[description].SeriesInstanceUID))
        (found,) = driven.report["reports"]
        return dict(found)


@pytest.fixture(scope="module", params=["stand-ins", pytest.param("real-networks", marks=pytest.mark.slow)])
def shown(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shown]:
    """With stand-ins for the networks that take long, or with all as they are, on a real CT and a real film."""
    lacking = missing()
    if lacking is not None:
        pytest.skip(lacking)
    networks, study = SCENES[request.param]
    folder: Path = tmp_path_factory.mktemp(request.param)
    files = study(folder / "study")
    with networks(folder) as tables, ViewerStand(folder / "stand") as stand:
        outcome = analysed(folder, stand.pacs, files, tables)
        stand.store(files)
        url = stand.ohif.study_url(outcome.detail.summary.study_instance_uid)
        yield Shown(scene=request.param, outcome=outcome, stand=stand, url=url)


def test_every_result_is_there_in_series_of_its_own(shown: Shown) -> None:
    assert {job.pipeline: job.state for job in shown.outcome.detail.jobs} == dict.fromkeys(DESCRIPTIONS, "DONE")
    sets = {found["series"]: found for found in shown.drive("all").report["sets"]}
    assert not any(found["unsupported"] for found in sets.values())
    expected = {str(each.SeriesInstanceUID): str(each.SeriesDescription) for each in shown.outcome.objects}
    assert {uid: sets[uid]["description"] for uid in expected} == expected
    assert sorted(found["modality"] for uid, found in sets.items() if uid not in expected) in (
        ["CT", "CR"],
        ["CT", "DX"],
    )
    assert frozenset(expected.values()) == frozenset().union(*DESCRIPTIONS.values())


@pytest.mark.parametrize("description", [*DETECTORS, *(pytest.param(name, marks=pytest.mark.slow) for name in FILMS)])
def test_each_report_opens_with_its_own_findings(shown: Shown, description: str) -> None:
    groups = measurement_groups(shown.outcome.reports[description])
    report = shown.report(description)
    assert report["outcome"] == "asked"
    measurements = report["measurements"]
    assert isinstance(measurements, list)
    assert len(measurements) == len(groups) > 0
    assert len(report["rows"]) == len(groups)  # type: ignore[arg-type]
