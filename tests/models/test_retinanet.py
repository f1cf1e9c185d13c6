"""The RetinaNet against MONAI's implementation (recorded: `retinanet_factory`), and what surrounds it."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pulmo_models.ct import boxes, retinanet
from pulmo_models.ct.boxes import SelectionSettings
from pulmo_models.ct.retinanet import DetectorSettings, detect, head_maps, network_image, window_starts
from pulmo_models.device import Runner
from pulmo_models.geometry import index_to_lps
from pulmo_models.nets.retinanet3d import PARAMETERS, STRIDES, TENSORS, RetinaNet3D
from tests.models.retinanet_factory import CASES, REFERENCE, SHOWN, fill, image, raw_volume, some_boxes, some_codes

CPU = torch.device("cpu")
SOME_ANCHORS = 40


@pytest.fixture(scope="module")
def reference() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(REFERENCE.read_text(encoding="utf-8"))
    return found


@pytest.fixture(scope="module")
def network() -> nn.Module:
    return fill(RetinaNet3D())


def level_anchors() -> Tensor:
    """Those of an image of 64 x 64 x 32."""
    return torch.cat([boxes.anchors(level, (n, n, n)) for level, n in enumerate((16, 8, 4))])


def test_names_shapes_and_counts_are_the_published_ones(network: nn.Module, reference: dict[str, Any]) -> None:
    state = network.state_dict()
    assert list(state) == reference["keys"]
    assert (sum(p.numel() for p in network.parameters()), len(state)) == (20_902_741, 190) == (PARAMETERS, TENSORS)
    assert sum(value.numel() * value.element_size() for value in state.values()) == 83_651_604
    assert next(iter(state)) == "feature_extractor.body.conv1.weight"
    assert list(state)[-1] == "regression_head.bbox_reg.bias"
    assert state["feature_extractor.body.conv1.weight"].shape == (64, 1, 7, 7, 7)
    assert state["classification_head.cls_logits.weight"].shape == (3, 256, 3, 3, 3)
    assert state["regression_head.bbox_reg.weight"].shape == (18, 256, 3, 3, 3)
    assert sum("layer1." in key for key in state) == 61
    assert sum("layer2." in key for key in state) == 79
    assert not any(part in key for key in state for part in ("layer3", "layer4", "fc."))


def test_anchors_are_those_of_monai(reference: dict[str, Any]) -> None:
    found = level_anchors()
    assert len(found) == 14_016 == reference["anchors"]["count"]
    assert found[::997].tolist() == reference["anchors"]["every_997th"]
    assert found.sum(0).tolist() == reference["anchors"]["sum"]
    # As the specification prints them: a half shape of 2.5 is rounded to 2.
    assert found[:3].tolist() == [[-1, -2, -1, 5, 6, 3], [-2, -1, -1, 6, 5, 3], [-3, -3, -2, 7, 7, 4]]
    assert found[12_288:12_291].tolist() == [[-2, -4, -2, 10, 12, 6], [-4, -2, -3, 12, 10, 7], [-6, -6, -4, 14, 14, 8]]
    assert found[-192:-189].tolist() == [
        [-4, -8, -4, 20, 24, 12], [-8, -4, -6, 24, 20, 14], [-12, -12, -8, 28, 28, 16],
    ]  # fmt: skip


def test_codes_overlap_and_suppression_are_those_of_monai(reference: dict[str, Any]) -> None:
    anchors = level_anchors()[:SOME_ANCHORS]
    decoded = boxes.decode(some_codes(SOME_ANCHORS), anchors)
    assert torch.equal(decoded, torch.tensor(reference["decoded"]))
    tame = some_codes(SOME_ANCHORS).clamp(-2, 2)
    torch.testing.assert_close(boxes.encode(boxes.decode(tame, anchors), anchors), tame, atol=1e-5, rtol=1e-5)
    some, scores = some_boxes(120)
    assert torch.equal(boxes.iou(some[:6], some[6:12]), torch.tensor(reference["iou"]))
    assert boxes.suppress(some, scores, 0.22, 300).tolist() == reference["kept"]
    assert boxes.suppress(some, scores, 0.22, 5).tolist() == reference["kept"][:5]
    assert boxes.suppress(some[:0], scores[:0], 0.22, 5).tolist() == []


SLOW = ("windows", "padded windows")


@pytest.mark.parametrize("case", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in CASES])
def test_the_whole_detector_says_what_monai_says(case: str, network: nn.Module, reference: dict[str, Any]) -> None:
    shape, window = CASES[case]
    expected = reference["detections"][case]
    settings = DetectorSettings() if window is None else DetectorSettings(window=window, always_windows=True)
    logits, codes = head_maps(image(shape).numpy(), Runner(network, CPU, "fp32"), settings)
    found = boxes.select(logits, codes, shape, SelectionSettings())
    assert len(found.scores) == expected["count"]
    # Recorded on another processor: the last bits of a convolution are its own.
    torch.testing.assert_close(found.scores[:SHOWN], torch.tensor(expected["scores"]), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(found.corners[:SHOWN], torch.tensor(expected["boxes"]), atol=1e-3, rtol=1e-5)
    np.testing.assert_allclose(found.corners.double().sum(0).tolist(), expected["sum"], rtol=1e-4)


class Places(nn.Module):
    """Says of each cell what lies in its first voxel, so that a stitched map can be predicted."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        maps = [x[:, :, ::sx, ::sy, ::sz] for sx, sy, sz in STRIDES]
        logits = {f"logits_{n}": each.expand(-1, 3, -1, -1, -1) for n, each in enumerate(maps)}
        return logits | {f"codes_{n}": each.expand(-1, 18, -1, -1, -1) for n, each in enumerate(maps)}


