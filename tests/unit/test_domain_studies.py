"""The derived state of a study."""

from __future__ import annotations

import pytest

from pulmo_node.domain.jobs import JobState
from pulmo_node.domain.series import SeriesState
from pulmo_node.domain.studies import derive_study_state


@pytest.mark.parametrize(
    ("series", "jobs", "expected"),
    [
        ("RECEIVING", "", "RECEIVING"),
        ("COMPLETE", "", "NO_PIPELINE"),
        ("COMPLETE", "SUPERSEDED", "NO_PIPELINE"),
        ("COMPLETE", "QUEUED", "QUEUED"),
        ("COMPLETE", "DONE ENCODED QUEUED", "QUEUED"),
        ("COMPLETE", "DONE ENCODED", "ENCODED"),
        ("COMPLETE", "DONE DONE SUPERSEDED", "DONE"),
        ("COMPLETE", "DONE CANCELLED", "CANCELLED"),
        ("COMPLETE", "CANCELLED ENCODED", "ENCODED"),
        ("COMPLETE COMPLETE", "DONE", "DONE"),
        ("COMPLETE RECEIVING", "DONE QUEUED", "RECEIVING"),
        ("COMPLETE", "QUEUED REJECTED", "REJECTED"),
        ("COMPLETE RECEIVING", "DONE REJECTED", "REJECTED"),
        ("COMPLETE", "REJECTED QUARANTINED", "QUARANTINED"),
        ("COMPLETE", "REJECTED QUARANTINED FAILED DONE QUEUED", "FAILED"),
    ],
)
def test_state(series: str, jobs: str, expected: str) -> None:
    series_states = [SeriesState(name) for name in series.split()]
    job_states = [JobState(name) for name in jobs.split()]
    assert derive_study_state(series_states, job_states) == expected
    assert derive_study_state(series_states[::-1], job_states[::-1]) == expected


@pytest.mark.parametrize("state", [state for state in JobState if state is not JobState.SUPERSEDED])
def test_a_single_job_shows_its_own_state(state: JobState) -> None:
    assert derive_study_state([SeriesState.COMPLETE], [state]) == state.value
