"""Do insertions give themselves away? A small classifier is asked, and the error of the Hounsfield levels is measured.

- Inserted or original: the middle slice of a free nodule of 4 to 10 mm as it is, against one that was placed beside
  another patient's nodule in that patient's own slice. Both are LIDC slices with a nodule in plain lung, so nothing
  but the insertion, or the choice of the place, tells them apart; patients of the test are others than those of the
  training. The same is asked of the surroundings alone.
- Retouched or untouched: places without a nodule, processed as an insertion does or not, of a series that the
  classifier did not see.
- Levels: squares of whole series, stretched to 8 bits as the cut-outs were, mapped back from their middle slice.

An AUC of 0.5 is what is hoped for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage
from torch import Tensor, nn

from pulmo_models.training.lidc.database import patient_number
from pulmo_models.training.material import insertion, levels
from pulmo_models.training.material.hosts import TEST_HOSTS, TRAINING_HOSTS, VALIDATION_HOSTS, Host, load_hosts
from pulmo_models.training.material.nodules import RealNodule, load_nodules, noise_of
from pulmo_models.training.material.pieces import cut
from pulmo_models.training.material.samples import retouch, structure
from pulmo_models.training.metrics.classification import auc
from pulmo_models.training.splits import split_of

Images = npt.NDArray[np.float32]

_CROP = 28  # pixels
_BLANK = 11  # pixels: a nodule of 10 mm and its edge
_SIZES_MM = (4.0, 10.0)
_OFF_MM = (13.0, 17.0)  # from the host's own nodule: apart from it, and inside of its cut-out
_CHANNELS = (16, 32, 32)
_EPOCHS, _BATCH, _RATE = 25, 32, 2e-3
_MOST_DENSE = 0.15  # share around a place: vessels may touch it, as they touch the originals
_SQUARE, _CUT = 128, 72


@dataclass(frozen=True, kw_only=True, eq=False)
class Question:
    """Images (n, rows, columns) in HU, what each is, and whether it is kept for the test."""

    images: Images
    changed: npt.NDArray[np.bool_]
    held_out: npt.NDArray[np.bool_]


def realism(data: Path, work: Path, seed: int, progress: Callable[[str], None] = lambda text: None) -> dict[str, Any]:
    """All figures, with the protocol in their names.

    Raises:
        FileNotFoundError: the data folder lacks something.
        LidcDatabaseInvalid: the readers' database is not there.
    """
    progress("nodules and series")
    nodules = load_nodules(data / "lidc_patches", lambda patient: split_of(patient) != "unused")
    hosts = load_hosts(data, (*TRAINING_HOSTS, *VALIDATION_HOSTS, *TEST_HOSTS), work)
    figures: dict[str, Any] = {}
    for name, matched in (("as it is", True), ("without matching noise and sharpness", False)):
        progress(f"inserted or original, {name}")
        question = inserted_or_original(nodules, seed, matched=matched)
        figures[f"AUC, inserted or original, {name}"] = ask(question, seed)
        if matched:
            figures["AUC, inserted or original, from the surroundings alone"] = ask(blanked(question), seed)
    progress("retouched or untouched")
    figures["AUC, retouched or untouched"] = ask(retouched_or_untouched(hosts, nodules, 300, seed), seed)
    progress("levels")
    thin = [host for host in hosts if host.spacing_mm[0] <= 3.0]
    figures["levels, error in HU"] = level_errors(thin, 60, seed)
    figures["levels, nodules in use"] = len(nodules)
    figures["levels, estimated error of their worst slices, HU"] = float(np.mean([n.error_hu for n in nodules]))
    return figures


def inserted_or_original(nodules: Sequence[RealNodule], seed: int, *, matched: bool) -> Question:
    """Crops around free small nodules, original and inserted in turn."""
    low, high = _SIZES_MM
    free = [
        _middle_slice(nodule)
        for nodule in nodules
        if low <= nodule.diameter_mm <= high and not nodule.drawn and insertion.attachment(nodule) is None
    ]
    random = np.random.default_rng([seed, 21])
    images, changed, held_out = [], [], []
    for number, host in enumerate(free):
        test = split_of(patient_number(host.patient)) != "train"
        if number % 2 == 0:
            crop = _crop(host.hu[0].astype(np.float32), np.argwhere(host.mask[0]).mean(axis=0))
        else:
            givers = [n for n in free if n.patient != host.patient and _is_test(n) == test]
            crop = _beside(random, host, givers[int(random.integers(len(givers)))], matched=matched)
        if crop is not None:
            images.append(crop)
            changed.append(number % 2 == 1)
            held_out.append(test)
    return Question(images=np.stack(images), changed=np.array(changed), held_out=np.array(held_out))


def _is_test(nodule: RealNodule) -> bool:
    return split_of(patient_number(nodule.patient)) != "train"


def _middle_slice(nodule: RealNodule) -> RealNodule:
    at = int(nodule.mask.sum(axis=(1, 2)).argmax())
    part = slice(at, at + 1)
    return replace(nodule, hu=nodule.hu[part], mask=nodule.mask[part], reach=nodule.reach[part])


def _beside(random: np.random.Generator, host: RealNodule, giver: RealNodule, *, matched: bool) -> Images | None:
    """A crop around a nodule placed into the lung of another's slice, vessels or not; None without room."""
    hu = host.hu.astype(np.float32)
    lung = ndimage.binary_closing(ndimage.uniform_filter(hu[0], 3) < -500, iterations=4)
    width = max(3, round((giver.diameter_mm + 8.0) / host.spacing_mm[1]))
    dense = ndimage.uniform_filter(((hu[0] > -250) | host.mask[0]).astype(np.float32), width)
    own = np.argwhere(host.mask[0]).mean(axis=0)
    away = np.linalg.norm(np.indices(lung.shape) - own[:, None, None], axis=0) * host.spacing_mm[1]
    fits = lung & (dense < _MOST_DENSE) & (away > _OFF_MM[0]) & (away < _OFF_MM[1])
    places = np.argwhere(fits)
    if not len(places):
        return None
    place = places[int(random.integers(len(places)))]
    spacing = (giver.spacing_mm[0], host.spacing_mm[1], host.spacing_mm[2])
    pose = replace(insertion.draw_pose(random, giver, (1.0, 1.0)), phase=(0.0, 0.0, 0.0))
    noise = noise_of(hu[0], host.reach[0])[1] if matched else float("nan")
    insert = insertion.real_insert(random, giver, spacing, pose, noise)
    if insert is None or insertion.place(hu, None, insert, (0, *place)) is None:
        return None
    return _crop(hu[0], place)


