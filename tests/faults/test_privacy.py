"""A study full of marker identifiers passes through every way that the node knows, good and bad; then everything that
the node wrote outside the objects themselves is searched for them: log, database, findings, every command's output."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmread
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence as DicomSequence
from pydicom.tag import Tag
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid
from pynetdicom import AE, build_context, evt
from typer.testing import CliRunner

from pulmo_node.cli import app
from pulmo_node.deliver import DicomSender
from pulmo_node.dimse import DimseStatus, prepare_connection
from pulmo_node.errors import Transient
from pulmo_node.testing import Answer, Misbehaviour, SmallPacs
from tests.ct_factory import write_part10
from tests.encode_factory import chest_datasets
from tests.fake_pipeline import REJECTED_DESCRIPTION
from tests.faults import studies
from tests.faults.node import AE_TITLE, NodeProcess, wait_for

pytestmark = pytest.mark.filterwarnings("ignore:Invalid value for VR UI")  # a marker stands in a UID's place

MARK = b"ZQXV"  # stands in every marker, and nowhere else
BIRTH_DATE = "19310203"
BIRTH_DATES = (b"19310203", b"1931-02-03")

IDENTIFYING = (
    "PatientName", "PatientID", "IssuerOfPatientID", "OtherPatientNames", "PatientBirthName", "PatientMotherBirthName",
    "PatientAddress", "PatientTelephoneNumbers", "MedicalRecordLocator", "EthnicGroup", "Occupation", "PatientComments",
    "AdditionalPatientHistory", "PatientReligiousPreference", "MilitaryRank", "BranchOfService", "CountryOfResidence",
    "RegionOfResidence", "AccessionNumber", "StudyID", "StudyDescription", "ProtocolName", "InstitutionName",
    "InstitutionAddress", "InstitutionalDepartmentName", "StationName", "DeviceSerialNumber", "ReferringPhysicianName",
    "ReferringPhysicianAddress", "ReferringPhysicianTelephoneNumbers", "PerformingPhysicianName", "OperatorsName",
    "NameOfPhysiciansReadingStudy", "PhysiciansOfRecord", "RequestingPhysician", "RequestingService", "AdmissionID",
    "AdmittingDiagnosesDescription", "RequestedProcedureDescription", "PerformedProcedureStepDescription",
    "PerformedProcedureStepID", "ReasonForStudy", "ImageComments", "MedicalAlerts", "Allergies", "SpecialNeeds",
    "PatientState", "CurrentPatientLocation", "PatientInstitutionResidence", "VisitComments",
)  # fmt: skip
"""Attributes of PS3.15 table E.1-1 that are text; each is given a marker of its own."""


def marker(number: int) -> str:
    return f"{MARK.decode()}{number:03d}"


@dataclass(frozen=True, kw_only=True)
class Written:
    """Everything that the node wrote, by where it lies."""

    texts: dict[str, bytes]
    states: set[str]  # of jobs, to see that every way was gone


def marked_datasets(patient: int = 0, description: str = "chest") -> list[Dataset]:
    datasets = chest_datasets()
    for dataset in datasets:
        for number, keyword in enumerate(IDENTIFYING):
            setattr(dataset, keyword, marker(number))
        dataset.PatientID = marker(900 + patient)
        dataset.PatientBirthDate, dataset.SeriesDescription = BIRTH_DATE, description
        other = Dataset()
        other.PatientID, other.TypeOfPatientID = marker(950), "TEXT"
        dataset.OtherPatientIDsSequence = DicomSequence([other])
        private = dataset.private_block(0x0011, "PULMO TESTS", create=True)
        private.add_new(0x01, "LO", marker(960))
    return datasets


def of_another_study(datasets: list[Dataset]) -> list[Dataset]:
    study = generate_uid()
    for dataset in datasets:
        dataset.StudyInstanceUID = study
    return datasets


def spoiled(folder: Path, keyword: str, valid: str) -> list[Path]:
    """A series with text where `keyword` wants a number or a date: written with a valid value, then overwritten."""
    paths = write(of_another_study(marked_datasets()), folder, lambda dataset: setattr(dataset, keyword, valid))
    wrong = (marker(970) * 4)[: len(valid)].encode()
    for path in paths:
        content = path.read_bytes()
        assert content.count(valid.encode()) == 1
        path.write_bytes(content.replace(valid.encode(), wrong))
    return paths


def write(datasets: list[Dataset], folder: Path, change: Callable[[Dataset], Any] = lambda dataset: None) -> list[Path]:
    folder.mkdir(parents=True)
    paths = []
    for number, dataset in enumerate(datasets):
        change(dataset)
        paths.append(folder / f"{number}.dcm")
        write_part10(dataset, paths[-1])
    return paths


def send(node: NodeProcess, paths: list[Path]) -> list[str]:
    """The answers; failures are part of the scene, and end the association at worst."""
    answers = []
    try:
        for answer in DicomSender("SCANNER").send_files(node.peer, paths):
            answers.append(answer.status or str(answer.error))
    except Transient as exc:
        answers.append(str(exc))
    return answers


def send_nonsense(node: NodeProcess) -> None:
    """Instances that are refused: without a Study Instance UID, with an identifier in its place."""
    association = AE(ae_title="SCANNER").associate(
        "127.0.0.1",
        node.port,
        contexts=[build_context(CTImageStorage, ExplicitVRLittleEndian)],
        ae_title=AE_TITLE,
        evt_handlers=[(evt.EVT_CONN_OPEN, prepare_connection, [60.0])],
    )
    assert association.is_established
    for study in ("", marker(980), f"1.2.{marker(981)}"):
        dataset = marked_datasets()[0]
        dataset.add(RawDataElement(Tag("StudyInstanceUID"), "UI", len(study), study.encode(), 0, False, True))
        dataset.file_meta = FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        assert association.send_c_store(dataset).Status == 0xC000
    association.release()


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Written:
    folder = tmp_path_factory.mktemp("privacy")
    configuration: dict[str, dict[str, Any]] = {
        "receive": {"quiet_seconds": 0.5},
        "results": {"key_images": True, "report_rejected": True, "report_failed": True},
        "delivery": {"first_delay_seconds": 0.2, "max_delay_seconds": 0.5},
        "analysis": {"max_attempts": 1},
        "log": {"level": "DEBUG"},
    }
    with SmallPacs(folder / "pacs") as pacs:
        quoting = Answer(status=DimseStatus.OUT_OF_RESOURCES, comment=f"patient {marker(990)} is locked")
        pacs.answer_next(Misbehaviour.ABORT, quoting)
        with NodeProcess(folder / "node", configuration, peers=[pacs.peer]) as node:
            good = marked_datasets()
            paths = write(good, folder / "good")
            studies.send(node.peer, paths)
            send(
                node,
                write([good[0]], folder / "conflict", lambda dataset: setattr(dataset, "PatientName", marker(998))),
            )
            send(node, write(of_another_study(marked_datasets(description=REJECTED_DESCRIPTION)), folder / "rejected"))
            send(node, write(of_another_study(marked_datasets())[:3], folder / "short"))
            two_patients = of_another_study(marked_datasets())
            for dataset in two_patients[::2]:
                dataset.PatientID = marker(997)
            send(node, write(two_patients, folder / "two patients"))
            for keyword, valid in (
                ("InstanceNumber", "1234567890"), ("SliceLocation", "9876.54321"), ("AcquisitionDate", "20310607"),
                ("PatientAge", "087Y"), ("PatientWeight", "77.7654321"), ("KVP", "119.876543"),
                ("AcquisitionTime", "112233.445566"),
            ):  # fmt: skip
                send(node, spoiled(folder / f"spoiled {keyword}", keyword, valid))
            send_nonsense(node)
            wait_for(lambda: _settled(node), 120.0, "the end of every study")
            texts = {f"pulmo-node {' '.join(words)}": _command(folder, words) for words in _commands(node)}
            states = {state for (state,) in node.query("SELECT DISTINCT state FROM jobs")}
        texts |= {
            str(path.relative_to(folder)): path.read_bytes()
            for path in (folder / "node").rglob("*")
            if path.is_file() and path.suffix != ".dcm"
        }
    return Written(texts=texts, states=states)


def _settled(node: NodeProcess) -> bool:
    still_open = (
        "SELECT count(*) FROM series WHERE state != 'COMPLETE'",
        "SELECT count(*) FROM jobs WHERE state IN ('QUEUED', 'ENCODED')",
        "SELECT count(*) FROM deliveries WHERE state = 'PENDING'",
    )
    return all(node.query(statement) == [(0,)] for statement in still_open)


def _commands(node: NodeProcess) -> list[tuple[str, ...]]:
    known = [uid for (uid,) in node.query("SELECT DISTINCT study_instance_uid FROM series")]
    shown = [("show", uid, *rest) for uid in known for rest in ((), ("--json",))]
    return [("studies",), ("studies", "--json"), *shown]


def _command(folder: Path, words: tuple[str, ...]) -> bytes:
    ran = CliRunner().invoke(app, [*words, "--config", str(folder / "node" / "node.toml")])
    assert ran.exit_code == 0
    return ran.output.encode()


def test_every_way_was_gone(written: Written) -> None:
    assert {"DONE", "REJECTED"} <= written.states
    log = written.texts["node/node.log"]
    for said in (b"sent to smallpacs", b"deferred", b"refused with 0x", b"rejected"):
        assert said in log, said
    assert any("findings.json" in name for name in written.texts)
    assert any("pulmo.sqlite" in name for name in written.texts)
    assert any("audit.jsonl" in name for name in written.texts)


def test_the_objects_themselves_carry_the_identifiers(written: Written, tmp_path: Path) -> None:
    """Otherwise there would be nothing to find."""
    (path, *_) = write(marked_datasets(), tmp_path / "check")
    content = path.read_bytes()
    assert content.count(MARK) > len(IDENTIFYING)
    assert dcmread(path).PatientBirthDate == BIRTH_DATE


def test_nothing_else_does(written: Written) -> None:
    found = {}
    for name, content in written.texts.items():
        for wanted in (MARK, *BIRTH_DATES):
            position = content.find(wanted)
            if position >= 0:
                found[name] = content[max(0, position - 200) : position + 80]
    assert found == {}
