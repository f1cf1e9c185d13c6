"""What is known of the published Pulmo weights: where they lie, whose they are, and how to recognise them.

The two checkpoints are files of the Hugging Face model repository ``ariyul/Pulmo``. Their structure is that of
:mod:`pulmo_models.nets`; their identity shows in the malignancy read-out, whose eight weight differences the authors
printed to three decimals. Free of torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class PublishedFile:
    """One checkpoint of a published model."""

    file: str
    tensors: int
    parameters: int


@dataclass(frozen=True, kw_only=True)
class PublishedModel:
    """A pair of checkpoints that can be fetched, and its fingerprint."""

    name: str
    repository: str  # of the Hugging Face hub
    stage1: PublishedFile
    stage2: PublishedFile
    licence: str
    attribution: str
    malignancy_weights: Mapping[str, float]  # by concept: weight of the malignant minus that of the benign class
    malignancy_bias: float  # the same difference
    weight_tolerance: float
    bias_tolerance: float


PULMO = PublishedModel(
    name="pulmo",
    repository="ariyul/Pulmo",
    stage1=PublishedFile(file="stage1_detector_v2.pth", tensors=28, parameters=5_643_441),
    stage2=PublishedFile(file="student_2p5d_best.pth", tensors=51, parameters=4_761_773),
    licence="CC-BY-4.0",
    attribution=(
        "Pulmo (Furkan Çoban, https://huggingface.co/ariyul/Pulmo), CC BY 4.0, converted to safetensors without "
        "change of values; trained on LUNA16 / LIDC-IDRI. Research use only"
    ),
    malignancy_weights={
        "subtlety": 0.118,
        "internalStructure": 0.107,
        "calcification": 0.082,
        "sphericity": -0.416,
        "margin": 0.166,
        "lobulation": 0.793,
        "spiculation": -0.878,
        "texture": -0.018,
    },
    # Not printed: follows from one printed case, p = 0.30781 with contributions that sum to -0.6387.
    malignancy_bias=-0.172,
    weight_tolerance=1e-3,
    bias_tolerance=1e-2,
)

MODELS: Mapping[str, PublishedModel] = {PULMO.name: PULMO}
"""Every model that can be fetched, by the name that the command line gives it."""


@dataclass(frozen=True, kw_only=True)
class PublishedNetwork:
    """One checkpoint of one network, published at an address with a digest."""

    name: str
    pipeline: str  # registry label
    network: str  # name of the network in a set of that pipeline
    architecture: str
    url: str
    digest: str  # "algorithm:hex"
    file: str
    container: str  # key under which the file may hold the state; else it is the bare state
    tensors: int
    parameters: int
    licence: str
    attribution: str


MONAI_LUNA16 = PublishedNetwork(
    name="monai-luna16",
    pipeline="ct-retinanet",
    network="detector",
    architecture="RetinaNet3D",
    url=(
        "https://developer.download.nvidia.com/assets/Clara/monai/tutorials/model_zoo/model_lung_nodule_ct_detection.pt"
    ),
    digest="md5:b2e732a7c2786e2f8398fa45293b1e73",
    file="model_lung_nodule_ct_detection.pt",
    container="model",
    tensors=190,
    parameters=20_902_741,
    licence="Apache-2.0",
    attribution=(
        "MONAI model zoo, lung_nodule_ct_detection 0.6.8 (MONAI Consortium), Apache 2.0, converted to safetensors "
        "without change of values; trained on LUNA16 (fold 0). Research use only"
    ),
)

NETWORKS: Mapping[str, PublishedNetwork] = {MONAI_LUNA16.name: MONAI_LUNA16}
"""Every single network that can be fetched, by the name that the command line gives it."""
