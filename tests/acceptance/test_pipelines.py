"""A CT and a radiograph of one patient go into one node; the results of every pipeline lie in a real Orthanc."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydicom import Dataset, dcmread

from pulmo_node import orthanc
from tests.acceptance.test_orthanc import needs_orthanc
from tests.encode_factory import INFO, measurement_groups
from tests.pipelines_scene import DESCRIPTIONS, Outcome, analysed, made_study, stand_ins


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pipelines")


@pytest.fixture(scope="module")
def study(folder: Path) -> list[Path]:
    return made_study(folder / "study")


@pytest.fixture(scope="module")
def tables(folder: Path) -> Iterator[dict[str, dict[str, Any]]]:
    needs_orthanc()
    with stand_ins(folder) as found:
        yield found


@pytest.fixture(scope="module")
def outcome(folder: Path, study: list[Path], tables: dict[str, dict[str, Any]]) -> Outcome:
    with orthanc.OrthancProcess(folder / "orthanc") as pacs:
        return analysed(folder / "every", pacs, study, tables)


OBSERVER_MODEL, ALGORITHM_NAME = "121015", "111001"


def texts(item: Dataset, code: str) -> set[str]:
    """What a report says under a concept, wherever it stands."""
    found = set()
    for child in item.get("ContentSequence", ()):
        if child.ConceptNameCodeSequence[0].CodeValue == code and "TextValue" in child:
            found.add(str(child.TextValue))
        found |= texts(child, code)
    return found


def equipment(report: Dataset) -> Dataset:
    """Of the contributing equipment of a report the program that found what it tells."""
    return next(item for item in report.ContributingEquipmentSequence if "DeviceUID" in item)


def test_every_pipeline_has_series_of_its_own(outcome: Outcome, study: list[Path]) -> None:
    assert {job.pipeline: job.state for job in outcome.detail.jobs} == dict.fromkeys(DESCRIPTIONS, "DONE")
    series = {str(each.SeriesInstanceUID): (each.SeriesDescription, int(each.SeriesNumber)) for each in outcome.objects}
    assert Counter(description for description, _ in series.values()) == Counter(
        frozenset().union(*DESCRIPTIONS.values())
    )
    assert len({number for _, number in series.values()}) == len(series)
    reports = outcome.reports
    assert len({equipment(report).DeviceUID for report in reports.values()}) == len(reports) == len(DESCRIPTIONS)
    assert len(measurement_groups(reports["Pulmo chest findings SR"])) == 5
    assert len(measurement_groups(reports["Pulmo lung risk SR"])) == 1
    source = dcmread(study[-1], stop_before_pixels=True)
    for report in reports.values():
        assert (report.StudyInstanceUID, report.PatientID) == (source.StudyInstanceUID, source.PatientID)


def test_two_detectors_on_one_series_say_whose_findings_are_whose(outcome: Outcome, study: list[Path]) -> None:
    reports = [outcome.reports[f"Pulmo {subject} SR"] for subject in ("nodules", "RetinaNet nodules")]
    images = {str(dcmread(path, stop_before_pixels=True).SOPInstanceUID) for path in study[:-1]}
    observers = [texts(report, OBSERVER_MODEL) for report in reports]
    assert observers == [{INFO.name}, {"Pulmo Node RetinaNet nodules"}]
    algorithms = [texts(report, ALGORITHM_NAME) for report in reports]
    assert "RetinaNet3D detector" in algorithms[1]
    assert not algorithms[0] & algorithms[1]
    for report in reports:
        assert measurement_groups(report)
        evidence = report.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence
        assert {item.ReferencedSOPInstanceUID for each in evidence for item in each.ReferencedSOPSequence} & images


def test_a_disabled_pipeline_takes_its_results_away_and_no_other(
    outcome: Outcome, folder: Path, study: list[Path], tables: dict[str, dict[str, Any]]
) -> None:
    fewer = {label: table for label, table in tables.items() if label != "ct-retinanet"}
    with orthanc.OrthancProcess(folder / "second-orthanc") as pacs:
        found = analysed(folder / "fewer", pacs, study, fewer)
    uids = {str(each.SOPInstanceUID) for each in found.objects}
    gone = [each for each in outcome.objects if str(each.SOPInstanceUID) not in uids]
    assert {str(each.SeriesDescription) for each in gone} == DESCRIPTIONS["ct-retinanet"]
    assert len(uids) == len(outcome.objects) - len(gone)
