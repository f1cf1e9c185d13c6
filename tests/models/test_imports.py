"""Checkpoints become sets: the fingerprint, what a manifest records, and what is left behind by what is refused."""

from __future__ import annotations

import hashlib
import os
import pickle
import shutil
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from pulmo_models import hub
from pulmo_models.checkpoints import load_stage1, load_stage2
from pulmo_models.errors import ModelError, WeightsCorrupt, WeightsMissing, WeightsUnavailable, WeightsUnknown
from pulmo_models.imports import check_fingerprint, fetch_published, import_checkpoints
from pulmo_models.nets.heatmap_unet3d import HeatmapUNet3D
from pulmo_models.nets.student2p5d import Student2p5D
from pulmo_models.published import PULMO
from pulmo_models.types import CONCEPT_NAMES
from pulmo_models.weights import list_sets, load_set, manifests, verify_set
from tests.hub_server import COMMIT, HubServer, hub_in_use
from tests.models.test_weights import Intruder
from tests.published_factory import (
    BIAS_DIFFERENCE,
    METADATA_1,
    METADATA_2,
    STAGE1_FILE,
    STAGE2_FILE,
    WEIGHT_DIFFERENCES,
    published_states,
    write_published,
)

States = tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]


@pytest.fixture(scope="module")
def states() -> States:
    return published_states()


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_published(tmp_path_factory.mktemp("published"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A weights folder that does not exist yet."""
    return tmp_path / "var" / "weights"


@pytest.fixture
def server(published: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    with hub_in_use(monkeypatch, {path.name: path for path in published}) as running:
        yield running


def sha256(path: Path) -> str:
    return "sha256:" + hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_networks_have_the_published_counts() -> None:
    for network, file, counts in (
        (HeatmapUNet3D(), PULMO.stage1, (28, 5_643_441)),
        (Student2p5D(), PULMO.stage2, (51, 4_761_773)),
    ):
        assert (file.tensors, file.parameters) == counts
        state = network.state_dict()
        assert (len(state), sum(value.numel() for value in state.values())) == counts
    assert tuple(PULMO.malignancy_weights) == CONCEPT_NAMES
    assert tuple(PULMO.malignancy_weights.values()) == WEIGHT_DIFFERENCES
    assert PULMO.malignancy_bias == BIAS_DIFFERENCE


def test_published_files_become_a_set(published: tuple[Path, Path], states: States, folder: Path) -> None:
    manifest = import_checkpoints(*published, folder, name="pulmo")
    assert manifest == folder / "pulmo" / "pulmo.toml"
    weights = load_set("pulmo", folder)
    verify_set(weights)
    assert (weights.name, weights.version, weights.concept_scale) == ("pulmo", "published", "raw")
    assert weights.licence == "CC-BY-4.0"
    assert "Furkan Çoban" in weights.attribution
    assert "CC BY 4.0" in weights.attribution
    assert weights.origin == f"imported from the files {STAGE1_FILE} and {STAGE2_FILE}"
    for spec, source in zip((weights.stage1, weights.stage2), published, strict=True):
        assert (spec.source_file, spec.source_digest) == (source.name, sha256(source))
        assert spec.digest == sha256(spec.path)
        assert spec.path.stat().st_mode & 0o444 == 0o444
    for network, state in zip((load_stage1(weights), load_stage2(weights)), states, strict=True):
        assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())
    assert sorted(path.name for path in folder.rglob("*")) == [
        "pulmo", "pulmo-stage1.safetensors", "pulmo-stage2.safetensors", "pulmo.toml",
    ]  # fmt: skip


@pytest.mark.parametrize("concept", range(8))
def test_each_malignancy_weight_is_held_to_a_thousandth(states: States, concept: int) -> None:
    for change, fits in ((9e-4, True), (-9e-4, True), (1.2e-3, False), (-1.2e-3, False)):
        stage2 = {key: value.clone() for key, value in states[1].items()}
        stage2["malignancy_head.weight"][1, concept] += change
        if fits:
            check_fingerprint(PULMO, states[0], stage2)
        else:
            with pytest.raises(WeightsUnknown, match=f"malignancy difference of {CONCEPT_NAMES[concept]} is"):
                check_fingerprint(PULMO, states[0], stage2)


def test_the_bias_is_held_as_loosely_as_it_is_known(states: States) -> None:
    for change, fits in ((8e-3, True), (-8e-3, True), (0.02, False)):
        stage2 = {key: value.clone() for key, value in states[1].items()}
        stage2["malignancy_head.bias"][1] += change
        if fits:
            check_fingerprint(PULMO, states[0], stage2)
        else:
            with pytest.raises(WeightsUnknown, match=r"malignancy difference of bias is -0\.152, published is -0\.172"):
                check_fingerprint(PULMO, states[0], stage2)


def test_only_the_difference_of_the_classes_counts(states: States) -> None:
    stage2 = {key: value.clone() for key, value in states[1].items()}
    stage2["malignancy_head.weight"] += torch.linspace(-2, 2, 8)
    stage2["malignancy_head.bias"] += 3.0
    check_fingerprint(PULMO, states[0], stage2)


def test_counts_are_part_of_the_fingerprint(states: States) -> None:
    with pytest.raises(WeightsUnknown, match="stage 1 has 51 tensors with 4761773 parameters, published are 28 with"):
        check_fingerprint(PULMO, states[1], states[1])
    smaller = {**states[1], "cnn.stem.skip.weight": torch.zeros(24, 5, 1, 1)}
    with pytest.raises(WeightsUnknown, match="stage 2 has 51 tensors with 4761725 parameters"):
        check_fingerprint(PULMO, states[0], smaller)


def retrained(folder: Path) -> tuple[Path, Path]:
    """The same container and architecture, other weights."""
    torch.manual_seed(9)
    torch.save({"model_state_dict": HeatmapUNet3D().state_dict(), **METADATA_1}, folder / "mine1.pth")
    torch.save({"model_state_dict": Student2p5D().state_dict(), **METADATA_2}, folder / "mine2.pth")
    return folder / "mine1.pth", folder / "mine2.pth"


def test_other_weights_are_refused_unless_their_scale_is_given(tmp_path: Path, folder: Path) -> None:
    files = retrained(tmp_path)
    with pytest.raises(WeightsUnknown, match=r"mine1\.pth, mine2\.pth: these are not the published weights"):
        import_checkpoints(*files, folder, name="mine")
    assert not folder.exists()
    import_checkpoints(*files, folder, name="mine", concept_scale="unit")
    weights = load_set("mine", folder)
    assert (weights.concept_scale, weights.version, weights.licence) == ("unit", "imported", "not stated")
    assert "Pulmo" not in weights.attribution


def corrupt(kind: str, path: Path, state: dict[str, torch.Tensor], trace: Path) -> None:
    if kind == "missing":
        path.unlink()
    elif kind == "truncated":
        os.truncate(path, path.stat().st_size - 5000)
    elif kind == "text":
        path.write_text("version https://git-lfs.github.com/spec/v1\n")
    elif kind == "foreign":
        torch.save({"model_state_dict": {"layer.weight": torch.zeros(3)}}, path)
    elif kind == "code":
        torch.save({"model_state_dict": state, "val": Intruder(trace)}, path)
    elif kind == "plain pickle":
        path.write_bytes(pickle.dumps(Intruder(trace)))
    elif kind == "not finite":
        key = "out.bias" if "out.bias" in state else "cnn.final.bias"
        torch.save({"model_state_dict": {**state, key: torch.tensor([float("inf")])}}, path)


@pytest.mark.parametrize("stage", [0, 1])
@pytest.mark.parametrize("kind", ["missing", "truncated", "text", "foreign", "code", "plain pickle", "not finite"])
def test_what_is_no_checkpoint_is_one_clear_error_and_leaves_nothing(
    tmp_path: Path, published: tuple[Path, Path], states: States, folder: Path, kind: str, stage: int
) -> None:
    files = [Path(shutil.copy(path, tmp_path)) for path in published]
    corrupt(kind, files[stage], states[stage], tmp_path / "trace")
    expected: type[ModelError] = WeightsMissing if kind == "missing" else WeightsCorrupt
    with pytest.raises(expected) as caught:
        import_checkpoints(*files, folder, name="pulmo")
    assert str(files[stage]) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "trace").exists()
    assert not folder.exists()


def test_swapped_files_are_refused(published: tuple[Path, Path], folder: Path) -> None:
    with pytest.raises(WeightsCorrupt, match=r"student_2p5d_best\.pth: 28 keys are missing"):
        import_checkpoints(published[1], published[0], folder, name="pulmo")


@pytest.mark.parametrize("name", ["../pulmo", ".hidden", "", "a b", "set.toml", "x" * 65])
def test_names_that_would_not_work(published: tuple[Path, Path], folder: Path, name: str) -> None:
    with pytest.raises(WeightsUnavailable, match="is no name for a set"):
        import_checkpoints(*published, folder, name=name)


def test_a_name_is_given_once_and_never_that_of_a_shipped_set(published: tuple[Path, Path], folder: Path) -> None:
    before = load_set(import_checkpoints(*published, folder, name="pulmo"))
    for name in ("pulmo", manifests()[0].stem):
        with pytest.raises(WeightsUnavailable, match=f"a set called '{name}' is there already"):
            import_checkpoints(*published, folder, name=name)
    verify_set(before)
    assert len(list_sets(folder)) == len(list_sets()) + 1


def test_a_folder_that_cannot_be_written(published: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(WeightsUnavailable, match=r"weights folder .*/file/weights cannot be written: Not a directory"):
        import_checkpoints(*published, tmp_path / "file" / "weights", name="pulmo")


def test_a_write_that_fails_half_way_leaves_nothing(
    published: tuple[Path, Path], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, weights: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pulmo_models.checkpoints.write_manifest", full)
    with pytest.raises(WeightsUnavailable, match="cannot be written: No space left on device"):
        import_checkpoints(*published, folder, name="pulmo")
    assert list(folder.iterdir()) == []


def test_fetched_weights_record_where_they_come_from(
    server: HubServer, published: tuple[Path, Path], folder: Path
) -> None:
    seen: list[str] = []
    manifest = fetch_published("pulmo", folder, progress=lambda file, done, total: seen.append(file))
    weights = load_set("pulmo", folder)
    verify_set(weights)
    assert (weights.repository, weights.commit) == ("ariyul/Pulmo", COMMIT)
    assert weights.origin == f"{server.endpoint}/ariyul/Pulmo at commit {COMMIT}"
    assert (weights.licence, weights.concept_scale) == ("CC-BY-4.0", "raw")
    assert [weights.stage1.source_digest, weights.stage2.source_digest] == [sha256(path) for path in published]
    assert set(seen) == {STAGE1_FILE, STAGE2_FILE}
    assert tomllib.loads(manifest.read_text())["commit"] == COMMIT
    assert [path.name for path in folder.iterdir()] == ["pulmo"]


def test_the_same_commit_is_not_fetched_twice_and_another_one_needs_a_name(server: HubServer, folder: Path) -> None:
    manifest = fetch_published("pulmo", folder)
    transfers = len(server.transfers())
    assert fetch_published("pulmo", folder, revision=COMMIT) == manifest
    assert len(server.transfers()) == transfers
    server.revisions.update({"main": "a" * 40, "a" * 40: "a" * 40})
    with pytest.raises(WeightsUnavailable, match="a set called 'pulmo' is there already"):
        fetch_published("pulmo", folder)
    assert load_set(fetch_published("pulmo", folder, name="pulmo-new")).commit == "a" * 40
    assert load_set("pulmo", folder).commit == COMMIT


def test_a_damaged_set_of_the_same_commit_is_named(server: HubServer, folder: Path) -> None:
    weights = load_set(fetch_published("pulmo", folder))
    os.truncate(weights.stage2.path, 1000)
    with pytest.raises(WeightsCorrupt, match=r"pulmo-stage2\.safetensors is truncated"):
        fetch_published("pulmo", folder)


def test_an_interrupted_fetch_goes_on_with_the_next(
    server: HubServer, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.cuts = [3 << 20, 0]
    monkeypatch.setattr(hub, "_FRUITLESS_ATTEMPTS", 1)
    with pytest.raises(WeightsUnavailable, match="what came is kept"):
        fetch_published("pulmo", folder)
    server.asked.clear()
    fetch_published("pulmo", folder)
    assert server.transfers()[0] == (STAGE1_FILE, f"bytes={3 << 20}-")
    assert [path.name for path in folder.iterdir()] == ["pulmo"]


@pytest.mark.parametrize("kind", ["other weights", "code"])
def test_fetched_files_that_are_not_the_published_ones_leave_nothing(
    server: HubServer, tmp_path: Path, states: States, folder: Path, kind: str
) -> None:
    if kind == "code":
        (tmp_path / "bad.pth").write_bytes(pickle.dumps(Intruder(tmp_path / "trace")))
        bad = tmp_path / "bad.pth"
    else:
        bad = retrained(tmp_path)[1]
    server.files[STAGE2_FILE] = bad.read_bytes()
    with pytest.raises(WeightsUnknown if kind == "other weights" else WeightsCorrupt, match=STAGE2_FILE):
        fetch_published("pulmo", folder)
    assert not folder.exists()
    assert not (tmp_path / "trace").exists()


def test_an_unknown_model_is_named(folder: Path) -> None:
    with pytest.raises(WeightsUnavailable, match="no published model 'lungs'; there are: pulmo"):
        fetch_published("lungs", folder)
