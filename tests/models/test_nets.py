"""Both networks against the published specification, written out key by key."""

from __future__ import annotations

import pytest
import torch

from pulmo_models.nets.heatmap_unet3d import HeatmapUNet3D
from pulmo_models.nets.student2p5d import Student2p5D

K3 = [3, 3, 3]
STAGE1 = {
    "e1.c1.weight": [16, 1, *K3],
    "e1.c2.weight": [16, 16, *K3],
    "e2.c1.weight": [32, 16, *K3],
    "e2.c2.weight": [32, 32, *K3],
    "e3.c1.weight": [64, 32, *K3],
    "e3.c2.weight": [64, 64, *K3],
    "e4.c1.weight": [128, 64, *K3],
    "e4.c2.weight": [128, 128, *K3],
    "bott.c1.weight": [256, 128, *K3],
    "bott.c2.weight": [256, 256, *K3],
    "u4.weight": [256, 128, 2, 2, 2],
    "u4.bias": [128],
    "d4.c1.weight": [128, 256, *K3],
    "d4.c2.weight": [128, 128, *K3],
    "u3.weight": [128, 64, 2, 2, 2],
    "u3.bias": [64],
    "d3.c1.weight": [64, 128, *K3],
    "d3.c2.weight": [64, 64, *K3],
    "u2.weight": [64, 32, 2, 2, 2],
    "u2.bias": [32],
    "d2.c1.weight": [32, 64, *K3],
    "d2.c2.weight": [32, 32, *K3],
    "u1.weight": [32, 16, 2, 2, 2],
    "u1.bias": [16],
    "d1.c1.weight": [16, 32, *K3],
    "d1.c2.weight": [16, 16, *K3],
    "out.weight": [1, 16, 1, 1, 1],
    "out.bias": [1],
}

STAGE2 = {
    "cnn.stem.conv1.weight": [24, 7, 3, 3],
    "cnn.stem.conv2.weight": [24, 24, 3, 3],
    "cnn.stem.skip.weight": [24, 7, 1, 1],
    "cnn.down1.1.conv1.weight": [48, 24, 3, 3],
    "cnn.down1.1.conv2.weight": [48, 48, 3, 3],
    "cnn.down1.1.skip.weight": [48, 24, 1, 1],
    "cnn.down2.1.conv1.weight": [96, 48, 3, 3],
    "cnn.down2.1.conv2.weight": [96, 96, 3, 3],
    "cnn.down2.1.skip.weight": [96, 48, 1, 1],
    "cnn.down3.1.conv1.weight": [192, 96, 3, 3],
    "cnn.down3.1.conv2.weight": [192, 192, 3, 3],
    "cnn.down3.1.skip.weight": [192, 96, 1, 1],
    "cnn.bottom.1.conv1.weight": [384, 192, 3, 3],
    "cnn.bottom.1.conv2.weight": [384, 384, 3, 3],
    "cnn.bottom.1.skip.weight": [384, 192, 1, 1],
    "cnn.up4.weight": [384, 192, 2, 2],
    "cnn.up4.bias": [192],
    "cnn.dec4.conv1.weight": [192, 384, 3, 3],
    "cnn.dec4.conv2.weight": [192, 192, 3, 3],
    "cnn.dec4.skip.weight": [192, 384, 1, 1],
    "cnn.up3.weight": [192, 96, 2, 2],
    "cnn.up3.bias": [96],
    "cnn.dec3.conv1.weight": [96, 192, 3, 3],
    "cnn.dec3.conv2.weight": [96, 96, 3, 3],
    "cnn.dec3.skip.weight": [96, 192, 1, 1],
    "cnn.up2.weight": [96, 48, 2, 2],
    "cnn.up2.bias": [48],
    "cnn.dec2.conv1.weight": [48, 96, 3, 3],
    "cnn.dec2.conv2.weight": [48, 48, 3, 3],
    "cnn.dec2.skip.weight": [48, 96, 1, 1],
    "cnn.up1.weight": [48, 24, 2, 2],
    "cnn.up1.bias": [24],
    "cnn.dec1.conv1.weight": [24, 48, 3, 3],
    "cnn.dec1.conv2.weight": [24, 24, 3, 3],
    "cnn.dec1.skip.weight": [24, 48, 1, 1],
    "cnn.final.weight": [1, 24, 1, 1],
    "cnn.final.bias": [1],
    "detection_head.0.weight": [384],
    "detection_head.0.bias": [384],
    "detection_head.1.weight": [256, 384],
    "detection_head.1.bias": [256],
    "detection_head.4.weight": [2, 256],
    "detection_head.4.bias": [2],
    "concept_head.0.weight": [384],
    "concept_head.0.bias": [384],
    "concept_head.1.weight": [256, 384],
    "concept_head.1.bias": [256],
    "concept_head.4.weight": [8, 256],
    "concept_head.4.bias": [8],
    "malignancy_head.weight": [2, 8],
    "malignancy_head.bias": [2],
}


