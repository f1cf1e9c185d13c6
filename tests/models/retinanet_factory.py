"""Networks and images for the tests of the RetinaNet, and MONAI's implementation to record a reference from.

Run as a module, this writes `retinanet_reference.json`, with MONAI (which is no dependency) on the path:
``pip install --target DIR --no-deps monai==1.6.1 nibabel``, then
``PYTHONPATH=DIR:. python -m tests.models.retinanet_factory``.
MONAI is given the same weights and the same image, both drawn by seed.
"""

from __future__ import annotations

import importlib
import json
import math
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

REFERENCE = Path(__file__).parent / "retinanet_reference.json"
SEED = 7
SHOWN = 25  # boxes that the reference keeps of each image
CASES: dict[str, tuple[tuple[int, int, int], tuple[int, int, int] | None]] = {
    "whole": ((40, 30, 21), None),
    "windows": ((72, 90, 37), (64, 64, 32)),
    "padded windows": ((150, 64, 40), (64, 96, 32)),
}


def fill(network: nn.Module, seed: int = SEED) -> nn.Module:
    """Random weights of full variance, tensor by tensor in the order of the state."""
    generator = torch.Generator().manual_seed(seed)
    state = network.state_dict()
    for key, value in state.items():
        if value.ndim > 1:
            state[key] = torch.randn(value.shape, generator=generator) / math.sqrt(value[0].numel())
        elif key.endswith((".weight", ".bias")):
            middle = 1.0 if key.endswith(".weight") else -3.0 if "cls_logits" in key else 0.0
            state[key] = middle + 0.1 * torch.randn(value.shape, generator=generator)
    network.load_state_dict(state)
    return network.eval()


def image(shape: tuple[int, int, int]) -> Tensor:
    """Noise in 0..1."""
    return torch.rand(shape, generator=torch.Generator().manual_seed(sum(shape)))


def some_boxes(count: int) -> tuple[Tensor, Tensor]:
    """Boxes that overlap much, with scores."""
    generator = torch.Generator().manual_seed(5)
    centre = torch.rand(count, 3, generator=generator) * 40
    half = torch.rand(count, 3, generator=generator) * 6 + 1
    return torch.cat((centre - half, centre + half), dim=1), torch.rand(count, generator=generator)


def some_codes(count: int) -> Tensor:
    """Codes, some of them far beyond what is decoded."""
    codes = torch.randn(count, 6, generator=torch.Generator().manual_seed(3))
    codes[::10, 3:] *= 5
    return codes


def monai_network() -> nn.Module:
    """MONAI's RetinaNet as the bundle configures it; its own layer getter needs torchvision, this one does not."""
    pyramid = importlib.import_module("monai.networks.blocks.feature_pyramid_network")
    nets = importlib.import_module("monai.networks.nets.resnet")
    retinanet = importlib.import_module("monai.apps.detection.networks.retinanet_network")

    class Getter(nn.ModuleDict):
        def __init__(self, body: nn.Module) -> None:
            super().__init__({name: child for name, child in body.named_children() if name[:5] != "layer"})
            del self["avgpool"], self["fc"]
            self.update(OrderedDict((name, getattr(body, name)) for name in ("layer1", "layer2")))

        def forward(self, x: Tensor) -> OrderedDict[str, Tensor]:
            found = OrderedDict()
            for name, module in self.items():
                x = module(x)
                if name.startswith("layer"):
                    found[name] = x
            return found

    class Extractor(nn.Module):
        out_channels = 256

        def __init__(self) -> None:
            super().__init__()
            self.body = Getter(nets.resnet50(spatial_dims=3, n_input_channels=1, conv1_t_stride=(2, 2, 1)))
            self.fpn = pyramid.FeaturePyramidNetwork(3, [256, 512], 256, pyramid.LastLevelMaxPool(3))

        def forward(self, x: Tensor) -> Any:
            return self.fpn(self.body(x))

    return retinanet.RetinaNet(3, 1, 3, Extractor(), size_divisible=(16, 16, 8))


def monai_detector(network: nn.Module, window: tuple[int, int, int] | None) -> Any:
    """MONAI's detector with the bundle's settings for inference."""
    module = importlib.import_module("monai.apps.detection.networks.retinanet_detector")
    utils = importlib.import_module("monai.apps.detection.utils.anchor_utils")
    shapes = ((6, 8, 4), (8, 6, 5), (10, 10, 6))
    anchors = utils.AnchorGeneratorWithAnchorShape(feature_map_scales=(1, 2, 4), base_anchor_shapes=shapes)
    detector = module.RetinaNetDetector(network, anchors)
    detector.set_target_keys("box", "label")
    detector.set_box_selector_parameters(0.02, 1000, 0.22, 300)
    if window is not None:
        detector.set_sliding_window_inferer(window, sw_batch_size=1, overlap=0.25, mode="constant", device="cpu")
    return detector.eval()


PREPARED_SPACING_MM = (2.5, 0.78, 0.78)  # slice, row, column


def raw_volume() -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float64]]:
    """A small volume in HU beyond both ends of the window, and its affine to LPS mm."""
    hu = np.random.default_rng(0).uniform(-1400, 600, (5, 9, 8)).astype(np.float32)
    affine = np.diag([*reversed(PREPARED_SPACING_MM), 1.0])[:, [2, 1, 0, 3]]
    affine[:3, 3] = (-100.0, -150.0, 30.0)
    return hu, affine


