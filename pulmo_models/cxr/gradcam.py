"""Grad-CAM (Selvaraju et al., ICCV 2017): which part of the image spoke for each output of a classifier.

Input: a network of :mod:`pulmo_models.nets` with ``body`` and ``classify``. For each output the gradient of its logit
with respect to the activations of the body is averaged over the plane; the activations weighted by it are summed over
the channels, and what is negative is set to 0. Layers: ``features.norm5`` (DenseNet-121), ``layer4[-1]`` (ResNet-50),
``features[-1]`` (EfficientNet-B0).
"""

from __future__ import annotations

from typing import Protocol, cast

import torch
from torch import Tensor, nn


class Divided(Protocol):
    """A classifier in two parts."""

    def body(self, x: Tensor) -> Tensor:
        """``(B, 3, H, W)`` to activations ``(B, C, h, w)``."""
        ...

    def classify(self, activations: Tensor) -> Tensor:
        """Activations to logits ``(B, L)``."""
        ...


class WithGradCam(nn.Module):
    """A classifier that gives ``logits`` (B, L) and ``maps`` (B, L, h, w), not negative and not normalised."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network.requires_grad_(False)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Works under `torch.inference_mode` too: only what follows the activations is differentiated."""
        network = cast(Divided, self.network)
        with torch.no_grad():
            found = network.body(x)
        with torch.inference_mode(mode=False), torch.enable_grad():
            activations = found.clone().requires_grad_(True)
            logits = network.classify(activations)
            maps = [_map(activations, logits[:, output]) for output in range(logits.shape[1])]
        return {"logits": logits.detach(), "maps": torch.stack(maps, dim=1)}


def _map(activations: Tensor, logit: Tensor) -> Tensor:
    # Items of a batch do not meet behind the body, so one backward pass of their sum serves all.
    (gradient,) = torch.autograd.grad(logit.float().sum(), activations, retain_graph=True)
    weights = gradient.mean(dim=(2, 3), keepdim=True)
    return torch.relu((weights * activations.detach()).sum(dim=1))


def scaled(maps: Tensor) -> Tensor:
    """Each map ``(..., h, w)`` from 0 to 1: smallest to largest value; a map without any signal is 0 everywhere."""
    low = maps.amin(dim=(-2, -1), keepdim=True)
    high = maps.amax(dim=(-2, -1), keepdim=True)
    return torch.where(high > low, (maps - low) / (high - low).clamp_min(1e-12), torch.zeros_like(maps))
