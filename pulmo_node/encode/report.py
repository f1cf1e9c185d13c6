"""The numbers of a result, rounded once: SR, findings.json and the database all take them from here.

Precision: lengths 0.01 mm, volumes 0.1 mm3, attenuation 0.1 HU, probabilities and scores 0.0001 (0.01 % in SR),
concept values 0.01 on the LIDC scale, contributions and bias 0.0001.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from pulmo_models.types import Caution, Concept, Findings, Laterality, Nodule, Radiograph, Volume
from pulmo_node.encode.identity import ResultContext
from pulmo_node.errors import Permanent

SCHEMA_VERSION = 3

TRACKING_PREFIX = "Cornerstone3DTools@^0.1.0:Bidirectional:"
"""OHIF turns a measurement group into a bidirectional measurement by this beginning of its tracking identifier."""

LENGTH_DIGITS = 2
VOLUME_DIGITS = 1
HU_DIGITS = 1
PROBABILITY_DIGITS = 4
CONCEPT_DIGITS = 2
LOGIT_DIGITS = 4


@dataclass(frozen=True, kw_only=True)
class ConceptRecord:
    """A concept as it is reported."""

    value: float  # on the LIDC scale, not clipped
    contribution: float  # to the malignancy logit


@dataclass(frozen=True, kw_only=True)
class NoduleRecord:
    """A nodule as it is reported; the field names are the keys of findings.json."""

    tracking_uid: str  # the same in SR and SEG
    centre_lps_mm: tuple[float, float, float]
    long_axis_mm: float
    short_axis_mm: float
    volume_mm3: float
    mean_hu: float
    min_hu: float
    max_hu: float
    laterality: Laterality | None
    pleura_distance_mm: float | None
    candidate_score: float  # 0..1
    detection_probability: float  # 0..1
    malignancy_probability: float  # 0..1
    concepts: Mapping[str, ConceptRecord]
    segment_number: int
    cautions: tuple[Caution, ...]

    @property
    def label(self) -> str:
        """Name of the nodule in SR, SEG and pictures."""
        return f"Nodule {self.segment_number}"

    @property
    def tracking_identifier(self) -> str:
        """Tracking Identifier (112039) in SR and Tracking ID (0062,0020) in SEG."""
        return TRACKING_PREFIX + self.label

    @property
    def comment(self) -> str:
        """The line that a viewer's measurement panel shows."""
        volume = f"{self.volume_mm3 / 1000:.1f} cm3" if self.volume_mm3 >= 1000 else f"{self.volume_mm3:.0f} mm3"
        malignancy = f"{percent(self.malignancy_probability):.0f} %"
        numbers = f"{self.label}: malignancy {malignancy}, {self.long_axis_mm:.0f} mm, {volume}"
        return ". ".join((numbers, *map(caution_text, self.cautions)))


def percent(probability: float) -> float:
    """A rounded probability in %, at the same precision."""
    return round(100 * probability, PROBABILITY_DIGITS - 2)


def rounded(value: float, digits: int, what: str) -> float:
    """`value` at its stated precision.

    Raises:
        Permanent: it is not finite, so neither SR nor JSON can hold it.
    """
    if not math.isfinite(value):
        raise Permanent(f"{what} is not a finite number")
    return round(float(value), digits) + 0.0  # + 0.0: no negative zero


def tracking_uid(nodule: Nodule, number: int, weights_sha256: str, context: ResultContext) -> str:
    """Tracking UID of a nodule, from its number and centre (0.01 mm) under this context."""
    centre = "/".join(f"{rounded(v, LENGTH_DIGITS, f'centre of nodule {number}'):.2f}" for v in nodule.centre_lps_mm)
    return context.uid(f"tracking {number} {centre}", weights_sha256)


