"""A published network of one file, fetched by its digest or imported: a set, or a refusal with the reason."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from pulmo_models import published
from pulmo_models.checkpoints import load_network
from pulmo_models.downloads import fetch_file
from pulmo_models.errors import WeightsCorrupt, WeightsMissing, WeightsUnavailable, WeightsUnknown
from pulmo_models.nets.retinanet3d import PARAMETERS, TENSORS, RetinaNet3D
from pulmo_models.network_imports import fetch_network, import_network
from pulmo_models.network_sets import load_networks, read_networks, verify_any, write_networks
from pulmo_models.published import MONAI_LUNA16, PublishedNetwork
from pulmo_models.weights import load_set
from pulmo_node.analyse import Analyser
from pulmo_node.cli import app
from pulmo_node.errors import Permanent
from tests.hub_server import HubServer, hub_server
from tests.models.retinanet_factory import fill
from tests.models.test_weights import Intruder

State = dict[str, torch.Tensor]


def md5(content: bytes) -> str:
    return f"md5:{hashlib.md5(content).hexdigest()}"  # noqa: S324 - as the bundle publishes it


@pytest.fixture(scope="module")
def state() -> State:
    return dict(fill(RetinaNet3D()).state_dict())


@pytest.fixture(scope="module")
def bundle(state: State, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As MONAI's saver writes one object: the bare state."""
    path = tmp_path_factory.mktemp("bundle") / MONAI_LUNA16.file
    torch.save(OrderedDict(state), path)
    return path


@pytest.fixture(scope="module")
def model(bundle: Path) -> PublishedNetwork:
    return replace(MONAI_LUNA16, digest=md5(bundle.read_bytes()))


@pytest.fixture
def server(bundle: Path) -> Iterator[HubServer]:
    with hub_server("none/none", {bundle.name: bundle}) as running:
        yield running


def address(server: HubServer) -> str:
    return f"{server.store}/store/{MONAI_LUNA16.file}"


def test_the_published_facts() -> None:
    assert (MONAI_LUNA16.parameters, MONAI_LUNA16.tensors) == (PARAMETERS, TENSORS) == (20_902_741, 190)
    assert MONAI_LUNA16.digest == "md5:b2e732a7c2786e2f8398fa45293b1e73"
    assert MONAI_LUNA16.url == (
        "https://developer.download.nvidia.com/assets/Clara/monai/tutorials/model_zoo/model_lung_nodule_ct_detection.pt"
    )


def test_a_fetched_file_becomes_a_set(server: HubServer, model: PublishedNetwork, state: State, tmp_path: Path) -> None:
    folder = tmp_path / "weights"
    seen: list[tuple[str, int, int]] = []
    server.cuts.append(30_000_000)  # the connection breaks once, and goes on where it broke
    manifest = fetch_network(
        model, folder, url=address(server), progress=lambda file, done, total: seen.append((file, done, total))
    )
    (_, first), (_, second) = server.transfers()
    assert (first, second[:6]) == ("", "bytes=")
    assert seen[-1][1] == seen[-1][2] > 83_000_000
    found = load_networks("monai-luna16", "ct-retinanet", folder)
    assert (found.version, found.licence, found.origin) == ("published", "Apache-2.0", address(server))
    assert found.networks["detector"].source_digest == model.digest
    loaded = load_network(found.networks["detector"], RetinaNet3D()).state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in state.items())
    assert sorted(path.name for path in folder.iterdir()) == ["monai-luna16"]
    # The same again transfers nothing.
    before = len(server.transfers())
    assert fetch_network(model, folder, url=address(server)) == manifest
    assert len(server.transfers()) == before
    with pytest.raises(WeightsCorrupt, match="for the pipeline ct-retinanet, not for ct-lungs"):
        load_networks("monai-luna16", "ct-lungs", folder)
    # A set of another kind is no set of the two stages.
    with pytest.raises(WeightsCorrupt, match="concept_scale"):
        load_set(manifest)
    copy = manifest.with_name("copy.toml")
    write_networks(copy, found)
    assert read_networks(copy) == found
    (manifest.parent / found.networks["detector"].path.name).write_bytes(b"0")
    with pytest.raises(WeightsCorrupt, match="truncated"):
        verify_any(found)


def test_another_file_than_the_published_one_is_thrown_away(
    server: HubServer, model: PublishedNetwork, tmp_path: Path
) -> None:
    server.served[MONAI_LUNA16.file] = b"a page that says that the file has moved"
    with pytest.raises(WeightsUnavailable, match=r"not the published file: its digest is md5:[0-9a-f]{32}, not md5:"):
        fetch_network(model, tmp_path, url=address(server))
    assert not list(tmp_path.rglob("*.pt*"))


def test_faults_of_the_way_are_one_sentence(server: HubServer, tmp_path: Path) -> None:
    path = tmp_path / "file"
    with pytest.raises(WeightsUnavailable, match="answers 404"):
        fetch_file(f"{server.endpoint}/nothing", path, md5(b""))
    with pytest.raises(WeightsUnavailable, match="broke at 0 bytes"):
        fetch_file("http://127.0.0.1:9/x", path, md5(b""))
    with pytest.raises(WeightsUnavailable, match="cannot be asked"):
        fetch_file("ftp://127.0.0.1/x", path, md5(b""))


