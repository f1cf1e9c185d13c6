"""The numbers of what was found in radiographs, rounded once: SR and findings.json take them from here.

Precision: probabilities and thresholds 0.0001 (0.01 % in SR), estimates 0.01, places 0.1 pixel.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from pulmo_models.types import (
    Caution,
    ClassScore,
    Estimate,
    Findings,
    HeatMap,
    Image,
    ImageFindings,
    Radiograph,
    RadiographSeries,
)
from pulmo_node.encode import report
from pulmo_node.encode.identity import ResultContext
from pulmo_node.encode.report import PROBABILITY_DIGITS, percent, rounded
from pulmo_node.errors import Permanent

TRACKING_PREFIX = "Cornerstone3DTools@^0.1.0:Probe:"
"""OHIF turns a measurement group into a point by this beginning of its tracking identifier."""

_ESTIMATE_DIGITS = 2
_PLACE_DIGITS = 1


@dataclass(frozen=True, kw_only=True)
class ScoreRecord:
    """A finding as it is reported; the field names are the keys of findings.json."""

    label: str
    tracking_uid: str
    probability: float  # 0..1
    threshold: float  # 0..1
    positive: bool
    peak: tuple[float, float] | None  # (row, column) of the heat map's peak, 0.0 a pixel's centre; None: no signal

    def comment(self, film: str) -> str:
        """The line that a viewer's measurement panel shows."""
        side = "at or above" if self.positive else "below"
        numbers = f"{self.label} {percent(self.probability):.0f} %, {side} its threshold of "
        numbers += f"{percent(self.threshold):.0f} %{film}"
        return numbers if self.peak is not None else f"{numbers}; no part of the image spoke for it"


@dataclass(frozen=True, kw_only=True)
class EstimateRecord:
    """A number as it is reported; the field names are the keys of findings.json."""

    label: str
    tracking_uid: str
    value: float
    unit: str
    group: str
    note: str

    def comment(self, film: str) -> str:
        """The line that a viewer's measurement panel shows."""
        group = f" (group {self.group})" if self.group else ""
        note = f". {self.note}" if self.note else ""
        return f"{self.label} {self.value:.1f}{group}{film}{note}"


@dataclass(frozen=True, kw_only=True)
class FilmRecord:
    """A radiograph as it is reported; the field names are the keys of findings.json."""

    sop_instance_uid: str
    view_position: str
    spacing_mm: tuple[float, float] | None
    spacing_plane: str | None
    class_scores: tuple[ScoreRecord, ...]
    estimates: tuple[EstimateRecord, ...]
    cautions: tuple[Caution, ...]


def film_records(findings: Findings, series: RadiographSeries, context: ResultContext) -> tuple[FilmRecord, ...]:
    """The reported numbers of every radiograph that was analysed, in order.

    Raises:
        Permanent: a number is not finite.
    """
    return tuple(
        _record(found, film_of(found, series), findings.pipeline.weights_sha256, context) for found in findings.images
    )


def film_of(found: ImageFindings, series: RadiographSeries) -> Radiograph:
    """The radiograph in which it was found. Raises `Permanent` where the series does not hold it."""
    uid = found.source.sop_instance_uid
    film = next((film for film in series.images if film.source.sop_instance_uid == uid), None)
    if film is None:
        raise Permanent(f"findings name instance {uid}, which series {series.series.series_instance_uid} does not hold")
    return film


def findings_to_json(findings: Findings, image: Image, context: ResultContext) -> dict[str, Any]:
    """The content of findings.json for a volume or for radiographs; see `report.findings_to_json`."""
    plain = report.findings_to_json(findings, image, context)
    films = film_records(findings, image, context) if isinstance(image, RadiographSeries) else ()
    return {**plain, "images": [_plain(asdict(film)) for film in films]}


def centre_of(film: Radiograph) -> tuple[float, float]:
    """The middle of an image as (row, column)."""
    rows, columns = film.pixels.shape
    return (rows - 1) / 2, (columns - 1) / 2


def image_words(number: int, count: int) -> str:
    """What a comment says of its image, the `number`-th of the report; nothing where there is but one."""
    return f", image {number}" if count > 1 else ""


def _record(found: ImageFindings, film: Radiograph, weights_sha256: str, context: ResultContext) -> FilmRecord:
    uid = found.source.sop_instance_uid

    def tracking(label: str) -> str:
        return context.uid(f"tracking {uid} {label}", weights_sha256)

    return FilmRecord(
        sop_instance_uid=uid,
        view_position=film.view_position,
        spacing_mm=film.spacing_mm,
        spacing_plane=film.spacing_plane,
        class_scores=tuple(_score(score, film, tracking(score.label)) for score in found.class_scores),
        estimates=tuple(_estimate(estimate, tracking(estimate.label)) for estimate in found.estimates),
        cautions=found.cautions,
    )


def _score(score: ClassScore, film: Radiograph, tracking_uid: str) -> ScoreRecord:
    return ScoreRecord(
        label=score.label,
        tracking_uid=tracking_uid,
        probability=rounded(score.probability, PROBABILITY_DIGITS, f"probability of {score.label}"),
        threshold=rounded(score.threshold, PROBABILITY_DIGITS, f"threshold of {score.label}"),
        positive=score.positive,
        peak=None if score.heat_map is None else _peak(score.heat_map, film),
    )


def _peak(heat_map: HeatMap, film: Radiograph) -> tuple[float, float]:
    """The peak, moved into the image where its cell reaches beyond."""
    row, column = (
        rounded(min(max(place, 0.0), size - 1.0), _PLACE_DIGITS, "peak of a heat map")
        for place, size in zip(heat_map.peak, film.pixels.shape, strict=True)
    )
    return row, column


def _estimate(estimate: Estimate, tracking_uid: str) -> EstimateRecord:
    return EstimateRecord(
        label=estimate.label,
        tracking_uid=tracking_uid,
        value=rounded(estimate.value, _ESTIMATE_DIGITS, estimate.label),
        unit=estimate.unit,
        group=estimate.group,
        note=estimate.note,
    )


def _plain(value: Any) -> Any:
    """Tuples as lists, all the way down."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
