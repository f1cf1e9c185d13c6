"""Time per study of every pipeline, from the files to the result objects in the outbox.

    python -m benchmarks.pipelines [--data FOLDER] [--out bench-out] [--repeats 3] [--quick] [--device auto]

Weights that do not come with the project are made up here. That does not change the time of a network, only what there
is to report: the RetinaNet reports next to nothing, and the regressors of ct-lungs draw the same box in every slice.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch

from benchmarks import report
from benchmarks.report import Options, Row, Table, row
from benchmarks.scene import chest
from pulmo_models.cxr import lung_risk
from pulmo_models.cxr.imports import LUNG_RISK_FILE, import_findings, import_lung_risk
from pulmo_models.cxr.networks import ARCHITECTURES as CLASSIFIERS
from pulmo_models.cxr.networks import classifier
from pulmo_models.device import resolve_device
from pulmo_models.nets.lung_boxes import ARCHITECTURES as REGRESSORS
from pulmo_models.nets.retinanet3d import RetinaNet3D
from pulmo_node.analyse import Analyser
from pulmo_node.attempt import LocalAnalysis, SeriesRequest
from pulmo_node.config import resolve
from pulmo_node.encode import ResultContext, ResultOptions
from pulmo_node.outbox import FileOutbox
from tests.made_up_sets import drawing_regressor, write_network_set
from tests.radiograph_factory import film, radiograph, write_series

_SLICES, _QUICK_SLICES = 99, 20  # of the CT series; its own number, and one that is done soon
_FILM, _QUICK_FILM = (2128, 2000), (640, 560)


@dataclass(frozen=True, kw_only=True)
class _Case:
    """A pipeline as it may be configured."""

    name: str
    label: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    once: bool = False  # takes minutes on a CPU


def run(options: Options) -> list[Table]:
    """One table of the CT pipelines, one of those for radiographs."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        source, slices = chest(options), _QUICK_SLICES if options.quick else _SLICES
        if options.quick:  # a part of the chest: what is searched shrinks with it
            middle = len(source.hu) // 2
            source = replace(source, hu=source.hu[middle - slices // 2 : middle + slices // 2])
        source.write(folder / "ct", slices, uid_name="pipelines")
        ct = tuple(sorted((folder / "ct").iterdir()))
        size = _QUICK_FILM if options.quick else _FILM
        dx = tuple(write_series(folder / "dx", radiograph(film(*size))))
        on = f"device {resolve_device(options.device).type}, {torch.get_num_threads()} threads"
        how = (
            "From the files to the durable result objects, as the node's analysis process does it; networks are loaded "
            "before. Weights that do not come with the project are made up."
        )
        return [
            Table(
                name="pipelines-ct",
                title="Time per study: pipelines of CT",
                protocol=f"{source.name} as {slices} slices of 512 x 512, uncompressed; {on}. {how}",
                rows=_measured(_ct_cases(folder), ct, folder, options),
            ),
            Table(
                name="pipelines-films",
                title="Time per study: pipelines of radiographs",
                protocol=f"A drawn film of {size[0]} x {size[1]} pixels, 12 bit; {on}. {how}",
                rows=_measured(_film_cases(folder), dx, folder, options),
            ),
        ]


def _ct_cases(folder: Path) -> Sequence[_Case]:
    detector = write_network_set(folder, "ct-retinanet", {"detector": RetinaNet3D()}, "detector")
    lungs = write_network_set(folder, "ct-lungs", {name: drawing_regressor(name) for name in REGRESSORS}, "lungs")
    learned = {"lungs": "learned", "lung_weights": str(lungs)}
    return (
        _Case(name="ct-nodules", label="ct-nodules"),
        _Case(name="ct-nodules, lungs = learned", label="ct-nodules", settings=learned),
        _Case(name="ct-lungs", label="ct-lungs", settings={"weights": str(lungs)}),
        _Case(name="ct-retinanet", label="ct-retinanet", settings={"weights": str(detector)}, once=True),
    )


def _film_cases(folder: Path) -> Sequence[_Case]:
    checkpoints, cases = [], []
    for name in CLASSIFIERS:
        checkpoints.append(folder / f"{name}.pth")
        torch.save(classifier(name).state_dict(), checkpoints[-1])
        one = import_findings(checkpoints[-1:], folder, name=name)
        cases.append(_Case(name=f"cxr-findings, {name}", label="cxr-findings", settings={"weights": str(one)}))
    every = import_findings(checkpoints, folder, name="ensemble")
    cases.append(_Case(name="cxr-findings, all three", label="cxr-findings", settings={"weights": str(every)}))
    for number, (architecture, _) in lung_risk.MEMBERS.items():
        torch.save(lung_risk.regressor(architecture).state_dict(), folder / LUNG_RISK_FILE.format(number))
    risk = import_lung_risk(folder, folder)
    cases.append(_Case(name="cxr-lung-risk, 13 networks", label="cxr-lung-risk", settings={"weights": str(risk)}))
    return cases


def _measured(cases: Sequence[_Case], paths: tuple[Path, ...], folder: Path, options: Options) -> tuple[Row, ...]:
    on_gpu = resolve_device(options.device).type == "cuda"
    rows = []
    for case in cases:
        tables = {case.label: dict(case.settings)}
        raw = {"node": {"storage": str(folder / case.name)}, "pipelines": tables, "rules": []}
        config = resolve(raw, base=folder)
        analysis = LocalAnalysis(
            Analyser(config.pipelines, options.device, config.weights_folder), FileOutbox(config.storage)
        )
        analysis.warm_up([case.label])
        if on_gpu or not (case.once or options.quick):  # the first call is slower
            _once(analysis, case, paths)
        repeats = 1 if options.quick or (case.once and not on_gpu) else options.repeats
        seconds, steps = zip(*(_once(analysis, case, paths) for _ in range(repeats)), strict=True)
        told = {name: median(each[name] for each in steps) for name in steps[0]}
        note = ", ".join(f"{name} {value:.2f} s" for name, value in told.items())
        rows.append(row(case.name, seconds, "s", note))
    return tuple(rows)


def _once(analysis: LocalAnalysis, case: _Case, paths: tuple[Path, ...]) -> tuple[float, Mapping[str, float]]:
    context = ResultContext(
        series_instance_uid="1.2.3",
        revision=1,
        pipeline=case.label,
        settings_sha256="0" * 64,
        content_datetime=datetime(2026, 1, 1, tzinfo=UTC),
        options=ResultOptions(),
    )
    request = SeriesRequest(
        pipeline=case.label, paths=paths, study_paths=paths[:1], context=context, outbox_key="1.2.3.4"
    )
    begun = perf_counter()
    result = analysis.run(request)
    return perf_counter() - begun, result.timings_seconds


if __name__ == "__main__":
    report.main(run, __doc__)
