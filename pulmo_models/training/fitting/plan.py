"""What a training does at which step: fixed by recipe, seed and number of samples before it begins.

So step n is the same whether the training was interrupted before it or not: which samples it sees, how they are
augmented, at what rate it learns. An epoch ends with a validation; a chunk is the part of an epoch between two
checkpoints.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pulmo_models.training.fitting.recipe import Optimiser

SampleKey = tuple[int, int]
"""Index of the sample in its data set, and the number of its turn, which seeds its augmentation."""


@dataclass(frozen=True, kw_only=True)
class Course:
    """A part of a training with one batch size."""

    batch: int
    epochs: int
    samples_per_epoch: int


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """A run of steps without a break."""

    course: int
    epoch: int
    first_step: int
    first_sample: int
    steps: int
    epoch_sample: int  # number of the first sample of the epoch
    epoch_samples: int
    validates: bool


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All chunks of a training in order."""

    chunks: Sequence[Chunk]
    batches: Sequence[int]  # batch size of each course

    @property
    def steps(self) -> int:
        """Steps of the whole training."""
        return sum(chunk.steps for chunk in self.chunks)

    @property
    def epochs(self) -> int:
        """Epochs of the whole training."""
        return self.chunks[-1].epoch + 1

    def chunk_at(self, step: int) -> Chunk:
        """The chunk that a step lies in; the last one for the step after the end."""
        return next((chunk for chunk in self.chunks if step < chunk.first_step + chunk.steps), self.chunks[-1])


def make_plan(
    courses: Sequence[Course], *, checkpoint_steps: int, factor: float = 1.0, max_steps: int | None = None
) -> Plan:
    """Divide the courses into epochs and chunks.

    Args:
        courses: in order.
        checkpoint_steps: steps of a chunk at most.
        factor: all courses get that share of their steps, at least one.
        max_steps: steps of the whole; all courses get the same share of theirs. It overrides `factor`.
    """
    whole = [course.epochs * _steps(course) for course in courses]
    if max_steps is not None:
        ends = [round(max_steps * sum(whole[: number + 1]) / sum(whole)) for number in range(len(whole))]
        totals = [end - start for start, end in zip([0, *ends[:-1]], ends, strict=True)]
    else:
        totals = [max(1, round(steps * factor)) for steps in whole]
    chunks: list[Chunk] = []
    epoch = step = sample = 0
    for number, (course, total) in enumerate(zip(courses, totals, strict=True)):
        for start in range(0, total, _steps(course)):
            steps = min(_steps(course), total - start)
            for offset in range(0, steps, checkpoint_steps):
                length = min(checkpoint_steps, steps - offset)
                chunks.append(
                    Chunk(
                        course=number,
                        epoch=epoch,
                        first_step=step + offset,
                        first_sample=sample + offset * course.batch,
                        steps=length,
                        epoch_sample=sample,
                        epoch_samples=steps * course.batch,
                        validates=offset + length == steps,
                    )
                )
            epoch, step, sample = epoch + 1, step + steps, sample + steps * course.batch
    return Plan(chunks=chunks, batches=[course.batch for course in courses])


def _steps(course: Course) -> int:
    """Steps of an epoch; the last samples that fill no batch are left out."""
    return max(1, course.samples_per_epoch // course.batch)


def batches(plan: Plan, chunk: Chunk, weights: npt.NDArray[np.float64], seed: int) -> list[list[SampleKey]]:
    """The samples of a chunk's steps.

    `weights` are how often each sample is drawn. Where they are all alike each sample comes once before any comes
    again.
    """
    random = np.random.default_rng([seed, chunk.epoch])
    count = len(weights)
    if np.ptp(weights) == 0:
        rounds = math.ceil(chunk.epoch_samples / count)
        order = np.concatenate([random.permutation(count) for _ in range(rounds)])
    else:
        order = random.choice(count, size=chunk.epoch_samples, p=weights / weights.sum())
    begin, batch = chunk.first_sample - chunk.epoch_sample, plan.batches[chunk.course]
    keys = [(int(order[begin + n]), chunk.first_sample + n) for n in range(chunk.steps * batch)]
    return [keys[n : n + batch] for n in range(0, len(keys), batch)]


def rate_factor(plan: Plan, optimiser: Optimiser, step: int) -> float:
    """The learning rate at a step as a share of the recipe's: linear warm-up, then cosine."""
    warm = round(optimiser.warm_up * plan.steps)
    if step < warm:
        return (step + 1) / warm
    if optimiser.schedule == "epoch":
        progress = plan.chunk_at(step).epoch / plan.epochs
    else:
        progress = (step - warm) / max(1, plan.steps - warm)
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    return optimiser.last_rate + (1 - optimiser.last_rate) * cosine