@pytest.mark.parametrize(
    ("network", "keys", "parameters", "tensors"),
    [(HeatmapUNet3D(), STAGE1, 5_643_441, 28), (Student2p5D(), STAGE2, 4_761_773, 51)],
    ids=["stage1", "stage2"],
)
def test_keys_shapes_and_counts(
    network: torch.nn.Module, keys: dict[str, list[int]], parameters: int, tensors: int
) -> None:
    state = network.state_dict()
    assert {key: list(value.shape) for key, value in state.items()} == keys
    assert len(state) == tensors
    assert sum(value.numel() for value in state.values()) == parameters
    assert sum(p.numel() for p in network.parameters()) == parameters


def test_normalisation_and_activation_are_those_of_the_specification() -> None:
    for network in (HeatmapUNet3D(), Student2p5D()):
        norms = [m for m in network.modules() if isinstance(m, torch.nn.InstanceNorm2d | torch.nn.InstanceNorm3d)]
        assert len(norms) == 18
        assert all(not m.affine and not m.track_running_stats and m.eps == 1e-5 for m in norms)
        assert {m.negative_slope for m in network.modules() if isinstance(m, torch.nn.LeakyReLU)} == {0.1}
    drops = [m.p for m in Student2p5D().modules() if isinstance(m, torch.nn.Dropout)]
    assert drops == [0.1, 0.3]


def test_stage1_gives_logits_on_the_grid_of_its_input() -> None:
    network = HeatmapUNet3D().eval()
    with torch.inference_mode():
        out = network(torch.rand(2, 1, 32, 48, 32))
    assert out.shape == (2, 1, 32, 48, 32)


def test_stage1_concatenates_the_upsampled_half_first() -> None:
    network = HeatmapUNet3D(base=1).eval()
    with torch.no_grad():
        # d1 may look at the first of its two inputs only: the upsampled one, which is constant here.
        network.u1.weight.zero_()
        network.d1.c1.weight[:, 1:].zero_()
        out = network(torch.rand(1, 1, 32, 32, 32))
        inside = out[..., 4:-4, 4:-4, 4:-4]  # away from the zero padding of the convolutions
    assert torch.allclose(inside, inside.flatten()[0].expand_as(inside), atol=1e-4)
    assert out.std() > 1e-3


def test_stage2_outputs() -> None:
    network = Student2p5D().eval()
    x = torch.rand(3, 7, 64, 64)
    with torch.inference_mode():
        out = network(x)
        assert {key: tuple(value.shape) for key, value in out.items()} == {
            "detection": (3, 2),
            "concepts": (3, 8),
            "malignancy": (3, 2),
            "segmentation": (3, 1, 64, 64),
        }
        assert torch.equal(out["malignancy"], network.malignancy_head(out["concepts"]))
        alone = network(x[1:2])
    assert torch.allclose(alone["concepts"][0], out["concepts"][1], atol=1e-5)


def test_stage2_concatenates_the_upsampled_half_first() -> None:
    network = Student2p5D().eval()
    with torch.no_grad():
        network.cnn.up1.weight.zero_()
        network.cnn.dec1.conv1.weight[:, 24:].zero_()
        network.cnn.dec1.skip.weight[:, 24:].zero_()
        out = network(torch.rand(1, 7, 64, 64))["segmentation"]
        inside = out[..., 4:-4, 4:-4]  # away from the zero padding of the convolutions
    assert torch.allclose(inside, inside.flatten()[0].expand_as(inside), atol=1e-5)
