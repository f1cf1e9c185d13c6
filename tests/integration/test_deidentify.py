"""What goes to a destination that is not to know the patient: decoded and as bytes, judged by other programs too."""

from __future__ import annotations

import resource
import tempfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import highdicom as hd
import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as DicomSequence
from pydicom.uid import Comprehensive3DSRStorage, EncapsulatedPDFStorage, SecondaryCaptureImageStorage
from typer.testing import CliRunner

from pulmo_models.types import Volume
from pulmo_node.cli import app
from pulmo_node.deidentify import DeidentifyingSender, deidentify, write_deidentified
from pulmo_node.deliver import DicomSender
from pulmo_node.domain.deliveries import Peer, ResultObject
from pulmo_node.encode import EncodedObject, ResultOptions, encode_findings, encode_rejection
from pulmo_node.errors import DiskFull, LeftOut, Permanent, Transient
from pulmo_node.testing import SmallPacs
from tests.ct_factory import write_datasets
from tests.encode_factory import make_context, make_findings, make_nodule, write_volume
from tests.fake_pipeline import fake_pipeline
from tests.faults.test_privacy import BIRTH_DATES, MARK, marked_datasets
from tests.integration.test_node import in_state, running, send, wait_for
from tests.iod_check import iod_errors
from tests.network_factory import ct_slice, part10
from tests.validators import complaints, dcmpschk_errors, dsrdump_errors

SITE_CODE = ("ZQXV9", "99ZQXV", "ZQXV chest")  # a code that the site made up
__all__ = ["fake_pipeline"]
PICTURES = (SecondaryCaptureImageStorage, EncapsulatedPDFStorage)


@pytest.fixture(scope="module")
def volume(tmp_path_factory: pytest.TempPathFactory) -> Volume:
    """A study full of markers; the description of its series is one as well."""
    datasets = marked_datasets(description=f"{MARK.decode()} chest of a patient")
    for dataset in datasets:
        code = Dataset()
        code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = SITE_CODE
        dataset.ProcedureCodeSequence = DicomSequence([code])
    return write_volume(datasets, tmp_path_factory.mktemp("marked"))


@pytest.fixture(scope="module")
def objects(volume: Volume) -> list[EncodedObject]:
    """Every kind of object that the node writes."""
    findings = make_findings(volume, [make_nodule(volume, (6, 20, 24))], ("A caution.",))
    everything = ResultOptions(
        lung_segments=False, image_library=True, key_images=True, presentation_states=True, pdf_report=True
    )
    context = make_context(volume, options=everything)
    paths = sorted({Path(source.path) for source in volume.frames if source.path})
    other = make_context(
        volume, options=ResultOptions(negative_report="air", segmentation="labelmap", key_images=False)
    )
    return [
        *encode_findings(findings, volume, context),
        *encode_findings(findings, volume, other),
        encode_rejection(paths, "NO_LUNGS", "There are no lungs in it.", context),
    ]


def cleaned(encoded: EncodedObject, folder: Path, *, keep_dates: bool) -> bytes:
    source, target = folder / "as-it-is.dcm", folder / f"clean.{encoded.kind}.dcm"
    source.write_bytes(encoded.content)
    write_deidentified(source, target, keep_dates=keep_dates)
    return target.read_bytes()


