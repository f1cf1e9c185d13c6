"""One evaluation: its parts, ``report.json`` and ``report.html`` with plots as PNG beside them."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, get_args

from pulmo_models import __version__
from pulmo_models.ct.characterise import MalignancyHead
from pulmo_models.ct.settings import NoduleSettings
from pulmo_models.device import Precision, Runner, resolve_device
from pulmo_models.pipeline import Rejection
from pulmo_models.training.evaluation.analysis import Analyst
from pulmo_models.training.evaluation.characterisers import student, teacher
from pulmo_models.training.evaluation.page import page
from pulmo_models.training.evaluation.scans import INSERTED_PER_SCAN, Scan, inserted_scans, luna16_scans
from pulmo_models.training.evaluation.series import phantom_part, series_part
from pulmo_models.training.evaluation.stage1 import Rates, refused, scan_figures, scan_images, score
from pulmo_models.training.evaluation.stage2 import predict, stage2_figures, stage2_images
from pulmo_models.training.evaluation.truth import REAL_SERIES
from pulmo_models.training.evaluation.windows import window_figures
from pulmo_models.training.fitting.networks import Networks
from pulmo_models.training.metrics.froc import HitRule
from pulmo_models.training.metrics.resampling import RESAMPLES
from pulmo_models.training.splits import SPLITS, Split
from pulmo_models.training.store import STAGES, PatchStore

FORMAT = "pulmo evaluation 1"
NOTICE = "Research use only; not a medical device."

Part = Literal["stage1", "stage2", "series", "phantoms"]
PARTS: tuple[Part, ...] = get_args(Part)
Images = Mapping[str, bytes]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to measure, and how."""

    parts: tuple[Part, ...] = PARTS
    stores: tuple[Path, ...] = ()
    data: Path | None = None  # folder with lidc_patches/ and the CT series
    luna16: Path | None = None
    split: Split = "test"
    scans: int = 3  # variants of each unseen series
    rule: HitRule = "luna16"
    rates: Rates = field(default_factory=Rates)
    settings: NoduleSettings = field(default_factory=NoduleSettings)
    series: tuple[str, ...] = tuple(REAL_SERIES)
    precision: Precision = "auto"
    device: str = "auto"
    seed: int = 99
    resamples: int = RESAMPLES


@dataclass(frozen=True, kw_only=True, eq=False)
class Evaluation:
    """The figures, ready for JSON, and the plots as PNG by name."""

    report: dict[str, Any]
    images: dict[str, bytes]


def evaluate(networks: Networks, plan: Plan) -> Evaluation:
    """Run the parts of a plan; a part that lacks what it needs is named below ``skipped`` with the reason.

    Raises:
        StoreInvalid: a store cannot be read.
        DeviceUnavailable, DeviceOutOfMemory: of the device.
    """
    stores = [PatchStore(path) for path in plan.stores]
    report: dict[str, Any] = {
        "format": FORMAT,
        "notice": NOTICE,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {
            "pulmo": __version__,
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "numpy", "simpleitk", "h5py")},
        },
        "weights": networks.described() | asdict(plan.settings.at(networks.operating_point)),
        "how": {
            "split": plan.split,
            "seed": plan.seed,
            "resamples": plan.resamples,
            "precision": plan.precision,
            "device": resolve_device(plan.device).type,
            "cluster_mm": plan.settings.cluster_mm,
        },
        "stores": [_described(store) for store in stores],
    }
    images: dict[str, bytes] = {}
    skipped: dict[str, str] = {}
    for part in plan.parts:
        figures, plots, reasons = _RUN[part](networks, plan, stores)
        if figures:
            report[part] = figures
        images |= plots
        skipped |= reasons
    report["skipped"] = skipped
    return Evaluation(report=report, images=images)


def write(evaluation: Evaluation, out: Path) -> Path:
    """Write ``report.json``, ``report.html`` (self-contained) and the plots; returns the path of the page."""
    out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(evaluation.report, indent=1, ensure_ascii=False, allow_nan=False)
    (out / "report.json").write_text(text + "\n", encoding="utf-8")
    for name, png in evaluation.images.items():
        (out / f"{name}.png").write_bytes(png)
    path = out / "report.html"
    path.write_text(page(evaluation.report, evaluation.images), encoding="utf-8")
    return path


_Outcome = tuple[dict[str, Any], Images, Mapping[str, str]]


