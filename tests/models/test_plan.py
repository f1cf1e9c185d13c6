"""The plan of a training, and the cuts and turns of its samples."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset

from pulmo_models.training.fitting.augmentation import (
    Turn,
    change_intensities,
    cut_around,
    draw_offset,
    draw_turn,
    normalised,
)
from pulmo_models.training.fitting.fit import PlannedData, workers_for
from pulmo_models.training.fitting.plan import Course, batches, make_plan, rate_factor
from pulmo_models.training.fitting.recipe import load_recipe

COURSES = [
    Course(batch=4, epochs=2, samples_per_epoch=22),  # five steps; two samples fill no batch
    Course(batch=1, epochs=1, samples_per_epoch=3),
]


def test_epochs_are_divided_into_chunks_without_a_gap() -> None:
    plan = make_plan(COURSES, checkpoint_steps=2)
    assert plan.steps == 13
    assert plan.epochs == 3
    assert [chunk.steps for chunk in plan.chunks] == [2, 2, 1, 2, 2, 1, 2, 1]
    assert [chunk.validates for chunk in plan.chunks] == [False, False, True, False, False, True, False, True]
    step = sample = 0
    for chunk in plan.chunks:
        assert (chunk.first_step, chunk.first_sample) == (step, sample)
        assert plan.chunk_at(step) == chunk
        assert plan.chunk_at(step + chunk.steps - 1) == chunk
        step, sample = step + chunk.steps, sample + chunk.steps * plan.batches[chunk.course]
    assert plan.chunk_at(step) == plan.chunks[-1]


def test_a_shorter_training_keeps_its_parts() -> None:
    half = make_plan(COURSES, checkpoint_steps=100, factor=0.5)
    assert [(chunk.course, chunk.steps) for chunk in half.chunks] == [(0, 5), (1, 2)]
    seven = make_plan(COURSES, checkpoint_steps=100, max_steps=7)
    assert seven.steps == 7
    assert [chunk.course for chunk in seven.chunks] == [0, 1]
    assert make_plan(COURSES, checkpoint_steps=100, factor=1e-6).steps == 2


def test_each_sample_comes_once_an_epoch_and_chunks_go_on_where_the_last_one_ended() -> None:
    plan = make_plan(COURSES, checkpoint_steps=2)
    weights = np.ones(22)
    first = [key for chunk in plan.chunks[:3] for batch in batches(plan, chunk, weights, 7) for key in batch]
    assert len({index for index, _ in first}) == 20
    assert [number for _, number in first] == list(range(20))
    second = [key for chunk in plan.chunks[3:6] for batch in batches(plan, chunk, weights, 7) for key in batch]
    assert [number for _, number in second] == list(range(20, 40))
    assert [index for index, _ in first] != [index for index, _ in second]
    again = [key for chunk in plan.chunks[3:6] for batch in batches(plan, chunk, weights, 7) for key in batch]
    assert second == again
    assert batches(plan, plan.chunks[0], weights, 7) != batches(plan, plan.chunks[0], weights, 8)


def test_samples_are_drawn_by_their_weights() -> None:
    plan = make_plan([Course(batch=10, epochs=1, samples_per_epoch=4000)], checkpoint_steps=1000)
    weights = np.array([0.0, 1.0, 3.0])
    drawn = [index for batch in batches(plan, plan.chunks[0], weights, 1) for index, _ in batch]
    shares = np.bincount(drawn, minlength=3) / len(drawn)
    assert shares == pytest.approx([0, 0.25, 0.75], abs=0.03)


def test_rates() -> None:
    plan = make_plan([Course(batch=1, epochs=10, samples_per_epoch=10)], checkpoint_steps=100)
    teacher = load_recipe("published").teacher.optimiser
    assert rate_factor(plan, teacher, 0) == pytest.approx(0.1)
    assert rate_factor(plan, teacher, 9) == pytest.approx(1)
    assert rate_factor(plan, teacher, 55) == pytest.approx(0.5)
    assert rate_factor(plan, teacher, 100) == pytest.approx(0)
    student = load_recipe("published").distill.optimiser
    assert [rate_factor(plan, student, step) for step in (0, 9)] == [1, 1]
    assert rate_factor(plan, student, 35) == pytest.approx(0.5 * (1 + math.cos(math.pi * 0.3)))


TURNS = [
    Turn(flips=(a, b, c), quarters=quarters)
    for a in (False, True)
    for b in (False, True)
    for c in (False, True)
    for quarters in range(4)
]


@pytest.mark.parametrize("turn", TURNS)
def test_the_candidate_stays_in_the_middle_however_a_cut_is_turned(turn: Turn) -> None:
    values = np.zeros((20, 72, 72), np.int16)
    values[10, 36, 36] = 1
    cut = cut_around(values, (10, 36, 36), (8, 64, 64), turn, centred=True)
    assert cut.shape == (8, 64, 64)
    assert np.argwhere(cut).tolist() == [[4, 32, 32]]


def test_a_published_flip_moves_the_candidate_by_a_voxel() -> None:
    values = np.zeros((20, 72, 72), np.int16)
    values[10, 36, 36] = 1
    cut = cut_around(values, (10, 36, 36), (8, 64, 64), Turn(flips=(True, False, False)), centred=False)
    assert np.argwhere(cut).tolist() == [[3, 32, 32]]


def test_a_turn_keeps_the_sense_of_the_slices() -> None:
    values = np.arange(20)[:, None, None] * np.ones((20, 72, 72), np.int16)
    plain = cut_around(values, (10, 36, 36), (8, 64, 64), Turn(), centred=True)
    assert plain[:, 0, 0].tolist() == list(range(6, 14))
    flipped = cut_around(values, (10, 36, 36), (8, 64, 64), Turn(flips=(True, False, False)), centred=True)
    assert flipped[:, 0, 0].tolist() == list(range(14, 6, -1))


def test_a_cut_that_leaves_the_patch_is_refused() -> None:
    with pytest.raises(ValueError, match="not inside"):
        cut_around(np.zeros((20, 72, 72)), (10, 36, 36), (32, 64, 64), Turn(), centred=True)


def test_intensities_stay_in_the_range_of_the_network() -> None:
    assert normalised(np.array([-2000, -1000, 0, 1000, 3000], np.int16)).tolist() == [0, 0, 0.5, 1, 1]
    keys = ["noise_probability = 1.0", "kernel_probability = 0.0"]
    how = load_recipe("tuned", [f"distill.augmentation.{key}" for key in keys]).distill.augmentation
    random = np.random.default_rng(1)
    image = np.full((7, 32, 32), 0.5, np.float32)
    changed = [change_intensities(random, how, image) for _ in range(50)]
    assert all(values.dtype == np.float32 and 0 <= values.min() <= values.max() <= 1 for values in changed)
    spreads = [float(values.std()) for values in changed]
    assert np.median(spreads) == pytest.approx(how.noise, rel=0.2)
    still = load_recipe("published").distill.augmentation
    assert change_intensities(random, still, image).tolist() == image.tolist()


@pytest.mark.parametrize(("kernel", "swing"), [(2.0, 2.2), (-1.0, 0.4)])
def test_a_sharper_kernel_raises_edges_and_a_smoother_one_lowers_them(kernel: float, swing: float) -> None:
    keys = [f"kernel = [{kernel}, {kernel}]", "kernel_probability = 1.0"]
    keys += ["noise_probability = 0.0", "shift_probability = 0.0", "gamma_probability = 0.0"]
    how = load_recipe("tuned", [f"distill.augmentation.{key}" for key in keys]).distill.augmentation
    image = np.full((7, 32, 32), 0.4, np.float32)
    image[:, :, 16:] = 0.6
    image[3] = 0.5  # slices do not mix
    changed = change_intensities(np.random.default_rng(1), how, image)
    assert changed[3] == pytest.approx(image[3], abs=1e-6)
    # A Gaussian of one pixel leaves 0.4, its middle weight, of a step between two pixels: 1 + kernel * (1 - 0.4).
    assert changed[0, 16, 16] - changed[0, 16, 15] == pytest.approx(0.2 * swing, abs=0.002)
    assert changed[0].mean() == pytest.approx(0.5, abs=1e-3)


def test_turns_and_offsets_are_drawn_as_the_recipe_says() -> None:
    how = load_recipe("tuned").distill.augmentation
    random = np.random.default_rng(2)
    offsets = np.array([draw_offset(random, how) for _ in range(400)])
    assert offsets.min(axis=0).tolist() == [-1, -2, -2]
    assert offsets.max(axis=0).tolist() == [1, 2, 2]
    turns = [draw_turn(random, how) for _ in range(400)]
    assert {turn.quarters for turn in turns} == {0, 1, 2, 3}
    assert np.mean([turn.flips for turn in turns], axis=0) == pytest.approx([0.5, 0.5, 0.5], abs=0.1)
    assert {draw_turn(random, how, square=False).quarters for _ in range(50)} == {0, 2}


class Numbers(Dataset[Tensor]):
    def __len__(self) -> int:
        return 5

    def __getitem__(self, key: tuple[int, int]) -> Tensor:
        return torch.tensor([*key])


def test_loader_processes_give_the_same_batches() -> None:
    plan = make_plan([Course(batch=2, epochs=1, samples_per_epoch=5)], checkpoint_steps=1)
    seen = []
    for workers in (0, 2):
        data = PlannedData(plan, [Numbers()], np.ones(5), Numbers(), validation_batch=3, seed=1, workers=workers)
        seen.append([batch.tolist() for batch in data.val_dataloader()])
    assert seen[0] == seen[1] == [[[0, 0], [1, 0], [2, 0]], [[3, 0], [4, 0]]]
    assert workers_for(torch.device("cpu")) == 0
    assert workers_for(torch.device("cuda")) > 0
