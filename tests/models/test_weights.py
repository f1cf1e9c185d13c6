"""Manifests, verification, safetensors, and the published checkpoints in both container forms."""

from __future__ import annotations

import errno
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from pulmo_models.checkpoints import load_network, load_published_checkpoint, load_stage1, load_stage2, write_set
from pulmo_models.ct.settings import NoduleSettings
from pulmo_models.errors import WeightsCorrupt, WeightsMissing
from pulmo_models.nets.heatmap_unet3d import HeatmapUNet3D
from pulmo_models.nets.student2p5d import Student2p5D
from pulmo_models.weights import (
    OperatingPoint,
    describe_file,
    list_sets,
    load_set,
    locate,
    manifests,
    read_manifest,
    shipped_folder,
    verify_file,
    verify_set,
    write_manifest,
)
from tests.published_factory import METADATA_1, METADATA_2

ABOUT = {
    "version": "0",
    "licence": "CC-BY-4.0",
    "origin": 'random, for "tests"',
    "attribution": "nobody, 2 % of nothing",
}


@pytest.fixture(scope="module")
def states() -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    torch.manual_seed(3)
    return HeatmapUNet3D().state_dict(), Student2p5D().state_dict()


@pytest.fixture
def manifest(tmp_path: Path, states: Any) -> Path:
    return write_set(
        tmp_path / "set", name="tiny", stage1=states[0], stage2=states[1], concept_scale="unit", about=ABOUT
    )


def test_a_written_set_is_read_verified_and_loaded(manifest: Path, states: Any) -> None:
    weights = load_set(manifest)
    assert (weights.name, weights.concept_scale) == ("tiny", "unit")
    assert {key: getattr(weights, key) for key in ABOUT} == ABOUT
    verify_set(weights)
    for network, state in zip((load_stage1(weights), load_stage2(weights)), states, strict=True):
        assert not network.training
        assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())


def test_a_set_knows_its_operating_point(manifest: Path) -> None:
    assert read_manifest(manifest).operating_point == OperatingPoint(peak_threshold=0.3, detection_threshold=0.5)
    found = OperatingPoint(peak_threshold=0.1881, detection_threshold=0.5)
    write_manifest(manifest, replace(read_manifest(manifest), operating_point=found))
    assert read_manifest(manifest).operating_point == found


def test_thresholds_of_the_configuration_go_before_those_of_the_set() -> None:
    point = OperatingPoint(peak_threshold=0.2, detection_threshold=0.6)
    assert NoduleSettings().at(point) == point
    assert NoduleSettings(detection_threshold=0.0).at(point) == replace(point, detection_threshold=0.0)
    assert NoduleSettings(peak_threshold=0.4).at(point) == replace(point, peak_threshold=0.4)


def test_digest_of_a_set_is_that_of_its_digests_in_order(manifest: Path) -> None:
    weights = load_set(manifest)
    assert len(weights.sha256) == 64
    swapped = replace(weights, stage1=weights.stage2, stage2=weights.stage1)
    assert swapped.sha256 != weights.sha256
    assert replace(weights, name="other").sha256 == weights.sha256


def test_every_shipped_set_is_whole_small_and_described() -> None:
    for weights in list_sets():
        verify_set(weights)
        assert max(weights.stage1.size_bytes, weights.stage2.size_bytes) < 30_000_000
        assert load_set(weights.name) == weights
        load_stage1(weights)
        load_stage2(weights)


def test_unknown_name_says_how_to_name_a_set() -> None:
    with pytest.raises(WeightsMissing, match=r"'nonsense'.*path of its \.toml"):
        load_set("nonsense")


def test_a_folder_of_sets_is_searched_after_the_shipped_ones(tmp_path: Path, manifest: Path) -> None:
    """Flat, as `pulmo-train` writes a set, and in a folder of its own, as an import does; not what is in the making."""
    folder = manifest.parent
    shipped = manifests()
    assert {path.parent for path in shipped} == {shipped_folder()}
    (folder / "mine").mkdir()
    text = manifest.read_text()
    (folder / "mine" / "mine.toml").write_text(text)
    (folder / ".import-1").mkdir()
    (folder / ".import-1" / "half.toml").write_text(text)
    (folder / f"{shipped[0].stem}.toml").write_text(text)
    assert locate("tiny", folder) == manifest
    assert locate("mine", folder) == folder / "mine" / "mine.toml"
    assert locate(shipped[0].stem, folder) == shipped[0]
    assert locate(str(manifest)) == manifest
    assert len(manifests(folder)) == len(shipped) + 3
    assert manifests(tmp_path / "nowhere") == shipped
    with pytest.raises(WeightsMissing, match=r"'half'; there are: .*mine"):
        locate("half", folder)


def test_missing_manifest_and_missing_file_are_named(manifest: Path, tmp_path: Path) -> None:
    with pytest.raises(WeightsMissing, match=r"none\.toml does not exist"):
        load_set(tmp_path / "none.toml")
    weights = load_set(manifest)
    weights.stage2.path.unlink()
    with pytest.raises(WeightsMissing, match=r"tiny-stage2\.safetensors does not exist"):
        verify_set(weights)
    with pytest.raises(WeightsMissing, match=r"tiny-stage2\.safetensors does not exist"):
        load_stage2(weights)


