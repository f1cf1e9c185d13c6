"""Time of the radiograph pipelines on one film, from file to results: `python -m benchmarks.films [FILM.dcm]`.

Weights are made up; they do not change the time. Without a file a film of 2128 x 2000 pixels is drawn. Each step is
repeated, the median is told; the first call, which moves networks to the device, is left out.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import torch

from pulmo_models.cxr import classification, lung_risk
from pulmo_models.cxr.imports import LUNG_RISK_FILE, import_findings, import_lung_risk
from pulmo_models.cxr.networks import ARCHITECTURES, classifier
from pulmo_models.pipeline import Pipeline
from pulmo_models.types import RadiographSeries
from pulmo_node.assemble import assemble, describe
from pulmo_node.encode import ResultContext, encode_findings
from tests.radiograph_factory import film, radiograph, write_series

SIZE = (2128, 2000)


def main() -> None:
    """Print one line a step."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("film", nargs="?", type=Path, help="CR or DX file")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--lung-risk", action="store_true", help="also CXR-Lung-Risk: writes 1.2 GB of weights")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        paths = [arguments.film] if arguments.film else write_series(folder / "dx", radiograph(film(*SIZE)))
        _measure(paths, folder, arguments)


def _measure(paths: Sequence[Path], folder: Path, arguments: argparse.Namespace) -> None:
    def assembled() -> RadiographSeries:
        found = assemble(paths, describe(paths))
        if not isinstance(found, RadiographSeries):
            raise SystemExit("that is no radiograph")
        return found

    series = assembled()
    rows, columns = series.images[0].pixels.shape
    device = "cuda" if arguments.device != "cpu" and torch.cuda.is_available() else "cpu"
    print(f"{rows} x {columns} pixels, {device}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    _told("assemble", assembled, arguments.repeat)
    checkpoints = []
    for name in ARCHITECTURES:
        checkpoints.append(folder / f"{name}.pth")
        torch.save(classifier(name).state_dict(), checkpoints[-1])
        manifest = import_findings(checkpoints[-1:], folder, name=name)
        _pipeline(
            f"cxr-findings, {name}",
            classification.build({"weights": str(manifest)}, arguments.device),
            series,
            arguments,
        )
    manifest = import_findings(checkpoints, folder, name="ensemble")
    ensemble = classification.build({"weights": str(manifest)}, arguments.device)
    _pipeline("cxr-findings, all three", ensemble, series, arguments)
    findings = ensemble(series)
    context = ResultContext(
        series_instance_uid=series.series.series_instance_uid,
        revision=1,
        pipeline=classification.LABEL,
        settings_sha256="0" * 64,
        content_datetime=datetime.now(UTC),
    )
    _told("encode (SR, heat maps)", lambda: encode_findings(findings, series, context), arguments.repeat)
    if arguments.lung_risk:
        for number, (architecture, _) in lung_risk.MEMBERS.items():
            torch.save(lung_risk.regressor(architecture).state_dict(), folder / LUNG_RISK_FILE.format(number))
        risk = lung_risk.build({"weights": str(import_lung_risk(folder, folder))}, arguments.device)
        _pipeline("cxr-lung-risk, 13 networks", risk, series, arguments)


def _pipeline(name: str, pipeline: Pipeline, series: RadiographSeries, arguments: argparse.Namespace) -> None:
    pipeline(series)
    _told(name, lambda: pipeline(series), arguments.repeat)


def _told(name: str, step: Callable[[], object], repeat: int) -> None:
    spent = []
    for _ in range(repeat):
        begun = time.perf_counter()
        step()
        spent.append(time.perf_counter() - begun)
    print(f"{name:32} {statistics.median(spent):8.3f} s  ({min(spent):.3f} to {max(spent):.3f})")


if __name__ == "__main__":
    main()
