"""The student as the node runs it, and the teacher, on the patches of a store: one kind of outputs for both."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from pulmo_models.ct.candidates import Candidate, normalise
from pulmo_models.ct.characterise import CharacteriseSettings, MalignancyHead, characterise
from pulmo_models.ct.device import Runner
from pulmo_models.ct.looks import Looks, wide_input
from pulmo_models.ct.views import VIEWS, ask
from pulmo_models.training.fitting.rows import StoreUnfit
from pulmo_models.training.metrics.resampling import Floats
from pulmo_models.training.store import Patch

ROWS_COLUMNS = 64
_HALF = ROWS_COLUMNS // 2
_TEACHER_STEP, _TEACHER_MOST = 16, 64  # slices: the teacher pools four times, and was published with 64

Box = tuple[slice, slice, slice]
_Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True, eq=False)
class Output:
    """What a network says of one patch."""

    detection_probability: float
    malignancy_probability: float
    concepts: Floats  # (8,), LIDC scale
    outline: _Bools  # (64, 64) of the central slice
    volume: _Bools | None  # on the grid of the patch; None for patches that are no nodule


Characteriser = Callable[[Sequence[Patch]], list[Output]]


def middle(patch: Patch) -> tuple[int, int, int]:
    """Index of the candidate in its patch."""
    depth, height, width = patch.hu.shape
    return depth // 2, height // 2, width // 2


def central_box(patch: Patch) -> tuple[int, slice, slice]:
    """What of a patch the outline is of."""
    z, y, x = middle(patch)
    return z, slice(y - _HALF, y + _HALF), slice(x - _HALF, x + _HALF)


def teacher_box(patch: Patch) -> Box:
    """What of a patch the teacher sees: as many multiples of 16 slices as there are, 64 at most.

    Raises:
        StoreUnfit: the patch has fewer than 16 slices.
    """
    depth = min(patch.hu.shape[0] // _TEACHER_STEP * _TEACHER_STEP, _TEACHER_MOST)
    if depth == 0:
        raise StoreUnfit(f"{patch.source}: a patch of {patch.hu.shape[0]} slices; the teacher needs {_TEACHER_STEP}")
    z, rows, columns = central_box(patch)
    return slice(z - depth // 2, z - depth // 2 + depth), rows, columns


def student(runner: Runner, head: MalignancyHead) -> Characteriser:
    """Seven slices around the candidate from all sides; the volume is the mask that the node builds slice by slice."""

    def run(patches: Sequence[Patch]) -> list[Output]:
        inputs = np.stack([wide_input(patch.hu.astype(np.float32), middle(patch)) for patch in patches])
        out = ask(runner, torch.from_numpy(inputs), VIEWS)
        outlines = (out["segmentation"][:, 0] >= 0).numpy()
        volumes = [_walked(patch, runner, head) if patch.detection == 1 else None for patch in patches]
        return _outputs(out, head, list(outlines), volumes)

    return run


def teacher(runner: Runner, head: MalignancyHead) -> Characteriser:
    """The middle of the patch as a volume; the mask is predicted as one."""

    def run(patches: Sequence[Patch]) -> list[Output]:
        inputs = np.stack([normalise(patch.hu[teacher_box(patch)].astype(np.float32))[None] for patch in patches])
        out = runner(torch.from_numpy(inputs))
        masks = (out["segmentation"][:, 0] >= 0).numpy()
        volumes: list[_Bools | None] = []
        for patch, mask in zip(patches, masks, strict=True):
            whole = np.zeros(patch.hu.shape, bool)
            whole[teacher_box(patch)] = mask
            volumes.append(whole)
        return _outputs(out, head, list(masks[:, masks.shape[1] // 2]), volumes)

    return run


def _outputs(
    out: dict[str, torch.Tensor], head: MalignancyHead, outlines: list[_Bools], volumes: list[_Bools | None]
) -> list[Output]:
    detection, malignancy = (torch.softmax(out[name], dim=1)[:, 1].tolist() for name in ("detection", "malignancy"))
    concepts = [np.array([each.value for each in head.concepts(row)]) for row in out["concepts"].tolist()]
    return [
        Output(
            detection_probability=detection[row],
            malignancy_probability=malignancy[row],
            concepts=concepts[row],
            outline=outlines[row],
            volume=volumes[row],
        )
        for row in range(len(outlines))
    ]


def _walked(patch: Patch, runner: Runner, head: MalignancyHead) -> _Bools:
    spacing = (float(patch.spacing_mm[0]), float(patch.spacing_mm[1]), float(patch.spacing_mm[2]))
    candidate = Candidate(index=middle(patch), score=1.0)
    whatever_its_probability = CharacteriseSettings(detection_threshold=0.0)
    hu = patch.hu.astype(np.float32)
    (found,) = characterise(Looks(hu, runner, whatever_its_probability), spacing, [candidate], head)
    return found.mask.to_volume(patch.hu.shape)