def monai_prepared() -> Any:
    """The same volume as the bundle prepares it: read as (x, y, z) with a RAS affine, turned, resampled, scaled."""
    transforms = importlib.import_module("monai.transforms")
    data = importlib.import_module("monai.data")
    hu, affine = raw_volume()
    ras = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine[:, [2, 1, 0, 3]]
    values = data.MetaTensor(torch.from_numpy(hu.transpose(2, 1, 0)[None].copy()), affine=torch.from_numpy(ras))
    values = transforms.Orientation(axcodes="RAS")(values)
    values = transforms.Spacing(pixdim=(0.703125, 0.703125, 1.25), padding_mode="border")(values)
    return transforms.ScaleIntensityRange(-1024, 300, 0, 1, clip=True)(values)


def some_images(count: int = 5) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Boxes with scores, and true boxes that some of them overlap: for the figures of COCO."""
    generator = torch.Generator().manual_seed(17)
    found = []
    for number in range(count):
        centre = torch.rand(3 + number, 3, generator=generator) * 60
        half = torch.rand(3 + number, 3, generator=generator) * 4 + 3
        truth = torch.cat((centre - half, centre + half), dim=1)
        near = truth.repeat(3, 1) + torch.randn(3 * len(truth), 6, generator=generator) * 1.5
        some, _ = some_boxes(12)
        boxes = torch.cat((near, some))
        found.append((boxes, torch.rand(len(boxes), generator=generator), truth[: number or None]))
    found.append((some_boxes(4)[0], torch.rand(4, generator=generator), torch.zeros(0, 6)))
    found.append((torch.zeros(0, 6), torch.zeros(0), some_boxes(2)[0]))
    return found


MATCHED_GRID = (16, 8, 4)  # edges of the levels' maps, of an image of 64 x 64 x 32


def some_truth() -> Tensor:
    """True boxes in an image of 64 x 64 x 32, two of which share anchors."""
    return torch.tensor(
        [[10, 12, 6, 19, 20, 11], [14, 15, 7, 24, 25, 13], [40, 41, 20, 60, 62, 30], [30, 5, 2, 34, 9, 5]]
    ).float()


def monai_figures() -> dict[str, float]:
    """MONAI's `COCOMetric` as the bundle configures it."""
    coco = importlib.import_module("monai.apps.detection.metrics.coco").COCOMetric
    matching = importlib.import_module("monai.apps.detection.metrics.matching").matching_batch
    iou = importlib.import_module("monai.data.box_utils").box_iou
    metric = coco(classes=["nodule"], iou_list=[0.1], max_detection=[100])
    images = some_images()
    matched = matching(
        iou_fn=iou,
        iou_thresholds=metric.iou_thresholds,
        pred_boxes=[boxes.numpy() for boxes, _, _ in images],
        pred_classes=[np.zeros(len(boxes), dtype=int) for boxes, _, _ in images],
        pred_scores=[scores.numpy() for _, scores, _ in images],
        gt_boxes=[truth.numpy() for _, _, truth in images],
        gt_classes=[np.zeros(len(truth), dtype=int) for _, _, truth in images],
    )
    said = metric(matched)
    return {key: float(value) for key, value in (said[0] if isinstance(said, tuple) else said).items()}


def monai_matches(anchors: Tensor) -> list[int]:
    """Which box each anchor learns by MONAI's ATSS, as pairs of the anchors that learn any."""
    atss = importlib.import_module("monai.apps.detection.utils.ATSS_matcher").ATSSMatcher
    matcher = atss(num_candidates=4, center_in_gt=False)
    _, matches = matcher.compute_matches(some_truth(), anchors, [n**3 for n in MATCHED_GRID], 3)
    return torch.nonzero(matches >= 0)[:, 0].tolist() + matches[matches >= 0].tolist()


def record() -> dict[str, Any]:
    """Everything that MONAI says."""
    boxes = importlib.import_module("monai.data.box_utils")
    coder = importlib.import_module("monai.apps.detection.utils.box_coder").BoxCoder((1.0,) * 6)
    network = fill(monai_network())
    some, scores = some_boxes(120)
    anchors = monai_detector(network, None).anchor_generator(
        torch.zeros(1, 1, 64, 64, 32), [torch.zeros(1, 3, n, n, n) for n in (16, 8, 4)]
    )[0]
    found: dict[str, Any] = {
        "monai": importlib.import_module("monai").__version__,
        "keys": list(network.state_dict()),
        "anchors": {"count": len(anchors), "every_997th": anchors[::997].tolist(), "sum": anchors.sum(0).tolist()},
        "decoded": coder.decode_single(some_codes(40), anchors[:40]).tolist(),
        "iou": boxes.box_iou(some[:6], some[6:12]).tolist(),
        "kept": boxes.non_max_suppression(some, scores, 0.22, 300).tolist(),
        "figures": monai_figures(),
        "matches": monai_matches(anchors),
        "detections": {},
    }
    prepared = monai_prepared()
    found["prepared"] = np.round(prepared.numpy()[0], 6).tolist()
    found["prepared_affine_lps"] = (np.diag([-1.0, -1.0, 1.0, 1.0]) @ prepared.affine.numpy()).tolist()
    for name, (shape, window) in CASES.items():
        with torch.no_grad():
            said = monai_detector(network, window)([image(shape)[None]], use_inferer=window is not None)[0]
        found["detections"][name] = {
            "count": len(said["box"]),
            "boxes": said["box"][:SHOWN].tolist(),
            "scores": said["label_scores"][:SHOWN].tolist(),
            "sum": said["box"].double().sum(0).tolist(),
        }
    return found


if __name__ == "__main__":
    REFERENCE.write_text(json.dumps(record()) + "\n", encoding="utf-8")
