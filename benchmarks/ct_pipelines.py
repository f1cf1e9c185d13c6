"""Time of ct-retinanet and ct-lungs on one CT series: `python -m benchmarks.ct_pipelines FOLDER`.

Weights are made up; they do not change the time of the networks, but there are no nodules to report. The first call,
which moves networks to the device, is left out where `--repeat` is more than 1.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch

from pulmo_models import registry
from pulmo_models.checkpoints import save_network
from pulmo_models.nets.lung_boxes import ARCHITECTURES
from pulmo_models.nets.retinanet3d import RetinaNet3D
from pulmo_models.network_sets import NetworkSet, NetworkSpec, write_networks
from pulmo_models.pipeline import Rejection
from pulmo_models.training.series import read_ct
from pulmo_models.types import Volume

ABOUT = {"version": "0", "licence": "none", "origin": "a benchmark", "attribution": "nobody"}


def main() -> None:
    """Print a line a pipeline."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("series", type=Path, help="folder of a CT series")
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--window", choices=("auto", "small", "published"), default="auto")
    arguments = parser.parse_args()
    volume = read_ct(arguments.series)
    print(
        f"{' x '.join(map(str, volume.hu.shape))} voxels, {torch.get_num_threads()} threads, torch {torch.__version__}"
    )
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        _write(folder, "ct-retinanet", {"detector": ("RetinaNet3D", RetinaNet3D())})
        _write(folder, "ct-lungs", {name: (name, build()) for name, build in ARCHITECTURES.items()})
        detector = {"weights": str(folder / "ct-retinanet.toml"), "window": arguments.window}
        _told("ct-retinanet", detector, volume, arguments)
        _told("ct-lungs", {"weights": str(folder / "ct-lungs.toml")}, volume, arguments)


def _write(folder: Path, label: str, networks: dict[str, tuple[str, torch.nn.Module]]) -> None:
    specs = {}
    for name, (architecture, network) in networks.items():
        spec = save_network(folder / f"{label}-{name}.safetensors", network.state_dict(), network)
        specs[name] = NetworkSpec(**vars(spec), architecture=architecture)
    write_networks(folder / f"{label}.toml", NetworkSet(name=label, pipeline=label, networks=specs, **ABOUT))


def _told(label: str, settings: dict[str, Any], volume: Volume, arguments: argparse.Namespace) -> None:
    pipeline = registry.build(label, settings, arguments.device)
    steps: dict[str, list[float]] = {}
    for _ in range(arguments.repeat + (arguments.repeat > 1)):
        try:
            findings = pipeline(volume)
        except Rejection as exc:  # random boxes may hold no lung
            print(f"{label}: {exc}")
            return
        for step, seconds in findings.timings_seconds.items():
            steps.setdefault(step, []).append(seconds)
    told = {step: statistics.median(times[arguments.repeat > 1 :]) for step, times in steps.items()}
    print(f"{label} on {findings.device}: " + ", ".join(f"{step} {seconds:.2f} s" for step, seconds in told.items()))


if __name__ == "__main__":
    main()
