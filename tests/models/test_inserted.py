"""Samples of both stages, and the stores of `data inserted`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from pulmo_models.ct.candidates import Candidate
from pulmo_models.training.cli import app
from pulmo_models.training.commands.common import parse_shape
from pulmo_models.training.commands.inserted import parse_counts
from pulmo_models.training.material import inserted, mining
from pulmo_models.training.material.hosts import Host, KnownNodule
from pulmo_models.training.material.inserted import NothingToInsert, Request, write_store
from pulmo_models.training.material.nodules import load_nodules
from pulmo_models.training.material.realism import Question, ask, blanked, inserted_or_original, level_errors
from pulmo_models.training.material.samples import Material, Sampler, Shares, choose_place, in_plain_lung
from pulmo_models.training.store import PatchStore
from tests.models.made_nodules import lidc_patches, made_host, real_nodule

PLAIN = Shares(phantoms=0, drawn=0, beyond=0, retouched=0)
PATCH, WINDOW = (8, 40, 40), (24, 64, 64)


def material(**changes: Any) -> Material:
    values: dict[str, Any] = {"split": "train", "hosts": [made_host()], "nodules": [real_nodule()]}
    return Material(**(values | changes))


def test_patches_alternate_and_carry_their_labels() -> None:
    sampler = Sampler(material(), 1, PLAIN)
    for number in range(12):
        patch = sampler.patch(number, PATCH)
        assert patch.hu.shape == PATCH
        assert patch.detection == (number + 1) % 2
        if patch.detection:
            assert patch.patient == "LIDC-IDRI-0001"
            assert patch.mask is not None
            assert patch.mask[4, 20, 20]
            assert np.argwhere(patch.mask).mean(axis=0) == pytest.approx([4, 20, 20], abs=1.0)
            assert patch.hu[patch.mask].mean() > -300
            assert 0.9 * 8 <= patch.diameter_mm <= 1.12 * 8
            assert patch.inserted
            assert patch.malignancy == 4.0
        else:
            assert patch.mask is None
            assert patch.patient == "host"


def test_sample_n_is_always_the_same() -> None:
    one, again, other = (Sampler(material(), seed, Shares(phantoms=0)) for seed in (1, 1, 2))
    again.patch(3, PATCH)  # what was asked before does not matter
    assert np.array_equal(one.patch(8, PATCH).hu, again.patch(8, PATCH).hu)
    assert np.array_equal(one.window(5, WINDOW).hu, again.window(5, WINDOW).hu)
    assert not np.array_equal(one.patch(8, PATCH).hu, other.patch(8, PATCH).hu)


def test_patches_for_figures_are_the_hosts_own_voxels_and_take_each_nodule_in_turn() -> None:
    nodules = [real_nodule(name=f"nodule-{n}", diameter_mm=4.0 + n) for n in range(6)]
    sampler = Sampler(material(split="test", nodules=nodules), 1, Shares(phantoms=0, retouched=0))
    patches = [sampler.patch(number, PATCH) for number in range(12)]
    assert sorted(p.source.split()[1] for p in patches[::2]) == [f"nodule-{n}" for n in range(6)]
    assert {p.diameter_mm for p in patches[::2]} == {4.0 + n for n in range(6)}
    assert all(tuple(p.spacing_mm) == (2.0, 0.7, 0.7) for p in patches)
    for patch in patches[1::2]:
        assert set(np.unique(patch.hu)) <= {-850, 30, 40, -1000}


def test_a_nodule_seen_from_another_slice_teaches_the_mask_alone() -> None:
    sampler = Sampler(material(), 1, replace(PLAIN, beyond=1.0))
    patches = [sampler.patch(number, (20, 40, 40)) for number in range(0, 40, 2)]
    away = [patch for patch in patches if patch.detection == -1]
    assert len(away) > 10
    areas = [int(patch.mask[10].sum()) for patch in away if patch.mask is not None]
    assert min(areas) == 0  # past its end there is nothing to outline
    assert max(areas) > 30


def test_retouched_places_look_the_same_and_stay_negatives() -> None:
    host = made_host(noise_hu=25)
    sources = []
    for number in range(1, 40, 2):
        patch = Sampler(material(split="test", hosts=[host]), 4, replace(PLAIN, retouched=1.0)).patch(number, PATCH)
        assert patch.detection == 0
        assert np.abs(np.median(patch.hu[4])) < 1000
        sources.append(patch.source)
    assert all(source.endswith("retouched") for source in sources)


def test_hard_negatives_are_drawn_and_never_near_what_may_be_a_nodule() -> None:
    marked = made_host()
    marked.hu[28:33, 96:105, 108:117] = 2500
    hard = {"host": np.array([[30, 100, 112]])}
    sampler = Sampler(material(hosts=[marked], hard=hard), 1, replace(PLAIN, hard=0.4))
    at_it = [float((sampler.patch(n, PATCH).hu[4, 18:23, 18:23] > 2000).mean()) > 0.3 for n in range(1, 120, 2)]
    assert 12 <= sum(at_it) <= 36  # 40 % of 60
    known = made_host((KnownNodule(centre_index=(30.0, 100.0, 112.0), diameter_mm=9.0),))
    sampler = Sampler(material(hosts=[known], hard=hard), 1, replace(PLAIN, hard=0.9))
    for number in range(1, 20, 2):
        assert "found by a detector" not in sampler.patch(number, PATCH).source
    assert sampler.dropped["a place without a nodule that may be one"] > 10


def test_windows_have_bright_nodules_where_they_say_and_none_is_near_another() -> None:
    sampler = Sampler(material(), 1, PLAIN)
    counts = []
    for number in range(30):
        window = sampler.window(number, WINDOW)
        assert window.hu.shape == WINDOW
        counts.append(len(window.nodules))
        for n, (z, y, x, diameter) in enumerate(window.nodules):
            assert window.hu[round(z), round(y), round(x)] > -500
            assert 7 < diameter < 9.1
            others = np.delete(window.nodules, n, 0)
            apart = np.linalg.norm((others[:, :3] - [z, y, x]) * window.spacing_mm, axis=1)
            assert (apart > 12).all()
    assert 0 in counts
    assert max(counts) >= 2


def test_own_nodules_are_truth_and_what_looks_like_one_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pulmo_models.training.material.samples.LOOKS_LIKE_A_NODULE", {"host": ((40, 60, 70),)})
    own = KnownNodule(centre_index=(30.0, 100.0, 120.0), diameter_mm=20.0)
    sampler = Sampler(material(split="test", hosts=[made_host((own,))]), 1, PLAIN)
    for number in range(4):
        window = sampler.window(number, (60, 200, 200))
        assert [row for row in window.nodules.tolist() if row[3] == 20.0] == [[30.0, 100.0, 120.0, 20.0]]
        assert window.unknown.tolist() == [[34, 42, 52, 47, 79, 89]]  # 12 mm around it
    part = sampler.window(4, (24, 48, 48))
    for row in part.unknown.tolist():
        assert all(0 <= a < b <= n for a, b, n in zip(row[:3], row[3:], part.hu.shape, strict=True))


def test_places_are_free_on_vessels_or_at_the_pleura() -> None:
    host = made_host()
    nodule = real_nodule()
    places = np.array([choose_place(np.random.default_rng(n), host, nodule) for n in range(150)])
    depth = host.depth_at(places)
    dense = host.hu[tuple(places.T)] > -450
    assert 0.1 < dense.mean() < 0.5
    assert 0.05 < (depth < 3.6).mean() < 0.35
    assert (host.lung[tuple(places.T)]).all()
    known = made_host((KnownNodule(centre_index=(30.0, 100.0, 100.0), diameter_mm=40.0),))
    places = np.array([choose_place(np.random.default_rng(n), known, nodule) for n in range(50)])
    assert (np.linalg.norm((places - [30, 100, 100]) * known.spacing_mm, axis=1) > 20 + 12).all()


def test_no_nodule_is_put_at_the_wall_of_an_airway() -> None:
    host = made_host()
    assert in_plain_lung(host, np.array([30, 100, 100]))
    assert in_plain_lung(host, np.array([30, 100, 42]))  # at the pleura
    assert not in_plain_lung(host, np.array([30, 36, 36]))  # in the wall of a corner
    host.hu[:, 90:120, 100:130] = -1000
    assert not in_plain_lung(host, np.array([30, 105, 100]))
    places = np.array([choose_place(np.random.default_rng(n), host, real_nodule()) for n in range(100)])
    assert not ((np.abs(places[:, 1] - 105) < 14) & (np.abs(places[:, 2] - 115) < 14)).any()


@pytest.fixture
def request_(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Request:
    """Two training patients and one of each other split, in made hosts."""
    patients = {"LIDC-IDRI-0001": 4, "LIDC-IDRI-0002": 3, "LIDC-IDRI-0005": 4, "LIDC-IDRI-0006": 2}
    database = lidc_patches(tmp_path / "lidc_patches", patients)
    monkeypatch.setattr("pulmo_models.training.material.nodules.LidcDatabase", lambda: database)

    def hosts(data: Path, names: Sequence[str], work: Path) -> list[Host]:
        return [made_host(name=name, noise_hu=20) for name in names]

    monkeypatch.setattr(inserted, "load_hosts", hosts)
    return Request(
        data=tmp_path,
        out=tmp_path / "one.h5",
        work=tmp_path / "work",
        seed=3,
        windows={"train": 3, "test": 1},
        patches={"train": 8, "validation": 4, "test": 4},
        window=(12, 48, 48),
        patch=PATCH,
        shares=Shares(phantoms=0, drawn=0),
    )


def test_a_store_is_the_same_for_any_number_of_processes(request_: Request) -> None:
    one = PatchStore(write_store(request_))
    two = PatchStore(write_store(replace(request_, out=request_.out.with_name("two.h5"), processes=2)))
    assert one.provenance == two.provenance
    assert one.dropped == two.dropped
    for row in range(16):
        first, second = one.patch(row), two.patch(row)
        assert np.array_equal(first.hu, second.hu)
        assert first.source == second.source
    for row in range(4):
        assert np.array_equal(one.window(row).hu, two.window(row).hu)
        assert np.array_equal(one.window(row).nodules, two.window(row).nodules)


def test_host_and_nodule_are_of_the_samples_split(request_: Request) -> None:
    store = PatchStore(write_store(request_))
    assert {split: len(store.rows("stage2", split)) for split in request_.patches} == request_.patches
    allowed = {
        "train": ({"LIDC-IDRI-0001", "LIDC-IDRI-0002"}, set(inserted.SPLIT_HOSTS["train"])),
        "validation": ({"LIDC-IDRI-0006"}, {"ct_lidc_idri_0063"}),
        "test": ({"LIDC-IDRI-0005"}, {"ct_cptac_c3n-00247"}),
    }
    for split, (patients, hosts) in allowed.items():
        for row in store.rows("stage2", split):  # type: ignore[arg-type]
            patch = store.patch(int(row))
            assert patch.patient in patients | hosts
            assert patch.source.split(" in ")[-1].split(":")[0] in hosts
    assert store.provenance["nodules"] == {"train": 2, "validation": 1, "test": 1}


def test_a_series_can_be_left_out_or_trained_on(request_: Request) -> None:
    less = replace(request_, leave_out=("ct_qin_lsc_0055",))
    assert "ct_qin_lsc_0055" not in less.hosts("train")
    assert len(less.hosts("train")) == 3
    more = replace(request_, train_hosts=(*request_.train_hosts, "ct_cptac_c3n-00247"))
    assert "ct_cptac_c3n-00247" in more.hosts("train")
    with pytest.raises(NothingToInsert, match="test split"):
        more.hosts("test")


def test_a_detector_goes_through_each_host_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def find(hu: Any, spacing: Any, runner: Any, settings: Any, search: Any) -> list[Candidate]:
        asked.append("asked")
        return [Candidate(index=(30, 100, 112), score=0.9), Candidate(index=(20, 50, 50), score=0.4)]

    monkeypatch.setattr(mining, "find_candidates", find)
    host = made_host((KnownNodule(centre_index=(30.0, 100.0, 110.0), diameter_mm=9.0),))
    network = mining.nn.Identity()
    for _ in range(2):
        assert mining.mine(network, "set", [host], tmp_path)["host"].tolist() == [[20, 50, 50]]
    assert asked == ["asked"]
    mining.mine(network, "other", [host], tmp_path)
    assert len(asked) == 2


def test_what_a_set_finds_falsely_becomes_negatives(request_: Request, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mining, "find_candidates", lambda *_: [Candidate(index=(30, 100, 112), score=0.9)])
    wanted = replace(request_, weights="pulmo-node-3", patches={"train": 40}, windows={})
    store = PatchStore(write_store(wanted))
    found = [source for source in store.column("stage2", "source") if "found by a detector" in source]
    assert 2 <= len(found) <= 18  # 45 % of 20
    assert store.provenance["hard negatives"] == dict.fromkeys(inserted.SPLIT_HOSTS["train"], 1)
    assert [path.name.startswith("hard-negatives-pulmo-node-3-") for path in wanted.work.iterdir()] == [True]


def test_the_options_of_the_command() -> None:
    assert parse_counts("12", "train,test") == {"train": 12, "test": 12}
    assert parse_counts("train=3,validation=4", "test") == {"train": 3, "validation": 4}
    assert parse_shape("20,72,72") == (20, 72, 72)
    assert parse_shape("0,2,2", least=0) == (0, 2, 2)  # a jitter may leave an axis alone, a shape may not
    with pytest.raises(typer.BadParameter):
        parse_shape("0,2,2")
    for wrong in (["--patches", "many"], ["--patches", "nobody=3"], ["--patches", "1", "--patch", "20,72"]):
        result = CliRunner().invoke(app, ["data", "inserted", "--data", "d", "--out", "o.h5", *wrong])
        assert result.exit_code == 2
    result = CliRunner().invoke(app, ["data", "inserted", "--data", "none", "--out", "o.h5", "--patches", "1"])
    assert result.exit_code == 1
    assert "none" in result.output


def test_the_classifier_finds_what_is_there_and_nothing_where_nothing_is() -> None:
    random = np.random.default_rng(0)
    images = random.normal(-850, 30, (240, 28, 28)).astype(np.float32)
    changed, held_out = np.arange(240) % 2 == 1, np.arange(240) % 3 == 0
    assert abs(ask(Question(images=images, changed=changed, held_out=held_out), 1, epochs=5) - 0.5) < 0.25
    images[changed, 10:18, 10:18] += 60  # a square seam
    assert ask(Question(images=images, changed=changed, held_out=held_out), 1, epochs=5) > 0.95


def test_originals_and_inserted_ones_are_of_other_patients_in_training_and_test() -> None:
    nodules = [real_nodule(patient=f"LIDC-IDRI-{number:04}") for number in range(1, 29)]
    question = inserted_or_original(nodules, 1, matched=True)
    assert 0.3 < question.changed.mean() < 0.6
    assert 0.2 < question.held_out.mean() < 0.6
    middles = question.images[:, 14, 14]
    assert (middles > -100).all()  # a nodule in the middle, whichever it is
    assert (blanked(question).images[:, 10:19, 10:19] == -850).all()
    assert np.array_equal(blanked(question).images[:, 0], question.images[:, 0])
    originals = question.images[~question.changed]
    assert np.ptp(originals, axis=0).max() == 0  # untouched


def test_level_errors_are_measured_by_distance() -> None:
    host = made_host(noise_hu=10)
    host = replace(host, hu=host.hu[np.resize(np.arange(20, 40), 60)])  # the same lung from end to end
    figures = level_errors([host], 4, 1)
    assert figures["1 from the known slice, all pixels"]["slices"] == 8
    assert figures["3 from the known slice, all pixels"]["mean"] < 10


def test_made_patches_are_read_back(tmp_path: Path) -> None:
    database = lidc_patches(tmp_path, {"LIDC-IDRI-0001": 4})
    (nodule,) = load_nodules(tmp_path, lambda _: True, database)
    patch = Sampler(material(split="validation", nodules=[nodule]), 1, PLAIN).patch(0, (12, 64, 64))
    assert patch.mask is not None
    assert np.median(patch.hu[6][patch.mask[6]]) == pytest.approx(np.median(nodule.hu[nodule.mask]), abs=25)
