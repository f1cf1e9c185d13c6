"""Hard negatives of stage 2: what a trained detector takes for nodules in the hosts, and is none.

The hosts are real patients, two of them without any annotation, so a strong candidate may well be a nodule. Candidates
were looked at once; what looks like a nodule is in `hosts.LOOKS_LIKE_A_NODULE` and never becomes a negative.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from pulmo_models.ct.candidates import CandidateSettings, find_candidates
from pulmo_models.device import Runner
from pulmo_models.training.material.hosts import Host

# A coarser stride than the node's: a candidate that only some windows see is welcome here.
MINING = CandidateSettings(window=(48, 96, 96), stride=(36, 72, 72), peak_threshold=0.05, batch=1)

Places = npt.NDArray[np.int64]


def mine(
    network: nn.Module,
    name: str,
    hosts: Sequence[Host],
    work: Path,
    progress: Callable[[Host], None] = lambda host: None,
) -> Mapping[str, Places]:
    """False candidates of a detector in each host, as indices (n, 3), best first.

    What is found is kept in the work folder under `name` (of the weights, with their hash), so that a host is gone
    through once for each detector.
    """
    path = work / f"hard-negatives-{name}.json"
    known: dict[str, list[list[int]]] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    for host in hosts:
        if host.name not in known:
            progress(host)
            known[host.name] = [list(place) for place in false_candidates(network, host, MINING)]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(known) + "\n", encoding="utf-8")
    return {host.name: np.array(known[host.name], dtype=np.int64).reshape(-1, 3) for host in hosts}


def false_candidates(network: nn.Module, host: Host, settings: CandidateSettings) -> list[tuple[int, int, int]]:
    """Candidates of a host, best first, that are far from everything known or seen to be a nodule."""
    runner = Runner(network.eval(), torch.device("cuda" if torch.cuda.is_available() else "cpu"), "auto")
    spacing = (float(host.spacing_mm[0]), float(host.spacing_mm[1]), float(host.spacing_mm[2]))
    candidates = find_candidates(host.hu.astype(np.float32), spacing, runner, settings, host.lung)
    return [candidate.index for candidate in candidates if not host.may_be_nodule(candidate.index)]
