"""The command line: what it prints, what it writes and its exit codes."""

from __future__ import annotations

import io
import json
import re
import shutil
from pathlib import Path

import pytest
from PIL import Image
from pydicom import dcmread
from rich.console import Console
from typer.main import get_command
from typer.testing import CliRunner

from pulmo_node.app import SystemClock
from pulmo_node.cli import app, main
from pulmo_node.console import print_studies
from pulmo_node.domain.jobs import NewJob
from pulmo_node.domain.series import StoredInstance
from pulmo_node.errors import PulmoError
from pulmo_node.ports import StudySummary
from pulmo_node.store import SqlStore
from pulmo_node.testing import SmallPacs
from tests.conftest import ROOT
from tests.ct_factory import write_datasets
from tests.encode_factory import chest_datasets
from tests.fake_pipeline import REJECTED_DESCRIPTION, fake_pipeline

__all__ = ["fake_pipeline"]

runner = CliRunner()


def commands() -> list[str]:
    found = []
    for name, command in get_command(app).commands.items():  # type: ignore[attr-defined]
        inner = getattr(command, "commands", None)
        found += [f"{name} {sub}" for sub in inner] if inner else [name]
    return found


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "node.toml"
    path.write_text('[node]\nstorage = "var"\n', encoding="utf-8")
    return path


@pytest.fixture
def known_study(tmp_path: Path) -> str:
    """A database with one complete series that has a queued job."""
    (tmp_path / "var").mkdir()
    with SqlStore(f"sqlite:///{tmp_path / 'var' / 'pulmo.sqlite'}", SystemClock()) as store:
        store.record_instance(
            StoredInstance(
                study_instance_uid="1.2.3",
                series_instance_uid="1.2.3.4",
                sop_instance_uid="1.2.3.4.5",
                sop_class_uid="1.2.840.10008.5.1.4.1.1.2",
                transfer_syntax_uid="1.2.840.10008.1.2.1",
                modality="CT",
                calling_ae_title="SCANNER",
                path="instances/1.2.3/1.2.3.4/1.2.3.4.5.dcm",
                sha256="0" * 64,
                size_bytes=1,
                received_at=SystemClock().now(),
            )
        )
        detail = store.study("1.2.3")
        assert detail is not None
        store.complete_series(detail.series[0], [NewJob(pipeline="ct-nodules", destinations=())], None)
    return "1.2.3"


