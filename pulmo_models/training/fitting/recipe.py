"""Recipes: every constant of the three trainings, in one TOML file with the tables [stage1], [teacher] and [distill].

Two come with the package: ``published`` (the recipes of the Pulmo notebooks, their flaws included) and ``tuned`` (the
default). A key that is missing, unknown or wrong is refused by its name.
"""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pulmo_models.errors import ModelError

DEFAULT = "tuned"

Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]
Size = Annotated[int, Field(ge=16, multiple_of=16)]


class RecipeInvalid(ModelError):
    """The recipe cannot be used. The message names file, key and reason."""


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Optimiser(_Table):
    """AdamW, its learning rate, and what keeps it steady."""

    learning_rate: Positive
    weight_decay: NotNegative
    schedule: Literal["step", "epoch"]  # how often the cosine is evaluated
    warm_up: Share  # share of all steps over which the rate rises linearly
    last_rate: Share  # where the cosine ends, as a share of the learning rate
    clip_norm: NotNegative  # 0: gradients are not clipped
    average_decay: Annotated[float, Field(ge=0, lt=1)]  # of the running mean of the weights; 0: none is kept


class Augmentation(_Table):
    """What is done to a sample at random. Intensities are those of the network: 0..1 for -1000..1000 HU."""

    flip: Share  # probability for each axis
    rotate: bool  # by quarter turns in the plane
    centred: bool  # the candidate stays at its index; false: a flip moves it by one voxel, as published
    jitter_slices: Annotated[int, Field(ge=0)]  # translation of a patch, at most
    jitter_pixels: Annotated[int, Field(ge=0)]
    shift: NotNegative  # of the intensity, at most
    shift_probability: Share
    gamma: tuple[Positive, Positive]
    gamma_probability: Share
    noise: NotNegative  # standard deviation
    noise_probability: Share
    kernel: tuple[float, float]  # how much of what is finer than a pixel or two is added; -1 takes all of it away
    kernel_probability: Share


class Phase(_Table):
    """A part of the training of stage 1. An epoch ends with a validation."""

    window: tuple[Size, Size, Size]  # slices, rows, columns
    batch: Count
    epochs: Count
    samples_per_epoch: Annotated[int, Field(ge=0)]  # 0: each sample once


class _Training(_Table):
    optimiser: Optimiser
    augmentation: Augmentation
    checkpoint_steps: Count
    patience: Annotated[int, Field(ge=0)]  # epochs without a better criterion after which it ends; 0: never
    validation_samples: Annotated[int, Field(ge=0)]  # at most; 0: all


class Stage1Recipe(_Training):
    """The detector. The best network is that with the lowest validation loss."""

    phases: tuple[Phase, ...] = Field(min_length=1)
    alpha: NotNegative  # powers of the focal loss
    beta: NotNegative
    sigma_share: Positive  # of the diameter; the Gaussian of the target
    least_sigma: tuple[Positive, Positive, Positive]  # voxels: slices, rows, columns
    prior_bias: float | Literal["default"]  # of the last layer; about the logit of the share of centres
    nodule_windows: Share  # share of samples drawn among windows with a nodule; 0: as they come
    nodule_crops: Share  # of crops of a window with a nodule: how many contain one


class Shares(_Table):
    """How often each kind of patch is drawn, in relation to the others. All 0: each patch once an epoch."""

    none: NotNegative
    benign: NotNegative
    malignant: NotNegative
    other: NotNegative  # nodules between the two, or rated by too few
    mask_only: NotNegative  # beyond the centre of a nodule: whether it is one is not asked


class Labels(_Table):
    """From ratings to targets."""

    readers: Count  # ratings of fewer are not used
    benign_up_to: float  # mean malignancy
    malignant_from: float
    malignancy: Literal["label", "rating"]  # rating: sigmoid(slope * (mean - 3)) is the target, of all that were rated
    slope: Positive
    concepts: Literal["unit", "raw"]  # (rating - 1) / 4, or the rating itself


