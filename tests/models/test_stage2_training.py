"""Training of teacher and student: samples, losses, signs, and a training that is killed and goes on."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pulmo_models.nets.student2p5d import Student2p5D
from pulmo_models.training.fitting.plan import Course, make_plan
from pulmo_models.training.fitting.recipe import DistillRecipe, load_recipe
from pulmo_models.training.fitting.rows import StoreUnfit
from pulmo_models.training.fitting.stage2_data import (
    Patches,
    Rows,
    draw_weights,
    read_rows,
    student_cut,
    taught_malignancy,
)
from pulmo_models.training.fitting.stage2_loss import ConceptFacts, HardLoss, concept_facts, hold_signs, soft_loss
from pulmo_models.training.fitting.stage2_module import StudentModule, TeacherModule, prepare, stage2_figures
from pulmo_models.training.store import Patch, PatchStore, StoreWriter
from pulmo_models.types import CONCEPT_NAMES
from tests.models.tiny_store import SPACING_MM, write_tiny_store
from tests.models.training_runs import changes, refused, same_weights, train, train_and_kill

TINY = changes(
    "distill.batch = 4",
    "distill.samples_per_epoch = 20",
    "distill.epochs = 2",
    "distill.checkpoint_steps = 2",
    "distill.validation_samples = 6",
)
PLAN = make_plan([Course(batch=4, epochs=1, samples_per_epoch=8)], checkpoint_steps=2)
FACTS = ConceptFacts(
    means=(0.5,) * 8, variances=(0.04, 0.0, *(0.04,) * 6), correlations=(0.5, 0, -0.3, -0.2, 0.1, 0.6, 0.6, 0.1)
)


def distill(*lines: str, name: str = "tuned") -> DistillRecipe:
    return load_recipe(name, [f"distill.{line}" for line in lines]).distill


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_store(tmp_path_factory.mktemp("store") / "tiny.h5", windows=(0, 0))


def rows_of(path: Path, recipe: DistillRecipe) -> Rows:
    return read_rows([PatchStore(path)], "train", recipe.labels)


# Samples


def kinds(path: Path) -> Path:
    """One patch of each kind; every nodule has a bright voxel at the candidate."""
    wanted = [  # detection, malignancy, readers
        (0, math.nan, 0),
        (1, 2.0, 4),
        (1, 4.0, 2),
        (1, 3.0, 4),
        (1, 5.0, 1),
        (-1, 5.0, 4),
    ]
    with StoreWriter(path, window=None, patch=(20, 72, 72), provenance={}) as writer:
        for number, (detection, malignancy, readers) in enumerate(wanted):
            hu = np.full((20, 72, 72), -1000, np.int16)
            hu[10, 36, 36] = 1000
            mask = None if detection == 0 else hu > 0
            ratings = np.full(8, 2.0, np.float32)
            ratings[2] = np.nan
            writer.add_patch(
                Patch(
                    hu=hu,
                    spacing_mm=SPACING_MM,
                    mask=mask,
                    detection=detection,
                    malignancy=malignancy,
                    ratings=ratings,
                    readers=readers,
                    patient=str(number),
                    split="train",
                    source="made",
                )
            )
    return path


def test_labels_are_those_of_enough_readers_and_of_nodules_alone(tmp_path: Path) -> None:
    recipe = distill()
    rows = rows_of(kinds(tmp_path / "a.h5"), recipe)
    assert rows.graded(recipe.labels).tolist() == [-1, 0, 1, -1, -1, -1]
    assert np.isfinite(rows.ratings[:, 0]).tolist() == [False, True, True, True, False, False]
    assert np.isnan(rows.ratings[:, 2]).all()
    taught = taught_malignancy(rows, recipe.labels)
    assert taught[[0, 4, 5]].tolist() == [-1, -1, -1]
    assert taught[1:4].tolist() == pytest.approx([1 / (1 + math.exp(2)), 1 / (1 + math.exp(-2)), 0.5])
    assert taught_malignancy(rows, distill(name="published").labels).tolist() == [-1, 0, 1, -1, -1, -1]
    strict = read_rows([PatchStore(tmp_path / "a.h5")], "train", distill(name="published").labels)
    assert strict.graded(recipe.labels).tolist() == [-1, 0, -1, -1, -1, -1]


def test_kinds_are_drawn_by_their_shares(tmp_path: Path) -> None:
    recipe = distill("shares = {none = 0.5, benign = 0.1, malignant = 0.1, other = 0.2, mask_only = 0.1}")
    rows = rows_of(kinds(tmp_path / "a.h5"), recipe)
    assert draw_weights(rows, recipe.shares, recipe.labels) == pytest.approx([0.5, 0.1, 0.1, 0.1, 0.1, 0.1])
    published = distill(name="published")
    assert draw_weights(rows, published.shares, published.labels).tolist() == [1] * 6


def test_the_candidate_is_in_the_middle_and_the_outline_goes_with_it(tmp_path: Path) -> None:
    recipe = distill(
        "augmentation.jitter_slices = 0",
        "augmentation.jitter_pixels = 0",
        "augmentation.shift = 0.0",
        "augmentation.kernel_probability = 0.0",
    )
    path = kinds(tmp_path / "a.h5")
    for memory_bytes in (0, 2**30):  # read each time, or kept
        patches = Patches(
            rows_of(path, recipe),
            student_cut(16),
            recipe.labels,
            recipe.augmentation,
            seed=1,
            memory_bytes=memory_bytes,
        )
        for number in range(20):
            sample = patches[(1, number)]
            assert sample["image"].shape == (7, 64, 64)
            assert sample["volume"].shape == (1, 16, 64, 64)
            assert sample["image"][3, 32, 32] > 0.9
            assert torch.equal(sample["volume"][0, 5:12], sample["image"])
            assert torch.nonzero(sample["mask"]).tolist() == [[0, 32, 32]]
    assert not patches[(0, 0)]["outlined"]
    assert patches[(5, 0)]["outlined"]
    assert patches[(5, 0)]["detection"] == -1


def test_a_published_flip_shows_the_slice_before_the_candidate(tmp_path: Path) -> None:
    recipe = distill(name="published")
    rows = rows_of(kinds(tmp_path / "a.h5"), recipe)
    patches = Patches(rows, student_cut(None), recipe.labels, recipe.augmentation, seed=1, memory_bytes=2**30)
    places = {tuple(map(int, np.argwhere(patches[(1, number)]["image"].numpy() == 1)[0])) for number in range(80)}
    assert places == {(z, y, x) for z in (2, 3) for y in (31, 32) for x in (31, 32)}


def test_jitter_moves_image_and_outline_together(tmp_path: Path) -> None:
    recipe = distill("augmentation.shift = 0.0", "augmentation.noise = 0.0", "augmentation.kernel_probability = 0.0")
    patches = Patches(
        rows_of(kinds(tmp_path / "a.h5"), recipe),
        student_cut(None),
        recipe.labels,
        recipe.augmentation,
        seed=1,
        memory_bytes=2**30,
    )
    slices = set()
    for number in range(60):
        sample = patches[(1, number)]
        (place,) = np.argwhere(sample["image"].numpy() == 1)
        slices.add(int(place[0]))
        assert np.abs(place[1:] - 32).max() <= 2
        assert torch.nonzero(sample["mask"]).tolist() == ([[0, *place[1:]]] if place[0] == 3 else [])
    assert slices == {2, 3, 4}
    assert torch.equal(patches[(1, 7)]["image"], patches[(1, 7)]["image"])


def test_patches_that_are_too_small_are_named(store: Path) -> None:
    recipe = distill()
    with pytest.raises(StoreUnfit, match=r"tiny\.h5: its patches are 20 x 72 x 72, but the recipe needs 67 x 69 x 69"):
        Patches(rows_of(store, recipe), student_cut(64), recipe.labels, recipe.augmentation, seed=1, memory_bytes=0)


# Losses


def out_of(count: int, **changed: Tensor) -> dict[str, Tensor]:
    made = {
        "detection": torch.zeros(count, 2),
        "malignancy": torch.zeros(count, 2),
        "concepts": torch.full((count, 8), 0.5),
        "segmentation": torch.zeros(count, 1, 2, 2),
    }
    return made | changed


def batch_of(count: int, **changed: Tensor) -> dict[str, Tensor]:
    made = {
        "detection": torch.full((count,), -1),
        "malignancy": torch.full((count,), -1.0),
        "ratings": torch.full((count, 8), torch.nan),
        "mask": torch.zeros(count, 1, 2, 2),
        "outlined": torch.zeros(count, dtype=torch.bool),
    }
    return made | changed


def hard(name: str = "tuned", teacher: bool = False) -> HardLoss:
    recipe = load_recipe(name).teacher if teacher else load_recipe(name).distill
    return HardLoss(recipe.losses, recipe.labels, FACTS)


def test_nothing_labelled_costs_nothing() -> None:
    for name in ("tuned", "published"):
        parts = hard(name)(out_of(2), batch_of(2))
        assert {task: float(value) for task, value in parts.items()} == dict.fromkeys(parts, 0.0)


def test_classes_are_weighed_as_published() -> None:
    logits = torch.tensor([[0.0, 1.0], [0.0, 2.0]])
    labels = torch.tensor([0, 1])
    none, nodule = math.log(1 + math.exp(1)), math.log(1 + math.exp(-2))
    assert hard("published").detection(logits, labels).item() == pytest.approx((none + 3 * nodule) / 4, rel=1e-5)
    focal = [weighted * (1 - math.exp(-weighted)) ** 2 for weighted in (none, 4 * nodule)]
    assert hard("published", teacher=True).detection(logits, labels).item() == pytest.approx(sum(focal) / 2, rel=1e-5)


def test_a_soft_target_is_a_probability() -> None:
    logits = torch.tensor([[0.0, 1.0], [0.0, 3.0]])
    loss = hard().malignancy(logits, torch.tensor([0.25, -1.0]))
    assert loss.item() == pytest.approx(math.log(1 + math.exp(1)) - 0.25, rel=1e-5)


def test_the_mask_loss_is_dice_plus_cross_entropy_of_what_is_outlined() -> None:
    logits, mask = torch.zeros(2, 1, 2, 2), torch.zeros(2, 1, 2, 2)
    mask[0, 0, 0, 0] = 1
    dice = 1 - (2 * 0.5 + 1) / (4 * 0.5 + 1 + 1)
    outlined = torch.tensor([True, False])
    assert hard().segmentation(logits, mask, outlined).item() == pytest.approx(dice + math.log(2), rel=1e-5)
    focal = hard("published", teacher=True).segmentation(logits, mask, outlined).item()
    assert focal == pytest.approx(dice + 0.25 * math.log(2), rel=1e-5)


def test_concepts_are_on_one_scale_and_ratings_that_are_missing_do_not_count() -> None:
    ratings = torch.full((2, 8), torch.nan)
    ratings[0, 0], ratings[1, 1] = 4.0, 1.0  # 0.75 and 0 on the unit scale
    found = torch.full((2, 8), 0.5)
    # Variances 0.04 and the least one, 0.01.
    assert hard().concepts(found, ratings).item() == pytest.approx((0.25**2 / 0.04 + 0.5**2 / 0.01) / 2, rel=1e-5)
    assert hard("published").concepts(found, ratings).item() == pytest.approx((3.5**2 + 0.5**2) / 2, rel=1e-5)
    teacher = hard("published", teacher=True).concepts(found, ratings).item()
    assert teacher == pytest.approx((0.25**2 + 0.5**2) / 2, rel=1e-5)


def test_a_student_like_its_teacher_has_no_soft_loss() -> None:
    torch.manual_seed(1)
    out = out_of(3, detection=torch.randn(3, 2), malignancy=torch.randn(3, 2), segmentation=torch.randn(3, 1, 2, 2))
    volume = torch.randn(3, 1, 6, 2, 2)
    volume[:, :, 3] = out["segmentation"]
    parts = soft_loss(out, {**out, "segmentation": volume}, 3.0)
    assert {task: round(float(value), 6) for task, value in parts.items()} == dict.fromkeys(parts, 0.0)


def test_the_soft_loss_is_the_divergence_at_a_temperature() -> None:
    other = out_of(1, detection=torch.tensor([[0.0, 3.0]]), segmentation=torch.zeros(1, 1, 2, 2, 2))
    parts = soft_loss(out_of(1), other, 3.0)
    p = 1 / (1 + math.exp(-1))
    divergence = p * math.log(p / 0.5) + (1 - p) * math.log((1 - p) / 0.5)
    assert parts["detection"].item() == pytest.approx(9 * divergence, rel=1e-4)


# Bottleneck


def test_signs_are_those_of_the_ratings(store: Path) -> None:
    recipe = distill()
    facts = concept_facts(rows_of(store, recipe), recipe.labels)
    signs = dict(zip(CONCEPT_NAMES, facts.signs, strict=True))
    assert signs["lobulation"] == signs["spiculation"] == signs["subtlety"] == 1
    assert signs["sphericity"] == -1
    assert signs["internalStructure"] == 0
    assert facts.means[0] == pytest.approx((3.5 - 1) / 4, abs=0.05)
    assert facts.variances[1] == 0


def test_weights_are_held_to_their_signs_and_internal_structure_at_0() -> None:
    torch.manual_seed(3)
    head, bottleneck = nn.Linear(8, 2), distill().bottleneck
    before = head.weight.detach().clone()
    hold_signs(head, bottleneck, FACTS)
    difference = (head.weight[1] - head.weight[0]).detach()
    assert difference[1] == 0
    for column, sign in enumerate(FACTS.signs):
        if column != 1:
            assert sign * difference[column] >= bottleneck.least_weight - 1e-6
    assert torch.allclose(head.weight.sum(0), before.sum(0), atol=1e-6)
    right = (before[1] - before[0]) * torch.tensor(FACTS.signs) > bottleneck.least_weight
    assert torch.equal(head.weight[:, right], before[:, right])
    hold_signs(free := nn.Linear(8, 2), distill(name="published").bottleneck, FACTS)
    taken = free.weight.detach().clone()
    hold_signs(free, distill(name="published").bottleneck, FACTS)
    assert torch.equal(free.weight, taken)


def test_a_fresh_network_begins_at_the_mean_ratings() -> None:
    network, recipe = Student2p5D(), distill("bottleneck.concept_dropout = 0.2")
    prepare(network, recipe.bottleneck, FACTS, fresh=True)
    assert network.concept_head[4].bias.tolist() == [0.5] * 8
    assert (network.detection_head[3].p, network.concept_head[3].p) == (0.1, 0.2)
    with torch.no_grad():
        even = torch.softmax(network.malignancy_head(torch.full((1, 8), 0.5)), 1)
    assert even[0].tolist() == pytest.approx([0.5, 0.5], abs=1e-5)
    difference = (network.malignancy_head.weight[1] - network.malignancy_head.weight[0]).tolist()
    assert difference[0] == pytest.approx(0.8 * 0.5 / 0.2, rel=1e-5)
    assert difference[1] == pytest.approx(0, abs=1e-6)
    trained = network.malignancy_head.weight.detach() + 1
    torch.nn.init.constant_(network.concept_head[4].bias, 0.1)
    with torch.no_grad():
        network.malignancy_head.weight.copy_(trained)
    prepare(network, recipe.bottleneck, FACTS, fresh=False)
    assert network.concept_head[4].bias.tolist() == pytest.approx([0.1] * 8)
    assert torch.allclose(network.malignancy_head.weight, trained, atol=1e-6)


# Figures


def test_figures_by_hand() -> None:
    targets = np.full((4, 8), np.nan)
    targets[:, 0] = [0, 1, 0, 1]
    errors = np.where(np.isfinite(targets), 0.25, np.nan)
    seen = {
        "detected": np.array([0.1, 0.4, 0.4, 0.9]),
        "detection": np.array([0, 0, 1, 1]),
        "malignancy": np.array([0.0, 1.0, 5.0, 5.0]),
        "graded": np.array([0, 1, -1, -1]),
        "errors": errors,
        "targets": targets,
        "dice": np.array([np.nan, np.nan, 0.5, 1.0]),
    }
    figures = stage2_figures(seen, distill().bottleneck)
    assert figures["detection_auc"] == pytest.approx((2 + 0.5 + 1) / 4)
    assert figures["malignancy_auc"] == 1
    assert figures["dice"] == 0.75
    assert figures["r2_subtlety"] == figures["r2"] == pytest.approx(1 - 0.0625 / 0.25)
    assert math.isnan(figures["r2_margin"])
    assert figures["sum"] == pytest.approx(0.875 + 1 + 0.75 + 0.75)


# Trainings


class Plain(nn.Module):
    """Stands in for a teacher: what it draws is what it sees, one class says how bright that is."""

    def __init__(self) -> None:
        super().__init__()
        self.detection_head = nn.Linear(1, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        bright = x.mean((1, 2, 3, 4))
        classes = torch.stack([torch.zeros_like(bright), bright], 1)
        return {
            "detection": classes,
            "malignancy": classes,
            "concepts": bright[:, None].repeat(1, 8),
            "segmentation": x,
        }


def test_mixup_mixes_images_masks_and_classes_but_no_concepts() -> None:
    recipe = load_recipe("published").teacher
    module = TeacherModule(Plain(), PLAN, recipe, FACTS, 1)  # type: ignore[arg-type]
    torch.manual_seed(0)
    image = torch.rand(2, 1, 2, 2, 2)
    batch = batch_of(
        2,
        image=image,
        mask=(image > 0.5).float(),
        outlined=torch.tensor([True, False]),
        detection=torch.tensor([1, 0]),
        ratings=torch.tensor([[3.0] * 8, [math.nan] * 8]),
    )
    parts = module._mixed(batch, torch.tensor([1, 0]), 0.75)
    mixed = 0.75 * image + 0.25 * image.flip(0)
    out = Plain()(mixed)
    task = HardLoss(recipe.losses, recipe.labels, FACTS)
    both = [task.detection(out["detection"], torch.tensor(labels)) for labels in ([1, 0], [0, 1])]
    assert parts["detection"].item() == pytest.approx(float(0.75 * both[0] + 0.25 * both[1]), rel=1e-5)
    mask = 0.75 * batch["mask"] + 0.25 * batch["mask"].flip(0)
    whole = task.segmentation(out["segmentation"], mask, torch.tensor([True, True]))
    assert parts["segmentation"].item() == pytest.approx(float(whole), rel=1e-5)
    assert parts["concepts"].item() == pytest.approx(float((mixed[0].mean() - 0.5) ** 2), rel=1e-4)


def test_a_teacher_is_neither_trained_nor_saved() -> None:
    teacher = Plain()
    module = StudentModule(Student2p5D(), PLAN, distill(), FACTS, 1, teacher)
    assert not any("teacher" in key for key in module.state_dict())
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


def test_a_killed_training_goes_on_as_if_it_was_not(store: Path, tmp_path: Path) -> None:
    command = ["distill", "--no-teacher", "--store", store, "--device", "cpu", *TINY]
    train(*command, "--work", tmp_path / "whole")
    train_and_kill(7, *command, "--work", tmp_path / "parts")  # in the second epoch, between two checkpoints
    train(*command, "--work", tmp_path / "parts")
    whole, parts = tmp_path / "whole" / "distill", tmp_path / "parts" / "distill"
    assert same_weights(whole / "last.ckpt", parts / "last.ckpt")
    assert same_weights(whole / "best.ckpt", parts / "best.ckpt")
    stored = torch.load(parts / "last.ckpt", weights_only=True)
    assert (stored["global_step"], stored["concept_scale"]) == (10, "unit")
    head = stored["state_dict"]["average.module.malignancy_head.weight"]
    assert head[1, 1] - head[0, 1] == pytest.approx(0, abs=1e-6)
    sentence = refused("distill", "--store", store, "--work", tmp_path / "none", "--device", "cpu")
    assert "teacher" in sentence
    assert "does not exist" in sentence