@pytest.mark.parametrize("shape", [(150, 70, 45), (64, 150, 32), (40, 200, 37), (128, 128, 64)])
def test_windows_put_every_cell_at_its_place(shape: tuple[int, int, int]) -> None:
    values = image(shape).numpy()
    settings = DetectorSettings(window=(64, 64, 32), always_windows=True)
    logits, codes = head_maps(values, Runner(Places(), CPU, "fp32"), settings)
    padded = np.pad(values, [(0, -size % by) for size, by in zip(shape, STRIDES[-1], strict=True)])
    for level, (sx, sy, sz) in enumerate(STRIDES):
        expected = padded[::sx, ::sy, ::sz]
        assert (logits[level].shape, codes[level].shape) == ((3, *expected.shape), (18, *expected.shape))
        np.testing.assert_allclose(logits[level][1], expected, atol=1e-6)
        np.testing.assert_allclose(codes[level][17], expected, atol=1e-6)


def test_overlapping_windows_are_averaged() -> None:
    class Number(nn.Module):
        """Each window gives its own number."""

        calls = 0

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            self.calls += 1
            return {key: torch.full_like(value, float(self.calls)) for key, value in Places()(x).items()}

    network = Number()
    settings = DetectorSettings(window=(64, 64, 32), always_windows=True)
    logits, _ = head_maps(np.zeros((112, 64, 32), dtype=np.float32), Runner(network, CPU, "fp32"), settings)
    assert network.calls == 2
    along_x = logits[0][0, :, 0, 0].tolist()
    assert along_x == [1.0] * 12 + [1.5] * 4 + [2.0] * 12  # 48 voxels alone, 16 in both, 48 alone


def test_windows_begin_a_quarter_before_the_last_one_ends() -> None:
    assert window_starts(512, 512) == [0]
    assert window_starts(640, 512) == [0, 128]
    assert window_starts(1024, 512) == [0, 384, 512]
    assert window_starts(288, 192) == [0, 96]


def test_a_small_image_is_seen_whole_unless_windows_are_asked_for() -> None:
    seen: list[Sequence[int]] = []

    class Sees(Places):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            seen.append(x.shape[-3:])
            return super().forward(x)

    values = np.zeros((100, 50, 20), dtype=np.float32)
    runner = Runner(Sees(), CPU, "fp32")
    head_maps(values, runner, DetectorSettings(window=(128, 64, 32)))
    head_maps(values, runner, DetectorSettings(window=(128, 64, 32), always_windows=True))
    assert [tuple(shape) for shape in seen] == [(112, 64, 24), (128, 64, 32)]


def flips_and_swaps() -> list[Any]:
    """Affines of axial volumes, stored in any direction."""
    found = []
    for signs in product((1, -1), repeat=3):
        for swap in (False, True):
            columns = np.diag([1.0, 1.0, 1.0])[:, [2, 0, 1] if swap else [2, 1, 0]] * np.array(signs)
            found.append(pytest.param(columns, id=f"{signs}{' swapped' if swap else ''}"))
    return found


@pytest.mark.parametrize("directions", flips_and_swaps())
def test_the_grid_of_the_network_is_ras_and_leads_back(directions: np.ndarray) -> None:
    random = np.random.default_rng(1)
    spacing = np.array([2.5, 0.8, 0.8])
    affine = np.eye(4)
    affine[:3, :3] = directions * spacing
    affine[:3, 3] = (31.0, -57.0, 411.0)
    hu = random.uniform(-1000, 200, (9, 14, 12)).astype(np.float32)
    found = network_image(hu, affine)
    lps_steps = affine[:3, :3] @ found.to_index[:3, :3]
    # Right, anterior and head at the spacing of the bundle: in LPS minus x, minus y and plus z.
    np.testing.assert_allclose(lps_steps, np.diag([-0.703125, -0.703125, 1.25]), atol=1e-9)
    corner = np.array([-np.inf, -np.inf, np.inf])
    for index in product(*((0, size - 1) for size in hu.shape)):
        place = np.array(index_to_lps(affine, index))
        corner = np.array([max(corner[0], place[0]), max(corner[1], place[1]), min(corner[2], place[2])])
    # The first voxel is the one that lies most to the left, posterior and to the feet.
    np.testing.assert_allclose(index_to_lps(affine, found.to_index[:3, 3]), corner)
    expected = (hu[tuple(np.rint(found.to_index[:3, 3]).astype(int))] + 1024) / 1324
    assert found.values[0, 0, 0] == pytest.approx(expected, abs=1e-6)


