"""The classifiers of `cxr-findings` by name, and the checkpoints of their published trainer (PulmoNet).

Its files are a bare state dict (first generation), or a dict ``epoch``, ``best_macro_auroc``, ``model_state``,
``optimizer_state``, ``config`` (second), whose ``config`` holds a ``TorchVersion`` object. The head is one linear
layer, or that behind dropout: ``classifier.weight`` or ``classifier.1.weight``. Here it is always the first.

Errors: :class:`WeightsMissing`, :class:`WeightsCorrupt`, each naming the file and the reason.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

from torch import Tensor, nn
from torch.torch_version import TorchVersion

from pulmo_models.checkpoints import checked_state, load_network, read_container
from pulmo_models.cxr.settings import LABELS
from pulmo_models.errors import WeightsCorrupt
from pulmo_models.nets.densenet import DenseNet121
from pulmo_models.nets.efficientnet import EfficientNetB0
from pulmo_models.nets.heads import Head, linear
from pulmo_models.nets.resnet import resnet50
from pulmo_models.network_sets import NetworkSpec

ARCHITECTURES: Mapping[str, Callable[[Head], nn.Module]] = {
    "densenet121": DenseNet121,
    "resnet50": resnet50,
    "efficientnet_b0": EfficientNetB0,
}

_TELLING = {  # a key that only this architecture has
    "features.denseblock1.denselayer1.conv1.weight": "densenet121",
    "layer4.2.conv3.weight": "resnet50",
    "features.1.0.block.0.0.weight": "efficientnet_b0",
}
_HEAD_BEHIND_DROPOUT = re.compile(r"^(classifier|fc)\.1\.(weight|bias)$")


def classifier(architecture: str, outputs: int = len(LABELS)) -> nn.Module:
    """A classifier with fresh weights. Raises `WeightsCorrupt` where the name is unknown."""
    if architecture not in ARCHITECTURES:
        raise WeightsCorrupt(f"architecture {architecture!r} is unknown; there are: {', '.join(ARCHITECTURES)}")
    return ARCHITECTURES[architecture](linear(outputs))


def load_classifier(spec: NetworkSpec) -> nn.Module:
    """The classifier of a set, in evaluation mode. Errors as :func:`pulmo_models.checkpoints.load_network`."""
    return load_network(spec, classifier(spec.architecture))


def load_published(path: Path) -> tuple[str, dict[str, Tensor]]:
    """Architecture and state of a checkpoint of the published trainer, in any of its forms.

    Raises:
        WeightsMissing: no such file.
        WeightsCorrupt: none of the three architectures, other labels than five, or more than tensors in it.
    """
    container = read_container(path, [TorchVersion])
    state = container.get("model_state", container)
    if not isinstance(state, Mapping):
        raise WeightsCorrupt(f"checkpoint {path}: model_state is a {type(state).__name__}, not a state dict")
    architecture = next((name for key, name in _TELLING.items() if key in state), None)
    if architecture is None:
        raise WeightsCorrupt(f"checkpoint {path} is none of {', '.join(ARCHITECTURES)}, by its keys")
    plain = {_HEAD_BEHIND_DROPOUT.sub(r"\1.\2", str(key)): value for key, value in state.items()}
    return architecture, checked_state(plain, classifier(architecture), path)
