"""Training: targets, losses, real nodules, splits, samples, resuming."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pulmo_models.training.sampler import Material, Stage1Samples, Stage2Samples, malignancy_label, unit_concepts

from pulmo_models.training import insertion
from pulmo_models.training.hosts import (
    LOOKS_LIKE_A_NODULE,
    TEST_HOSTS,
    TRAINING_HOSTS,
    VALIDATION_HOSTS,
    Host,
    KnownNodule,
)
from pulmo_models.training.mining import load_hard_negatives
from pulmo_models.training.nodules import RealNodule, calibrate, fit_slice, load_nodules, split_of
from pulmo_models.types import CONCEPT_NAMES
from tests.conftest import data_folder


def test_patients_are_split_by_their_number() -> None:
    assert {number: split_of(number) for number in (5, 12, 6, 63, 3, 10, 1, 7)} == {
        5: "test", 12: "test", 6: "validation", 63: "validation", 3: "unused", 10: "unused", 1: "train", 7: "train",
    }  # fmt: skip


def test_no_host_serves_two_splits() -> None:
    names = [*TRAINING_HOSTS, *VALIDATION_HOSTS, *TEST_HOSTS]
    assert len(names) == len(set(names))
    assert not any("ricord" in name for name in names)


def test_a_stretched_stack_is_mapped_back() -> None:
    random = np.random.default_rng(0)
    truth = random.normal(-600, 250, (5, 72, 72)).clip(-1000, 300)
    stack = np.stack([(plane + 1024) / slope for plane, slope in zip(truth, (7, 8, 9, 8, 7), strict=True)])
    stretched = np.rint(stack).astype(np.uint8)
    correlation, line, error = fit_slice(stretched[2], np.rint(truth[2][1:, :71]).astype(np.int16))
    assert correlation > 0.999
    assert error < 5
    assert np.abs(calibrate(stretched, 2, line) - truth).mean() < 15


def test_real_nodules_are_calibrated_and_rated() -> None:
    nodules = load_nodules(data_folder("lidc_patches"), lambda patient: patient < 40 and split_of(patient) == "train")
    assert len(nodules) > 10
    assert {split_of(nodule.patient) for nodule in nodules} == {"train"}
    assert np.mean([nodule.calibration_error_hu for nodule in nodules]) < 30
    for nodule in nodules:
        assert nodule.mask.any()
        assert nodule.mask.shape == nodule.hu.shape
        assert all(1 <= rating <= 6 for rating in nodule.concepts.values())


def test_labels() -> None:
    def rated(malignancy: float, readers: int = 3) -> RealNodule:
        return real_nodule(malignancy=malignancy, readers=readers)

    assert [malignancy_label(rated(m)) for m in (1.0, 2.5, 3.0, 3.5, 5.0)] == [0, 0, -1, 1, 1]
    assert malignancy_label(rated(5.0, readers=1)) == -1
    concepts = unit_concepts(rated(1.0))
    assert concepts[CONCEPT_NAMES.index("calcification")].item() == pytest.approx((6 - 1) / 4)
    assert concepts[CONCEPT_NAMES.index("spiculation")].item() == pytest.approx((2 - 1) / 4)


def real_nodule(**changes: Any) -> RealNodule:
    ball = np.linalg.norm(np.indices((5, 72, 72)) - np.array([2, 36, 36])[:, None, None, None], axis=0) < 6
    values: dict[str, Any] = {
        "patient": 1,
        "hu": np.where(ball, 40, -850).astype(np.int16),
        "mask": ball,
        "spacing_mm": (2.0, 0.7, 0.7),
        "diameter_mm": 8.0,
        "concepts": dict.fromkeys(CONCEPT_NAMES, 2.0) | {"calcification": 6.0},
        "malignancy": 4.0,
        "readers": 4,
        "calibration_error_hu": 0.0,
    }
    return RealNodule(**(values | changes))


def host(nodules: tuple[KnownNodule, ...] = ()) -> Host:
    hu = np.full((60, 200, 200), -850, np.int16)
    hu[:, :, ::25] = 0  # walls that negatives are found at
    lung = np.zeros(hu.shape, bool)
    lung[10:50, 40:160, 40:160] = True
    places = np.argwhere(lung).astype(np.int16)
    return Host(name="host", hu=hu, lung=lung, spacing_mm=np.array([2.0, 0.7, 0.7]), places=places, nodules=nodules)


def material(seed: int = 1, **changes: Any) -> Material:
    values: dict[str, Any] = {"hosts": [host()], "phantoms": [], "nodules": [real_nodule()], "seed": seed}
    return Material(**(values | changes))


def test_an_insert_keeps_its_place_and_its_level() -> None:
    piece = insertion.cut(host(), (24, 64, 64), np.array([2.0, 0.7, 0.7]), np.array([30.0, 112.0, 112.0]))
    insert = insertion.real_insert(np.random.default_rng(0), real_nodule(), piece.spacing_mm, (1.0, 1.0))
    assert insert is not None
    placed = insertion.place(piece, insert, torch.tensor([12.0, 30.0, 20.0]))
    assert placed is not None
    centre, outline = placed
    assert np.abs(centre - [12, 30, 20]).max() <= 0.5
    inside = outline > 0.9
    assert piece.hu[inside].mean().item() == pytest.approx(40, abs=15)
    assert np.allclose(np.argwhere(inside.numpy()).mean(axis=0), centre, atol=0.6)


def test_a_piece_knows_the_nodules_of_its_host() -> None:
    known = KnownNodule(centre_index=(30.0, 100.0, 120.0), diameter_mm=9.0)
    around = np.array([30.0, 100.0, 120.0])
    piece = insertion.cut(host((known,)), (32, 64, 64), np.array([1.0, 0.7, 0.7]), around)
    (found,) = piece.known
    assert np.abs(np.array(found.centre_index) - [15.5, 31.5, 31.5]).max() <= 1.0


def test_sample_n_is_always_the_same() -> None:
    one, again, other = (Stage1Samples(material(seed), (16, 32, 32), 100) for seed in (1, 1, 2))
    for first, second in zip(one[7], again[7], strict=True):
        assert torch.equal(first, second)
    assert not torch.equal(one[7][0], other[7][0])
    assert not torch.equal(one[7][0], one[8][0])


def test_stage_1_samples_have_a_peak_at_a_nodule() -> None:
    samples = Stage1Samples(material(), (16, 48, 48), 1000)
    peaks, bright = 0, 0
    for number in range(40):
        image, target, weight = samples[number]
        assert image.shape == target.shape == weight.shape == (1, 16, 48, 48)
        assert 0 <= image.min() <= image.max() <= 1
        for place in torch.nonzero(target >= 0.9999):
            peaks += 1
            bright += bool(image[tuple(place)] > 0.3)
    assert peaks > 15
    assert bright / peaks > 0.6


def test_stage_2_samples_alternate_and_carry_their_labels() -> None:
    samples = Stage2Samples(material(), 1000)
    for number in range(12):
        sample = samples[number]
        assert sample["image"].shape == (7, 64, 64)
        assert sample["detection"] == (number + 1) % 2
        if number % 2:
            assert sample["mask"].sum() == 0
            assert sample["malignancy"] == -1
        else:
            assert sample["mask"][0, 26:38, 26:38].sum() > 0
            assert sample["malignancy"] in (1, -1)


def test_a_nodule_seen_beyond_its_centre_teaches_the_mask_alone() -> None:
    samples = Stage2Samples(material(), 1000, beyond=1.0)
    nodules = [samples[number] for number in range(0, 24, 2)]
    for sample in nodules:
        assert sample["detection"] == sample["malignancy"] == -1
        assert (sample["concepts"] == -1).all()
    areas = [float(sample["mask"].sum()) for sample in nodules]
    assert min(areas) == 0  # past its end there is nothing to outline
    assert max(areas) > 50


def test_a_phantom_gives_its_own_nodules_with_a_ball_for_an_outline() -> None:
    known = KnownNodule(centre_index=(30.0, 100.0, 112.0), diameter_mm=10.0)
    phantom = host((known,))
    axes = [
        (np.arange(n) - c) * s for n, c, s in zip(phantom.hu.shape, known.centre_index, phantom.spacing_mm, strict=True)
    ]
    distance = np.sqrt(axes[0][:, None, None] ** 2 + axes[1][None, :, None] ** 2 + axes[2][None, None, :] ** 2)
    phantom.hu[distance <= 5] = 2000  # brighter than whatever is placed
    samples = Stage2Samples(material(phantoms=[phantom]), 1000)
    own = [s for s in (samples[n] for n in range(0, 200, 2)) if s["diameter_mm"] == 10.0]
    assert own
    for sample in own:
        outline = sample["mask"][0] > 0.5
        assert sample["detection"] == 1
        assert (sample["concepts"] == -1).all()
        assert sample["image"][3][outline].mean() > 0.9
        assert sample["image"][3][~outline].mean() < 0.4


def test_hard_negatives_are_drawn_and_never_near_what_looks_like_a_nodule(tmp_path: Path) -> None:
    assert load_hard_negatives(tmp_path) == {}
    (tmp_path / "hard-negatives.json").write_text(json.dumps({"host": [[30, 100, 112]]}))
    hard = load_hard_negatives(tmp_path)
    assert hard["host"].tolist() == [[30, 100, 112]]
    marked = host()
    marked.hu[28:33, 96:105, 108:117] = 2500
    samples = Stage2Samples(material(hosts=[marked], hard_negatives=hard), 1000)
    at_it = [bool((samples[n]["image"][3, 28:37, 28:37] > 0.95).float().mean() > 0.3) for n in range(1, 80, 2)]
    assert 8 <= sum(at_it) <= 28  # 40 % of 40
    known = host((KnownNodule(centre_index=(30.0, 100.0, 112.0), diameter_mm=9.0),))
    assert known.may_be_nodule((30, 100, 130))
    assert not known.may_be_nodule((30, 100, 160))
    tumour = LOOKS_LIKE_A_NODULE["ct_qin_lsc_0055"][0]
    assert replace(host(), name="ct_qin_lsc_0055").may_be_nodule(np.add(tumour, (2, 5, 5)))
