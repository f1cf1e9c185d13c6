"""Grad-CAM against what it must be where the head is linear, and through a runner."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pulmo_models.cxr.gradcam import WithGradCam, scaled
from pulmo_models.cxr.networks import ARCHITECTURES, classifier
from pulmo_models.device import Runner


def linear_head(network: torch.nn.Module) -> torch.nn.Linear:
    head = getattr(network, "fc", None) or network.classifier
    assert isinstance(head, torch.nn.Linear)
    return head


def expected_maps(network: torch.nn.Module, name: str, x: Tensor) -> Tensor:
    """Behind an average, the gradient of a logit is its weight over the number of places; for DenseNet a ReLU is
    between, which lets it through where the activation is positive."""
    with torch.no_grad():
        activations = network.body(x)
        places = activations[0, 0].numel()
        open_share = (activations > 0).double().mean(dim=(2, 3)) if name == "densenet121" else 1.0
        weights = linear_head(network).weight.double() / places
        maps = []
        for row in weights:
            per_channel = (row * open_share).expand(len(x), -1) if name == "densenet121" else row.expand(len(x), -1)
            maps.append(torch.relu((per_channel[:, :, None, None] * activations.double()).sum(dim=1)))
    return torch.stack(maps, dim=1)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_maps_are_those_of_the_closed_form(name: str) -> None:
    torch.manual_seed(3)
    network = classifier(name).eval()
    x = torch.randn(2, 3, 96, 128)
    with torch.no_grad():
        plain = network(x)
    outputs = Runner(WithGradCam(network), torch.device("cpu"), "fp32")(x)  # in inference mode
    torch.testing.assert_close(outputs["logits"], plain, rtol=1e-4, atol=1e-5)
    assert outputs["maps"].shape == (2, 5, 3, 4)
    torch.testing.assert_close(outputs["maps"].double(), expected_maps(network, name, x), rtol=1e-3, atol=1e-6)


def test_the_layer_is_the_published_one() -> None:
    x = torch.randn(1, 3, 64, 64)
    for name, layer in {
        "densenet121": lambda network: network.features.norm5,
        "resnet50": lambda network: network.layer4[-1],
        "efficientnet_b0": lambda network: network.features[-1],
    }.items():
        network = classifier(name).eval()
        seen: list[Tensor] = []
        layer(network).register_forward_hook(lambda _module, _inputs, output, seen=seen: seen.append(output))
        with torch.no_grad():
            body = network.body(x)
        assert torch.equal(seen[0], body), name


def test_scaling() -> None:
    maps = torch.tensor([[[1.0, 3.0], [2.0, 1.0]], [[0.0, 0.0], [0.0, 0.0]]])
    assert scaled(maps).tolist() == [[[0.0, 1.0], [0.5, 0.0]], [[0.0, 0.0], [0.0, 0.0]]]