class Losses(_Table):
    """Weights of the tasks and their kinds."""

    detection: NotNegative
    malignancy: NotNegative
    segmentation: NotNegative
    concepts: NotNegative
    detection_weights: tuple[Positive, Positive]  # of the classes none and nodule
    gamma: NotNegative  # of the focal cross entropy of detection and malignancy; 0: plain
    mask_gamma: NotNegative  # of the focal binary cross entropy of the mask; 0: plain
    dice_smooth: Positive
    concept_error: Literal["squared", "variance"]  # variance: in units of each concept's variance, so R2 is what counts
    least_variance: Positive  # on the scale of the targets


class Bottleneck(_Table):
    """Concept head and malignancy head."""

    dropout: Annotated[float, Field(ge=0, lt=1)]  # of the detection head
    concept_dropout: Annotated[float, Field(ge=0, lt=1)]
    concept_bias: Literal["default", "mean"]  # mean: the head begins at the mean ratings
    start_gain: NotNegative  # each weight begins at gain * correlation / deviation of its rating; 0: at random
    signs: Literal["free", "held"]  # held: the sign of each weight is that of the rating's correlation with malignancy
    least_weight: NotNegative  # W[1] - W[0] is at least that where the sign is held
    without: tuple[str, ...]  # concepts whose weight is held at 0


class _Stage2(_Training):
    batch: Count
    epochs: Count
    samples_per_epoch: Annotated[int, Field(ge=0)]
    shares: Shares
    labels: Labels
    losses: Losses
    bottleneck: Bottleneck
    criterion: Literal["malignancy_auc", "sum"]  # sum: detection AUC + malignancy AUC + Dice + mean concept R2


class TeacherRecipe(_Stage2):
    """The 3D teacher."""

    shape: tuple[Size, Size, Size]  # fewer slices where the patches of the store have no more
    mixup_probability: Share
    mixup_alpha: Positive


class DistillRecipe(_Stage2):
    """The student."""

    teacher_share: Share  # of the loss; 0: trained from labels alone, without a teacher
    temperature: Positive
    teacher_slices: Size


class Recipe(_Table):
    """All three trainings."""

    stage1: Stage1Recipe
    teacher: TeacherRecipe
    distill: DistillRecipe


def load_recipe(name_or_path: str, changes: Sequence[str] = ()) -> Recipe:
    """A recipe of the package by its name, or the one in a ``.toml`` file.

    `changes` are single keys, each as a line of TOML: ``distill.optimiser.learning_rate = 3e-4``.

    Raises:
        RecipeInvalid: no such recipe, no TOML, or a key is missing, unknown or wrong.
    """
    folder = files("pulmo_models.training.fitting") / "recipes"
    shipped = folder / f"{name_or_path}.toml"
    try:
        text = (Path(name_or_path) if name_or_path.endswith(".toml") else shipped).read_text(encoding="utf-8")
        table = tomllib.loads(text)
    except FileNotFoundError as exc:
        names = ", ".join(sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir()))
        raise RecipeInvalid(
            f"recipe {name_or_path}: not there; known are {names}, or the path of a .toml file"
        ) from exc
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as exc:
        raise RecipeInvalid(f"recipe {name_or_path}: cannot be read: {exc}") from exc
    for change in changes:
        _apply(table, change)
    try:
        return Recipe.model_validate(table)
    except ValidationError as exc:
        raise RecipeInvalid(f"recipe {name_or_path}: " + "; ".join(map(_reason, exc.errors()))) from exc


def _apply(table: dict[str, Any], change: str) -> None:
    try:
        parsed = tomllib.loads(change)
    except tomllib.TOMLDecodeError as exc:
        raise RecipeInvalid(f"change {change!r}: must be a line of TOML like distill.epochs = 3 ({exc})") from exc
    _merge(table, parsed)


def _merge(table: dict[str, Any], changes: dict[str, Any]) -> None:
    for key, value in changes.items():
        if isinstance(value, dict) and isinstance(table.get(key), dict):
            _merge(table[key], value)
        else:
            table[key] = value


def _reason(error: Any) -> str:
    key = ".".join(map(str, error["loc"]))
    kinds = {"extra_forbidden": "unknown key", "missing": "missing"}
    return f"{key}: {kinds.get(error['type'], error['msg'])}"
