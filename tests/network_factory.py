"""What the tests of receiver and sender share: small data sets, Part 10 files that may lie, a log to wait on."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filewriter import dcmwrite
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid
from pynetdicom import AE, build_context, evt
from pynetdicom.association import Association
from pynetdicom.dsutils import encode_file_meta, split_dataset
from pynetdicom.pdu import A_ASSOCIATE_RQ
from pynetdicom.pdu_primitives import A_ASSOCIATE, ImplementationClassUIDNotification, MaximumLengthNotification
from pynetdicom.presentation import PresentationContext

from pulmo_node.dimse import IMPLEMENTATION_CLASS_UID, configure_pynetdicom, prepare_connection
from pulmo_node.domain.series import InstanceOutcome, StoredInstance
from pulmo_node.errors import Transient
from pulmo_node.files import FileInstanceStore
from pulmo_node.ports import Journal
from pulmo_node.receive import Receiver, ReceiveSettings
from pulmo_node.store import SqlStore
from pulmo_node.testing import ManualClock

PATIENT_NAME = "MARKER^DONOTLOG"
PATIENT_ID = "MARKER-4711"


def ct_slice(
    number: int = 1, *, series: str = "1.2.826.0.1.3680043.8.498.2", study: str = "1.2.826.0.1.3680043.8.498.1"
) -> Dataset:
    """A CT instance of 4 x 4 pixels, its UID made of series and number."""
    data_set = Dataset()
    data_set.SOPClassUID = CTImageStorage
    data_set.SOPInstanceUID = f"{series}.{number}"
    data_set.Modality = "CT"
    data_set.PatientName = PATIENT_NAME
    data_set.PatientID = PATIENT_ID
    data_set.StudyInstanceUID = study
    data_set.SeriesInstanceUID = series
    data_set.InstanceNumber = number
    data_set.SamplesPerPixel = 1
    data_set.PhotometricInterpretation = "MONOCHROME2"
    data_set.Rows = data_set.Columns = 4
    data_set.BitsAllocated = data_set.BitsStored = 16
    data_set.HighBit = 15
    data_set.PixelRepresentation = 0
    data_set.PixelData = bytes([number % 256, 0] * 16)
    return data_set


def encoded(data_set: Dataset) -> bytes:
    """Explicit VR Little Endian, without preamble and meta header."""
    stream = BytesIO()
    dcmwrite(stream, data_set, implicit_vr=False, little_endian=True, enforce_file_format=False)
    return stream.getvalue()


def part10(path: Path, data_set: Dataset | bytes, **meta: str) -> Path:
    """A Part 10 file whose meta header agrees with the data set except where `meta` says otherwise.

    The command of a C-STORE is made of the meta header, so a lie there is a lie on the wire.
    """
    header = FileMetaDataset()
    header.MediaStorageSOPClassUID = CTImageStorage
    header.TransferSyntaxUID = ExplicitVRLittleEndian
    header.ImplementationClassUID = generate_uid(entropy_srcs=["tests"])
    if isinstance(data_set, Dataset):
        header.MediaStorageSOPClassUID = data_set.get("SOPClassUID", CTImageStorage)
        header.MediaStorageSOPInstanceUID = data_set.get("SOPInstanceUID", "1.2.3")
        data_set = encoded(data_set)
    for keyword, value in meta.items():
        setattr(header, keyword, value)
    path.write_bytes(b"\x00" * 128 + b"DICM" + encode_file_meta(header) + data_set)
    return path


def data_set_part(path: Path) -> bytes:
    """The bytes of a Part 10 file behind its meta header."""
    return path.read_bytes()[split_dataset(path)[1] :]


class LogWatch(logging.Handler):
    """Collects log lines, and lets a test wait for one."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.lines: list[str] = []
        self._grown = threading.Condition()

    def emit(self, record: logging.LogRecord) -> None:
        with self._grown:
            self.lines.append(f"{record.name} {self.format(record)}")
            self._grown.notify_all()

    def wait_for(self, text: str, timeout_seconds: float = 120.0) -> str:
        """The first line with that text. Fails the test where none comes."""

        def found() -> str | None:
            return next((line for line in self.lines if text in line), None)

        with self._grown:
            line = self._grown.wait_for(found, timeout_seconds)
        assert line, f"no log line with {text!r} in {self.lines}"
        return line


