"""The engines of both stages: the same answers from each, and how one is chosen."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from pulmo_models.checkpoints import load_stage1, load_stage2
from pulmo_models.ct import engine as engines
from pulmo_models.ct.candidates import Candidate, CandidateSettings, find_candidates
from pulmo_models.ct.device import Runner, has_native_bf16
from pulmo_models.ct.engine import Engine, EngineChoice, choose_engine, set_threads
from pulmo_models.ct.heat import normalise
from pulmo_models.ct.openvino_engine import OpenVinoEngine
from pulmo_models.errors import DeviceOutOfMemory, DeviceUnavailable
from pulmo_models.nets.heatmap_unet3d import HeatmapUNet3D
from pulmo_models.nets.student2p5d import Detection2p5D, Student2p5D
from pulmo_models.training.series import read_ct
from pulmo_models.weights import load_set
from tests.conftest import ROOT, data_folder

CPU = torch.device("cpu")
SETTINGS = CandidateSettings(peak_threshold=0.1)
SPACING = (2.0, 0.7, 0.7)
SCORE_TOLERANCE = 0.02
WINDOW = (32, 64, 64)

needs_openvino = pytest.mark.skipif(not engines.installed(), reason="openvino is not installed")
ENGINES = [
    ("torch", "bf16"),
    pytest.param("openvino", "fp32", marks=needs_openvino),
    pytest.param("openvino", "bf16", marks=needs_openvino),
]


@pytest.fixture(scope="module")
def detector() -> HeatmapUNet3D:
    return load_stage1(load_set("pulmo-node-3"))


@pytest.fixture(scope="module")
def characteriser() -> Student2p5D:
    return load_stage2(load_set("pulmo-node-3"))


def phantom() -> np.ndarray:
    """Noise of the density of lung with vessels, a wall, and balls: a volume of two windows."""
    random = np.random.default_rng(2)
    hu = random.normal(-850, 40, (64, 128, 192)).astype(np.float32)
    hu[:, :12] = hu[:, -12:] = 40.0
    z, y, x = np.indices(hu.shape)
    for row, column in ((30, 40), (90, 140), (60, 100)):
        hu[(y - row - 0.3 * z) ** 2 + (x - column + 0.2 * z) ** 2 <= 9] = 30.0
    for centre, radius in (((20, 50, 70), 4), ((40, 90, 50), 6), ((30, 40, 150), 5), ((50, 70, 120), 8)):
        inside = sum(((a - c) * s) ** 2 for a, c, s in zip((z, y, x), centre, SPACING, strict=True)) <= radius**2
        hu[inside] = 30.0 + random.normal(0, 15, int(inside.sum()))
    return hu


def real_crop() -> np.ndarray:
    """A part of the right lung of a CT, with a spiculated nodule and vessels."""
    return read_ct(data_folder("ct_cptac_c3n-00247/dicom")).hu[20:84, 100:228, 40:232].copy()


@pytest.fixture(scope="module", params=["phantom", "real"])
def volume(request: pytest.FixtureRequest) -> np.ndarray:
    return phantom() if request.param == "phantom" else real_crop()


@pytest.fixture(scope="module")
def expected(volume: np.ndarray, detector: HeatmapUNet3D) -> list[Candidate]:
    found = find_candidates(volume, SPACING, Runner(detector, CPU, "fp32"), SETTINGS)
    assert len(found) >= 4
    return found


def make(name: str, precision: str, network: torch.nn.Module) -> Engine:
    return choose_engine(network, CPU, name, precision).make(network, CPU, 2)  # type: ignore[arg-type]


def unmatched(some: Sequence[Candidate], others: Sequence[Candidate]) -> list[Candidate]:
    """Those clearly above the threshold that have no candidate of the others within a voxel and the tolerance."""
    return [
        c
        for c in some
        if c.score >= SETTINGS.peak_threshold + SCORE_TOLERANCE
        and not any(
            np.abs(np.subtract(c.index, o.index)).max() <= 1 and abs(c.score - o.score) <= SCORE_TOLERANCE
            for o in others
        )
    ]


@pytest.mark.parametrize(("name", "precision"), ENGINES)
def test_every_engine_gives_the_candidates_of_torch_in_fp32(
    name: str, precision: str, volume: np.ndarray, expected: list[Candidate], detector: HeatmapUNet3D
) -> None:
    engine = make(name, precision, detector)
    assert (engine.name, engine.precision) == (name, precision)
    found = find_candidates(volume, SPACING, engine, SETTINGS)
    assert unmatched(expected, found) == []
    assert unmatched(found, expected) == []


@pytest.mark.parametrize(("name", "precision"), ENGINES)
def test_logits_are_not_rounded_to_bf16(name: str, precision: str, detector: HeatmapUNet3D) -> None:
    logits = make(name, precision, detector).run(torch.rand(1, 1, *WINDOW))
    assert logits.dtype == torch.float32
    assert len(torch.unique(logits)) > 10_000  # bf16 has some hundred values in their range


@needs_openvino
def test_openvino_in_fp32_is_the_module(detector: HeatmapUNet3D, characteriser: Student2p5D) -> None:
    window, patches = torch.rand(2, 1, *WINDOW), torch.rand(3, 7, 64, 64)
    with torch.inference_mode():
        logits, answers = detector(window), characteriser(patches)
    found = make("openvino", "fp32", detector).run(window)
    torch.testing.assert_close(found, logits, atol=2e-3, rtol=0)
    outputs = make("openvino", "fp32", characteriser)(patches)
    assert outputs.keys() == answers.keys()
    for key, value in answers.items():
        torch.testing.assert_close(outputs[key], value, atol=1e-3, rtol=0)


@pytest.mark.parametrize("name", ["torch", pytest.param("openvino", marks=needs_openvino)])
def test_detection_alone_is_that_of_the_whole(name: str, characteriser: Student2p5D) -> None:
    patches = torch.rand(3, 7, 64, 64)
    with torch.inference_mode():
        whole = characteriser(patches)["detection"]
    found = make(name, "fp32", Detection2p5D(characteriser))(patches)
    assert list(found) == ["detection"]
    torch.testing.assert_close(found["detection"], whole, atol=1e-3, rtol=0)


@needs_openvino
def test_openvino_takes_batches_and_windows_of_any_size(characteriser: Student2p5D, detector: HeatmapUNet3D) -> None:
    patches = torch.rand(4, 7, 64, 64)
    engine = make("openvino", "fp32", characteriser)
    whole, first = engine(patches)["detection"], engine(patches[:1])["detection"]
    torch.testing.assert_close(whole[:1], first, atol=1e-4, rtol=0)
    for window in ((16, 32, 32), (32, 32, 48)):
        assert make("openvino", "fp32", detector).run(torch.rand(1, 1, *window)).shape == (1, 1, *window)


@needs_openvino
def test_openvino_out_of_memory_is_named(detector: HeatmapUNet3D, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = OpenVinoEngine(detector, "fp32", 2)

    def full(shape: tuple[int, ...]) -> None:
        raise RuntimeError("bad allocation")

    monkeypatch.setattr(engine, "_request", full)
    with pytest.raises(DeviceOutOfMemory, match="HeatmapUNet3D does not fit into memory"):
        engine.run(torch.zeros(1, 1, *WINDOW))


def test_auto_takes_openvino_where_it_is_and_says_where_it_is_not(
    detector: HeatmapUNet3D, monkeypatch: pytest.MonkeyPatch
) -> None:
    native = "bf16" if has_native_bf16(CPU) else "fp32"
    monkeypatch.setattr(engines.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(engines, "installed", lambda: True)
    assert choose_engine(detector, CPU, "auto", "auto") == EngineChoice(name="openvino", precision=native)
    assert choose_engine(detector, CPU, "auto", "fp16").name == "torch"
    assert choose_engine(detector, torch.device("cuda"), "auto", "auto") == EngineChoice(name="torch", precision="bf16")
    other = choose_engine(torch.nn.Identity(), CPU, "auto", "auto")
    assert (other.name, "Identity" in other.reason) == ("torch", True)
    monkeypatch.setattr(engines.platform, "machine", lambda: "aarch64")
    assert choose_engine(detector, CPU, "auto", "fp32") == EngineChoice(name="torch", precision="fp32")
    monkeypatch.setattr(engines, "installed", lambda: False)
    without = choose_engine(detector, CPU, "auto", "fp32")
    assert without.name == "torch"
    assert without.reason == "Computed by torch: the package openvino is not installed."


@pytest.mark.parametrize(
    ("device", "precision", "installed", "words"),
    [
        ("cpu", "fp32", False, "is not installed"),
        ("cuda", "fp32", True, "not for the cuda device"),
        ("cpu", "fp16", True, "does not compute in fp16"),
    ],
)
def test_openvino_that_cannot_be_is_refused(
    device: str, precision: str, installed: bool, words: str, detector: HeatmapUNet3D, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "installed", lambda: installed)
    with pytest.raises(DeviceUnavailable, match=words):
        choose_engine(detector, torch.device(device), "openvino", precision)  # type: ignore[arg-type]


def test_threads_are_those_of_the_quota(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, seen = torch.get_num_threads(), []
    quota = tmp_path / "cpu.max"
    monkeypatch.setattr(engines, "_CPU_QUOTA", quota)
    monkeypatch.setattr(engines.torch, "get_num_threads", lambda: 8)
    monkeypatch.setattr(engines.torch, "set_num_threads", seen.append)
    assert set_threads() == 8  # there is no quota
    for text, threads in (("max 100000", 8), ("150000 100000", 2), ("50000 100000", 1), ("6400000 100000", 8)):
        quota.write_text(text)
        assert set_threads() == threads
    assert set_threads(5) == 5
    assert seen == [2, 1, 5]
    monkeypatch.undo()
    assert torch.get_num_threads() == before


@needs_openvino
def test_openvino_is_loaded_late_and_tells_nobody() -> None:
    code = """
import json, socket, sys
def refuse(*_): raise AssertionError("a connection")
socket.socket.connect = refuse
from pulmo_models import registry
import pulmo_models.ct.nodules
early = "openvino" in sys.modules
registry.build("ct-nodules", {"engine": "openvino", "threads": 1}, "cpu").warm_up()
reports = [name for name, module in sys.modules.items() if module and name.startswith("openvino_telemetry")]
print(json.dumps([early, "openvino" in sys.modules, reports]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert json.loads(done.stdout.splitlines()[-1]) == [False, True, []]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_compiled_is_the_module(detector: HeatmapUNet3D) -> None:
    window = torch.from_numpy(normalise(phantom()[None, None, :32, :64, :64]))
    engine = make("compiled", "fp32", detector)
    first = engine.run(window)
    engine.run(torch.zeros_like(window))  # does not write into what was given before
    with torch.inference_mode():
        torch.testing.assert_close(first, detector(window), atol=2e-3, rtol=0)
