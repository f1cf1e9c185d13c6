"""The three trainings: from recipe and stores to a folder with checkpoints."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import seed_everything
from torch import Tensor, nn

import pulmo_models
from pulmo_models.checkpoints import load_published_checkpoint, load_stage1, load_stage2
from pulmo_models.errors import WeightsCorrupt
from pulmo_models.nets.student2p5d import Student2p5D
from pulmo_models.nets.teacher3d import HybridMultiTaskCBM
from pulmo_models.training.fitting import stage1_module, stage2_module
from pulmo_models.training.fitting.fit import PlannedData, Watch, fit, workers_for
from pulmo_models.training.fitting.modules import PlannedModule
from pulmo_models.training.fitting.plan import Course, Plan, make_plan
from pulmo_models.training.fitting.recipe import DistillRecipe, Stage1Recipe, TeacherRecipe
from pulmo_models.training.fitting.rows import StoreUnfit
from pulmo_models.training.fitting.runs import BEST, Training, begin_run, finish_run, only_one, trained_state
from pulmo_models.training.fitting.stage1_data import Crops, read_window_rows, window_weights
from pulmo_models.training.fitting.stage1_module import Stage1Module, new_detector
from pulmo_models.training.fitting.stage2_data import (
    Cut,
    Patches,
    Rows,
    draw_weights,
    patch_slices,
    read_rows,
    student_cut,
)
from pulmo_models.training.fitting.stage2_loss import ConceptFacts, concept_facts
from pulmo_models.training.fitting.stage2_module import StudentModule, TeacherModule, prepare
from pulmo_models.training.splits import SPLITS
from pulmo_models.training.store import STAGES, PatchStore
from pulmo_models.weights import load_set, sha256_of

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Job:
    """What the command line says of a training, beside the recipe."""

    stores: Sequence[Path]
    work: Path
    seed: int
    device: torch.device
    shorten: float = 1.0
    max_steps: int | None = None
    start: str | None = None  # a set of weights or a checkpoint to go on from
    teacher: Path | None = None  # checkpoint, of a student that has one
    memory_gib: float = 8.0  # for the patches of stage 2; what does not fit is read again and again


def train_stage1(recipe: Stage1Recipe, job: Job) -> Path:
    """Train the detector; the path of the best checkpoint.

    Raises:
        StoreUnfit, StoreInvalid, RunMismatch, WeightsMissing, WeightsCorrupt: each says what is wrong.
    """
    stores = [PatchStore(path) for path in job.stores]
    rows = read_window_rows(stores, "train")
    courses = [
        Course(batch=phase.batch, epochs=phase.epochs, samples_per_epoch=phase.samples_per_epoch or len(rows))
        for phase in recipe.phases
    ]
    plan = _plan(courses, recipe.checkpoint_steps, job)
    crops = [Crops(rows, phase.window, recipe, seed=job.seed, augmented=True) for phase in recipe.phases]
    seen = read_window_rows([PatchStore(path) for path in job.stores], "validation", recipe.validation_samples)
    largest = max((phase.window for phase in recipe.phases), key=lambda window: window[0] * window[1] * window[2])
    data = PlannedData(
        plan,
        crops,
        window_weights(rows, recipe.nodule_windows),
        Crops(seen, largest, recipe, seed=job.seed, augmented=False),
        validation_batch=1,
        seed=job.seed,
        workers=workers_for(job.device),
    )

    def module() -> PlannedModule:
        network = new_detector(recipe)
        if job.start is not None:
            network.load_state_dict(start_state(job.start, network))
        return Stage1Module(network, plan, recipe, job.seed)

    watch = Watch(criterion=stage1_module.CRITERION, mode="min", patience=recipe.patience)
    return _run("stage1", job, recipe, plan, data, module, watch)


def train_teacher(recipe: TeacherRecipe, job: Job) -> Path:
    """Train the teacher; the path of the best checkpoint. Errors as `train_stage1`."""
    rows, seen = _stage2_rows(recipe, job)
    slices, *plane = recipe.shape
    # A flip and the jitter need more than the network takes; a teacher takes a multiple of 16 slices.
    most = (min(patch_slices(rows), patch_slices(seen)) - 1 - 2 * recipe.augmentation.jitter_slices) // 16 * 16
    cut = Cut(shape=(min(slices, max(16, most)), plane[0], plane[1]), student=False, volume=False)
    if cut.shape[0] < slices:
        depth = cut.shape[0]
        log.warning("the patches of the stores give the teacher %d slices, not the %d of the recipe", depth, slices)
    plan, data, facts = _stage2(recipe, job, rows, seen, cut)

    def module() -> PlannedModule:
        network = HybridMultiTaskCBM()
        if job.start is not None:
            network.load_state_dict(start_state(job.start, network))
        prepare(network, recipe.bottleneck, facts, fresh=job.start is None)
        return TeacherModule(network, plan, recipe, facts, job.seed)

    return _run("teacher", job, recipe, plan, data, module, _stage2_watch(recipe))


def train_student(recipe: DistillRecipe, job: Job, teacher: Path | None = None) -> Path:
    """Train the student, against a teacher's checkpoint where the recipe gives it a share; the best checkpoint.

    Errors as `train_stage1`.
    """
    rows, seen = _stage2_rows(recipe, job)
    tutor, slices = None, None
    if recipe.teacher_share > 0:
        tutor = HybridMultiTaskCBM()
        job = replace(job, teacher=teacher or job.work / "teacher" / BEST)
        tutor.load_state_dict(start_state(str(job.teacher), tutor))
        most = (patch_slices(rows) - 1 - 2 * recipe.augmentation.jitter_slices) // 16 * 16
        slices = min(recipe.teacher_slices, max(16, most))
    plan, data, facts = _stage2(recipe, job, rows, seen, student_cut(slices))

    def module() -> PlannedModule:
        network = Student2p5D()
        if job.start is not None:
            network.load_state_dict(start_state(job.start, network))
        prepare(network, recipe.bottleneck, facts, fresh=job.start is None)
        return StudentModule(network, plan, recipe, facts, job.seed, tutor)

    return _run("distill", job, recipe, plan, data, module, _stage2_watch(recipe))


def start_state(start: str, network: nn.Module) -> dict[str, Tensor]:
    """Weights to begin with: of a set (name or manifest), a checkpoint of pulmo-train, or a published ``.pth``.

    Raises:
        WeightsMissing, WeightsCorrupt: there is no such thing, or it is of another network.
    """
    if start.endswith(".ckpt"):
        state = trained_state(Path(start))
    elif start.endswith(".pth"):
        state = load_published_checkpoint(Path(start), network)
    else:
        found = load_set(start)
        state = (load_stage2(found) if isinstance(network, Student2p5D) else load_stage1(found)).state_dict()
    expected = {key: value.shape for key, value in network.state_dict().items()}
    if {key: value.shape for key, value in state.items()} != expected:
        raise WeightsCorrupt(f"{start} holds the weights of another network than {type(network).__name__}")
    return state


def _stage2_rows(recipe: TeacherRecipe | DistillRecipe, job: Job) -> tuple[Rows, Rows]:
    """Of training and validation. Each opens the stores anew: loader processes may not share an open file."""
    rows = read_rows([PatchStore(path) for path in job.stores], "train", recipe.labels)
    seen = read_rows([PatchStore(path) for path in job.stores], "validation", recipe.labels, recipe.validation_samples)
    graded = seen.graded(recipe.labels)
    if recipe.criterion == "malignancy_auc" and not ((graded == 0).any() and (graded == 1).any()):
        raise StoreUnfit(
            "the criterion malignancy_auc needs benign and malignant nodules in the validation split of the stores"
        )
    return rows, seen


def _stage2(
    recipe: TeacherRecipe | DistillRecipe, job: Job, rows: Rows, seen: Rows, cut: Cut
) -> tuple[Plan, PlannedData, ConceptFacts]:
    course = Course(batch=recipe.batch, epochs=recipe.epochs, samples_per_epoch=recipe.samples_per_epoch or len(rows))
    plan = _plan([course], recipe.checkpoint_steps, job)
    memory_bytes = int(job.memory_gib * 2**30)
    train = Patches(rows, cut, recipe.labels, recipe.augmentation, seed=job.seed, memory_bytes=memory_bytes)
    # No teacher looks on in validation.
    alone = student_cut(None) if cut.student else cut
    data = PlannedData(
        plan,
        [train],
        draw_weights(rows, recipe.shares, recipe.labels),
        Patches(seen, alone, recipe.labels, None, seed=job.seed, memory_bytes=memory_bytes // 4),
        validation_batch=recipe.batch,
        seed=job.seed,
        workers=workers_for(job.device),
    )
    return plan, data, concept_facts(rows, recipe.labels)


def _stage2_watch(recipe: TeacherRecipe | DistillRecipe) -> Watch:
    return Watch(criterion=stage2_module.CRITERION, mode="max", patience=recipe.patience)


def _plan(courses: Sequence[Course], checkpoint_steps: int, job: Job) -> Plan:
    return make_plan(courses, checkpoint_steps=checkpoint_steps, factor=job.shorten, max_steps=job.max_steps)


def _run(
    training: Training,
    job: Job,
    recipe: Any,
    plan: Plan,
    data: PlannedData,
    module: Callable[[], PlannedModule],
    watch: Watch,
) -> Path:
    folder = job.work / training
    about = {
        "training": training,
        "recipe": recipe.model_dump(mode="json"),
        "seed": job.seed,
        "steps": plan.steps,
        "start": job.start,
        "stores": [_described(path) for path in job.stores],
    }
    if job.teacher is not None:
        about["teacher"] = f"sha256:{sha256_of(job.teacher)}"
    notes = {"pulmo": pulmo_models.__version__, "torch": str(torch.__version__), "device": str(job.device)}
    best = folder / BEST
    with only_one(folder):
        if begin_run(folder, about, notes):
            log.info("%s is trained already", folder)
            return best
        log.info("%s: %d steps in %d epochs", training, plan.steps, plan.epochs)
        seed_everything(job.seed, workers=False, verbose=False)
        fit(module(), data, plan, folder, job.device, watch)
        finish_run(folder)
    return best


def _described(path: Path) -> dict[str, Any]:
    """A store by its name, content and origin: it may lie elsewhere when the training goes on."""
    store = PatchStore(path)
    counts = {stage: {split: len(store.rows(stage, split)) for split in SPLITS} for stage in STAGES}
    return {"file": path.name, "bytes": path.stat().st_size, "rows": counts, "provenance": store.provenance}