def nodule_record(nodule: Nodule, number: int, weights_sha256: str, context: ResultContext) -> NoduleRecord:
    """The reported numbers of one nodule.

    Raises:
        Permanent: a number is not finite.
    """

    def checked(value: float, digits: int, name: str) -> float:
        return rounded(value, digits, f"{name} of nodule {number} in series {context.series_instance_uid}")

    def concept_record(concept: Concept) -> ConceptRecord:
        return ConceptRecord(
            value=checked(concept.value, CONCEPT_DIGITS, concept.name),
            contribution=checked(concept.contribution, LOGIT_DIGITS, f"contribution of {concept.name}"),
        )

    distance = nodule.pleura_distance_mm
    x, y, z = (checked(value, LENGTH_DIGITS, "centre") for value in nodule.centre_lps_mm)
    return NoduleRecord(
        tracking_uid=tracking_uid(nodule, number, weights_sha256, context),
        centre_lps_mm=(x, y, z),
        long_axis_mm=checked(nodule.long_axis.length_mm, LENGTH_DIGITS, "long axis"),
        short_axis_mm=checked(nodule.short_axis.length_mm, LENGTH_DIGITS, "short axis"),
        volume_mm3=checked(nodule.volume_mm3, VOLUME_DIGITS, "volume"),
        mean_hu=checked(nodule.mean_hu, HU_DIGITS, "mean HU"),
        min_hu=checked(nodule.min_hu, HU_DIGITS, "smallest HU"),
        max_hu=checked(nodule.max_hu, HU_DIGITS, "largest HU"),
        laterality=nodule.laterality,
        pleura_distance_mm=None if distance is None else checked(distance, LENGTH_DIGITS, "distance to the pleura"),
        candidate_score=checked(nodule.candidate_score, PROBABILITY_DIGITS, "candidate score"),
        detection_probability=checked(nodule.detection_probability, PROBABILITY_DIGITS, "detection probability"),
        malignancy_probability=checked(nodule.malignancy_probability, PROBABILITY_DIGITS, "malignancy probability"),
        concepts={concept.name: concept_record(concept) for concept in nodule.concepts},
        segment_number=number,
        cautions=nodule.cautions,
    )


def nodule_records(findings: Findings, context: ResultContext) -> tuple[NoduleRecord, ...]:
    """The reported numbers of every nodule, in order; segment numbers count from 1. Raises `Permanent`."""
    weights = findings.pipeline.weights_sha256
    return tuple(nodule_record(nodule, n, weights, context) for n, nodule in enumerate(findings.nodules, start=1))


def malignancy_bias(findings: Findings) -> float:
    """The reported bias of the malignancy logit. Raises `Permanent`."""
    return rounded(findings.malignancy_bias, LOGIT_DIGITS, "malignancy bias")


def caution_text(caution: Caution) -> str:
    """A caution as a report says it: the sentence for people, the code for machines."""
    return f"{caution.sentence} [{caution.code}]"


def acquisition_text(volume: Volume) -> str:
    """How the images were made, as far as their headers tell it, in one line of the report."""
    made = volume.acquisition
    parts = [
        f"kernel {made.kernel}" if made.kernel else "",
        f"contrast agent {made.contrast_agent}" if made.contrast_agent else "no contrast agent recorded",
        f"slice thickness {made.slice_thickness_mm:g} mm" if made.slice_thickness_mm else "",
        f"slice spacing {volume.spacing_mm[0]:.4g} mm",
    ]
    return f"Acquisition: {', '.join(part for part in parts if part)}."


def findings_to_json(findings: Findings, image: Volume | Radiograph, context: ResultContext) -> dict[str, Any]:
    """The content of findings.json (lists, dicts, strings and finite numbers only).

    ``image`` is what the findings were found in.

    Raises:
        Permanent: a number is not finite.
    """
    nodules = [asdict(record) for record in nodule_records(findings, context)]
    for nodule in nodules:
        nodule["centre_lps_mm"] = list(nodule["centre_lps_mm"])
        nodule["cautions"] = list(nodule["cautions"])
    return {
        "schema_version": SCHEMA_VERSION,
        "pipeline": findings.pipeline.label,
        "weights_sha256": findings.pipeline.weights_sha256,
        "series_instance_uid": image.series.series_instance_uid,
        "acquisition": _acquisition(image) if isinstance(image, Volume) else None,
        "computation": {"device": findings.device, **findings.computation},
        "malignancy_bias": malignancy_bias(findings),
        "cautions": [asdict(caution) for caution in findings.cautions],
        "nodules": nodules,
    }


def _acquisition(volume: Volume) -> dict[str, Any]:
    made = asdict(volume.acquisition)
    return {**made, "image_type": list(made["image_type"]), "slice_spacing_mm": round(volume.spacing_mm[0], 6)}
