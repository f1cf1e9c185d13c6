"""Stage 2's looks at places: what is sieved out, what is asked again, and never twice."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from pulmo_models.ct import looks as looks_module
from pulmo_models.ct.looks import CharacteriseSettings, Looks
from pulmo_models.ct.masks import Index, walk
from pulmo_models.ct.views import ONE_VIEW, VIEWS
from pulmo_models.types import BoolArray, Caution

SETTINGS = CharacteriseSettings(detection_threshold=0.8, views=ONE_VIEW)
THRESHOLD = math.log(0.8 / 0.2)
PLACES: list[Index] = [(3, 40, 40), (8, 50, 50), (12, 60, 60), (16, 70, 70)]


class Oracle:
    """An engine that says of a place what is written at it, plus a difference of its own."""

    name, precision, device = "oracle", "fp32", torch.device("cpu")

    def __init__(self, difference: float = 0.0) -> None:
        self.difference = difference
        self.cautions: list[Caution] = []
        self.asked: list[float] = []

    def run(self, batch: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError

    def __call__(self, batch: torch.Tensor) -> dict[str, torch.Tensor]:
        logits = (batch[:, 3, 32, 32] - 0.5) * 20.0
        self.asked += [round(value, 2) for value in logits.tolist()]
        return {
            "detection": torch.stack((torch.zeros_like(logits), logits + self.difference), dim=1),
            "concepts": torch.zeros(len(batch), 8),
            "malignancy": torch.zeros(len(batch), 2),
            "segmentation": torch.ones(len(batch), 1, 64, 64),
        }


def volume(*logits: float) -> np.ndarray:
    """A volume with a logit written at each of the places."""
    hu = np.full((20, 100, 100), -1000.0, dtype=np.float32)
    for place, logit in zip(PLACES, logits, strict=True):
        hu[place] = logit / 20.0 * 2000.0
    return hu


def test_what_is_surely_none_is_not_asked_again_and_the_rest_is() -> None:
    hu = volume(-3.0, THRESHOLD - 0.2, THRESHOLD - 0.1, 3.0)
    sieve, exact = Oracle(), Oracle()
    looks = Looks(hu, exact, SETTINGS, sieve)
    assert looks.reported(PLACES) == [False, False, False, True]
    assert sieve.asked == [-3.0, 1.19, 1.29, 3.0]
    assert exact.asked == [1.29]
    answers = looks.at(PLACES[::-1])
    assert [answer is None for answer in answers] == [False, False, True, True]
    assert exact.asked == [1.29, 3.0]
    assert looks.reported(PLACES[::-1]) == [True, False, False, False]
    assert (len(sieve.asked), len(exact.asked)) == (4, 2), "no place is looked at twice"


@pytest.mark.parametrize("difference", [-0.03, 0.03])
def test_the_sieve_decides_on_no_finding(difference: float) -> None:
    """Just below and just above the threshold: the exact answer counts, and it is the one that is given."""
    hu = volume(THRESHOLD - 0.02, THRESHOLD + 0.02, -4.0, 4.0)
    looks = Looks(hu, Oracle(), SETTINGS, Oracle(difference))
    assert looks.reported(PLACES) == [False, True, False, True]
    (answer,) = looks.at(PLACES[1:2])
    assert answer is not None
    assert answer.detection_probability == pytest.approx(1 / (1 + math.exp(-THRESHOLD - 0.02)), abs=1e-5)


@pytest.mark.parametrize("threshold", [0.0, 1.0])
def test_without_a_threshold_there_is_nothing_to_sieve(threshold: float) -> None:
    sieve, exact = Oracle(), Oracle()
    settings = CharacteriseSettings(detection_threshold=threshold, views=ONE_VIEW)
    Looks(volume(-9.0, -3.0, 1.0, 3.0), exact, settings, sieve).at(PLACES)
    assert (sieve.asked, exact.asked) == ([], [-9.0, -3.0, 1.0, 3.0])


def test_all_views_of_some_places_are_one_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(looks_module, "BATCH", 16)
    sizes: list[int] = []

    class Counting(Oracle):
        def __call__(self, batch: torch.Tensor) -> dict[str, torch.Tensor]:
            sizes.append(len(batch))
            return super().__call__(batch)

    hu = volume(1.0, -3.0, 2.0, 3.0)
    looks = Looks(hu, Counting(), CharacteriseSettings(views=VIEWS))
    answers = looks.at([*PLACES, (5, 20, 20)])
    assert sizes == [16, 16, 8]
    said = [float(answer.detection[1]) for answer in answers if answer is not None]
    assert said == pytest.approx([1.0, -3.0, 2.0, 3.0, -10.0], abs=1e-5)


def test_progress_rises_to_one() -> None:
    shares: list[float] = []
    Looks(volume(-3.0, 0.0, 1.3, 3.0), Oracle(), SETTINGS, Oracle()).at(PLACES, shares.append)
    assert shares == sorted(shares)
    assert shares[-1] == 1.0


@pytest.mark.parametrize("ahead", [2, 3, 16])
def test_slices_asked_for_in_vain_do_not_change_a_mask(ahead: int) -> None:
    shape, spacing = (30, 90, 90), (2.0, 1.0, 1.0)
    z, y, x = np.indices(shape)
    solid = (z - 8) ** 2 + (y - 40) ** 2 / 9 + (x - 45) ** 2 / 4 < 16
    solid |= (z >= 14) & (abs(y - 42) < 4) & (abs(x - 45) < 4)  # begins two slices behind the end of the first
    solid |= (abs(y - 70) < 3) & (abs(x - 20) < 3)  # from border to border
    asked: list[Index] = []

    def outline(places: list[Index]) -> BoolArray:
        asked.extend(places)
        padded = np.pad(solid, ((0, 0), (32, 32), (32, 32)))
        return np.stack([padded[z, y : y + 64, x : x + 64] for z, y, x in places])

    centres: list[Index] = [(8, 40, 45), (2, 70, 20), (4, 10, 80)]
    one = walk(shape, spacing, centres, outline(centres), outline)
    needed, asked[:] = set(asked), []
    several = walk(shape, spacing, centres, outline(centres), outline, ahead)
    assert one[2] is None
    assert several[2] is None
    for mask, other in zip(one[:2], several[:2], strict=True):
        assert mask is not None
        assert other is not None
        assert mask.origin == other.origin
        assert np.array_equal(mask.voxels, other.voxels)
    assert needed <= set(asked)
    assert all(0 <= z < shape[0] for z, _, _ in asked)