def test_truncated_file(manifest: Path) -> None:
    weights = load_set(manifest)
    size = weights.stage1.size_bytes
    os.truncate(weights.stage1.path, size - 1000)
    with pytest.raises(WeightsCorrupt, match=rf"tiny-stage1\.safetensors is truncated: {size - 1000} of {size} bytes"):
        load_stage1(weights)


def test_a_file_that_may_not_be_read(manifest: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    weights = read_manifest(manifest)
    monkeypatch.setattr(Path, "open", denied)
    with pytest.raises(WeightsCorrupt, match=r"tiny-stage1\.safetensors cannot be read: Permission denied"):
        verify_file(weights.stage1)


def test_one_changed_byte(manifest: Path) -> None:
    weights = load_set(manifest)
    with weights.stage1.path.open("r+b") as stream:
        stream.seek(5_000_000)
        byte = stream.read(1)
        stream.seek(5_000_000)
        stream.write(bytes([byte[0] ^ 1]))
    with pytest.raises(WeightsCorrupt, match="wrong digest"):
        verify_file(weights.stage1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("out.bias"), "1 keys are missing, the first is out.bias"),
        (lambda s: s.update(extra=torch.zeros(1)), "1 keys are foreign, the first is extra"),
        (lambda s: s.update({"out.bias": torch.zeros(2)}), r"out.bias has shape \[2\], not \[1\]"),
        (lambda s: s.update({"out.bias": torch.zeros(1, dtype=torch.int64)}), "out.bias is no tensor of floating"),
        (lambda s: s.update({"out.bias": torch.tensor([float("nan")])}), "out.bias holds values that are not finite"),
    ],
)
def test_foreign_content_with_a_right_digest(tmp_path: Path, states: Any, change: Any, message: str) -> None:
    state = dict(states[0])
    change(state)
    path = tmp_path / "odd.safetensors"
    save_file(state, path)
    with pytest.raises(WeightsCorrupt, match=rf"odd\.safetensors: {message}"):
        load_network(describe_file(path), HeatmapUNet3D())


def test_a_file_that_is_no_safetensors(tmp_path: Path) -> None:
    path = tmp_path / "text.safetensors"
    path.write_bytes(b"not tensors at all" * 10)
    with pytest.raises(WeightsCorrupt, match=r"text\.safetensors is no safetensors file"):
        load_network(describe_file(path), HeatmapUNet3D())


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('concept_scale = "unit"', 'concept_scale = "percent"', "concept_scale must be"),
        ('name = "tiny"', "", "name must be a text"),
        ("[stage2]", "[stage3]", r"table \[stage2\] is missing"),
        ('digest = "sha256:', 'digest = "md5:', "stage1.digest must be"),
        ('file = "', 'file = "../', "stage1.file must name a file beside"),
        ("size_bytes = ", "size_bytes = -", "stage1.size_bytes must be"),
        ("[stage1]", "[stage1", "cannot be read"),
        ("[stage1]", "commit = 5\n[stage1]", "commit must be a text"),
        ("[stage1]", "operating_point = 3\n[stage1]", r"\[operating_point\] may hold peak_threshold and"),
        ("[stage1]", "operating_point = { heat = 0.2 }\n[stage1]", r"\[operating_point\] may hold"),
        ("[stage1]", "operating_point = { peak_threshold = 2 }\n[stage1]", "operating_point.peak_threshold must be a"),
        ("[stage1]", "operating_point = { peak_threshold = true }\n[stage1]", "must be a number from 0 to 1"),
        ("[stage1]", "[stage1]\nsource_file = 5", "stage1.source_file and source_digest must be texts"),
    ],
)
def test_bad_manifests_name_file_and_key(manifest: Path, old: str, new: str, message: str) -> None:
    text = manifest.read_text()
    assert old in text
    manifest.write_text(text.replace(old, new))
    with pytest.raises(WeightsCorrupt, match=rf"tiny\.toml.*{message}"):
        read_manifest(manifest)


@pytest.mark.parametrize("form", ["container", "bare", "rescue", "legacy format"])
def test_published_forms(tmp_path: Path, states: Any, form: str) -> None:
    path = tmp_path / "student.pth"
    content: dict[str, Any] = {"model_state_dict": states[1], **METADATA_2}
    if form == "bare":
        content = states[1]
    if form == "rescue":
        content = {"model_state_dict": states[1], "n_slices": 7, "note": "rescued"}
    torch.save(content, path, _use_new_zipfile_serialization=form != "legacy format")
    loaded = load_published_checkpoint(path, Student2p5D())
    assert loaded.keys() == states[1].keys()
    assert all(torch.equal(loaded[key], states[1][key]) for key in loaded)


