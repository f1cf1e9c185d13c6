"""Recipes: the published constants are those of the specification, and no key goes unseen."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import pytest
from pydantic import ValidationError

from pulmo_models.training.fitting.recipe import RecipeInvalid, load_recipe


def test_the_published_stage_1_is_that_of_the_specification() -> None:
    recipe = load_recipe("published").stage1
    (phase,) = recipe.phases
    assert (phase.window, phase.batch, phase.epochs, phase.samples_per_epoch) == ((64, 128, 128), 8, 52, 0)
    assert (recipe.alpha, recipe.beta, recipe.sigma_share, recipe.least_sigma) == (2, 4, 0.25, (1.0, 1.5, 1.5))
    how = recipe.optimiser
    assert (how.learning_rate, how.weight_decay, how.schedule, how.warm_up, how.clip_norm) == (
        3e-4,
        1e-4,
        "epoch",
        0,
        0,
    )
    assert recipe.augmentation.flip == 0.5
    assert not recipe.augmentation.rotate
    assert recipe.prior_bias == "default"


def test_the_published_teacher_is_that_of_the_specification() -> None:
    recipe = load_recipe("published").teacher
    assert (recipe.shape, recipe.batch, recipe.epochs) == ((64, 64, 64), 32, 60)
    how, losses, change = recipe.optimiser, recipe.losses, recipe.augmentation
    assert (how.learning_rate, how.weight_decay, how.schedule, how.warm_up, how.clip_norm) == (
        1e-3,
        1e-4,
        "step",
        0.1,
        1,
    )
    assert (losses.detection, losses.malignancy, losses.segmentation, losses.concepts) == (1, 1, 1, 0.3)
    assert (losses.detection_weights, losses.gamma, losses.mask_gamma, losses.dice_smooth) == ((1, 4), 2, 2, 1)
    assert (change.shift, change.shift_probability, change.gamma, change.gamma_probability) == (
        0.15,
        0.5,
        (0.8, 1.2),
        0.5,
    )
    assert (change.noise, change.noise_probability, change.rotate, change.centred) == (0.025, 0.4, True, False)
    assert (recipe.mixup_probability, recipe.mixup_alpha) == (0.5, 0.2)
    assert recipe.labels.concepts == "unit"
    assert recipe.criterion == "malignancy_auc"


def test_the_published_student_is_that_of_the_specification() -> None:
    recipe = load_recipe("published").distill
    assert (recipe.teacher_share, recipe.temperature, recipe.batch, recipe.epochs) == (0.5, 3.0, 32, 40)
    how, losses = recipe.optimiser, recipe.losses
    assert (how.learning_rate, how.weight_decay, how.schedule, how.warm_up, how.clip_norm) == (
        3e-4,
        1e-4,
        "epoch",
        0,
        0,
    )
    assert (losses.detection_weights, losses.gamma, losses.concepts) == ((1, 3), 0, 0.3)
    assert recipe.labels.concepts == "raw"
    assert recipe.augmentation.jitter_pixels == recipe.augmentation.noise_probability == 0
    assert not recipe.augmentation.centred
    assert recipe.bottleneck.signs == "free"


def test_ours_puts_right_what_was_wrong() -> None:
    recipe = load_recipe("tuned")
    for part in (recipe.teacher, recipe.distill):
        assert part.labels.concepts == "unit"
        assert part.augmentation.centred
        assert part.bottleneck.signs == "held"
        assert part.bottleneck.without == ("internalStructure",)
        assert part.shares.benign == part.shares.malignant > 0


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("distill.epoch = 3", "distill.epoch: unknown key"),
        ("stage1.optimiser.learning_rate = -1.0", "stage1.optimiser.learning_rate: .*greater than 0"),
        ("teacher.shape = [60, 64, 64]", "teacher.shape.0: .*multiple of 16"),
        ("distill.epochs: 3", "must be a line of TOML"),
    ],
)
def test_a_wrong_key_is_named(change: str, reason: str) -> None:
    with pytest.raises(RecipeInvalid, match=reason):
        load_recipe("tuned", [change])


def test_a_missing_key_and_a_missing_recipe_are_named(tmp_path: Path) -> None:
    text = (files("pulmo_models.training.fitting") / "recipes" / "tuned.toml").read_text(encoding="utf-8")
    path = tmp_path / "mine.toml"
    path.write_text(text.replace("temperature = 3.0", ""), encoding="utf-8")
    with pytest.raises(RecipeInvalid, match=r"mine\.toml: distill\.temperature: missing"):
        load_recipe(str(path))
    with pytest.raises(RecipeInvalid, match="published, tuned"):
        load_recipe("other")


def test_a_single_key_is_changed_and_a_recipe_is_frozen() -> None:
    recipe = load_recipe("tuned", ["distill.optimiser.learning_rate = 0.5", "distill.epochs = 2"])
    assert (recipe.distill.optimiser.learning_rate, recipe.distill.epochs) == (0.5, 2)
    assert recipe.distill.optimiser.weight_decay == load_recipe("tuned").distill.optimiser.weight_decay
    with pytest.raises(ValidationError, match="frozen"):
        recipe.distill.epochs = 4
