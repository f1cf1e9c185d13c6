"""Stage 2 on the patches of a split: detection, malignancy beside the diameter alone, masks, concepts, signs.

The network sees what the node would show it: seven slices of 64 x 64 around the middle of the patch. Malignancy is the
mean rating of at least three readers, up to 2.5 benign and from 3.5 malignant; between, a nodule is left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pulmo_models.ct.characterise import MalignancyHead
from pulmo_models.training.evaluation import plots
from pulmo_models.training.evaluation.characterisers import Characteriser, Output, central_box
from pulmo_models.training.evaluation.plots import Crop
from pulmo_models.training.metrics.classification import (
    auc,
    auc_figures,
    calibration,
    dice,
    operating_points,
    roc_points,
)
from pulmo_models.training.metrics.concepts import concept_figures, sign_table
from pulmo_models.training.metrics.resampling import RESAMPLES, Floats, mean_figures, rounded
from pulmo_models.training.splits import Split
from pulmo_models.training.store import Patch, PatchStore
from pulmo_models.types import CONCEPT_NAMES

BENIGN_UP_TO, MALIGNANT_FROM, READERS = 2.5, 3.5, 3
IN_QUESTION_MM = (8.0, 15.0)
BATCH = 64
SHOWN = 18  # failures of each kind

PROTOCOL = (
    "Patches of the split, the candidate in the middle, no augmentation. Detection: patches of nodules against patches "
    f"of none. Malignancy: mean rating up to {BENIGN_UP_TO} against {MALIGNANT_FROM} or more, at least {READERS} "
    f"readers. Concepts and signs: mean ratings of at least {READERS} readers on the LIDC scale. Masks: half of the "
    "readers; 2D is the central slice at probability 0.5, 3D the mask that the node builds slice by slice (a teacher "
    "predicts it). Intervals by bootstrap of the patients of nodules; patches of no nodule, which are of few patients, "
    "are drawn one by one, so the intervals of detection say nothing of other lungs."
)

_Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True, eq=False)
class Predictions:
    """Everything about the patches of a split, one row each; what is not known is NaN."""

    patient: npt.NDArray[Any]
    source: npt.NDArray[Any]
    detection: npt.NDArray[np.int64]  # label: 1, 0 or -1
    malignancy_rating: Floats
    ratings: Floats  # (n, 8), LIDC scale
    readers: npt.NDArray[np.int64]
    diameter_mm: Floats
    inserted: _Bools
    detection_probability: Floats
    malignancy_probability: Floats
    concepts: Floats  # (n, 8), LIDC scale
    dice_2d: Floats
    dice_3d: Floats
    central: npt.NDArray[np.int16]  # HU (n, 64, 64) of the central slice
    truth: _Bools  # (n, 64, 64)
    drawn: _Bools  # (n, 64, 64)

    def groups(self) -> npt.NDArray[Any]:
        """What the bootstrap draws together: the nodules of a patient, but each patch of no nodule by itself.

        Those come from very few lungs, often one: drawn by patient, most resamples would have all of them or none.
        """
        alone = [f"{source} {row}" for row, source in enumerate(self.source)]
        return np.where(self.detection == 0, np.array(alone), self.patient.astype(str))

    def graded(self) -> _Bools:
        """Nodules with a malignancy label."""
        rating = self.malignancy_rating
        return self.rated() & ((rating <= BENIGN_UP_TO) | (rating >= MALIGNANT_FROM))

    def rated(self) -> _Bools:
        """Nodules whose ratings count."""
        return np.asarray((self.detection == 1) & (self.readers >= READERS))


def predict(stores: Sequence[PatchStore], split: Split, characteriser: Characteriser) -> Predictions:
    """Run a network on every patch of a split.

    Raises:
        ValueError: the stores have none.
    """
    columns: dict[str, list[Any]] = {}
    for batch in _batches(stores, split):
        for patch, output in zip(batch, characteriser(batch), strict=True):
            for name, value in _row(patch, output).items():
                columns.setdefault(name, []).append(value)
    if not columns:
        raise ValueError(f"no patch of the split {split!r} in {', '.join(store.path.name for store in stores)}")
    return Predictions(**{name: np.array(values) for name, values in columns.items()})


def _batches(stores: Sequence[PatchStore], split: Split) -> Iterator[list[Patch]]:
    for store in stores:
        rows = store.rows("stage2", split)
        for start in range(0, len(rows), BATCH):
            yield [store.patch(int(row)) for row in rows[start : start + BATCH]]


def _row(patch: Patch, output: Output) -> dict[str, Any]:
    box = central_box(patch)
    truth = np.zeros(output.outline.shape, bool) if patch.mask is None else patch.mask[box]
    known = patch.mask if patch.detection == 1 else None
    return {
        "patient": patch.patient,
        "source": patch.source,
        "detection": patch.detection,
        "malignancy_rating": patch.malignancy,
        "ratings": patch.ratings.astype(np.float64),
        "readers": patch.readers,
        "diameter_mm": patch.diameter_mm,
        "inserted": patch.inserted,
        "detection_probability": output.detection_probability,
        "malignancy_probability": output.malignancy_probability,
        "concepts": output.concepts,
        "dice_2d": dice(output.outline, truth) if known is not None and truth.any() else np.nan,
        "dice_3d": dice(output.volume, known) if known is not None and output.volume is not None else np.nan,
        "central": patch.hu[box],
        "truth": truth,
        "drawn": output.outline,
    }


def stage2_figures(seen: Predictions, head: MalignancyHead, *, seed: int, resamples: int = RESAMPLES) -> dict[str, Any]:
    """Every figure of the patches, ready for JSON."""
    labelled, nodules = seen.detection >= 0, seen.detection == 1
    graded, rated = seen.graded(), seen.rated()
    malignant = seen.malignancy_rating >= MALIGNANT_FROM
    in_question = graded & (seen.diameter_mm >= IN_QUESTION_MM[0]) & (seen.diameter_mm <= IN_QUESTION_MM[1])

    groups = seen.groups()

    def area(scores: Floats, positive: _Bools, chosen: _Bools) -> dict[str, Any]:
        figures = auc_figures(scores[chosen], positive[chosen], groups[chosen], seed, resamples)
        return figures | {"patients": len(np.unique(seen.patient[chosen].astype(str)))}

    return {
        "protocol": PROTOCOL,
        "patches": len(seen.detection),
        "nodules": int(nodules.sum()),
        "nodules_inserted": int((nodules & seen.inserted).sum()),
        "no_nodules": int((seen.detection == 0).sum()),
        "detection": {
            "auc": area(seen.detection_probability, nodules, labelled),
            "by_kind_of_no_nodule": _by_kind(seen),
            "auc_of_nodules_in_their_own_lung": area(
                seen.detection_probability, nodules, labelled & ~(nodules & seen.inserted)
            ),
            **_as_classifier(seen.detection_probability[labelled], nodules[labelled]),
        },
        "malignancy": {
            "auc": area(seen.malignancy_probability, malignant, graded),
            "auc_of_the_diameter_alone": area(seen.diameter_mm, malignant, graded & np.isfinite(seen.diameter_mm)),
            "from_8_to_15_mm": {
                "auc": area(seen.malignancy_probability, malignant, in_question),
                "auc_of_the_diameter_alone": area(seen.diameter_mm, malignant, in_question),
            },
            **_as_classifier(seen.malignancy_probability[graded], malignant[graded]),
        },
        "dice": {
            "central_slice": _mean(seen.dice_2d, seen, seed, resamples),
            "volume": _mean(seen.dice_3d, seen, seed, resamples),
        },
        "concepts": concept_figures(seen.concepts[rated], seen.ratings[rated], seen.patient[rated], seed, resamples),
        "signs": sign_table(
            head.weights,
            seen.ratings[rated],
            seen.malignancy_rating[rated],
            seen.patient[rated],
            seed,
            resamples,
        ),
        "bootstrap": {"by": "patient", "resamples": resamples, "seed": seed},
    }


def _by_kind(seen: Predictions) -> list[dict[str, Any]]:
    """Nodules against each kind of patch without one, as its source names it after the colon."""
    nodules, none = seen.detection == 1, seen.detection == 0
    kinds = np.array([str(source).partition(": ")[2] for source in seen.source])
    rows = []
    for kind in sorted(set(kinds[none]) - {""}):
        of_kind = none & (kinds == kind)
        chosen = nodules | of_kind
        area = auc(seen.detection_probability[chosen], nodules[chosen])
        rows.append(
            {
                "kind": str(kind),
                "number": int(of_kind.sum()),
                "auc": None if np.isnan(area) else rounded(area),
                "specificity_at_half": rounded((seen.detection_probability[of_kind] < 0.5).mean()),
            }
        )
    return rows


def _mean(values: Floats, seen: Predictions, seed: int, resamples: int) -> Any:
    known = np.isfinite(values)
    return mean_figures(values[known], seen.patient[known], seed, resamples)


def _as_classifier(probabilities: Floats, positive: _Bools) -> dict[str, Any]:
    return {
        "operating_points": operating_points(probabilities, positive),
        "at_half": _at_half(probabilities, positive),
        "calibration": calibration(probabilities, positive),
    }


def _at_half(probabilities: Floats, positive: _Bools) -> dict[str, float | None]:
    """Sensitivity and specificity at a probability of one half, the node's default."""
    called = probabilities >= 0.5
    return {
        "sensitivity": rounded(called[positive].mean()) if positive.any() else None,
        "specificity": rounded((~called[~positive]).mean()) if (~positive).any() else None,
    }