def test_numpy_1_scalars_are_read(tmp_path: Path, states: Any) -> None:
    """A checkpoint saved under numpy 1 names the same function by its old module."""
    path = tmp_path / "old.pth"
    torch.save({"model_state_dict": states[1], **METADATA_2}, path, _use_new_zipfile_serialization=False)
    data = path.read_bytes()
    assert b"numpy._core.multiarray" in data
    path.write_bytes(data.replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    assert load_published_checkpoint(path, Student2p5D()).keys() == states[1].keys()


class Intruder:
    """What a hostile checkpoint would hold: unpickling it writes a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.system, (f"touch {self.target}",))


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("place", ["whole file", "metadata"])
def test_a_malicious_pickle_is_refused_and_not_run(tmp_path: Path, states: Any, zipped: bool, place: str) -> None:
    trace = tmp_path / "trace"
    intruder = Intruder(trace)
    content: Any = intruder if place == "whole file" else {"model_state_dict": states[1], "val": intruder}
    path = tmp_path / "evil.pth"
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(WeightsCorrupt, match=r"evil\.pth cannot be read as tensors and plain values"):
        load_published_checkpoint(path, Student2p5D())
    assert not trace.exists()


@pytest.mark.parametrize("content", [b"no checkpoint but a text", b"\x80\x02i", b""])
def test_what_is_no_checkpoint_is_told_without_advice_to_trust_it(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "some.pth"
    path.write_bytes(content)
    with pytest.raises(WeightsCorrupt, match=r"some\.pth cannot be read as tensors and plain values: [A-Z]") as caught:
        load_published_checkpoint(path, Student2p5D())
    assert "trust" not in str(caught.value)
    assert "weights_only" not in str(caught.value)


def test_a_plain_pickle_that_runs_code_is_refused(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    path = tmp_path / "evil.pkl"
    path.write_bytes(pickle.dumps(Intruder(trace), protocol=2))
    with pytest.raises(WeightsCorrupt, match="cannot be read"):
        load_published_checkpoint(path, Student2p5D())
    assert not trace.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "holds a list"),
        ({"model_state_dict": 3}, "model_state_dict is a int"),
        ({"state_dict": {}}, "keys are missing"),
        ({"model_state_dict": {"a": torch.zeros(1)}}, "51 keys are missing"),
        (torch.zeros(3), "holds a Tensor"),
        (torch.nn.Linear(2, 2), "cannot be read as tensors"),
        ({"val": np.zeros(3)}, "cannot be read as tensors"),
    ],
)
def test_other_contents_are_refused(tmp_path: Path, content: Any, message: str) -> None:
    path = tmp_path / "other.pth"
    torch.save(content, path)
    with pytest.raises(WeightsCorrupt, match=rf"other\.pth.*{message}"):
        load_published_checkpoint(path, Student2p5D())


def test_checkpoint_of_the_other_stage_is_refused(tmp_path: Path, states: Any) -> None:
    path = tmp_path / "stage1.pth"
    torch.save({"model_state_dict": states[0], **METADATA_1}, path)
    with pytest.raises(WeightsCorrupt, match="51 keys are missing"):
        load_published_checkpoint(path, Student2p5D())


def test_contradicting_metadata_is_refused(tmp_path: Path, states: Any) -> None:
    path = tmp_path / "nine.pth"
    torch.save({"model_state_dict": states[1], "n_slices": 9}, path)
    with pytest.raises(WeightsCorrupt, match="n_slices is 9, not 7"):
        load_published_checkpoint(path, Student2p5D())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.to_sparse(), "out.weight is sparse or without values"),
        (lambda t: t.to("meta"), "out.weight is sparse or without values"),
        (lambda t: t.double() * 1e300, "out.weight holds values that are not finite"),
    ],
    ids=["sparse", "meta", "beyond float32"],
)
def test_tensors_that_no_network_can_hold_are_refused(
    tmp_path: Path, states: Any, change: Callable[[torch.Tensor], torch.Tensor], message: str
) -> None:
    path = tmp_path / "other.pth"
    torch.save({**states[0], "out.weight": change(states[0]["out.weight"])}, path)
    with pytest.raises(WeightsCorrupt, match=message):
        load_published_checkpoint(path, HeatmapUNet3D())


@pytest.mark.parametrize("kind", ["missing", "empty", "text", "truncated"])
def test_broken_checkpoint_files(tmp_path: Path, states: Any, kind: str) -> None:
    path = tmp_path / "broken.pth"
    if kind == "empty":
        path.write_bytes(b"")
    elif kind == "text":
        path.write_text("version https://git-lfs.github.com/spec/v1\n")
    elif kind == "truncated":
        torch.save(states[1], path)
        os.truncate(path, path.stat().st_size // 2)
    expected = WeightsMissing if kind == "missing" else WeightsCorrupt
    with pytest.raises(expected, match=r"broken\.pth"):
        load_published_checkpoint(path, Student2p5D())


def test_manifests_and_registry_do_without_torch() -> None:
    code = (
        "import sys, pulmo_models.registry, pulmo_models.weights as w; w.list_sets(); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=300).returncode == 0
