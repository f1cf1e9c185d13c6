"""`pulmo-train cxr`: collections, figures, and a whole training on made-up films."""

from __future__ import annotations

import csv
import json
import re
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from pulmo_models.cxr.films import cropped
from pulmo_models.cxr.imports import import_findings
from pulmo_models.cxr.networks import classifier, load_published
from pulmo_models.cxr.settings import LABELS
from pulmo_models.network_sets import read_networks
from pulmo_models.training.cli import app
from pulmo_models.training.films.collections import (
    FilmOptions,
    FilmSample,
    FilmsInvalid,
    check_patients,
    read_films,
    split_of,
    subset,
)
from pulmo_models.training.films.data import Films, random_crop
from pulmo_models.training.films.figures import Scored, areas, average_precision, figures
from pulmo_models.training.films.module import COLUMNS, read_log
from pulmo_models.training.films.train import FilmTraining, new_classifier
from tests.conftest import data_folder
from tests.models.film_folders import chexpert_folder, nih_folder

CPU = torch.device("cpu")


class TestCollections:
    def test_chexpert(self, tmp_path: Path) -> None:
        root = chexpert_folder(tmp_path)
        for folder in (root, tmp_path):  # the folder itself, or the one that holds it
            samples = read_films(folder, FilmOptions())
            assert len(samples) == 24
            assert all("frontal" in sample.path.name for sample in samples)
        by_patient = {sample.patient: sample for sample in samples}
        # the columns: 1, blank, -1, 1, 0 for the even patients, 0, blank, -1, blank, 1 for the odd ones
        assert by_patient["patient00002"].targets == (1, 0, 1, 1, 0)
        assert by_patient["patient00003"].targets == (0, 0, 1, 0, 1)
        assert {sample.split for sample in samples if sample.patient >= "patient00100"} == {"test"}
        assert {sample.split for sample in samples if sample.patient < "patient00100"} == {"train", "validation"}

    def test_uncertain_labels_and_views(self, tmp_path: Path) -> None:
        chexpert_folder(tmp_path, 4)
        zeros = read_films(tmp_path, FilmOptions(uncertain="zeros", views="all"))
        assert len(zeros) == 16
        assert {sample.targets[2] for sample in zeros} == {0}

    def test_as_published(self, tmp_path: Path) -> None:
        chexpert_folder(tmp_path)
        samples = read_films(tmp_path, FilmOptions(published=True))
        assert Counter(sample.split for sample in samples) == {"train": 12, "test": 12}

    def test_nih(self, tmp_path: Path) -> None:
        samples = read_films(nih_folder(tmp_path), FilmOptions())
        assert len(samples) == 40
        assert samples[0].targets == (0, 1, 0, 0, 1)
        assert samples[4].targets == (0, 0, 0, 0, 0)
        assert {sample.split for sample in samples} == {"train", "validation", "test"}

    def test_the_pack(self) -> None:
        samples = read_films(data_folder("cxr_png/nih_chestxray14"), FilmOptions())
        counts = dict(zip(LABELS, np.sum([sample.targets for sample in samples], axis=0).tolist(), strict=True))
        assert counts == {
            "Atelectasis": 65,
            "Cardiomegaly": 42,
            "Consolidation": 58,
            "Edema": 16,
            "Pleural Effusion": 63,
        }
        assert Counter(sample.split for sample in samples) == {"train": 283, "validation": 114, "test": 90}

    def test_what_is_wrong_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(FilmsInvalid, match=r"none of train\.csv"):
            read_films(tmp_path, FilmOptions())
        root = nih_folder(tmp_path / "nih", 4)
        (root / "images" / "00000002_000.png").unlink()
        with pytest.raises(FilmsInvalid, match=r"1 of 4 films are not there.*00000002_000\.png"):
            read_films(root, FilmOptions())
        chexpert = chexpert_folder(tmp_path / "chexpert", 2)
        text = (chexpert / "train.csv").read_text(encoding="utf-8")
        (chexpert / "train.csv").write_text(text.replace("Edema", "Oedema"), encoding="utf-8")
        with pytest.raises(FilmsInvalid, match="no column Edema"):
            read_films(chexpert, FilmOptions())
        (chexpert / "train.csv").write_text(text.replace("-1.0", "maybe"), encoding="utf-8")
        with pytest.raises(FilmsInvalid, match="'maybe' is no label"):
            read_films(chexpert, FilmOptions())

    def test_a_patient_in_two_splits(self, tmp_path: Path) -> None:
        one = FilmSample(path=tmp_path / "a.png", patient="7", targets=(0.0,) * 5, split="train")
        with pytest.raises(FilmsInvalid, match="in train and in test"):
            check_patients([one, replace(one, split="test")])

    def test_a_share_by_patient_or_by_image(self) -> None:
        samples = [
            FilmSample(path=Path(f"{n}.png"), patient=str(n // 4), targets=(0.0,) * 5, split="train") for n in range(40)
        ]
        samples.append(replace(samples[0], patient="x", split="test"))
        by_patient = subset(samples, 0.5, "patient", 42)
        assert [s.patient for s in by_patient].count("x") == 1
        assert set(Counter(s.patient for s in by_patient if s.split == "train").values()) == {4}
        assert len(by_patient) == 21
        by_image = subset(samples, 0.5, "image", 42)
        assert len(by_image) == 21
        assert len({s.patient for s in by_image}) > 6
        assert subset(samples, 0.5, "patient", 42) == by_patient
        assert subset(samples, 0.5, "patient", 46) != by_patient

    def test_the_split_of_a_patient_never_changes(self) -> None:
        assert [split_of(str(n)) for n in range(8)] == [
            "train", "validation", "train", "test", "train", "validation", "train", "train",
        ]  # fmt: skip
        shares = Counter(split_of(f"patient{n}") for n in range(5000))
        assert shares["train"] / 5000 == pytest.approx(0.6, abs=0.03)


class TestFilms:
    def test_what_validates_is_what_the_pipeline_sees(self, tmp_path: Path) -> None:
        samples = read_films(nih_folder(tmp_path, 4), FilmOptions())
        image, targets = Films(samples, seed=1, augmented=False)[0]
        from PIL import Image  # noqa: PLC0415

        film = np.asarray(Image.open(samples[0].path))
        assert torch.equal(image, cropped(film, 1.0, 255, 224).values)
        assert targets.tolist() == list(samples[0].targets)

    def test_an_item_of_an_epoch_is_always_the_same(self, tmp_path: Path) -> None:
        samples = read_films(nih_folder(tmp_path, 4), FilmOptions())
        films, again = (Films(samples, seed=1, augmented=True) for _ in range(2))
        assert torch.equal(films[2][0], again[2][0])
        again.epoch = 1
        assert not torch.equal(films[2][0], again[2][0])

    def test_the_heart_stays_on_its_side_unless_as_published(self) -> None:
        film = np.zeros((100, 100), dtype=np.uint8)
        film[:, 70:] = 255
        plain = [random_crop(film, np.random.default_rng(n), mirrored=False) for n in range(40)]
        assert all(crop[:, 200:].mean() > crop[:, :24].mean() for crop in plain)
        assert {crop.shape for crop in plain} == {(224, 224)}
        sides = [
            crop[:, 200:].mean() > crop[:, :24].mean()
            for crop in (random_crop(film, np.random.default_rng(n), mirrored=True) for n in range(40))
        ]
        assert 8 < sum(sides) < 32


class TestFigures:
    def test_average_precision_by_hand(self) -> None:
        positive = np.array([True, False, True, False])
        assert average_precision([0.9, 0.8, 0.7, 0.1], positive) == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)
        assert average_precision([0.5, 0.5, 0.5, 0.5], positive) == pytest.approx(0.5)
        assert np.isnan(average_precision([0.5, 0.5], np.array([True, True])))
        assert average_precision([0.9, 0.8, 0.7], positive[:3], [1, 2, 1]) == pytest.approx(0.5 + 0.5 * 2 / 4)

    def test_a_label_with_one_class_is_left_out_of_the_means(self) -> None:
        targets = np.array([[1, 0, 0, 0, 1], [0, 0, 0, 0, 0], [1, 0, 1, 0, 0]], dtype=float)
        probabilities = np.array([[0.9, 0.1, 0.1, 0.5, 0.2], [0.1, 0.2, 0.2, 0.5, 0.9], [0.8, 0.3, 0.3, 0.5, 0.1]])
        found = areas(Scored(probabilities=probabilities, targets=targets, patients=["a", "b", "c"]))
        assert np.isnan(found["auc_Cardiomegaly"])
        assert found["macro_auroc"] == pytest.approx((1 + 1 + 0.5) / 3)

    def test_intervals_hold_the_value_and_are_drawn_by_patient(self) -> None:
        random = np.random.default_rng(3)
        targets = (random.random((120, 5)) < 0.4).astype(float)
        probabilities = np.clip(0.5 * targets + random.random((120, 5)) * 0.7, 0, 1)
        patients = [str(n // 2) for n in range(120)]
        found = figures(Scored(probabilities=probabilities, targets=targets, patients=patients), 1, 200)
        for name, figure in found.items():
            low, high = figure["ci95"]
            assert low < figure["value"] < high, name
        assert found["auc_Edema"]["films"] == 120


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cxr")
    nih_folder(folder / "nih", 13)
    command = ["cxr", str(folder / "nih"), "--model", "efficientnet_b0", "--work", str(folder / "runs")]
    command += ["--epochs", "2", "--batch", "4", "--dropout", "0.1", "--device", "cpu"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    assert "AUROC_Cardiomegaly" in result.output
    return folder / "runs" / "cxr-efficientnet_b0"


class TestTraining:
    def test_it_leaves_the_published_files(self, trained: Path) -> None:
        rows = read_log(trained)
        assert [row["epoch"] for row in rows] == ["1", "2"]
        assert tuple(rows[0]) == COLUMNS
        config = json.loads((trained / "run_config.json").read_text(encoding="utf-8"))
        assert (config["model"], config["epochs"], config["dropout"], config["seed"]) == ("efficientnet_b0", 2, 0.1, 42)
        assert config["training_time_seconds"] > 0
        assert (trained / "curves.png").stat().st_size > 5000
        with (trained / "final_evaluation_results.csv").open(encoding="utf-8") as file:
            (row,) = csv.DictReader(file)
        assert list(row)[:2] == ["Model", "AUROC_Atelectasis"]
        assert 0 <= float(row["AUROC_Cardiomegaly"]) <= 1
        assert row["AUROC_Edema"] == ""  # no film has it
        assert "95 % interval" in (trained / "final_evaluation_results.md").read_text(encoding="utf-8")

    def test_the_best_model_is_a_published_checkpoint_and_becomes_a_set(self, trained: Path, tmp_path: Path) -> None:
        content = torch.load(trained / "best_model.pth", weights_only=True)
        assert content.keys() == {"epoch", "best_macro_auroc", "model_state", "optimizer_state", "config"}
        best = max(read_log(trained), key=lambda row: float(row["val_macro_auroc"]))
        assert content["best_macro_auroc"] == pytest.approx(float(best["val_macro_auroc"]))
        architecture, state = load_published(trained / "best_model.pth")
        assert architecture == "efficientnet_b0"
        classifier(architecture).load_state_dict(state)
        weights = read_networks(import_findings([trained / "best_model.pth"], tmp_path))
        assert list(weights.networks) == ["efficientnet_b0"]

    def test_run_again_it_is_only_looked_up(self, trained: Path) -> None:
        before = (trained / "best_model.pth").stat().st_mtime_ns
        command = [
            "cxr",
            str(trained.parent.parent / "nih"),
            "--model",
            "efficientnet_b0",
            "--work",
            str(trained.parent),
        ]
        command += ["--epochs", "2", "--batch", "4", "--dropout", "0.1", "--device", "cpu"]
        assert CliRunner().invoke(app, command).exit_code == 0
        assert (trained / "best_model.pth").stat().st_mtime_ns == before
        other = CliRunner().invoke(app, [*command[:-4], "--dropout", "0.2", "--device", "cpu"])
        assert other.exit_code == 1
        assert "dropout is 0.1 there" in other.output

    def test_other_films_are_another_training(self, trained: Path, tmp_path: Path) -> None:
        """They were taken for trained already, and the figures of the first films shown as theirs."""
        shutil.copytree(trained.parent.parent / "nih", tmp_path / "moved")
        nih_folder(tmp_path / "other", 12)
        command = ["--model", "efficientnet_b0", "--work", str(trained.parent), "--epochs", "2", "--batch", "4"]
        command += ["--dropout", "0.1", "--device", "cpu"]
        assert CliRunner().invoke(app, ["cxr", str(tmp_path / "moved"), *command]).exit_code == 0
        other = CliRunner().invoke(app, ["cxr", str(tmp_path / "other"), *command])
        assert other.exit_code == 1
        assert "holds another training: films is" in " ".join(other.output.split())

    @pytest.mark.slow
    def test_it_goes_on_where_it_stopped(self, trained: Path, tmp_path: Path) -> None:
        """Stopped after the first epoch: the second is the one that a training in one go has."""
        command = ["cxr", str(trained.parent.parent / "nih"), "--model", "efficientnet_b0", "--work", str(tmp_path)]
        command += ["--batch", "4", "--dropout", "0.1", "--device", "cpu"]
        assert CliRunner().invoke(app, [*command, "--epochs", "1"]).exit_code == 0
        folder = tmp_path / "cxr-efficientnet_b0"
        run = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        (folder / "run.json").write_text(json.dumps({**run, "epochs": 2, "finished": False}), encoding="utf-8")
        assert CliRunner().invoke(app, [*command, "--epochs", "2"]).exit_code == 0
        one_go, in_two = read_log(trained), read_log(folder)
        assert [row["epoch"] for row in in_two] == ["1", "2"]
        for row, again in zip(one_go, in_two, strict=True):
            assert float(again["val_loss"]) == pytest.approx(float(row["val_loss"]), rel=1e-4)

    def test_to_begin_with_other_weights(self, tmp_path: Path) -> None:
        training = FilmTraining(data=tmp_path, work=tmp_path, architecture="efficientnet_b0", device=CPU, dropout=0.2)
        imagenet = classifier("efficientnet_b0", outputs=1000)
        torch.save(imagenet.state_dict(), tmp_path / "imagenet.pth")
        begun = new_classifier(replace(training, start=tmp_path / "imagenet.pth"))
        assert torch.equal(begun.features[0][0].weight, imagenet.features[0][0].weight)
        assert begun.state_dict()["classifier.1.weight"].shape == (5, 1280)
        earlier = classifier("efficientnet_b0")
        torch.save(earlier.state_dict(), tmp_path / "earlier.pth")
        begun = new_classifier(replace(training, start=tmp_path / "earlier.pth"))
        assert torch.equal(begun.state_dict()["classifier.1.weight"], earlier.classifier.weight)

    def test_to_begin_with_a_densenet_as_torchvision_keeps_it(self, tmp_path: Path) -> None:
        """Its file is of 2017: a dot within the names of a dense layer, and no counters of batches."""
        training = FilmTraining(data=tmp_path, work=tmp_path, architecture="densenet121", device=CPU)
        imagenet = classifier("densenet121", outputs=1000)
        state = {
            re.sub(r"(denselayer\d+\.(?:norm|conv))([12])", r"\1.\2", key): value
            for key, value in imagenet.state_dict().items()
            if not key.endswith("num_batches_tracked")
        }
        assert "features.denseblock1.denselayer1.norm.1.running_mean" in state
        torch.save(state, tmp_path / "densenet121-a639ec97.pth")
        begun = new_classifier(replace(training, start=tmp_path / "densenet121-a639ec97.pth")).state_dict()
        assert begun["classifier.weight"].shape == (5, 1024)
        for key, value in imagenet.state_dict().items():
            assert key.startswith("classifier.") or torch.equal(begun[key], value), key


def test_errors_are_one_sentence(tmp_path: Path) -> None:
    shutil.copytree(nih_folder(tmp_path / "nih", 2), tmp_path / "few")
    result = CliRunner().invoke(
        app, ["cxr", str(tmp_path / "few"), "--work", str(tmp_path / "runs"), "--device", "cpu"]
    )
    assert result.exit_code == 1
    assert "error: there are no films to" in result.output
