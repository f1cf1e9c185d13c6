"""The pipeline `cxr-findings` with networks whose weights are made up, and every form of published checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.torch_version import TorchVersion

from pulmo_models import registry
from pulmo_models.codes import CautionCode, RejectionCode
from pulmo_models.cxr.classification import build, network_film
from pulmo_models.cxr.imports import import_findings
from pulmo_models.cxr.networks import ARCHITECTURES, classifier, load_published
from pulmo_models.cxr.settings import LABELS
from pulmo_models.errors import WeightsCorrupt, WeightsMissing
from pulmo_models.network_sets import read_networks
from pulmo_models.pipeline import Rejection
from tests.cxr_factory import radiograph_of, series_of, write_findings_set
from tests.radiograph_factory import film


def published(architecture: str, form: str, outputs: int = 5) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """A checkpoint as the published trainer writes it, and the state in it with one linear layer as head."""
    torch.manual_seed(1)
    state = classifier(architecture, outputs).state_dict()
    head = "fc" if architecture == "resnet50" else "classifier"
    behind = {
        key.replace(f"{head}.", f"{head}.1.") if key.startswith(f"{head}.") else key: v for key, v in state.items()
    }
    if form == "first":  # replaced only the last layer: EfficientNet kept its dropout
        return (behind if architecture == "efficientnet_b0" else dict(state)), state
    content = {
        "epoch": 3,
        "best_macro_auroc": 0.85,
        "model_state": behind if form == "second with dropout" else dict(state),
        "optimizer_state": {"state": {0: {"exp_avg": torch.zeros(2)}}, "param_groups": [{"lr": 1e-4}]},
        "config": {"model": architecture, "pytorch_version": TorchVersion("2.13.0"), "dropout": 0.0},
    }
    return content, state


class TestCheckpoints:
    @pytest.mark.parametrize("form", ["first", "second", "second with dropout"])
    @pytest.mark.parametrize("architecture", ARCHITECTURES)
    def test_every_published_form_loads(self, architecture: str, form: str, tmp_path: Path) -> None:
        content, state = published(architecture, form)
        torch.save(content, tmp_path / "best_model.pth")
        found, loaded = load_published(tmp_path / "best_model.pth")
        assert found == architecture
        assert list(loaded) == list(state)
        assert all(torch.equal(loaded[key], state[key]) for key in state)

    def test_the_config_needs_its_type_to_be_allowed(self, tmp_path: Path) -> None:
        """What the published evaluation fails on with weights_only."""
        torch.save(published("efficientnet_b0", "second")[0], tmp_path / "x.pth")
        with pytest.raises(Exception, match="TorchVersion"):
            torch.load(tmp_path / "x.pth", weights_only=True)

    @pytest.mark.parametrize(
        ("content", "words"),
        [
            (lambda: published("efficientnet_b0", "first", outputs=14)[0], r"shape \[14, 1280\], not \[5, 1280\]"),
            (lambda: {"layer9.weight": torch.zeros(3)}, "none of densenet121"),
            (lambda: {"model_state": 3}, "model_state is a int"),
            (lambda: {**published("resnet50", "first")[0], "surplus": torch.zeros(1)}, "1 keys are foreign"),
            (lambda: {k: v for k, v in published("resnet50", "first")[0].items() if k != "fc.bias"}, "fc.bias"),
            (lambda: [torch.zeros(3)], "not a state dict"),
            (lambda: {"model_state": Path("x")}, "cannot be read as tensors"),
        ],
    )
    def test_wrong_ones_are_refused_with_the_reason(self, content: Any, words: str, tmp_path: Path) -> None:
        torch.save(content(), tmp_path / "x.pth")
        with pytest.raises(WeightsCorrupt, match=words):
            load_published(tmp_path / "x.pth")

    def test_a_missing_file(self, tmp_path: Path) -> None:
        with pytest.raises(WeightsMissing, match=r"nothing\.pth"):
            load_published(tmp_path / "nothing.pth")

    def test_an_import_is_a_set(self, tmp_path: Path) -> None:
        for name in ("efficientnet_b0", "resnet50"):
            torch.save(published(name, "second")[0], tmp_path / f"{name}.pth")
        paths = [tmp_path / "efficientnet_b0.pth", tmp_path / "resnet50.pth"]
        weights = read_networks(import_findings(paths, tmp_path, thresholds=[0.1, 0.2, 0.3, 0.4, 0.5]))
        assert weights.pipeline == "cxr-findings"
        assert list(weights.networks) == ["efficientnet_b0", "resnet50"]
        assert weights.networks["resnet50"].source_file == "resnet50.pth"
        assert weights.settings == {"thresholds": [0.1, 0.2, 0.3, 0.4, 0.5]}
        with pytest.raises(WeightsCorrupt, match="2 thresholds"):
            import_findings(paths, tmp_path, thresholds=[0.1, 0.2])


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_findings_set(tmp_path_factory.mktemp("weights"), thresholds=[0.1, 0.2, 0.3, 0.4, 0.5])


class TestPipeline:
    def test_each_frontal_film_gets_five_scores_and_maps(self, manifest: Path) -> None:
        pipeline = build({"weights": str(manifest), "thresholds": {"Edema": 0.9}}, "cpu")
        films = (radiograph_of(uid="1.1"), radiograph_of(film(300, 220, seed=2), uid="1.2", view="AP"))
        found = pipeline(series_of(*films))
        assert found.pipeline == pipeline.info
        assert found.nodules == ()
        assert [image.source for image in found.images] == [film.source for film in films]
        for image, one in zip(found.images, films, strict=True):
            assert [score.label for score in image.class_scores] == list(LABELS)
            assert [score.threshold for score in image.class_scores] == [0.1, 0.2, 0.3, 0.9, 0.5]
            for score in image.class_scores:
                assert score.positive is (score.probability >= score.threshold)
                if score.heat_map is not None:
                    assert score.heat_map.values.shape == (7, 7)
                    assert (score.heat_map.values.min(), score.heat_map.values.max()) == (0, 1)
                    row, column = score.heat_map.peak
                    assert 0 <= row < one.pixels.shape[0]
                    assert 0 <= column < one.pixels.shape[1]
        assert any(score.heat_map is not None for score in found.images[0].class_scores)

    def test_the_probability_is_that_of_the_network(self, manifest: Path) -> None:
        one = radiograph_of()
        found = build({"weights": str(manifest)}, "cpu")(series_of(one)).images[0]
        torch.manual_seed(0)
        network = classifier("efficientnet_b0").eval()
        with torch.no_grad():
            expected = torch.sigmoid(network(network_film(one).values[None])[0])
        assert [score.probability for score in found.class_scores] == pytest.approx(expected.tolist(), abs=1e-5)

    def test_an_ensemble_is_the_mean_of_its_members(self, tmp_path: Path) -> None:
        names = ("efficientnet_b0", "efficientnet_b0")
        together = build({"weights": str(write_findings_set(tmp_path / "both", names))}, "cpu")
        torch.manual_seed(0)
        first = classifier("efficientnet_b0").eval()
        torch.manual_seed(1)
        second = classifier("efficientnet_b0").eval()
        one = radiograph_of()
        seen = network_film(one).values[None]
        with torch.no_grad():
            expected = (torch.sigmoid(first(seen)) + torch.sigmoid(second(seen)))[0] / 2
        found = together(series_of(one)).images[0].class_scores
        assert [score.probability for score in found] == pytest.approx(expected.tolist(), abs=1e-5)
        assert [stage.name for stage in together.info.stages] == ["efficientnet_b0 classifier"] * 2

    def test_the_map_lies_where_the_network_looked(self, manifest: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A network that only sees brightness: the peak of its map is the brightest corner of the film."""

        class Bright(nn.Module):
            def body(self, x: torch.Tensor) -> torch.Tensor:
                return nn.functional.avg_pool2d(x[:, :1], 32) + 3

            def classify(self, activations: torch.Tensor) -> torch.Tensor:
                return activations.mean(dim=(2, 3)).expand(-1, 5)

        monkeypatch.setattr("pulmo_models.cxr.classification.load_classifier", lambda spec: Bright())
        pixels = np.full((500, 400), 100.0)
        pixels[360:400, 80:120] = 4000
        (image,) = build({"weights": str(manifest)}, "cpu")(series_of(radiograph_of(pixels))).images
        for score in image.class_scores:
            assert score.heat_map is not None
            assert score.heat_map.peak == pytest.approx((380, 100), abs=32 * 400 / 255)

    def test_lateral_films_are_refused(self, manifest: Path) -> None:
        pipeline = build({"weights": str(manifest)}, "cpu")
        lateral = radiograph_of(view="lateral", view_position="LL")
        with pytest.raises(Rejection) as caught:
            pipeline(series_of(lateral))
        assert caught.value.code == RejectionCode.NOT_FRONTAL
        found = pipeline(series_of(lateral, radiograph_of()))
        assert [caution.code for caution in found.cautions] == [CautionCode.SET_ASIDE]
        assert len(build({"weights": str(manifest), "views": "all"}, "cpu")(series_of(lateral)).images) == 1

    @pytest.mark.parametrize(
        ("settings", "words"),
        [
            ({"views": "side"}, "views"),
            ({"thresholds": {"Fracture": 0.5}}, "thresholds"),
            ({"thresholds": {"Edema": 1.5}}, r"thresholds\.Edema"),
            ({"threshold": 0.5}, "threshold"),
        ],
    )
    def test_wrong_settings_are_named(self, settings: dict[str, Any], words: str) -> None:
        with pytest.raises(ValueError, match=words):
            build(settings)

    def test_the_registry_builds_it(self, manifest: Path) -> None:
        assert registry.build("cxr-findings", {"weights": str(manifest)}, "cpu").info.label == "cxr-findings"
        with pytest.raises(WeightsMissing):
            registry.build("cxr-findings", {"weights": "cxr-findings"}, "cpu")
