"""The pipeline `cxr-lung-risk`: members, combination, preprocessing and checkpoints, with weights that are made up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from pulmo_models import registry
from pulmo_models.codes import RejectionCode
from pulmo_models.cxr import lung_risk
from pulmo_models.cxr.films import normalised
from pulmo_models.cxr.imports import LUNG_RISK_FILE, import_lung_risk
from pulmo_models.cxr.lung_risk import MEMBERS, build, load_published, network_film, regressor, risk_group, score
from pulmo_models.errors import WeightsCorrupt, WeightsMissing
from pulmo_models.network_sets import read_networks
from pulmo_models.pipeline import Rejection
from tests.conftest import data_folder
from tests.cxr_factory import radiograph_of, series_of
from tests.radiograph_factory import film

# The published file of weights, typed in once more: 20 lines in the order of the networks' numbers.
PUBLISHED_WEIGHTS = [
    -1.1551714, 0, 2.0036473, -1.6726215, 1.8010226, -0.4853279, 0, 0, 0, -0.2161772, 0.9842884, 0, -0.1226132, 0,
    2.9479456, 2.7946917, -0.8413967, 2.7057807, 0.9817661, 0,
]  # fmt: skip
ARCHITECTURES = {
    "inceptionv4": {0, 1, 2, 5, 6, 8, 10, 11, 13, 15, 19},
    "resnet34": {7, 9, 12, 18},
    "tiny": {3, 4, 14, 16, 17},
}


class TestScore:
    def test_members_and_weights_are_the_published_ones(self) -> None:
        assert {number: weight for number, (_, weight) in MEMBERS.items()} == {
            number: weight for number, weight in enumerate(PUBLISHED_WEIGHTS) if weight
        }
        assert len(MEMBERS) == 13
        assert sum(weight for _, weight in MEMBERS.values()) == pytest.approx(9.7258345)
        assert all(number in ARCHITECTURES[architecture] for number, (architecture, _) in MEMBERS.items())

    def test_combination(self) -> None:
        assert score(dict.fromkeys(MEMBERS, 0.0)) == 49.8484258
        assert score(dict.fromkeys(MEMBERS, 1.0)) == pytest.approx(49.8484258 + 9.7258345)
        assert score({**dict.fromkeys(MEMBERS, 0.0), 14: 2.0}) == pytest.approx(49.8484258 + 2 * 2.9479456)

    @pytest.mark.parametrize(
        ("value", "group"),
        [(64.99, "below 65"), (65.0, "65 to below 75"), (74.99, "65 to below 75"), (75.0, "75 and above")],
    )
    def test_groups(self, value: float, group: str) -> None:
        assert risk_group(value) == group


class TestFilm:
    def test_a_film_of_the_right_size_is_left_alone(self) -> None:
        """The published samples are 224 x 224 already; neither way of resizing acts on them."""
        path = data_folder("cxr_png/cxr-lung-risk_dummy/A.png")
        picture = Image.open(path).convert("RGB")
        assert picture.size == (224, 224)
        for resize in ("crop", "squash"):
            assert np.array_equal(lung_risk.squared(picture, resize), np.asarray(picture))

    def test_a_frame_is_trimmed_and_the_rest_stretched(self) -> None:
        pixels = np.full((700, 600), 7.0)
        inside = np.tile(np.linspace(100, 300, 400), (500, 1))
        pixels[50:550, 120:520] = inside
        seen = network_film(pixels, "squash")
        assert seen.shape == (224, 224)
        assert seen.min() <= 1
        assert seen.max() >= 254
        assert np.ptp(seen, axis=0).max() == 0  # nothing of the frame above or below
        np.testing.assert_allclose(seen[0], np.linspace(0, 255, 224), atol=2)

    def test_crop_takes_the_middle_square_and_squash_all(self) -> None:
        pixels = np.tile(np.repeat([0.0, 500.0, 1000.0], 300), (300, 1))
        pixels[0, 0] = 1.0  # so that nothing is trimmed
        cropped, squashed = (network_film(pixels, resize) for resize in ("crop", "squash"))
        assert cropped[:, 20:-20].min() == cropped[:, 20:-20].max() == 128
        assert squashed[100, 10] == 0
        assert squashed[100, -10] == 255

    def test_the_shape_of_a_chest_is_kept(self) -> None:
        wide = network_film(film(300, 300).astype(float), "crop")
        flat = network_film(film(300, 300)[::2].astype(float), "crop", pixel_aspect=2.0)
        assert np.abs(wide.astype(float) - flat).mean() < 6

    def test_a_film_of_one_colour(self) -> None:
        assert not network_film(np.full((50, 60), 3.0), "crop").any()


class TestCheckpoints:
    @pytest.mark.parametrize("architecture", ARCHITECTURES)
    def test_both_published_forms_load(self, architecture: str, tmp_path: Path) -> None:
        network = regressor(architecture)
        state = network.state_dict()
        for number, content in enumerate((state, {"model": state, "opt": {"state": [], "hypers": [{"lr": 0.1}]}})):
            torch.save(content, tmp_path / f"{number}.pth")
            loaded = load_published(tmp_path / f"{number}.pth", architecture)
            assert list(loaded) == list(state)
            assert all(torch.equal(loaded[key], state[key]) for key in state)

    def test_wrong_ones_are_refused_with_the_reason(self, tmp_path: Path) -> None:
        state = regressor("tiny").state_dict()
        torch.save(state, tmp_path / "tiny.pth")
        with pytest.raises(WeightsCorrupt, match="keys are missing"):
            load_published(tmp_path / "tiny.pth", "resnet34")
        torch.save({"model": state, "opt": None, "epoch": 3}, tmp_path / "more.pth")
        with pytest.raises(WeightsCorrupt, match="keys are missing"):
            load_published(tmp_path / "more.pth", "tiny")
        torch.save({"model": 3, "opt": None}, tmp_path / "none.pth")
        with pytest.raises(WeightsCorrupt, match="model is a int"):
            load_published(tmp_path / "none.pth", "tiny")
        with pytest.raises(WeightsMissing):
            load_published(tmp_path / "missing.pth", "tiny")


class Told(nn.Module):
    """A regressor with one parameter: times the mean of the film."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.ones(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.factor * x.mean(dim=(1, 2, 3))[:, None]