def stage2_images(seen: Predictions, figures: Mapping[str, Any]) -> dict[str, bytes]:
    """Plots and failures, as PNG by name; what the patches cannot show is left out."""
    labelled, nodules, graded = seen.detection >= 0, seen.detection == 1, seen.graded()
    malignant = seen.malignancy_rating >= MALIGNANT_FROM
    images = {}
    curves = {}
    for name, scores, positive, chosen in (
        ("detection", seen.detection_probability, nodules, labelled),
        ("malignancy", seen.malignancy_probability, malignant, graded),
        ("diameter alone", seen.diameter_mm, malignant, graded & np.isfinite(seen.diameter_mm)),
    ):
        if positive[chosen].any() and not positive[chosen].all():
            curves[name] = roc_points(scores[chosen], positive[chosen])[:2]
    if curves:
        images["stage2-roc"] = plots.roc_plot(curves)
    tables = {name: figures[name]["calibration"] for name in ("detection", "malignancy")}
    if any(tables.values()):
        images["stage2-reliability"] = plots.reliability_plot({name: table for name, table in tables.items() if table})
    rated = seen.rated()
    if rated.any():
        images["stage2-concepts"] = plots.concept_plot(CONCEPT_NAMES, seen.concepts[rated], seen.ratings[rated])
        images["stage2-signs"] = plots.sign_plot(figures["signs"]["rows"])
    for name, crops in _failures(seen).items():
        if crops:
            images[f"stage2-{name}"] = plots.contact_sheet(crops)
    return images