def _described(store: PatchStore) -> dict[str, Any]:
    return {
        "file": store.path.name,
        "provenance": store.provenance,
        "dropped": store.dropped,
        "samples": {stage: {split: len(store.rows(stage, split)) for split in SPLITS} for stage in STAGES},
    }


def _stage1(networks: Networks, plan: Plan, stores: list[PatchStore]) -> _Outcome:
    if networks.stage1 is None:
        return {}, {}, {"stage1": "there is no detector"}
    analyst = Analyst.of(networks, plan.settings, plan.precision, plan.device)
    figures: dict[str, Any] = {}
    images: dict[str, bytes] = {}
    skipped = {}
    if plan.data is not None and plan.split != "train" and plan.scans > 0:
        scans = inserted_scans(plan.data, plan.split, plan.scans, plan.seed)
        figures["inserted"], plots = _froc(scans, analyst, plan, "inserted")
        figures["inserted"]["synthetic"] = (
            f"{INSERTED_PER_SCAN} real nodules of the split's patients placed into each variant of series that no "
            "training saw: lungs and nodules are real, their meeting is not"
        )
        images |= plots
    else:
        skipped["stage1 on inserted nodules"] = "needs --data, at least one scan and a split that is held out"
    if plan.luna16 is not None:
        scans = luna16_scans(plan.luna16, plan.split, _patients(stores))
        figures["luna16"], plots = _froc(scans, analyst, plan, "luna16")
        images |= plots
    if any(len(store.rows("stage1", plan.split)) for store in stores):
        figures["windows"] = window_figures(
            stores, plan.split, analyst.detector, plan.rule, seed=plan.seed, resamples=plan.resamples
        )
    else:
        skipped["stage1 on windows"] = f"no store has windows of the split {plan.split}"
    return figures, images, skipped


def _patients(stores: list[PatchStore]) -> Mapping[str, str] | None:
    """What a split of LUNA16 goes by: the patients of the readers' database, or none where a store was made so."""
    made = [store.provenance for store in stores if store.provenance.get("command") == "data luna16"]
    return {} if any(not each.get("database") for each in made) else None


def _froc(scans: Iterable[Scan], analyst: Analyst, plan: Plan, name: str) -> tuple[dict[str, Any], Images]:
    scored, rejected = [], []
    for scan in scans:
        try:
            scored.append(score(scan, analyst, plan.rule))
        except Rejection as exc:
            rejected.append(f"{scan.name}: {exc}")
            scored.append(refused(scan, analyst, plan.rule))
    figures = scan_figures(scored, analyst, plan.rule, plan.rates, plan.seed, plan.resamples)
    figures["rejected"] = rejected
    return figures, scan_images(scored, figures, name, plan.seed, plan.resamples)


def _stage2(networks: Networks, plan: Plan, stores: list[PatchStore]) -> _Outcome:
    network = networks.stage2 or networks.teacher
    if network is None:
        return {}, {}, {"stage2": "there is no characteriser"}
    if not any(len(store.rows("stage2", plan.split)) for store in stores):
        return {}, {}, {"stage2": f"no store has patches of the split {plan.split}"}
    runner = Runner(network, resolve_device(plan.device), "fp32")
    head = MalignancyHead.of(network, networks.concept_scale)  # type: ignore[arg-type]
    characteriser = student(runner, head) if networks.stage2 is not None else teacher(runner, head)
    seen = predict(stores, plan.split, characteriser)
    figures = stage2_figures(seen, head, seed=plan.seed, resamples=plan.resamples)
    return figures, stage2_images(seen, figures), {}


def _series(networks: Networks, plan: Plan, stores: list[PatchStore]) -> _Outcome:
    if plan.data is None:
        return {}, {}, {"series": "needs --data"}
    if networks.stage1 is None or networks.stage2 is None:
        return {}, {}, {"series": "needs both networks"}
    analyst = Analyst.of(networks, plan.settings, plan.precision, plan.device)
    figures, images = series_part(plan.data, analyst, plan.series)
    return figures, images, {}


def _phantoms(networks: Networks, plan: Plan, stores: list[PatchStore]) -> _Outcome:
    if networks.stage1 is None or networks.stage2 is None:
        return {}, {}, {"phantoms": "needs both networks"}
    return phantom_part(Analyst.of(networks, plan.settings, plan.precision, plan.device)), {}, {}


_RUN = {"stage1": _stage1, "stage2": _stage2, "series": _series, "phantoms": _phantoms}
