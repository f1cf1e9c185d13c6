"""Hard negatives for stage 2: what the trained detector takes for nodules in the training hosts, and is none.

The hosts are real patients, two of them without any annotation, so a strong candidate may well be a nodule. Candidates
were looked at once; what looks like a nodule is in `hosts.LOOKS_LIKE_A_NODULE` and never becomes a negative.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from pulmo_models.ct.candidates import CandidateSettings, find_candidates
from pulmo_models.ct.device import Runner
from pulmo_models.errors import WeightsMissing
from pulmo_models.nets.heatmap_unet3d import HeatmapUNet3D
from pulmo_models.training.hosts import TRAINING_HOSTS, Host, load_hosts

FILE = "hard-negatives.json"


def mine(data: Path, work: Path, settings: CandidateSettings) -> Path:
    """Run the detector of a work folder over the training hosts and write down its false candidates.

    Raises:
        WeightsMissing: stage 1 was not trained in that folder.
    """
    checkpoint = work / "stage1" / "checkpoint.pt"
    if not checkpoint.exists():
        raise WeightsMissing(f"{checkpoint}: not there; run pulmo-train stage1 first")
    network = HeatmapUNet3D()
    network.load_state_dict(torch.load(checkpoint, map_location="cpu", weights_only=True)["network"])
    found = {
        host.name: false_candidates(network.eval(), host, settings) for host in load_hosts(data, TRAINING_HOSTS, work)
    }
    path = work / FILE
    path.write_text(json.dumps(found) + "\n", encoding="utf-8")
    return path


def false_candidates(network: nn.Module, host: Host, settings: CandidateSettings) -> list[tuple[int, int, int]]:
    """Candidates of a host, best first, that are far from everything known or seen to be a nodule."""
    runner = Runner(network, torch.device("cuda" if torch.cuda.is_available() else "cpu"), "bf16")
    spacing = (float(host.spacing_mm[0]), float(host.spacing_mm[1]), float(host.spacing_mm[2]))
    candidates = find_candidates(host.hu.astype(np.float32), spacing, runner, settings, host.lung)
    return [candidate.index for candidate in candidates if not host.may_be_nodule(candidate.index)]


def load_hard_negatives(work: Path) -> dict[str, npt.NDArray[np.int64]]:
    """What `mine` wrote into a work folder, as indices (n, 3) for each host; nothing where it did not run."""
    path = work / FILE
    if not path.exists():
        return {}
    stored = json.loads(path.read_text(encoding="utf-8"))
    return {name: np.array(indices, dtype=np.int64).reshape(-1, 3) for name, indices in stored.items()}