def test_a_transfer_that_was_cut_off_goes_on_later(server: HubServer, bundle: Path, tmp_path: Path) -> None:
    content = bundle.read_bytes()
    path = tmp_path / "file"
    path.with_name("file.part").write_bytes(content[:50_000_000])
    fetch_file(address(server), path, md5(content))
    assert path.read_bytes() == content
    assert server.transfers() == [(bundle.name, "bytes=50000000-")]


def test_both_published_forms_load(bundle: Path, model: PublishedNetwork, state: State, tmp_path: Path) -> None:
    import_network(model, bundle, tmp_path)
    assert load_networks("monai-luna16", "ct-retinanet", tmp_path).version == "published"
    # The node finds it by the default of the pipeline's table too; it knows the folder, the pipeline does not.
    assert Analyser({"ct-retinanet": {}}, "cpu", tmp_path).info("ct-retinanet").weights_name == "monai-luna16"
    with pytest.raises(Permanent, match="weights fetch monai-luna16"):
        Analyser({"ct-retinanet": {}}, "cpu").info("ct-retinanet")
    wrapped = tmp_path / "model.pt"
    torch.save({"model": OrderedDict(state)}, wrapped)
    with pytest.raises(WeightsUnknown, match="not the published file"):
        import_network(model, wrapped, tmp_path, name="mine")
    manifest = import_network(model, wrapped, tmp_path, name="mine", any_weights=True)
    found = read_networks(manifest)
    assert (found.version, found.licence) == ("imported", "not stated")
    loaded = load_network(found.networks["detector"], RetinaNet3D()).state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in state.items())


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        pytest.param({"regression_head.bbox_reg.bias": None}, "1 keys are missing, the first is regr", id="missing"),
        pytest.param({"fc.weight": torch.zeros(1)}, "1 keys are foreign, the first is fc.weight", id="foreign"),
        pytest.param(
            {"classification_head.cls_logits.bias": torch.zeros(6)}, r"has shape \[6\], not \[3\]", id="shape"
        ),
        pytest.param(
            {"feature_extractor.body.bn1.bias": torch.full((64,), torch.nan)}, "not finite", id="not a number"
        ),
        pytest.param(
            {"feature_extractor.body.bn1.num_batches_tracked": torch.zeros(())}, "no tensor of integers", id="counter"
        ),
        pytest.param(
            {"intruder": Intruder(Path("/nonexistent/trace"))}, "cannot be read as tensors and plain values", id="code"
        ),
    ],
)
def test_wrong_files_are_refused_with_the_reason(
    change: dict[str, Any], reason: str, state: State, model: PublishedNetwork, tmp_path: Path
) -> None:
    changed = {key: value for key, value in {**state, **change}.items() if value is not None}
    # Of the large tensors the shape decides first; they need not be written.
    path = tmp_path / "wrong.pt"
    torch.save(changed, path)
    folder = tmp_path / "weights"
    with pytest.raises(WeightsCorrupt, match=reason):
        import_network(model, path, folder, any_weights=True)
    assert not folder.exists()


def test_no_file_and_no_checkpoint(model: PublishedNetwork, tmp_path: Path) -> None:
    with pytest.raises(WeightsMissing, match="does not exist"):
        import_network(model, tmp_path / "none.pt", tmp_path)
    (tmp_path / "text.pt").write_text("no checkpoint")
    with pytest.raises(WeightsCorrupt, match="cannot be read"):
        import_network(model, tmp_path / "text.pt", tmp_path)
    torch.save(torch.zeros(3), tmp_path / "tensor.pt")
    with pytest.raises(WeightsCorrupt, match="holds a Tensor"):
        import_network(model, tmp_path / "tensor.pt", tmp_path)


def test_the_command_line_fetches_lists_verifies_and_uses(
    server: HubServer, bundle: Path, model: PublishedNetwork, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(published.NETWORKS, model.name, model)
    config = tmp_path / "node.toml"
    config.write_text(
        '[node]\nstorage = "var"\n[pipelines.ct-nodules]\n[pipelines.ct-retinanet]\nscore_threshold = 0.3\n'
        '[[rules]]\npipelines = ["ct-nodules"]\n',
        encoding="utf-8",
    )

    def said(*arguments: str, code: int = 0) -> str:
        result = CliRunner().invoke(app, ["weights", *arguments, "--config", str(config)])
        assert result.exit_code == code, result.output
        return " ".join(result.output.split())

    text = said("fetch", "monai-luna16", "--url", address(server))
    assert "Apache-2.0" in text
    assert "weights use monai-luna16 --pipeline ct-retinanet" in text
    assert "for ct-retinanet" in said("list")
    assert "monai-luna16: ok" in said("verify", "monai-luna16")
    said("use", "monai-luna16", "--pipeline", "ct-retinanet")
    assert 'weights = "monai-luna16"' in config.read_text(encoding="utf-8")
    assert "monai-luna16 (in use)" in said("list")
    refused = CliRunner().invoke(app, ["weights", "use", "monai-luna16", "--config", str(config)])
    assert "is a set for the pipeline ct-retinanet, not for ct-nodules" in str(refused.exception)
    said("import", str(bundle), "--model", "monai-luna16", "--name", "again")
    assert "again" in said("list")
    assert "two files are needed" in said("import", str(bundle), code=2)
    assert "comes from a hub" in said("fetch", "pulmo", "--url", "http://127.0.0.1:9/", code=2)
