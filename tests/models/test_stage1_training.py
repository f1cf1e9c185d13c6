"""Training of the detector: target, loss, crops, and a training that is killed and goes on."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from pulmo_models.training.fitting.heatmap import PEAK, draw_peak, focal_loss
from pulmo_models.training.fitting.plan import Course, make_plan
from pulmo_models.training.fitting.recipe import load_recipe
from pulmo_models.training.fitting.rows import StoreUnfit
from pulmo_models.training.fitting.stage1_data import Crops, read_window_rows, window_weights
from pulmo_models.training.fitting.stage1_module import Stage1Module, new_detector
from pulmo_models.training.store import PatchStore, StoreWriter, Window
from tests.models.tiny_store import SPACING_MM, write_tiny_store
from tests.models.training_runs import changes, refused, same_weights, train, train_and_kill

RECIPE = load_recipe("tuned").stage1
TINY = changes(
    "stage1.phases = [{window = [16, 32, 32], batch = 2, epochs = 2, samples_per_epoch = 8}, "
    "{window = [32, 48, 48], batch = 1, epochs = 1, samples_per_epoch = 2}]",
    "stage1.checkpoint_steps = 3",
    "stage1.validation_samples = 2",
)


def test_a_peak_has_the_sigma_of_the_specification() -> None:
    target = torch.zeros(21, 41, 41)
    draw_peak(target, (10.2, 20.4, 19.6), 12.0, (2.5, 0.75, 0.75))
    assert target[10, 20, 20] == 1.0
    sigma_z, sigma_y = 12 / (4 * 2.5), 12 / (4 * 0.75)
    assert target[12, 20, 20].item() == pytest.approx(math.exp(-4 / (2 * sigma_z**2)), rel=1e-5)
    assert target[10, 25, 20].item() == pytest.approx(math.exp(-25 / (2 * sigma_y**2)), rel=1e-5)


def test_a_small_nodule_still_has_a_peak_of_a_voxel_and_a_half() -> None:
    target = torch.zeros(9, 9, 9)
    draw_peak(target, (4, 4, 4), 1.0, (5.0, 1.0, 1.0))
    assert target[5, 4, 4].item() == pytest.approx(math.exp(-1 / 2), rel=1e-5)
    assert target[4, 5, 4].item() == pytest.approx(math.exp(-1 / (2 * 1.5**2)), rel=1e-5)


def test_peaks_are_combined_by_maximum_and_one_outside_changes_nothing() -> None:
    target = torch.zeros(8, 16, 16)
    draw_peak(target, (4, 4, 4), 8.0, (1, 1, 1))
    before = target.clone()
    draw_peak(target, (40, 4, 4), 8.0, (1, 1, 1))
    assert torch.equal(target, before)
    draw_peak(target, (4, 4, 8), 8.0, (1, 1, 1))
    assert target.max() == 1.0
    assert (target >= before).all()


def test_the_focal_loss_is_the_one_of_the_paper() -> None:
    logits = torch.tensor([0.5, -1.0, 2.0])
    target = torch.tensor([1.0, 0.6, 0.0])
    p = [1 / (1 + math.exp(-value)) for value in (0.5, -1.0, 2.0)]
    by_hand = (
        -((1 - p[0]) ** 2) * math.log(p[0])
        - (1 - 0.6) ** 4 * p[1] ** 2 * math.log(1 - p[1])
        - p[2] ** 2 * math.log(1 - p[2])
    )
    assert focal_loss(logits, target).item() == pytest.approx(by_hand, rel=1e-5)
    without_last = focal_loss(logits, target, torch.tensor([1.0, 1.0, 0.0])).item()
    assert without_last == pytest.approx(by_hand + p[2] ** 2 * math.log(1 - p[2]), rel=1e-5)


def test_a_peak_where_the_truth_is_not_known_does_not_count() -> None:
    logits, target = torch.zeros(3), torch.tensor([1.0, 1.0, 0.0])
    alone = focal_loss(logits[1:], target[1:])
    assert focal_loss(logits, target, torch.tensor([0.0, 1.0, 1.0])) == alone


def crops(path: Path, shape: tuple[int, int, int], *lines: str, augmented: bool = True) -> Crops:
    recipe = load_recipe("tuned", [f"stage1.{line}" for line in lines]).stage1
    return Crops(read_window_rows([PatchStore(path)], "train"), shape, recipe, seed=3, augmented=augmented)


def one_window(path: Path) -> Path:
    """A nodule in a corner, and a box in which nothing is known."""
    hu = np.full((32, 64, 64), -900, np.int16)
    hu[5:8, 8:13, 50:55] = 0
    with StoreWriter(path, window=hu.shape, patch=None, provenance={}) as store:
        store.add_window(
            Window(
                hu=hu,
                spacing_mm=SPACING_MM,
                nodules=np.array([[6, 10, 52, 5.0]], np.float32),
                unknown=np.array([[20, 30, 30, 40, 50, 50]], np.int32),
                patient="p",
                split="train",
                source="made",
            )
        )
    return path


def test_crops_contain_the_nodule_as_often_as_the_recipe_says(tmp_path: Path) -> None:
    path = one_window(tmp_path / "a.h5")
    with_nodule = crops(path, (16, 32, 32), "nodule_crops = 1.0")
    for number in range(40):
        image, target, _ = with_nodule[(0, number)]
        (place,) = torch.nonzero(target >= PEAK)
        assert image[tuple(place)] > 0.4  # the peak is on the nodule, however the crop was turned
    anywhere = crops(path, (16, 32, 32), "nodule_crops = 0.0")
    peaks = [bool((anywhere[(0, number)][1] >= PEAK).any()) for number in range(60)]
    assert 0 < sum(peaks) < 30  # it is in a corner


def test_there_is_no_loss_in_an_unknown_box(tmp_path: Path) -> None:
    path = one_window(tmp_path / "a.h5")
    image, target, weight = crops(path, (32, 64, 64), augmented=False)[(0, 0)]
    assert image.shape == target.shape == weight.shape == (1, 32, 64, 64)
    unknown = torch.zeros(32, 64, 64, dtype=torch.bool)
    unknown[20:32, 30:50, 30:50] = True
    assert torch.equal(weight[0] == 0, unknown)
    turned = crops(path, (32, 64, 64))[(0, 1)]
    assert int((turned[2] == 0).sum()) == int(unknown.sum())


def test_a_window_that_is_too_small_is_named(tmp_path: Path) -> None:
    path = one_window(tmp_path / "a.h5")
    with pytest.raises(StoreUnfit, match=r"a\.h5: its windows are 32 x 64 x 64, but the recipe needs 64 x 128 x 128"):
        crops(path, (64, 128, 128))[(0, 0)]


def test_windows_with_nodules_are_drawn_by_their_share(tmp_path: Path) -> None:
    rows = read_window_rows([PatchStore(write_tiny_store(tmp_path / "a.h5", windows=(9, 0), patches=(0, 0)))], "train")
    assert rows.nodules.tolist() == [0, 1, 2] * 3
    weights = window_weights(rows, 0.75)
    assert weights[rows.nodules > 0].sum() == pytest.approx(0.75)
    assert weights.sum() == pytest.approx(1)
    assert np.ptp(window_weights(rows, 0)) == 0


def test_gradients_that_are_not_finite_leave_the_step_out() -> None:
    plan = make_plan([Course(batch=1, epochs=1, samples_per_epoch=3)], checkpoint_steps=3)
    module = Stage1Module(new_detector(RECIPE), plan, RECIPE, 1)
    adam = module.configure_optimizers()["optimizer"]
    before = module.network.out.weight.clone()
    for value, skipped in ((float("nan"), 1), (1.0, 1)):
        for parameter in module.network.parameters():
            parameter.grad = torch.full_like(parameter, value)
        module.on_before_optimizer_step(adam)
        adam.step()
        assert int(module.skipped) == skipped
        assert torch.equal(module.network.out.weight, before) == math.isnan(value)


def test_the_running_mean_follows_the_weights() -> None:
    plan = make_plan([Course(batch=1, epochs=1, samples_per_epoch=3)], checkpoint_steps=3)
    module = Stage1Module(new_detector(RECIPE), plan, RECIPE, 1)
    assert module.average is not None
    assert module.network.out.bias.item() == -4
    for value in (1.0, 2.0):
        torch.nn.init.constant_(module.network.out.bias, value)
        module.average.update_parameters(module.network)
    decay = 2 / 11  # short in the beginning
    assert module.evaluated.out.bias.item() == pytest.approx(decay * 1 + (1 - decay) * 2)
    plain = load_recipe("published").stage1
    assert Stage1Module(new_detector(plain), plan, plain, 1).average is None


def test_a_killed_training_goes_on_as_if_it_was_not(tmp_path: Path) -> None:
    store = write_tiny_store(tmp_path / "a.h5", patches=(0, 0))
    command = ["stage1", "--store", store, "--device", "cpu", *TINY]
    train(*command, "--work", tmp_path / "whole")
    train_and_kill(5, *command, "--work", tmp_path / "parts")  # after the first epoch, between two checkpoints
    train(*command, "--work", tmp_path / "parts")
    whole, parts = tmp_path / "whole" / "stage1", tmp_path / "parts" / "stage1"
    assert same_weights(whole / "last.ckpt", parts / "last.ckpt")
    assert same_weights(whole / "best.ckpt", parts / "best.ckpt")
    assert torch.load(parts / "last.ckpt", weights_only=True)["global_step"] == 10
    with (whole / "logs" / "version_0" / "metrics.csv").open() as file:
        losses = [row["validation/loss"] for row in csv.DictReader(file) if row["validation/loss"]]
    assert len(losses) == 3
    assert list((whole / "logs" / "version_0").glob("events.out.tfevents.*"))
    assert "another training: recipe.optimiser.learning_rate is" in refused(
        *command, "--work", tmp_path / "whole", *changes("stage1.optimiser.learning_rate = 1.0")
    )
    assert "another training: seed is 1 there, 2 asked for" in refused(
        *command, "--work", tmp_path / "whole", "--seed", "2"
    )
    last = (whole / "last.ckpt").read_bytes()
    train(*command, "--work", tmp_path / "whole")  # it is finished: nothing is done
    assert (whole / "last.ckpt").read_bytes() == last
    other = ["--work", tmp_path / "other", "--max-steps", "1", "--init", whole / "best.ckpt"]
    train(*command, *other, *changes("stage1.optimiser.learning_rate = 1e-12"))
    begun, taken = (
        torch.load(path, weights_only=True)["state_dict"]
        for path in (tmp_path / "other/stage1/last.ckpt", whole / "best.ckpt")
    )
    assert torch.allclose(begun["network.e4.c1.weight"], taken["average.module.e4.c1.weight"], atol=1e-6)
