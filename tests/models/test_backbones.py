"""The 2D backbones against the published ones: keys, shapes, counts, and what they compute.

The numbers in KNOWN were computed once by torchvision 0.28.0 (Inception-v4: pretrainedmodels 0.7.4) with the very
weights and the image of :func:`filled` and :func:`image`; the same run compared whole outputs on two sizes of image,
also in training mode, and found no difference at all.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from pulmo_models.nets.densenet import DenseNet121
from pulmo_models.nets.efficientnet import EfficientNetB0
from pulmo_models.nets.heads import dropout_linear, fastai_head, linear
from pulmo_models.nets.inceptionv4 import InceptionV4Features, inceptionv4_regressor
from pulmo_models.nets.resnet import resnet34, resnet50
from pulmo_models.nets.tiny_cxr import TinyCXR

IMAGE_SIZE = (96, 107)  # odd and not square: rounding and padding of every stride count


def filled(network: nn.Module) -> nn.Module:
    """Weights that depend on the place of a value alone, so that any program can make the same."""
    with torch.no_grad():
        for number, (key, value) in enumerate(network.state_dict().items()):
            if not value.is_floating_point():
                continue
            wave = torch.sin(torch.arange(value.numel(), dtype=torch.float64) * 0.7391 + number).reshape(value.shape)
            if value.ndim > 1:
                wave *= (2 / value[0].numel()) ** 0.5
            elif key.endswith(("running_var", "weight")):
                wave = 0.8 + 0.2 * wave
            else:
                wave *= 0.1
            value.copy_(wave)
    return network.eval()


def image() -> Tensor:
    height, width = IMAGE_SIZE
    flat = torch.arange(3 * height * width, dtype=torch.float64)
    return torch.cos(flat * 0.011).reshape(1, 3, height, width).to(torch.float32)


def summary(output: Tensor) -> list[float]:
    """Mean, standard deviation and a few values of an output."""
    flat = output.double().flatten()
    return [float(flat.mean()), float(flat.std()), *(float(flat[i]) for i in (0, len(flat) // 2, len(flat) - 1))]


BACKBONES: dict[str, tuple[Callable[[], nn.Module], int, int]] = {
    "densenet121": (lambda: DenseNet121(linear(5)), 6_958_981, 727),
    "resnet50": (lambda: resnet50(linear(5)), 23_518_277, 320),
    "resnet34": (lambda: resnet34(linear(5)), 21_287_237, 218),
    "efficientnet_b0": (lambda: EfficientNetB0(linear(5)), 4_013_953, 360),
    "inceptionv4": (InceptionV4Features, 41_142_816, 894),
}
KNOWN: dict[str, list[float]] = {
    "densenet121": [-0.20268044, 2.0231174, 1.3673085, -1.0830698, -3.043155],
    "resnet50": [-71.280453, 33.602783, -65.900246, -101.39553, -18.469816],
    "resnet34": [-1.9116898, 14.312985, -11.186865, 14.546963, -16.938358],
    "efficientnet_b0": [0.36187901, 3.16437, 1.2171874, 3.3730328, 3.1173527],
    "inceptionv4": [0.33475206, 0.72870728, 0.0, 0.0, 1.6925676],
}


@pytest.mark.parametrize("name", BACKBONES)
def test_counts(name: str) -> None:
    build, parameters, tensors = BACKBONES[name]
    network = build()
    assert sum(p.numel() for p in network.parameters()) == parameters
    assert len(network.state_dict()) == tensors


@pytest.mark.parametrize("name", BACKBONES)
def test_computes_what_the_published_network_computes(name: str) -> None:
    with torch.inference_mode():
        output = filled(BACKBONES[name][0]())(image())
    torch.testing.assert_close(summary(output), KNOWN[name], rtol=1e-4, atol=1e-5)


def test_lung_risk_members() -> None:
    body = nn.Sequential(*list(resnet34(linear(1)).children())[:-2])
    tiny = TinyCXR()
    for network, parameters, tensors in (
        (inceptionv4_regressor(), 42_723_360, 906),
        (nn.Sequential(body, fastai_head(512)), 21_812_544, 228),
        (tiny, 4_324_993, 37),
    ):
        assert sum(p.numel() for p in network.parameters()) == parameters
        assert len(network.state_dict()) == tensors
    order = [name for name, _ in tiny.mdl.named_children()]
    assert order.index("ReLU_Linear1") < order.index("BN_Linear1") < order.index("Dropout")


def test_the_head_of_fastai_pools_the_maximum_first_and_has_no_bias() -> None:
    head = fastai_head(2)
    features = torch.tensor([[[[1.0, 3.0]], [[-2.0, 4.0]]]])
    assert head[0](features).flatten().tolist() == [3.0, 4.0, 2.0, 1.0]
    assert {key: list(value.shape) for key, value in head.state_dict().items() if value.ndim == 2} == {
        "4.weight": [512, 4],
        "8.weight": [1, 512],
    }
    assert "4.bias" not in head.state_dict()
    assert "8.bias" not in head.state_dict()


def test_heads_and_channels() -> None:
    assert resnet50(dropout_linear(5, 0.1), in_channels=1).state_dict()["fc.1.weight"].shape == (5, 2048)
    assert resnet50(linear(5), in_channels=1).conv1.weight.shape == (64, 1, 7, 7)
    assert DenseNet121(linear(5), in_channels=1).features.conv0.weight.shape == (64, 1, 7, 7)
    assert EfficientNetB0(dropout_linear(5, 0.2), in_channels=1).state_dict()["classifier.1.weight"].shape == (5, 1280)
    box = nn.Sequential(nn.Linear(2048, 1024), nn.ReLU(), nn.Dropout(0.2), nn.Linear(1024, 4))
    localiser = resnet50(lambda _: box, in_channels=1)
    assert (sum(p.numel() for p in localiser.parameters()), len(localiser.state_dict())) == (25_604_036, 322)


def test_stochastic_depth_of_efficientnet_acts_in_training_only_and_keeps_the_mean() -> None:
    network = EfficientNetB0(linear(1))
    last = network.features[6][-1]
    assert last.drop == pytest.approx(0.2 * 14 / 16)
    y = torch.ones(2000, 1, 1, 1)
    assert torch.equal(last.eval()._stochastic(y), y)
    torch.manual_seed(0)
    kept = last.train()._stochastic(y)
    assert kept.unique().tolist() == [0.0, pytest.approx(1 / (1 - last.drop))]
    assert float(kept.mean()) == pytest.approx(1.0, abs=0.05)
