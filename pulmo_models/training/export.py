"""Trained checkpoints -> a set of weights."""

from __future__ import annotations

from pathlib import Path

import torch

from pulmo_models.checkpoints import write_set
from pulmo_models.errors import WeightsMissing

ATTRIBUTION = (
    "Trained on LIDC-IDRI (Armato et al., TCIA, doi:10.7937/K9/TCIA.2015.LO9QL9SX, CC BY 3.0), Lung-PET-CT-Dx (Li et "
    "al., TCIA, doi:10.7937/TCIA.2020.NNC2-0461, CC BY 4.0), QIN LUNG CT (Kalpathy-Cramer et al., TCIA, "
    "doi:10.7937/K9/TCIA.2015.NPGZYZBZ, CC BY) and Lung-Fused-CT-Pathology (Madabhushi and Rusu, TCIA, "
    "doi:10.7937/K9/TCIA.2018.SMT36LPN, CC BY)"
)


def export_set(work: Path, out: Path, *, name: str, version: str) -> Path:
    """Write the networks of a work folder as safetensors with a manifest; the path of the manifest.

    Raises:
        WeightsMissing: a stage was not trained in that folder.
    """
    states = {}
    for stage in ("stage1", "stage2"):
        path = work / stage / "checkpoint.pt"
        if not path.exists():
            raise WeightsMissing(f"{path}: not there; run pulmo-train {stage} first")
        states[stage] = torch.load(path, map_location="cpu", weights_only=True)["network"]
    about = {
        "version": version,
        "licence": "CC-BY-4.0",
        "origin": "trained by pulmo-train stage1 and stage2; the model card says how",
        "attribution": ATTRIBUTION,
    }
    return write_set(
        out, name=name, stage1=states["stage1"], stage2=states["stage2"], concept_scale="unit", about=about
    )