def _crop(hu: npt.NDArray[np.float32], centre: npt.NDArray[np.floating | np.integer]) -> Images | None:
    top, left = (round(float(value)) - _CROP // 2 for value in centre)
    if min(top, left) < 0 or top + _CROP > hu.shape[0] or left + _CROP > hu.shape[1]:
        return None
    return hu[top : top + _CROP, left : left + _CROP]


def blanked(question: Question) -> Question:
    """The same without the nodules: what the places alone give away, which is no fault of the insertion."""
    rows, columns = np.mgrid[:_CROP, :_CROP] - _CROP // 2
    inside = rows**2 + columns**2 < _BLANK**2
    return replace(question, images=np.where(inside, np.float32(-850), question.images))


def retouched_or_untouched(hosts: Sequence[Host], nodules: Sequence[RealNodule], count: int, seed: int) -> Question:
    """Places without a nodule of each series, retouched in turn; the last series is kept for the test."""
    images, changed, held_out = [], [], []
    for number, host in enumerate(hosts):
        random = np.random.default_rng([seed, 22, number])
        for turn in range(count):
            place, _ = structure(random, host)
            piece = cut(host, (5, _CROP, _CROP), host.spacing_mm, place)
            if turn % 2:
                retouch(random, piece, nodules[int(random.integers(len(nodules)))])
            images.append(piece.hu[2])
            changed.append(turn % 2 == 1)
            held_out.append(number == len(hosts) - 1)
    return Question(images=np.stack(images), changed=np.array(changed), held_out=np.array(held_out))


def ask(question: Question, seed: int, epochs: int = _EPOCHS) -> float:
    """AUC, on what is held out, of a small network trained on the rest."""
    torch.manual_seed(seed)
    network = _network()
    images = torch.from_numpy(np.clip((question.images[:, None] + 600) / 400, -2, 4))
    truth = torch.from_numpy(question.changed.astype(np.float32))
    train = torch.from_numpy(np.flatnonzero(~question.held_out))
    optimiser = torch.optim.AdamW(network.parameters(), lr=_RATE, weight_decay=1e-2)
    steps = epochs * (len(train) // _BATCH + 1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, _RATE, total_steps=steps)
    network.train()
    for _ in range(steps):
        rows = train[torch.randint(len(train), (_BATCH,))]
        loss = nn.functional.binary_cross_entropy_with_logits(network(_turned(images[rows])).squeeze(1), truth[rows])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    network.eval()
    with torch.no_grad():
        scores = network(images[torch.from_numpy(question.held_out)]).squeeze(1).numpy()
    return float(auc(scores, question.changed[question.held_out]))


def _network() -> nn.Module:
    layers: list[nn.Module] = []
    before = 1
    for channels in _CHANNELS:
        layers += [nn.Conv2d(before, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.ReLU()]
        layers += [nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.ReLU(), nn.MaxPool2d(2)]
        before = channels
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.3), nn.Linear(before, 1))


def _turned(images: Tensor) -> Tensor:
    images = torch.rot90(images, int(torch.randint(4, ())), (2, 3))
    return images.flip(3) if torch.rand(()) < 0.5 else images


def level_errors(hosts: Sequence[Host], count: int, seed: int) -> Mapping[str, Mapping[str, float]]:
    """Absolute errors of mapped slices, by their distance from the known one: of all pixels, and of the dense ones
    within 8 pixels of the middle.

    Squares of 128 x 128 pixels around dense places of the lungs, seven slices 2 to 3 mm apart, each stretched from its
    least to its largest value to 8 bits, the middle 72 x 72 kept: as the cut-outs were made. Only the middle slice's
    line is given. Mean, median and the 90th percentile are over slices.
    """
    rows, columns = np.mgrid[:_CUT, :_CUT] - _CUT // 2
    near = rows**2 + columns**2 < 64
    errors: dict[int, list[tuple[float, float]]] = {1: [], 2: [], 3: []}
    for number, host in enumerate(hosts):
        random = np.random.default_rng([seed, 23, number])
        apart = max(1, round(2.0 / host.spacing_mm[0]))
        for place in _dense_places(random, host, count, 3 * apart):
            stack, truth, known = _stretched(host, place, apart)
            for index, line in enumerate(levels.stack_lines(stack, {3: known})):
                if index != 3:
                    error = np.abs(line.hu(stack[index]) - truth[index])
                    dense = near & (truth[index] > -500)
                    errors[abs(index - 3)].append((error.mean(), error[dense].mean() if dense.any() else np.nan))
    table = {}
    for steps, pairs in errors.items():
        for column, name in enumerate(("all pixels", "dense pixels in the middle")):
            values = np.array(pairs)[:, column]
            values = values[np.isfinite(values)]
            table[f"{steps} from the known slice, {name}"] = {
                "mean": float(values.mean()),
                "median": float(np.median(values)),
                "90 %": float(np.quantile(values, 0.9)),
                "slices": len(values),
            }
    return table


def _dense_places(random: np.random.Generator, host: Host, count: int, reach: int) -> npt.NDArray[np.int16]:
    half = _SQUARE // 2
    low, high = np.array([reach, half, half]), np.array(host.hu.shape) - [reach, half, half]
    dense = host.places[host.hu[tuple(host.places.T)] > -300]
    dense = dense[((dense >= low) & (dense < high)).all(axis=1)]
    return dense[random.permutation(len(dense))[:count]]


def _stretched(
    host: Host, place: npt.NDArray[np.int16], apart: int
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float64], levels.Line]:
    z, y, x = (int(value) for value in place)
    stack, truth, lines = [], [], []
    for k in range(z - 3 * apart, z + 3 * apart + 1, apart):
        square = host.hu[k, y - _SQUARE // 2 : y + _SQUARE // 2, x - _SQUARE // 2 : x + _SQUARE // 2].astype(np.float64)
        slope = float(np.ptp(square)) / 255
        inner = square[(_SQUARE - _CUT) // 2 : (_SQUARE + _CUT) // 2, (_SQUARE - _CUT) // 2 : (_SQUARE + _CUT) // 2]
        stack.append(np.rint((inner - square.min()) / slope).astype(np.uint8))
        truth.append(inner)
        lines.append(levels.Line(slope=slope, offset=float(square.min()), error_hu=slope / 4))
    return np.stack(stack), np.stack(truth), lines[3]
