"""The teacher against the published specification."""

from __future__ import annotations

import pytest
import torch

from pulmo_models.nets.student2p5d import Student2p5D
from pulmo_models.nets.teacher3d import HybridMultiTaskCBM

K = [3, 3, 3]


def expected() -> dict[str, list[int]]:
    """Keys and shapes as the specification has them, sections 3 and 6.3."""
    shapes: dict[str, list[int]] = {}

    def block(name: str, i: int, o: int) -> None:
        shapes[f"{name}.conv1.weight"] = [o, i, *K]
        shapes[f"{name}.conv2.weight"] = [o, o, *K]
        shapes[f"{name}.skip.weight"] = [o, i, 1, 1, 1]

    block("cnn.stem", 1, 32)
    for name, i, o in (("down1", 32, 64), ("down2", 64, 128), ("down3", 128, 256), ("bottom", 256, 512)):
        block(f"cnn.{name}.1", i, o)
    for level, i, o in ((4, 512, 256), (3, 256, 128), (2, 128, 64), (1, 64, 32)):
        shapes[f"cnn.up{level}.weight"] = [i, o, 2, 2, 2]
        shapes[f"cnn.up{level}.bias"] = [o]
        block(f"cnn.dec{level}", i, o)
    shapes |= {"cnn.final.weight": [1, 32, 1, 1, 1], "cnn.final.bias": [1]}
    for head, outputs in (("detection_head", 2), ("concept_head", 8)):
        shapes |= {f"{head}.0.weight": [512], f"{head}.0.bias": [512]}
        shapes |= {f"{head}.1.weight": [256, 512], f"{head}.1.bias": [256]}
        shapes |= {f"{head}.4.weight": [outputs, 256], f"{head}.4.bias": [outputs]}
    return shapes | {"malignancy_head.weight": [2, 8], "malignancy_head.bias": [2]}


def test_keys_shapes_and_counts() -> None:
    state = HybridMultiTaskCBM().state_dict()
    assert {key: list(value.shape) for key, value in state.items()} == expected()
    assert len(state) == 51
    assert sum(value.numel() for value in state.values()) == 23_187_869
    assert set(state) == set(Student2p5D().state_dict())


@pytest.mark.parametrize("shape", [(16, 32, 32), (32, 16, 48)])
def test_any_patch_divisible_by_16(shape: tuple[int, int, int]) -> None:
    network = HybridMultiTaskCBM().eval()
    with torch.inference_mode():
        out = network(torch.rand(1, 1, *shape))
        assert torch.equal(out["malignancy"], network.malignancy_head(out["concepts"]))
    assert {key: tuple(value.shape) for key, value in out.items()} == {
        "detection": (1, 2),
        "concepts": (1, 8),
        "malignancy": (1, 2),
        "segmentation": (1, 1, *shape),
    }