@pytest.fixture
def manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Thirteen members of one parameter each, imported from files of the published names."""
    monkeypatch.setattr(lung_risk, "regressor", lambda architecture: Told())
    for number in MEMBERS:
        torch.save({"factor": torch.tensor([0.1 * number])}, tmp_path / LUNG_RISK_FILE.format(number))
    return import_lung_risk(tmp_path, tmp_path / "sets")


class TestPipeline:
    def test_score_of_each_film(self, manifest: Path) -> None:
        pipeline = build({"weights": str(manifest)}, "cpu")
        films = (radiograph_of(uid="1.1"), radiograph_of(film(400, 300, seed=4), uid="1.2"))
        found = pipeline(series_of(*films))
        for image, one in zip(found.images, films, strict=True):
            mean = float(normalised(network_film(one.pixels, "crop")).mean())
            expected = 49.8484258 + sum(w * 0.1 * n * mean for n, w in enumerate(PUBLISHED_WEIGHTS))
            (estimate,) = image.estimates
            assert estimate.value == pytest.approx(expected, abs=1e-4)
            assert (estimate.label, estimate.unit) == ("CXR-Lung-Risk", "a")
            assert estimate.group == risk_group(estimate.value)
            assert image.class_scores == ()

    def test_resizing_is_a_setting_and_told(self, manifest: Path) -> None:
        wide = radiograph_of(film(200, 400))
        values = {}
        for resize in ("crop", "squash"):
            pipeline = build({"weights": str(manifest), "resize": resize}, "cpu")
            values[resize] = pipeline(series_of(wide)).images[0].estimates[0].value
            assert pipeline.info.stages[0].parameters["resize"] == resize
        assert values["crop"] != values["squash"]

    def test_lateral_films_are_refused(self, manifest: Path) -> None:
        with pytest.raises(Rejection) as caught:
            build({"weights": str(manifest)}, "cpu")(series_of(radiograph_of(view="lateral")))
        assert caught.value.code == RejectionCode.NOT_FRONTAL

    def test_a_set_without_all_members(self, manifest: Path) -> None:
        text = manifest.read_text(encoding="utf-8")
        manifest.write_text(text.replace("[networks.member09]", "[networks.member07]"), encoding="utf-8")
        with pytest.raises(WeightsCorrupt, match="13 members"):
            build({"weights": str(manifest)}, "cpu")

    def test_a_missing_member_is_named(self, manifest: Path) -> None:
        folder = manifest.parent.parent.parent
        (folder / LUNG_RISK_FILE.format(15)).unlink()
        with pytest.raises(WeightsMissing, match=r"Lung_Age_081221_15\.pth"):
            import_lung_risk(folder, folder / "again")

    def test_where_it_comes_from_is_told(self, manifest: Path) -> None:
        weights = read_networks(manifest, "cxr-lung-risk")
        assert "7941660" in weights.origin
        assert weights.networks["member15"].source_file == "Lung_Age_081221_15.pth"

    @pytest.mark.parametrize("settings", [{"resize": "stretch"}, {"view": "all"}])
    def test_wrong_settings_are_named(self, settings: dict[str, Any]) -> None:
        with pytest.raises(ValueError, match=next(iter(settings))):
            build(settings)

    def test_the_registry_builds_it(self, manifest: Path) -> None:
        assert registry.build("cxr-lung-risk", {"weights": str(manifest)}, "cpu").info.label == "cxr-lung-risk"


@pytest.mark.slow
def test_the_real_members_score_the_published_samples(tmp_path: Path) -> None:
    """With made-up weights: the same as the members one by one on the samples."""
    for number, (architecture, _) in MEMBERS.items():
        torch.manual_seed(number)
        torch.save(regressor(architecture).state_dict(), tmp_path / LUNG_RISK_FILE.format(number))
    pipeline = build({"weights": str(import_lung_risk(tmp_path, tmp_path))}, "cpu")
    picture = Image.open(data_folder("cxr_png/cxr-lung-risk_dummy/A.png")).convert("L")
    one = radiograph_of(np.asarray(picture, dtype=np.float32))
    (estimate,) = pipeline(series_of(one)).images[0].estimates
    seen = normalised(network_film(one.pixels, "crop"))[None]
    expected = 49.8484258
    for number, (architecture, weight) in MEMBERS.items():
        torch.manual_seed(number)
        with torch.no_grad():
            expected += weight * float(regressor(architecture).eval()(seen))
    assert estimate.value == pytest.approx(expected, abs=1e-3)