@contextmanager
def watched(logger: str = "pulmo_node") -> Iterator[LogWatch]:
    """Every line of a logger, from DEBUG on."""
    watch = LogWatch()
    target = logging.getLogger(logger)
    level = target.level
    target.addHandler(watch)
    target.setLevel(logging.DEBUG)
    try:
        yield watch
    finally:
        target.removeHandler(watch)
        target.setLevel(level)


class UncommittedOnce:
    """A `ReceiveStore` whose database is locked for the first instance."""

    def __init__(self, store: SqlStore) -> None:
        self._store = store
        self.refused = 0

    def record_instance(self, instance: StoredInstance) -> InstanceOutcome:
        if not self.refused:
            self.refused += 1
            raise Transient("database is locked")
        return self._store.record_instance(instance)


def associate_request(
    contexts: Sequence[PresentationContext], *, calling: str, called: str = "PULMO", most_bytes: int = 16_382
) -> bytes:
    """The PDU A-ASSOCIATE-RQ; the contexts are numbered 1, 3, 5 ..., `most_bytes` is the largest PDU to be sent."""
    request = A_ASSOCIATE()
    request.application_context_name = "1.2.840.10008.3.1.1.1"
    request.calling_ae_title, request.called_ae_title = calling, called
    length, implementation = MaximumLengthNotification(), ImplementationClassUIDNotification()
    length.maximum_length_received = most_bytes
    implementation.implementation_class_uid = IMPLEMENTATION_CLASS_UID
    request.user_information = [length, implementation]
    for number, context in enumerate(contexts):
        context.context_id = 2 * number + 1
    request.presentation_context_definition_list = list(contexts)
    pdu = A_ASSOCIATE_RQ()
    pdu.from_primitive(request)
    return bytes(pdu.encode())


@dataclass(frozen=True, kw_only=True)
class ReceivingNode:
    """A receiver on a free port with what lies behind it."""

    receiver: Receiver
    store: SqlStore
    instances: FileInstanceStore
    clock: ManualClock
    log: LogWatch

    @property
    def port(self) -> int:
        return self.receiver.port

    def stored(self, series_instance_uid: str) -> list[Path]:
        """Files in use of a series."""
        return [self.instances.absolute(path) for path in self.store.instance_paths(series_instance_uid)]


@contextmanager
def receiving_node(
    folder: Path, *, min_free_bytes: int = 0, journal: Journal | None = None, **settings: object
) -> Iterator[ReceivingNode]:
    """A receiver with real storage and a real database below `folder`."""
    clock = ManualClock()
    with SqlStore(f"sqlite:///{folder / 'node.sqlite'}", clock) as store, watched() as log:
        instances = FileInstanceStore(folder / "storage", min_free_bytes=min_free_bytes)
        receive_settings = ReceiveSettings(ae_title="PULMO", port=0, **settings)  # type: ignore[arg-type]
        receiver = Receiver(receive_settings, store, instances, clock)
        receiver.journal = journal
        receiver.start()
        try:
            yield ReceivingNode(receiver=receiver, store=store, instances=instances, clock=clock, log=log)
        finally:
            receiver.stop(drain_seconds=0.0)


@contextmanager
def association(
    port: int, *contexts: tuple[str, str], calling: str = "MODALITY", called: str = "PULMO"
) -> Iterator[Association]:
    """An association by pynetdicom, by default for CT in Explicit VR Little Endian; released at the end."""
    configure_pynetdicom()
    entity = AE(ae_title=calling)
    entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = 120
    offered = contexts or ((CTImageStorage, ExplicitVRLittleEndian),)
    opened = entity.associate(
        "127.0.0.1",
        port,
        [build_context(*context) for context in offered],
        ae_title=called,
        evt_handlers=[(evt.EVT_CONN_OPEN, prepare_connection, [120.0])],
    )
    try:
        yield opened
    finally:
        opened.release()
