"""A nodule in another lung: levels, edges, partial volume, noise, places; and the hosts it goes into."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from pulmo_models.training.material import insertion
from pulmo_models.training.material.hosts import (
    LOOKS_LIKE_A_NODULE,
    TEST_HOSTS,
    TRAINING_HOSTS,
    VALIDATION_HOSTS,
    KnownNodule,
    tumours,
)
from pulmo_models.training.material.insertion import Pose
from pulmo_models.training.material.nodules import noise_of
from pulmo_models.training.material.pieces import cut
from tests.models.made_nodules import made_host, real_nodule

GRID = np.array([2.0, 0.7, 0.7])


def lung(noise_hu: float = 0.0, level: float = -850.0) -> np.ndarray:
    random = np.random.default_rng(3)
    return (np.full((21, 80, 80), level) + random.normal(0, 1, (21, 80, 80)) * noise_hu).astype(np.float32)


def insert_of(nodule: object = None, pose: Pose | None = None, noise_hu: float = float("nan")) -> insertion.Insert:
    found = insertion.real_insert(
        np.random.default_rng(0),
        nodule or real_nodule(),
        GRID,
        pose or Pose(),
        noise_hu,
    )
    assert found is not None
    return found


def test_an_insert_keeps_its_place_its_level_and_what_lies_around() -> None:
    hu = lung(noise_hu=10)
    before = hu.copy()
    placed = insertion.place(hu, None, insert_of(), (10, 40, 30))
    assert placed is not None
    assert np.abs(placed.centre - [10, 40, 30]).max() <= 0.5
    assert hu[10, 40, 30] == pytest.approx(40, abs=10)
    distance = np.linalg.norm((np.indices(hu.shape).T - placed.centre) * GRID, axis=-1).T
    assert np.array_equal(hu[distance > 4 + 2.5], before[distance > 4 + 2.5])  # 4 mm radius, then it has faded
    assert placed.mask.sum() * np.prod(GRID) == pytest.approx(4 / 3 * np.pi * 4**3, rel=0.25)
    edge = np.abs(np.diff(hu, axis=2)).max()
    assert edge <= 890 + 60  # no step beyond that of the nodule itself


def test_in_a_lung_of_another_density_there_is_no_halo() -> None:
    nodule = real_nodule()
    hu = lung(level=-700.0)
    placed = insertion.place(hu, None, insert_of(nodule), (10, 40, 40))
    assert placed is not None
    assert hu.min() >= -701  # the lung of the nodule's own patient, -850, is nowhere
    assert hu[placed.mask].mean() > -100


def test_the_vessels_of_the_source_stay_behind() -> None:
    nodule = real_nodule()
    hu = nodule.hu.copy()
    hu[:, 34:38, 46:] = 60  # a vessel that comes near on the right
    found = lung()
    placed = insertion.place(found, None, insert_of(replace(nodule, hu=hu)), (10, 40, 40))
    assert placed is not None
    distance = np.linalg.norm((np.indices(found.shape).T - placed.centre) * GRID, axis=-1).T
    assert np.array_equal(found[distance > 7], lung()[distance > 7])


def test_a_vessel_of_the_host_is_not_made_brighter_and_goes_on_through_ground_glass() -> None:
    glass = real_nodule()
    glass = replace(glass, hu=np.where(glass.mask, -550, -850).astype(np.int16))
    hu = lung()
    hu[:, 38:42, :] = 45
    placed = insertion.place(hu, None, insert_of(glass), (10, 40, 40))
    assert placed is not None
    assert hu[10, 40, 40] == pytest.approx(45, abs=4)
    assert hu[10, 44, 40] == pytest.approx(-550, abs=30)


def test_calcification_is_carried_over() -> None:
    nodule = real_nodule()
    hu = nodule.hu.copy()
    hu[2, 34:39, 34:39] = 600
    found = lung()
    assert insertion.place(found, None, insert_of(replace(nodule, hu=hu)), (10, 40, 40)) is not None
    assert found[10, 40, 40] == pytest.approx(600, abs=60)


def test_nothing_changes_outside_of_the_lung_nor_where_nothing_could_be_seen() -> None:
    hu, inside = lung(), np.ones((21, 80, 80), bool)
    inside[:, :, 42:] = False
    hu[~inside] = -90
    before = hu.copy()
    placed = insertion.place(hu, inside, insert_of(), (10, 40, 40))
    assert placed is not None
    assert np.array_equal(hu[:, :, 44:], before[:, :, 44:])
    assert not placed.mask[:, :, 43:].any()
    assert insertion.place(before, inside, insert_of(), (10, 40, 60)) is None
    dense = np.full((21, 80, 80), 30, np.float32)
    assert insertion.place(dense, None, insert_of(), (10, 40, 40)) is None
    assert (dense == 30).all()


def test_thick_slices_average_what_thin_ones_resolve() -> None:
    nodule = real_nodule()
    thick = insertion.real_insert(np.random.default_rng(0), nodule, (8.0, 0.7, 0.7), Pose())
    assert thick is not None
    thin = insert_of(nodule)
    assert thick.fraction.sum() * 8 == pytest.approx(thin.fraction.sum() * 2, rel=0.05)  # tissue is conserved
    disc = (nodule.mask[:, 36, 36]).sum() * 2.0
    assert thick.fraction.max() == pytest.approx(min(1.0, disc / 8), abs=0.1)
    shifted = insert_of(nodule, Pose(phase=(0.5, 0, 0)))
    assert shifted.fraction.sum() == pytest.approx(thin.fraction.sum(), rel=0.02)


def test_a_turn_turns_and_a_scale_scales() -> None:
    nodule = real_nodule()
    mask = nodule.mask & (np.indices(nodule.mask.shape)[2] >= 36)  # the right half
    half = replace(nodule, mask=mask, reach=mask, hu=np.where(mask, 40, -850).astype(np.int16))
    hu = lung()
    placed = insertion.place(hu, None, insert_of(half, Pose(angle=np.pi / 2)), (10, 40, 40))
    assert placed is not None
    extent = np.ptp(np.argwhere(placed.mask), axis=0)
    assert extent[1] < 0.7 * extent[2]  # what was tall and narrow is wide and low
    flipped = insert_of(half, Pose(flips=(False, False, True)))
    assert np.allclose(flipped.fraction, np.flip(insert_of(half).fraction, 2), atol=0.02)
    larger = insert_of(nodule, Pose(scale=1.5))
    assert larger.diameter_mm == 12.0
    assert larger.fraction.sum() == pytest.approx(insert_of(nodule).fraction.sum() * 1.5**3, rel=0.15)


@pytest.mark.parametrize("wanted", [10.0, 60.0])
def test_noise_becomes_that_of_the_host(wanted: float) -> None:
    random = np.random.default_rng(5)
    nodule = real_nodule()
    noisy = nodule.hu + 28 * insertion.host_noise(random, nodule.hu.shape)
    nodule = replace(nodule, hu=np.rint(noisy).astype(np.int16))
    nodule = replace(nodule, noise_hu=noise_of(nodule.hu[2], nodule.reach[2])[1])
    assert nodule.noise_hu == pytest.approx(28, rel=0.1)
    hu, missing = insertion.match_noise(nodule, wanted)
    left = noise_of(hu[2], nodule.reach[2])[1]
    assert np.hypot(left, missing) == pytest.approx(wanted, rel=0.25)


def test_added_noise_is_measured_as_what_was_asked_for() -> None:
    noise = insertion.host_noise(np.random.default_rng(0), (4, 100, 100))
    assert noise_of(-850 + 30 * noise[0], np.zeros((100, 100), bool))[1] == pytest.approx(30, rel=0.06)


def test_the_attached_side_turns_to_the_pleura() -> None:
    nodule = real_nodule()
    hu = nodule.hu.copy()
    hu[:, :, 42:] = 40  # its own chest wall lies on the right
    attached = replace(nodule, hu=hu)
    assert insertion.attachment(nodule) is None
    assert insertion.attachment(attached) == pytest.approx(0.0, abs=0.2)
    for seed in range(6):
        pose = insertion.draw_pose(np.random.default_rng(seed), attached, (1.0, 1.0), outwards=np.pi / 2)
        right = np.pi if pose.flips[2] else 0.0
        turned = np.exp(1j * (right + pose.angle))
        assert abs(np.angle(turned / np.exp(1j * np.pi / 2))) < 1.0


def test_at_the_hosts_own_spacing_voxels_are_the_hosts() -> None:
    host = made_host(noise_hu=20)
    piece = cut(host, (9, 32, 33), host.spacing_mm, (30, 100, 110))
    assert np.array_equal(piece.hu, host.hu[26:35, 84:116, 94:127])
    assert np.array_equal(piece.lung, host.lung[26:35, 84:116, 94:127])
    assert piece.index_of((30, 100, 110)).tolist() == [4, 16, 16]
    beyond = cut(host, (9, 32, 32), host.spacing_mm, (0, 100, 110))
    assert (beyond.hu[:4] == -1000).all()
    assert np.array_equal(beyond.hu[4:], host.hu[0:5, 84:116, 94:126])


def test_another_spacing_keeps_places_and_means() -> None:
    host = made_host()
    ramp = np.broadcast_to(np.arange(60)[:, None, None] * 10 + np.arange(200) * 2, host.hu.shape).astype(np.int16)
    host = replace(host, hu=ramp)
    piece = cut(host, (8, 24, 24), (5.0, 0.9, 0.6), (30, 100, 110))
    assert piece.hu[4, 12, 12] == pytest.approx(30 * 10 + 110 * 2, abs=0.5)
    assert piece.hu[5, 12, 13] - piece.hu[4, 12, 12] == pytest.approx(2.5 * 10 + 0.6 / 0.7 * 2, abs=0.5)
    noisy = made_host(noise_hu=60)
    thick = cut(noisy, (3, 64, 30), (8.0, 0.7, 0.7), (30, 100, 110))
    assert thick.hu.std() == pytest.approx(60 / 2, rel=0.1)  # the mean of four slices


def test_hosts_know_their_depth_and_what_may_be_a_nodule() -> None:
    known = KnownNodule(centre_index=(30.0, 100.0, 112.0), diameter_mm=10.0)
    host = made_host((known,))
    places = np.array([[30, 100, 41], [30, 100, 100], [11, 100, 100]])
    assert host.depth_at(places) == pytest.approx([1.5, 41, 3], abs=1.5)
    assert host.outwards(np.array([30, 100, 45])) == pytest.approx(np.pi, abs=0.1) or host.outwards(
        np.array([30, 100, 45])
    ) == pytest.approx(-np.pi, abs=0.1)
    assert host.outwards(np.array([30, 155, 100])) == pytest.approx(np.pi / 2, abs=0.1)
    assert host.may_be_nodule((30, 100, 130))
    assert not host.may_be_nodule((30, 100, 150))
    for name, seen in LOOKS_LIKE_A_NODULE.items():
        assert all(replace(made_host(), name=name).may_be_nodule(np.add(place, (1, 5, 5))) for place in seen)


def test_no_host_serves_two_splits() -> None:
    names = [*TRAINING_HOSTS, *VALIDATION_HOSTS, *TEST_HOSTS]
    assert len(names) == len(set(names))
    assert not any("ricord" in name for name in names)


def test_tumours_of_boxes_have_sizes_in_millimetres() -> None:
    boxes = [(k, 100.0, 200.0, 100.0 + 10 * (5 - abs(k - 12)), 230.0) for k in (11, 12, 13)]
    other = [(12, 300.0, 210.0, 320.0, 222.0)]
    first, second = tumours([*boxes, *other], (5.0, 0.8, 0.8))
    assert first.diameter_mm == pytest.approx(40.0)
    assert first.extent_mm == pytest.approx((15.0, 24.0, 40.0))
    assert first.centre_index[0] == pytest.approx(12.0)
    assert second.centre_index == pytest.approx((12.0, 216.0, 310.0))
    assert second.diameter_mm == pytest.approx(16.0)
