"""From published checkpoints of radiograph networks to sets of weights that the node can use.

A set appears whole or not at all. Errors: :class:`WeightsMissing`, :class:`WeightsCorrupt`,
:class:`WeightsUnavailable`, each naming the file and the reason.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from torch import Tensor, nn

from pulmo_models.checkpoints import save_network
from pulmo_models.cxr import classification, lung_risk, networks
from pulmo_models.cxr.settings import LABELS
from pulmo_models.errors import WeightsCorrupt
from pulmo_models.imports import check_name, writable
from pulmo_models.network_sets import NetworkSet, NetworkSpec, write_networks
from pulmo_models.weights import sha256_of

LUNG_RISK_FILE = "Lung_Age_081221_{}.pth"


def import_findings(
    paths: Sequence[Path],
    folder: Path,
    *,
    name: str = "cxr-findings",
    about: Mapping[str, str] | None = None,
    thresholds: Sequence[float] = (),
) -> Path:
    """One checkpoint of the published trainer, or several as an ensemble, as a set; the path of its manifest.

    ``about`` may give ``version``, ``licence``, ``origin`` and ``attribution``; ``thresholds`` one number a finding.

    Raises:
        WeightsMissing, WeightsCorrupt: a file is not one of the three classifiers.
    """
    if thresholds and len(thresholds) != len(LABELS):
        raise WeightsCorrupt(f"{len(thresholds)} thresholds were given, not {len(LABELS)}: one for each finding")
    loaded = [(path, *networks.load_published(path)) for path in paths]
    members = {}
    for number, (path, architecture, state) in enumerate(loaded, start=1):
        key = architecture if architecture not in members else f"{architecture}-{number}"
        members[key] = (path, architecture, state, networks.classifier(architecture))
    settings = {"thresholds": [float(value) for value in thresholds]} if thresholds else {}
    facts = {
        "version": "1",
        "licence": "unknown",
        "origin": f"Imported from {', '.join(path.name for path in paths)}.",
        "attribution": "Checkpoints of the PulmoNet trainer. Research use only",
        **(about or {}),
    }
    return _write(folder, name, classification.LABEL, members, facts, settings)


def import_lung_risk(source: Path, folder: Path, *, name: str = "cxr-lung-risk") -> Path:
    """The published members in a folder, ``Lung_Age_081221_<number>.pth``, as a set; the path of its manifest.

    Seven of the twenty published files have weight 0 in the score; they are not needed and not read.

    Raises:
        WeightsMissing, WeightsCorrupt: a member is missing, or is another network.
    """
    members = {}
    for number, (architecture, _) in lung_risk.MEMBERS.items():
        path = source / LUNG_RISK_FILE.format(number)
        state = lung_risk.load_published(path, architecture)
        members[lung_risk.member_name(number)] = (path, architecture, state, lung_risk.regressor(architecture))
    facts = {
        "version": "081221",
        "licence": "MIT code; weights for research only, not for clinical care or commercial use",
        "origin": "CXR-Lung-Risk ensemble, Zenodo 7941660.",
        "attribution": (
            "Weiss et al., Nature Communications 14:2797 (2023), doi 10.1038/s41467-023-37758-5; trained on PLCO. "
            "Research use only"
        ),
    }
    return _write(folder, name, lung_risk.LABEL, members, facts, {})


def _write(
    folder: Path,
    name: str,
    pipeline: str,
    members: Mapping[str, tuple[Path, str, Mapping[str, Tensor], nn.Module]],
    facts: Mapping[str, str],
    settings: Mapping[str, list[float]],
) -> Path:
    check_name(folder, name)
    with writable(folder), tempfile.TemporaryDirectory(prefix=".import-", dir=folder) as part:
        place = Path(part) / name
        place.mkdir()
        specs = {}
        for key, (source, architecture, state, network) in members.items():
            spec = save_network(place / f"{name}-{key}.safetensors", state, network)
            spec = replace(spec, source_file=source.name, source_digest=f"sha256:{sha256_of(source)}")
            specs[key] = NetworkSpec(**asdict(spec), architecture=architecture)
        write_networks(
            place / f"{name}.toml",
            NetworkSet(
                pipeline=pipeline,
                name=name,
                version=facts["version"],
                licence=facts["licence"],
                origin=facts["origin"],
                attribution=facts["attribution"],
                networks=specs,
                settings=dict(settings),
            ),
        )
        place.rename(folder / name)
    return folder / name / f"{name}.toml"
