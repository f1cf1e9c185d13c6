"""Stage between receive and assemble: which pipelines take a complete series, and where their results go.

Input: the description of a series and the rules of the configuration. Output: jobs to queue, and a note where a
series got none or a destination is missing. No error: a series that nobody wants is kept and says why.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from pulmo_models import registry
from pulmo_models.types import SeriesDescription
from pulmo_node.config import SENDER, Config, RuleSection
from pulmo_node.domain.jobs import NewJob
from pulmo_node.domain.priority import Priority


@dataclass(frozen=True, kw_only=True)
class Selection:
    """What is to be done with a series."""

    jobs: tuple[NewJob, ...]
    note: str | None  # why there is no job, or which destination is unknown


def matches(rule: RuleSection, series: SeriesDescription) -> bool:
    """Whether all four conditions of a rule hold."""
    conditions = (
        (rule.calling_ae_title, series.calling_ae_title),
        (rule.modality, series.modality),
        (rule.body_part, series.body_part_examined),
        (rule.series_description, series.series_description),
    )
    return all(fnmatchcase(value.strip().lower(), pattern.lower()) for pattern, value in conditions)


def select(config: Config, series: SeriesDescription) -> Selection:
    """The jobs of a series by the first rule that fits."""
    rule = next((rule for rule in config.rules if matches(rule, series)), None)
    if rule is None:
        return Selection(jobs=(), note=f"no rule fits (modality {series.modality or 'missing'})")
    notes: list[str] = []
    destinations = _destinations(config, rule.destinations, series.calling_ae_title, notes)
    jobs: list[NewJob] = []
    for label in rule.pipelines:
        reason = registry.entry(label).accepts(series)
        if reason is None:
            priority = Priority[rule.priority.upper()]
            jobs.append(NewJob(pipeline=label, destinations=destinations, priority=priority))
        else:
            notes.append(f"{label} does not take it: {reason}")
    if not rule.pipelines:
        notes.append("the rule that fits names no pipeline")
    return Selection(jobs=tuple(jobs), note="; ".join(notes) or None)


def _destinations(config: Config, names: Sequence[str], calling_ae_title: str, notes: list[str]) -> tuple[str, ...]:
    """Names of peers, ``sender`` resolved, each once."""
    found: list[str] = []
    for name in names:
        resolved = config.peer_of_ae_title(calling_ae_title) if name == SENDER else name
        if resolved is None:
            notes.append(f"the sender {calling_ae_title.strip() or '(no AE title)'} is no configured peer")
        elif resolved not in found:
            found.append(resolved)
    return tuple(found)
