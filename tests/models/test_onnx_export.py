"""The RetinaNet as ONNX: another runtime gives what torch gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from pulmo_models.nets.retinanet3d import RetinaNet3D
from pulmo_models.training import onnx
from pulmo_models.training.cli import app
from pulmo_models.training.onnx import OUTPUTS, ExportImpossible, export_onnx
from tests.made_up_sets import write_network_set
from tests.models.retinanet_factory import fill


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_network_set(tmp_path_factory.mktemp("weights"), "ct-retinanet", {"detector": fill(RetinaNet3D())})


def says_what_torch_says(path: Path, *shapes: tuple[int, int, int]) -> Any:
    """The session of another runtime, which gives the maps of the network for images of these shapes."""
    runtime = pytest.importorskip("onnxruntime")
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    assert tuple(output.name for output in session.get_outputs()) == OUTPUTS
    network = fill(RetinaNet3D())
    for shape in shapes:
        values = torch.rand(1, 1, *shape, generator=torch.Generator().manual_seed(1))
        said = session.run(None, {"image": values.numpy()})
        with torch.inference_mode():
            expected = list(network(values).values())
        for found, wanted in zip(said, expected, strict=True):
            np.testing.assert_allclose(found, wanted.numpy(), atol=2e-4)
    return session


@pytest.mark.slow
def test_another_runtime_says_the_same_at_any_size(manifest: Path, tmp_path: Path) -> None:
    path = export_onnx(str(manifest), tmp_path / "sub" / "some.onnx")
    says_what_torch_says(path, (64, 64, 32), (48, 80, 24))


def test_another_runtime_says_the_same_in_a_fixed_window(manifest: Path, tmp_path: Path) -> None:
    path = tmp_path / "fixed.onnx"
    result = CliRunner().invoke(app, ["export-onnx", str(manifest), str(path), "--window", "48,32,16"])
    assert result.exit_code == 0, result.output
    (image,) = says_what_torch_says(path, (48, 32, 16)).get_inputs()
    assert image.shape == [1, 1, 48, 32, 16]


def test_what_is_impossible_is_said(manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "none.onnx"
    with pytest.raises(ExportImpossible, match=r"divisible by \(16, 16, 8\)"):
        export_onnx(str(manifest), path, window=(40, 32, 16))

    def missing(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(onnx.importlib, "import_module", missing)
    with pytest.raises(ExportImpossible, match=r"pip install 'pulmo-node\[onnx\]'"):
        export_onnx(str(manifest), path)
