"""A study has no state of its own: it is derived from its series and jobs."""

from __future__ import annotations

from collections.abc import Collection

from pulmo_node.domain.jobs import JobState
from pulmo_node.domain.series import SeriesState

NO_PIPELINE = "NO_PIPELINE"
"""Every series is complete and no pipeline took one of them."""

STUDY_STATES = (
    SeriesState.RECEIVING.value,
    NO_PIPELINE,
    *(state.value for state in JobState if state is not JobState.SUPERSEDED),
)
"""Every state that a study can show."""

_NEED_ATTENTION = (JobState.FAILED, JobState.QUARANTINED, JobState.REJECTED)
_BY_PROGRESS = (JobState.QUEUED, JobState.ENCODED, JobState.CANCELLED, JobState.DONE)

STATES_BY_RANK = (
    *(state.value for state in _NEED_ATTENTION),
    SeriesState.RECEIVING.value,
    *(state.value for state in _BY_PROGRESS),
    NO_PIPELINE,
)
"""The same order as `derive_study_state` has it: the first of these that applies is the state."""


def derive_study_state(series_states: Collection[SeriesState], job_states: Collection[JobState]) -> str:
    """What `pulmo-node studies` shows: what needs attention first, else the least advanced.

    `job_states` are those of the jobs of each series' current revision; superseded ones do not count.
    """
    for state in _NEED_ATTENTION:
        if state in job_states:
            return state.value
    if SeriesState.RECEIVING in series_states:
        return SeriesState.RECEIVING.value
    for state in _BY_PROGRESS:
        if state in job_states:
            return state.value
    return NO_PIPELINE
