"""Gradients in bfloat16 on the CPU are those of float32, at every depth."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from pulmo_models.nets.heatmap_unet3d import HeatmapUNet3D
from pulmo_models.training.fitting.precision import SafeConv3d, make_safe


def gradient(layer: nn.Conv3d, image: Tensor, *, bf16: bool) -> Tensor:
    layer.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        out = layer(image)
    out.backward(torch.ones_like(out).cumsum(-1))
    assert layer.weight.grad is not None
    return layer.weight.grad.clone()


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_the_gradient_is_that_of_float32(depth: int) -> None:
    torch.manual_seed(depth)
    layer = make_safe(nn.Conv3d(64, 64, 3, padding=1, bias=False))
    assert isinstance(layer, nn.Conv3d)
    image = torch.randn(2, 64, depth, 4, 4)
    right = gradient(layer, image, bf16=False)
    for _ in range(5):
        assert (gradient(layer, image, bf16=True) - right).abs().max() < 0.02 * right.abs().max()


def test_a_network_keeps_its_keys_and_outputs() -> None:
    network = HeatmapUNet3D(base=2).eval()
    image, before = torch.rand(1, 1, 32, 32, 32), list(network.state_dict())
    plain = network(image)
    make_safe(network)
    assert list(network.state_dict()) == before
    assert torch.equal(network(image), plain)
    assert isinstance(network.bott.c1, SafeConv3d)
