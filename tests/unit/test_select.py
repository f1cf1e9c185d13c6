"""Which series go to which pipelines and destinations."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from pulmo_models.types import SeriesDescription
from pulmo_node.config import Config, resolve
from pulmo_node.domain.jobs import NewJob
from pulmo_node.domain.priority import Priority
from pulmo_node.select import select

CT = SeriesDescription(
    study_instance_uid="1.2",
    series_instance_uid="1.2.3",
    modality="CT",
    calling_ae_title="ORTHANC",
    body_part_examined="CHEST",
    series_description="Thorax 1.0 B70f",
)


def config(*rules: dict[str, Any]) -> Config:
    peers = {
        "orthanc": {"ae_title": "ORTHANC", "host": "h", "port": 104},
        "archive": {"ae_title": "ARCHIVE", "host": "h", "port": 104},
    }
    return resolve({"peers": peers, "rules": list(rules)}, base=Path())


NODULES = {"pipelines": ["ct-nodules"]}


def test_the_sender_is_the_peer_with_the_calling_ae_title() -> None:
    found = select(config({**NODULES, "destinations": ["sender", "archive"]}), CT)
    assert found.jobs == (NewJob(pipeline="ct-nodules", destinations=("orthanc", "archive")),)
    assert found.note is None


def test_a_destination_named_twice_counts_once() -> None:
    found = select(config({**NODULES, "destinations": ["sender", "orthanc"]}), CT)
    assert found.jobs[0].destinations == ("orthanc",)


def test_an_unknown_sender_is_noted_and_the_series_still_analysed() -> None:
    found = select(config(NODULES), replace(CT, calling_ae_title="STRANGER"))
    assert found.jobs == (NewJob(pipeline="ct-nodules", destinations=()),)
    assert "STRANGER" in (found.note or "")


def test_the_first_rule_that_fits_is_used() -> None:
    rules = (
        {**NODULES, "series_description": "*lung*", "destinations": ["archive"]},
        {**NODULES, "series_description": "thorax*", "destinations": ["orthanc"]},
        {**NODULES, "destinations": ["archive"]},
    )
    assert select(config(*rules), CT).jobs[0].destinations == ("orthanc",)


def test_every_condition_of_a_rule_must_hold() -> None:
    fitting = {"calling_ae_title": "ORTH*", "modality": "ct", "body_part": "chest", "series_description": "*B70?"}
    assert select(config({**NODULES, **fitting}), CT).jobs
    for key in fitting:
        found = select(config({**NODULES, **fitting, key: "other"}), CT)
        assert found.jobs == ()
        assert "no rule fits" in (found.note or "")


def test_a_pipeline_says_why_it_does_not_take_a_series() -> None:
    found = select(config(NODULES), replace(CT, modality="CR"))
    assert found.jobs == ()
    assert found.note == "ct-nodules does not take it: modality is CR, not CT"


def test_the_priority_of_the_rule_is_that_of_the_job() -> None:
    (job,) = select(config({**NODULES, "destinations": [], "priority": "stat"}), CT).jobs
    assert job.priority is Priority.STAT
    (job,) = select(config({**NODULES, "destinations": []}), CT).jobs
    assert job.priority is Priority.ROUTINE


DX = SeriesDescription(study_instance_uid="1.2", series_instance_uid="1.2.4", modality="DX", body_part_examined="CHEST")


def test_radiographs_of_a_chest_go_to_their_pipelines() -> None:
    tables = {"pipelines": {"cxr-findings": {}, "cxr-lung-risk": {}}}
    rules = [{"modality": "[CD][RX]", "pipelines": ["cxr-findings", "cxr-lung-risk"], "destinations": []}]
    settings = resolve({**tables, "rules": rules}, base=Path())
    for changes in ({}, {"modality": "CR"}, {"body_part_examined": ""}, {"body_part_examined": "Thorax"}):
        found = select(settings, replace(DX, **changes))
        assert [job.pipeline for job in found.jobs] == ["cxr-findings", "cxr-lung-risk"]
    refused = select(settings, replace(DX, body_part_examined="HAND"))
    assert refused.jobs == ()
    assert "the body part is HAND, not the chest" in str(refused.note)
    assert select(settings, CT).jobs == ()