def _failures(seen: Predictions) -> dict[str, list[Crop]]:
    """The worst of each kind, worst first."""
    p, m = seen.detection_probability, seen.malignancy_probability
    nodule, none, graded = seen.detection == 1, seen.detection == 0, seen.graded()
    benign = graded & (seen.malignancy_rating <= BENIGN_UP_TO)

    def worst(order: Floats, which: _Bools, text: Any) -> list[Crop]:
        rows = np.flatnonzero(which)
        rows = rows[np.argsort(order[rows], kind="stable")][:SHOWN]
        return [Crop(hu=seen.central[r], text=text(r), drawn=seen.drawn[r], truth=seen.truth[r]) for r in rows]

    return {
        "nodules-missed": worst(p, nodule & (p < 0.5), lambda r: f"p {p[r]:.2f}, {seen.diameter_mm[r]:.0f} mm"),
        "no-nodules-called": worst(-p, none & (p >= 0.5), lambda r: f"p {p[r]:.2f}"),
        "benign-called": worst(-m, benign & (m >= 0.5), lambda r: f"m {m[r]:.2f}, {seen.diameter_mm[r]:.0f} mm"),
        "malignant-missed": worst(
            m, graded & ~benign & (m < 0.5), lambda r: f"m {m[r]:.2f}, {seen.diameter_mm[r]:.0f} mm"
        ),
        "masks": worst(seen.dice_2d, np.isfinite(seen.dice_2d), lambda r: f"Dice {seen.dice_2d[r]:.2f}"),
    }