@pytest.fixture(scope="module", params=[False, True], ids=["without dates", "with dates"])
def keep_dates(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture(scope="module")
def clean(
    objects: list[EncodedObject], keep_dates: bool, tmp_path_factory: pytest.TempPathFactory
) -> list[tuple[EncodedObject, bytes]]:
    """Everything that goes out, as it is and as it goes."""
    folder = tmp_path_factory.mktemp("clean")
    return [(encoded, cleaned(encoded, folder, keep_dates=keep_dates)) for encoded in sendable(objects)]


def sendable(objects: list[EncodedObject]) -> list[EncodedObject]:
    return [encoded for encoded in objects if encoded.sop_class_uid not in PICTURES]


def uids(dataset: Dataset) -> Iterator[str]:
    for element in dataset.iterall():
        if element.VR == "UI" and element.value:
            yield from [element.value] if isinstance(element.value, str) else element.value


class TestEveryKind:
    def test_no_byte_tells_the_patient(self, clean: list[tuple[EncodedObject, bytes]]) -> None:
        for encoded, content in clean:
            assert encoded.content.count(MARK) >= 3, encoded.kind  # otherwise there would be nothing to find
            for wanted in (MARK, *BIRTH_DATES):
                position = content.find(wanted)
                assert position < 0, (encoded.kind, content[max(0, position - 60) : position + 40])

    def test_it_says_what_was_done(self, clean: list[tuple[EncodedObject, bytes]], keep_dates: bool) -> None:
        for encoded, content in clean:
            dataset = dcmread(BytesIO(content))
            assert dataset.PatientIdentityRemoved == "YES"
            codes = {item.CodeValue for item in dataset.DeidentificationMethodCodeSequence}
            assert {"113100", "113110"} <= codes
            assert ("113106" in codes) == keep_dates
            assert ("113104" in codes) == (encoded.kind == "sr")
            assert ("113103" in codes) == (encoded.kind == "gsps")
            assert dataset.LongitudinalTemporalInformationModified == ("UNMODIFIED" if keep_dates else "REMOVED")

    def test_every_reference_holds(self, clean: list[tuple[EncodedObject, bytes]]) -> None:
        for encoded, content in clean:
            dataset = dcmread(BytesIO(content))
            assert list(uids(dataset)) == list(uids(dcmread(BytesIO(encoded.content)))), encoded.kind
            assert dataset.SOPInstanceUID == dataset.file_meta.MediaStorageSOPInstanceUID == encoded.sop_instance_uid

    def test_other_programs_find_nothing_wrong(
        self, clean: list[tuple[EncodedObject, bytes]], keep_dates: bool, tmp_path: Path
    ) -> None:
        for number, (encoded, content) in enumerate(clean):
            path = tmp_path / f"{number}.{encoded.kind}.dcm"
            path.write_bytes(content)
            # Study ID and, without dates, those of the study are empty, as the profile has it.
            found = [line for line in complaints(path) if "needed to build DICOMDIR - Study" not in line]
            assert found == [], encoded.kind
            assert iod_errors(dcmread(path)) == []
            if encoded.kind == "sr":
                assert dsrdump_errors(path) == []
                hd.sr.srread(path)
            if encoded.kind == "gsps":
                assert dcmpschk_errors(path) == []

    def test_dates_as_asked(self, clean: list[tuple[EncodedObject, bytes]], keep_dates: bool) -> None:
        for encoded, content in clean:
            before, after = dcmread(BytesIO(encoded.content)), dcmread(BytesIO(content))
            assert before.StudyDate
            assert before.SeriesDate == "20260304"
            assert not after.PatientBirthDate
            assert (after.StudyDate == before.StudyDate) == keep_dates
            assert (after.SeriesDate == before.SeriesDate) == keep_dates

    def test_measurements_and_pixels_stay(self, clean: list[tuple[EncodedObject, bytes]]) -> None:
        kinds = set()
        for encoded, content in clean:
            before, after = dcmread(BytesIO(encoded.content)), dcmread(BytesIO(content))
            numbers = [[e.value for e in each.iterall() if e.keyword == "NumericValue"] for each in (before, after)]
            assert numbers[0] == numbers[1]
            if "PixelData" in before:
                assert before.PixelData == after.PixelData
            kinds.add(encoded.kind)
        assert kinds == {"sr", "seg", "gsps"}


def test_pictures_and_documents_are_left_out(objects: list[EncodedObject], tmp_path: Path) -> None:
    pictures = [encoded for encoded in objects if encoded.sop_class_uid in PICTURES]
    assert {encoded.kind for encoded in pictures} == {"key-image", "pdf"}
    for encoded in pictures:
        with pytest.raises(LeftOut, match="cannot be de-identified"):
            cleaned(encoded, tmp_path, keep_dates=False)
        assert not (tmp_path / f"clean.{encoded.kind}.dcm").exists()


def test_people_private_attributes_and_overlays_at_every_depth(objects: list[EncodedObject]) -> None:
    """Also what this node never writes: another program's observer, names deep down, private blocks in items."""
    report = dcmread(BytesIO(next(each for each in objects if each.kind == "sr").content))
    person = Dataset()
    person.RelationshipType, person.ValueType, person.PersonName = "HAS OBS CONTEXT", "PNAME", f"{MARK.decode()}^Dr"
    name = Dataset()
    name.CodeValue, name.CodingSchemeDesignator, name.CodeMeaning = "121008", "DCM", "Person Observer Name"
    person.ConceptNameCodeSequence = DicomSequence([name])
    report.ContentSequence.append(person)
    deep = report.ContentSequence[0]
    deep.private_block(0x0011, "PULMO TESTS", create=True).add_new(0x01, "LO", MARK.decode())
    verifier = Dataset()
    verifier.VerifyingObserverName, verifier.VerifyingOrganization = f"{MARK.decode()}^Dr", MARK.decode()
    verifier.VerificationDateTime = "20260101120000"
    verifier.VerifyingObserverIdentificationCodeSequence = DicomSequence([name])
    report.VerifyingObserverSequence = DicomSequence([verifier])
    report.add_new(0x60003000, "OW", MARK)
    report.add_new(0x60004000, "LT", MARK.decode())
    deidentify(report, keep_dates=False)
    written = BytesIO()
    report.save_as(written, enforce_file_format=True)
    assert MARK not in written.getvalue()
    assert not any(item.ValueType == "PNAME" for item in report.ContentSequence)
    assert not any(element.tag.is_private for element in report.iterall())


@pytest.mark.usefixtures("fake_pipeline")
def test_each_peer_gets_its_results_as_configured(tmp_path: Path) -> None:
    """Over real associations: one destination knows the patient, the other one does not, and gets no picture."""
    datasets = marked_datasets(description="chest")
    files = write_datasets(datasets, tmp_path / "ct")
    with SmallPacs(tmp_path / "known") as known, SmallPacs(tmp_path / "blind", ae_title="BLIND") as blind:
        peers = {
            name: {"ae_title": pacs.ae_title, "host": "127.0.0.1", "port": pacs.port, "deidentify": how}
            for name, pacs, how in (("pacs0", known, "off"), ("pacs1", blind, "remove_dates"))
        }
        results = {"key_images": True, "pdf_report": True}
        with running(tmp_path, known, blind, peers=peers, results=results) as node:
            send(node, files)
            detail = wait_for(node, str(datasets[0].StudyInstanceUID), in_state("DONE"))
    states = {(one.destination, one.result.kind): one.state.value for one in detail.deliveries}
    assert states["pacs1", "pdf"] == states["pacs1", "key-image"] == "CANCELLED"
    assert states["pacs1", "sr"] == states["pacs1", "seg"] == states["pacs0", "pdf"] == "SENT"
    assert all("cannot be de-identified" in (one.reason or "") for one in detail.deliveries if one.state == "CANCELLED")
    assert {dcmread(stored.path).Modality for stored in known.stored} == {"SR", "SEG", "OT", "DOC"}
    assert all(MARK in stored.path.read_bytes() for stored in known.stored)
    received = [stored.path.read_bytes() for stored in blind.stored]
    assert [dcmread(BytesIO(content)).PatientIdentityRemoved for content in received] == ["YES", "YES"]
    assert not any(wanted in content for content in received for wanted in (MARK, *BIRTH_DATES))
    in_both = {stored.sop_instance_uid for stored in known.stored} & {each.sop_instance_uid for each in blind.stored}
    assert len(in_both) == 2


def test_files_are_not_sent_as_they_are(tmp_path: Path) -> None:
    config = tmp_path / "node.toml"
    config.write_text(
        '[peers.blind]\nae_title = "BLIND"\nhost = "127.0.0.1"\nport = 104\ndeidentify = "keep_dates"\n'
        '[[rules]]\ndestinations = ["blind"]\n'
    )
    (tmp_path / "ct").mkdir()
    ran = CliRunner().invoke(app, ["send", str(tmp_path / "ct"), "--to", "blind", "--config", str(config)])
    assert ran.exit_code != 0
    assert "peers.blind.deidentify" in str(ran.exception) + ran.output


def test_a_disk_that_refuses_is_no_fault_of_the_object(
    objects: list[EncodedObject], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No room for the copy, or no descriptor to read it with: it is tried again."""
    report = next(each for each in objects if each.kind == "sr")
    file = tmp_path / "report.dcm"
    file.write_bytes(report.content)
    result = ResultObject(
        kind="sr",
        sop_class_uid=report.sop_class_uid,
        sop_instance_uid=report.sop_instance_uid,
        series_instance_uid=report.series_instance_uid,
        path="report.dcm",
        sha256="",
    )
    with SmallPacs(tmp_path / "pacs") as pacs:
        peer = Peer(name="x", ae_title=pacs.ae_title, host="127.0.0.1", port=pacs.port, deidentify="keep_dates")
        with DeidentifyingSender(DicomSender("PULMO")).open(peer) as link:
            monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "full"))
            with pytest.raises(Transient, match=r"de-identifying report\.dcm"):
                link.store(file, result)
            monkeypatch.undo()
            limits = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
            try:
                with pytest.raises(DiskFull, match=r"de-identifying report\.dcm"):
                    link.store(file, result)
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert pacs.stored == ()


def test_what_is_no_object_is_refused(tmp_path: Path) -> None:
    (tmp_path / "broken.dcm").write_bytes(b"no DICOM at all")
    report = ct_slice()
    report.SOPClassUID = Comprehensive3DSRStorage
    whole = part10(tmp_path / "damaged.dcm", report).read_bytes()
    (tmp_path / "damaged.dcm").write_bytes(whole.replace(b"\x02\x00\x02\x00UI", b"\x02\x00\x02\x00UJ"))
    for name in ("broken", "damaged", "missing"):
        with pytest.raises(Permanent, match=rf"{name}\.dcm cannot be"):
            write_deidentified(tmp_path / f"{name}.dcm", tmp_path / "target.dcm", keep_dates=False)