def test_a_volume_is_prepared_as_monai_does_it(reference: dict[str, Any]) -> None:
    hu, affine = raw_volume()
    found = network_image(hu, affine)
    np.testing.assert_allclose(found.values, reference["prepared"], atol=2e-6)
    np.testing.assert_allclose(affine @ found.to_index, reference["prepared_affine_lps"], atol=1e-9)


def test_values_are_interpolated_linearly_and_clipped() -> None:
    affine = np.diag([-0.703125, -0.703125, 2.5, 1.0])[:, [2, 1, 0, 3]]  # rows and columns as the network's
    hu = np.zeros((3, 4, 4), dtype=np.float32)
    hu[0], hu[1], hu[2] = -1500, -100, 900
    found = network_image(hu, affine)
    assert found.values.shape == (4, 4, 5)
    levels = [-1500, -800, -100, 400, 900]  # at 0, 1.25, 2.5, 3.75 and 5 mm
    expected = (np.clip(levels, -1024, 300) + 1024) / 1324
    np.testing.assert_allclose(found.values[1, 2], expected, atol=1e-6)


def test_a_part_of_the_volume_keeps_its_place() -> None:
    affine = np.diag([-0.703125, -0.703125, 1.25, 1.0])[:, [2, 1, 0, 3]]
    hu = np.random.default_rng(2).uniform(-900, 200, (20, 40, 36)).astype(np.float32)
    box = (slice(3, 15), slice(10, 30), slice(4, 30))
    whole, part = network_image(hu, affine), network_image(hu, affine, box)
    start = np.rint(np.linalg.solve(whole.to_index, part.to_index[:, 3]))[:3].astype(int)
    region = tuple(slice(first, first + size) for first, size in zip(start, part.values.shape, strict=True))
    np.testing.assert_allclose(part.values, whole.values[region], atol=1e-6)


def test_a_box_comes_back_to_its_place_in_millimetres() -> None:
    """A network that knows one anchor: its box, through grid and affine, is where the specification says."""

    class One(Places):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            maps = {key: torch.zeros_like(value) for key, value in super().forward(x).items()}
            for level in range(3):
                maps[f"logits_{level}"] -= 20.0
            maps["logits_0"][0, 2, 3, 5, 4] = 3.0
            return maps

    affine = np.diag([0.8, 0.8, 2.5, 1.0])[:, [2, 1, 0, 3]]
    affine[:3, 3] = (-20.0, -31.0, 100.0)
    hu = np.full((20, 70, 60), -800.0, dtype=np.float32)
    (found,) = detect(hu, affine, Runner(One(), CPU, "fp32"), DetectorSettings())
    assert found.score == pytest.approx(1 / (1 + np.exp(-3.0)))
    # Anchor (10, 10, 6) at cell (3, 5, 4): centre (14, 22, 9) on the grid. The first voxel of the grid is the last
    # column and the last row of the first slice.
    first = np.array(index_to_lps(affine, (0, 69, 59)))
    centre = first + np.array([-14, -22, 9]) * [0.703125, 0.703125, 1.25]
    size = np.array([10, 10, 6]) * [0.703125, 0.703125, 1.25]
    np.testing.assert_allclose(index_to_lps(affine, found.centre), centre, atol=1e-9)
    np.testing.assert_allclose(
        np.array(index_to_lps(affine, found.high)) - index_to_lps(affine, found.low), size, atol=1e-6
    )


@pytest.mark.slow
@pytest.mark.skipif("MONAI_PATH" not in os.environ, reason="MONAI_PATH does not name a folder with MONAI 1.6.1")
def test_the_recorded_reference_is_what_monai_says(reference: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.models.retinanet_factory import record  # noqa: PLC0415 - imports MONAI

    monkeypatch.syspath_prepend(str(Path(os.environ["MONAI_PATH"])))
    said = record()
    assert said["keys"] == reference["keys"]
    assert said["kept"] == reference["kept"]
    assert said["anchors"] == reference["anchors"]
    for name, expected in reference["detections"].items():
        np.testing.assert_allclose(said["detections"][name]["scores"], expected["scores"], atol=1e-6)


def test_the_published_numbers_of_selection_and_windows() -> None:
    assert SelectionSettings() == SelectionSettings(score_threshold=0.02, best_of_level=1000, overlap=0.22, most=300)
    assert retinanet.PUBLISHED_WINDOW == (512, 512, 192)
    assert (retinanet.SPACING_MM, retinanet.HU_RANGE) == ((0.703125, 0.703125, 1.25), (-1024.0, 300.0))