@pytest.mark.parametrize("command", commands())
def test_every_command_has_help_and_stands_in_the_readme(command: str) -> None:
    result = runner.invoke(app, [*command.split(), "--help"])
    assert result.exit_code == 0
    assert len(result.output.splitlines()) > 4
    assert f"`{command}" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_readme_names_no_command_that_does_not_exist() -> None:
    table = re.findall(r"^\| `([a-z-]+(?: [a-z-]+)?)", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert set(table) == set(commands())


def test_studies_and_show_in_words_and_as_json(config: Path, known_study: str) -> None:
    listed = runner.invoke(app, ["studies", "-c", str(config), "--json"])
    assert listed.exit_code == 0
    assert [(s["study_instance_uid"], s["state"]) for s in json.loads(listed.output)] == [(known_study, "QUEUED")]
    assert runner.invoke(app, ["studies", "-c", str(config), "--state", "done", "--json"]).output.strip() == "[]"
    shown = runner.invoke(app, ["show", known_study, "-c", str(config), "--json"])
    detail = json.loads(shown.output)
    assert detail["series"][0]["series_instance_uid"] == "1.2.3.4"
    assert [job["state"] for job in detail["jobs"]] == ["QUEUED"]
    assert "1.2.3.4" in runner.invoke(app, ["show", known_study, "-c", str(config)]).output


def test_an_unknown_study_is_a_failure_and_an_unknown_state_wrong_usage(config: Path) -> None:
    assert runner.invoke(app, ["show", "9.9", "-c", str(config)]).exit_code == 1
    assert runner.invoke(app, ["studies", "--state", "HAPPY", "-c", str(config)]).exit_code == 2
    assert runner.invoke(app, ["requeue", "-c", str(config)]).exit_code == 2


def test_cancel_and_requeue_change_the_state(config: Path, known_study: str) -> None:
    def state() -> str:
        return str(json.loads(runner.invoke(app, ["studies", "-c", str(config), "--json"]).output)[0]["state"])

    assert runner.invoke(app, ["cancel", known_study, "-c", str(config)]).exit_code == 0
    assert state() == "CANCELLED"
    assert runner.invoke(app, ["cancel", known_study, "-c", str(config)]).exit_code == 1
    assert runner.invoke(app, ["requeue", known_study, "-c", str(config)]).exit_code == 0
    assert state() == "QUEUED"
    assert runner.invoke(app, ["requeue", "--failed", "-c", str(config)]).exit_code == 1


@pytest.mark.usefixtures("fake_pipeline")
def test_analyze_writes_its_files_and_passes_over_what_is_no_dicom(config: Path, tmp_path: Path) -> None:
    folder, out = tmp_path / "ct", tmp_path / "out"
    datasets = chest_datasets()
    write_datasets(datasets, folder)
    (folder / "notes.txt").write_text("no DICOM")
    (folder / "empty").write_bytes(b"")
    (folder / "picture.dcm").write_bytes(b"\x89PNG not DICOM at all" * 20)
    result = runner.invoke(app, ["analyze", str(folder), "--out", str(out), "-c", str(config)])
    assert result.exit_code == 0, result.output
    for name in ("notes.txt", "empty", "picture.dcm"):
        assert name in result.output
    uid = str(datasets[0].SeriesInstanceUID)
    for place in (out, out / uid / "ct-nodules"):
        findings = json.loads((place / "findings.json").read_text())
        assert findings["series_instance_uid"] == uid
        assert dcmread(place / "sr.dcm").Modality == "SR"
        assert dcmread(place / "seg.dcm").Modality == "SEG"
        assert Image.open(place / "nodule-1.png").size[0] > 100
    nodule = findings["nodules"][0]
    assert set(nodule) >= {
        "tracking_uid", "centre_lps_mm", "long_axis_mm", "short_axis_mm", "volume_mm3", "mean_hu", "candidate_score",
        "detection_probability", "malignancy_probability", "concepts", "segment_number",
    }  # fmt: skip
    assert nodule["tracking_uid"] == dcmread(out / "seg.dcm").SegmentSequence[0].TrackingUID


@pytest.mark.usefixtures("fake_pipeline")
def test_analyze_of_two_series_writes_into_their_folders_only(config: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for name in ("one", "two"):
        write_datasets(chest_datasets(), tmp_path / "ct" / name)
    result = runner.invoke(app, ["analyze", str(tmp_path / "ct"), "--out", str(out), "-c", str(config), "--json"])
    assert result.exit_code == 0
    assert len(list(out.glob("*/ct-nodules/sr.dcm"))) == 2
    assert not (out / "sr.dcm").exists()


@pytest.mark.usefixtures("fake_pipeline")
def test_analyze_of_a_study_with_two_patients_refuses_both(config: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    one, two = chest_datasets(), chest_datasets()
    for dataset in two:
        dataset.StudyInstanceUID, dataset.PatientID = one[0].StudyInstanceUID, "SECRET-2"
    for name, datasets in (("one", one), ("two", two)):
        write_datasets(datasets, tmp_path / "ct" / name)
    result = runner.invoke(app, ["analyze", str(tmp_path / "ct"), "--out", str(out), "-c", str(config)])
    assert result.exit_code == 1
    assert result.output.count("PATIENT_CONFLICT") == 2
    assert "SECRET" not in result.output


@pytest.mark.usefixtures("fake_pipeline")
def test_analyze_without_a_result_fails_and_says_why(config: Path, tmp_path: Path) -> None:
    datasets = chest_datasets()
    for dataset in datasets:
        dataset.SeriesDescription = REJECTED_DESCRIPTION
    write_datasets(datasets, tmp_path / "ct")
    out = str(tmp_path / "out")
    result = runner.invoke(app, ["analyze", str(tmp_path / "ct"), "--out", out, "-c", str(config)])
    assert result.exit_code == 1
    assert "NO_LUNGS" in result.output


def test_send_and_echo_reach_a_peer(tmp_path: Path) -> None:
    files = write_datasets(chest_datasets(), tmp_path / "ct")
    with SmallPacs(tmp_path / "pacs") as pacs:
        config = tmp_path / "node.toml"
        config.write_text(f'[peers.pacs]\nae_title = "SMALLPACS"\nhost = "127.0.0.1"\nport = {pacs.port}\n')
        assert runner.invoke(app, ["echo", "pacs", "-c", str(config)]).exit_code == 0
        sent = runner.invoke(app, ["send", str(tmp_path / "ct"), "--to", "pacs", "-c", str(config)])
        assert sent.exit_code == 0, sent.output
        assert len(pacs.stored) == len(files)


def test_a_wrong_configuration_exits_with_2_and_names_every_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "node.toml"
    path.write_text("[node]\nport = -1\ncolour = 'red'\n")
    monkeypatch.setattr("sys.argv", ["pulmo-node", "config", "check", "-c", str(path)])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 2
    said = capsys.readouterr().err
    assert "node.port" in said
    assert "node.colour" in said


def test_config_show_prints_what_is_in_force(config: Path) -> None:
    shown = json.loads(runner.invoke(app, ["config", "show", "-c", str(config), "--json"]).output)
    assert shown["node"]["ae_title"] == "PULMO"
    assert shown["node"]["storage"] == str(config.parent / "var")


def test_pipelines_are_listed(config: Path) -> None:
    rows = json.loads(runner.invoke(app, ["pipelines", "-c", str(config), "--json"]).output)
    hints = {row["label"]: row["weights"] for row in rows}
    assert hints["ct-nodules"] == ""
    said = " ".join(runner.invoke(app, ["pipelines", "-c", str(config)]).output.split())
    for label in ("ct-retinanet", "ct-lungs", "cxr-findings", "cxr-lung-risk"):
        assert f"{label} is off; to get weights: {hints[label]}" in said


@pytest.mark.usefixtures("fake_pipeline")
def test_healthchecks_name_the_peer_that_does_not_answer(tmp_path: Path) -> None:
    config = tmp_path / "node.toml"
    config.write_text('[node]\nport = 0\n[peers.dead]\nae_title = "DEAD"\nhost = "127.0.0.1"\nport = 1\n')
    result = runner.invoke(app, ["healthchecks", "-c", str(config), "--json"])
    checks = {check["name"]: check["ok"] for check in json.loads(result.output)}
    assert result.exit_code == 1
    assert [name for name, ok in checks.items() if not ok] == ["peer dead"]
    assert {"storage", "database", "decoders", "receiver", "pipeline ct-nodules"} <= set(checks)


def test_priority_of_a_study(config: Path, known_study: str) -> None:
    def of_the_job() -> int:
        shown = json.loads(runner.invoke(app, ["show", known_study, "-c", str(config), "--json"]).output)
        return int(shown["jobs"][0]["priority"])

    assert runner.invoke(app, ["priority", known_study, "-c", str(config)]).exit_code == 0
    assert of_the_job() == 1
    assert runner.invoke(app, ["priority", known_study, "--routine", "-c", str(config)]).exit_code == 0
    assert of_the_job() == 0
    assert runner.invoke(app, ["priority", "9.9", "-c", str(config)]).exit_code == 1


def test_delete_asks_first_and_leaves_an_entry_that_says_who(config: Path, known_study: str, tmp_path: Path) -> None:
    image = tmp_path / "var" / "instances" / "1.2.3" / "1.2.3.4" / "1.2.3.4.5.dcm"
    image.parent.mkdir(parents=True)
    image.write_bytes(b"x")
    (tmp_path / "var" / "incoming").mkdir()
    assert runner.invoke(app, ["delete", known_study, "-c", str(config)], input="n\n").exit_code == 1
    assert image.exists()
    deleted = runner.invoke(app, ["delete", known_study, "--yes", "-c", str(config)])
    assert deleted.exit_code == 0, deleted.output
    assert "1 images" in deleted.output
    assert not image.exists()
    assert runner.invoke(app, ["show", known_study, "-c", str(config)]).exit_code == 1
    assert runner.invoke(app, ["delete", known_study, "--yes", "-c", str(config)]).exit_code == 1
    entries = [json.loads(line) for line in (tmp_path / "var" / "audit.jsonl").read_text().splitlines()]
    assert [entry["action"] for entry in entries] == ["delete requested", "deleted"]
    assert all("@" in entry["who"] and entry["study_instance_uid"] == known_study for entry in entries)


def test_requeue_of_a_purged_study_says_what_to_send_again(config: Path, known_study: str, tmp_path: Path) -> None:
    with SqlStore(f"sqlite:///{tmp_path / 'var' / 'pulmo.sqlite'}", SystemClock()) as store:
        store.cancel(known_study)
        assert len(store.purge(known_study)) == 1
    for what in ([known_study], ["--series", "1.2.3.4"], [known_study, "--series", "1.2.3.4"]):
        result = runner.invoke(app, ["requeue", *what, "-c", str(config)])
        assert result.exit_code == 1
        assert "1 images of series 1.2.3.4 were purged: send them again from SCANNER" in result.output
    assert "purged" not in runner.invoke(app, ["requeue", "--series", "1.2.3.5", "-c", str(config)]).output


def test_purge_by_the_limits_of_the_configuration(config: Path, known_study: str) -> None:
    assert runner.invoke(app, ["cancel", known_study, "-c", str(config)]).exit_code == 0
    assert "0 studies would be" in runner.invoke(app, ["purge", "--dry-run", "-c", str(config)]).output
    with config.open("a", encoding="utf-8") as file:
        file.write("[retention]\nmax_gib = 1e-10\n")
    assert known_study in runner.invoke(app, ["purge", "--dry-run", "-c", str(config)]).output
    assert "1 studies were purged" in runner.invoke(app, ["purge", "-c", str(config)]).output
    assert "0 studies were purged" in runner.invoke(app, ["purge", "-c", str(config)]).output


def test_backup_writes_a_copy_that_a_node_can_open(config: Path, known_study: str, tmp_path: Path) -> None:
    target = tmp_path / "copy.sqlite"
    assert runner.invoke(app, ["backup", str(target), "-c", str(config)]).exit_code == 0
    with SqlStore(f"sqlite:///{target}", SystemClock()) as copy:
        assert copy.study(known_study) is not None
    (entry,) = [json.loads(line) for line in (tmp_path / "var" / "audit.jsonl").read_text().splitlines()]
    assert (entry["action"], entry["file"]) == ("backup", str(target))
    assert runner.invoke(app, ["backup", str(target), "-c", str(config)]).exit_code == 1


def _said_by_main(arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    """What `pulmo-node` says on standard error, with its exit code in front."""
    monkeypatch.setattr("sys.argv", ["pulmo-node", *arguments])
    with pytest.raises(SystemExit) as caught:
        main()
    return f"{caught.value.code} {capsys.readouterr().err}"


def test_square_brackets_and_colons_of_a_message_are_not_taken_for_markup(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "node.toml"
    path.write_text('[[rules]]\npipelines = ["lost"]\ndestinations = ["fd00:a:b"]\n')
    said = _said_by_main(["config", "check", "-c", str(path)], monkeypatch, capsys)
    assert said.startswith("2 ")
    assert "there is no [pipelines.lost]" in said
    assert "there is no [peers.fd00:a:b]" in said
    odd = str(tmp_path / "a[" / "b]" / "node.toml")  # "[/b]" would close a style that nobody opened
    assert odd in _said_by_main(["config", "check", "-c", odd], monkeypatch, capsys)
    assert "limits of [retention]" in runner.invoke(app, ["purge", "--help"]).output


def test_a_file_system_that_refuses_is_said_in_a_sentence(
    tmp_path: Path, config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    in_the_way = tmp_path / "file"
    in_the_way.write_text("")
    said = _said_by_main(["demo", "--out", str(in_the_way / "demo")], monkeypatch, capsys)
    assert said.startswith(f"1 failed: {in_the_way / 'demo'}: Not a directory")
    peer = '[peers.pacs]\nae_title = "PACS"\nhost = "127.0.0.1"\nport = 1\n'
    config.write_text(config.read_text(encoding="utf-8") + peer, encoding="utf-8")
    said = _said_by_main(["send", str(tmp_path / "gone"), "--to", "pacs", "-c", str(config)], monkeypatch, capsys)
    assert said.startswith(f"1 failed: {tmp_path / 'gone'}: No such file or directory")


@pytest.mark.usefixtures("fake_pipeline")
def test_analyze_leaves_nothing_of_an_earlier_run_in_the_folder(config: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    write_datasets(chest_datasets(), tmp_path / "ct" / "one")
    arguments = ["analyze", str(tmp_path / "ct"), "--out", str(out), "-c", str(config)]
    assert runner.invoke(app, arguments).exit_code == 0
    assert {"findings.json", "sr.dcm", "nodule-1.png"} <= {path.name for path in out.iterdir()}
    write_datasets(chest_datasets(), tmp_path / "ct" / "two")  # now none of them is the only one
    assert runner.invoke(app, arguments).exit_code == 0
    assert [path.name for path in out.iterdir() if path.is_file()] == []
    shutil.rmtree(tmp_path / "ct" / "two")
    (out / "findings.json").mkdir()
    refused = runner.invoke(app, arguments)
    assert isinstance(refused.exception, PulmoError)
    assert str(out / "findings.json") in str(refused.exception)


@pytest.mark.parametrize("columns", [80, 1000])
def test_a_table_cuts_no_uid_short(columns: int) -> None:
    uid = "1.2.826.0.1.3680043.8.498.78311570161122329133124443399046339414"
    now = SystemClock().now()
    study = StudySummary(study_instance_uid=uid, state="DONE", series=1, instances=300, jobs=1, updated_at=now)
    console = Console(width=columns, file=io.StringIO(), soft_wrap=columns == 1000)
    print_studies(console, [study])
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    column = [line.split("│")[1].strip() for line in lines if line.count("│") > 2]
    assert "".join(column) == uid
