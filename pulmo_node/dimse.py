"""What receiver, sender and test PACS share: DIMSE statuses, SOP classes and transfer syntaxes, identity on the wire.

Governed by DICOM PS3.4 B.2.3 (statuses of C-STORE), PS3.7 C (statuses and Error Comment), PS3.5 10 and A (transfer
syntaxes).
"""

from __future__ import annotations

import logging
import re
import socket
import threading
from collections.abc import Sequence
from enum import Enum, IntEnum
from typing import Any

from pydicom import uid
from pydicom.dataset import Dataset
from pydicom.pixels.decoders.base import get_decoder
from pydicom.uid import UID
from pynetdicom import AE, evt
from pynetdicom import _config as pynetdicom_config
from pynetdicom.association import Association
from pynetdicom.transport import ThreadedAssociationServer

from pulmo_models import __version__
from pulmo_node.domain.commitments import CommitmentReport

IMPLEMENTATION_CLASS_UID = UID("2.25.173950946663202943339343307336040725090")
"""Names this software in associations and in the meta header of the files that it writes (PS3.7 D.3.3.2)."""

IMPLEMENTATION_VERSION_NAME = f"PULMO_{__version__}"[:16]

_UID = re.compile(r"[0-9]+(\.[0-9]+)+")

_PAUSE_SECONDS = 0.25

ERROR_COMMENT_LENGTH = 64  # value representation LO


class DimseStatus(IntEnum):
    """Statuses of C-STORE and C-ECHO that the node answers or names. A peer may answer others of the same ranges."""

    SUCCESS = 0x0000
    ATTRIBUTE_LIST_ERROR = 0x0107
    PROCESSING_FAILURE = 0x0110
    DUPLICATE_SOP_INSTANCE = 0x0111
    NO_SUCH_EVENT_TYPE = 0x0113
    INVALID_ARGUMENT = 0x0115
    ATTRIBUTE_VALUE_OUT_OF_RANGE = 0x0116
    INVALID_SOP_INSTANCE = 0x0117
    SOP_CLASS_NOT_SUPPORTED = 0x0122
    NO_SUCH_ACTION = 0x0123
    NOT_AUTHORISED = 0x0124
    DUPLICATE_INVOCATION = 0x0210
    UNRECOGNISED_OPERATION = 0x0211
    MISTYPED_ARGUMENT = 0x0212
    RESOURCE_LIMITATION = 0x0213
    OUT_OF_RESOURCES = 0xA700
    DATA_SET_DOES_NOT_MATCH_SOP_CLASS = 0xA900
    ELEMENTS_COERCED = 0xB000
    ELEMENTS_DISCARDED = 0xB006
    STORED_ALTHOUGH_NOT_MATCHING = 0xB007
    CANNOT_UNDERSTAND = 0xC000


class StatusKind(Enum):
    """What a status asks of the sender."""

    SUCCESS = "stored"
    WARNING = "stored with a warning"
    BUSY = "try again later"
    REFUSED = "trying again changes nothing"


_WARNINGS = frozenset(
    {
        0x0001,
        DimseStatus.ATTRIBUTE_LIST_ERROR,
        # Said by some of what they have: an earlier answer was lost, and a UID of a result is never used again.
        DimseStatus.DUPLICATE_SOP_INSTANCE,
        DimseStatus.ATTRIBUTE_VALUE_OUT_OF_RANGE,
    }
)


def status_kind(status: int) -> StatusKind:
    """Class of a status by its range (PS3.7 C): 0xBxxx warns, 0xA7xx and 0x0213 are lack of resources."""
    if status == DimseStatus.SUCCESS:
        return StatusKind.SUCCESS
    if status in _WARNINGS or status >> 12 == 0xB:
        return StatusKind.WARNING
    if status >> 8 == 0xA7 or status == DimseStatus.RESOURCE_LIMITATION:
        return StatusKind.BUSY
    return StatusKind.REFUSED


def status_in_words(status: int, comment: str = "") -> str:
    """For example ``0xA900: data set does not match SOP class, 'SOP Class UID missing'``."""
    words = _name(status)
    said = error_comment(comment)
    return f"0x{status:04X}: {words}" + (f", '{said}'" if said else "")


def _name(status: int) -> str:
    if status >> 8 in (0xA7, 0xA9):
        status &= 0xFF00
    elif status >> 12 == 0xC:
        status &= 0xF000
    try:
        return DimseStatus(status).name.replace("SOP", "sop").lower().replace("sop", "SOP").replace("_", " ")
    except ValueError:
        return {StatusKind.WARNING: "warning"}.get(status_kind(status), "failure")


def error_comment(text: str) -> str:
    """`text` as a valid (0000,0902) Error Comment: printable ASCII without backslash, at most 64 characters."""
    printable = "".join(c if " " <= c <= "~" and c != "\\" else "?" for c in text.strip())
    if len(printable) <= ERROR_COMMENT_LENGTH:
        return printable
    return printable[: ERROR_COMMENT_LENGTH - 3] + "..."


VERIFICATION = UID("1.2.840.10008.1.1")

STORAGE_COMMITMENT = UID("1.2.840.10008.1.20.1")
"""Storage Commitment Push Model SOP Class (PS3.4 J.3)."""

STORAGE_COMMITMENT_INSTANCE = UID("1.2.840.10008.1.20.1.1")
"""Its one well-known SOP Instance."""

REQUEST_COMMITMENT = 1  # Action Type ID, PS3.4 table J.3-1
_ALL_STORED, _FAILURES_EXIST = 1, 2  # Event Type ID, PS3.4 table J.3-2


def commitment_information(report: CommitmentReport) -> tuple[int, Dataset]:
    """Event Type ID and Event Information of the N-EVENT-REPORT on a request for storage commitment."""
    information = Dataset()
    information.TransactionUID = report.transaction_uid
    if report.stored:
        information.ReferencedSOPSequence = [_reference(*pair) for pair in report.stored]
    if not report.failed:
        return _ALL_STORED, information
    failed = []
    for sop_class, sop_instance, reason in report.failed:
        item = _reference(sop_class, sop_instance)
        item.FailureReason = int(reason)
        failed.append(item)
    information.FailedSOPSequence = failed
    return _FAILURES_EXIST, information


def commitment_request(transaction_uid: str, instances: Sequence[tuple[str, str]]) -> Dataset:
    """Action Information of the N-ACTION that asks for storage commitment (PS3.4 table J.3-1)."""
    information = Dataset()
    information.TransactionUID = transaction_uid
    information.ReferencedSOPSequence = [_reference(*pair) for pair in instances]
    return information


def _reference(sop_class_uid: str, sop_instance_uid: str) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID = sop_class_uid
    item.ReferencedSOPInstanceUID = sop_instance_uid
    return item


IMAGE_SOP_CLASSES: tuple[UID, ...] = (
    uid.CTImageStorage,
    uid.EnhancedCTImageStorage,
    uid.LegacyConvertedEnhancedCTImageStorage,
    uid.ComputedRadiographyImageStorage,
    uid.DigitalXRayImageStorageForPresentation,
)
"""What the node receives."""

RESULT_SOP_CLASSES: tuple[UID, ...] = (
    uid.Comprehensive3DSRStorage,
    uid.ComprehensiveSRStorage,
    uid.EnhancedSRStorage,
    uid.BasicTextSRStorage,
    uid.KeyObjectSelectionDocumentStorage,
    uid.SegmentationStorage,
    UID("1.2.840.10008.5.1.4.1.1.66.7"),  # Label Map Segmentation Storage
    uid.SecondaryCaptureImageStorage,
    uid.ParametricMapStorage,
    uid.GrayscaleSoftcopyPresentationStateStorage,
    uid.EncapsulatedPDFStorage,
)
"""What the node offers to a destination."""

RESULT_TRANSFER_SYNTAXES: tuple[UID, ...] = (
    uid.ExplicitVRLittleEndian,
    uid.ImplicitVRLittleEndian,
    uid.DeflatedExplicitVRLittleEndian,
)
"""Each is offered in a presentation context of its own, since results are sent as they were encoded."""

UNCOMPRESSED: tuple[UID, ...] = (
    uid.ExplicitVRLittleEndian,
    uid.ImplicitVRLittleEndian,
    uid.DeflatedExplicitVRLittleEndian,
    uid.ExplicitVRBigEndian,
)

COMPRESSED: tuple[UID, ...] = (
    uid.JPEGLSLossless,
    uid.JPEG2000Lossless,
    uid.HTJ2KLossless,
    uid.HTJ2KLosslessRPCL,
    uid.JPEGLosslessSV1,
    uid.JPEGLossless,
    uid.RLELossless,
    uid.HTJ2K,
    uid.JPEG2000,
    uid.JPEGLSNearLossless,
    uid.JPEGBaseline8Bit,
    uid.JPEGExtended12Bit,
)
"""Compressed transfer syntaxes that the node knows, lossless ones first."""


def has_decoder(transfer_syntax_uid: UID) -> bool:
    """Whether pixel data in that transfer syntax can be decoded here, asked of pydicom and its plug-ins.

    12-bit JPEG Extended counts only with gdcm, which `pulmo_node.assemble.decoding` calls: Pillow registers for it as
    well, but decodes nothing beyond 8 bits.
    """
    if transfer_syntax_uid in UNCOMPRESSED:
        return True
    decoder = get_decoder(transfer_syntax_uid)
    if transfer_syntax_uid == uid.JPEGExtended12Bit:
        return "gdcm" in decoder.available_plugins
    return bool(decoder.is_available)


def decodable_transfer_syntaxes() -> tuple[UID, ...]:
    """What the node accepts, in order of preference; what it cannot decode is refused at negotiation."""
    return UNCOMPRESSED + tuple(syntax for syntax in COMPRESSED if has_decoder(syntax))


def decoder_gaps() -> tuple[str, ...]:
    """Names of the transfer syntaxes that an installation ought to decode and does not."""
    return tuple(syntax.name for syntax in COMPRESSED if not has_decoder(syntax))


def is_uid(text: str) -> bool:
    """Whether a peer's text is a UID, by PS3.5 9.1 but for components with leading zeros, which harm nobody."""
    return len(text) <= 64 and _UID.fullmatch(text) is not None


def configure_pynetdicom() -> None:
    """Set the process-wide switches of pynetdicom that receiver and sender rely on. Idempotent.

    - no logging: its lines may quote values, and the stages say themselves what happened;
    - `send_c_store(path)` sends the bytes of the file in chunks instead of decoding and encoding them again.
    """
    logging.getLogger("pynetdicom").setLevel(logging.CRITICAL)
    pynetdicom_config.LOG_HANDLER_LEVEL = "none"
    pynetdicom_config.LOG_REQUEST_IDENTIFIERS = False
    pynetdicom_config.LOG_RESPONSE_IDENTIFIERS = False
    pynetdicom_config.STORE_SEND_CHUNKED_DATASET = True


class PromptServer(ThreadedAssociationServer):
    """pynetdicom's server with room for a burst of connections, and quick to stop."""

    request_queue_size = 128  # as delivered 5: a connection beyond waits for a second or more for its next try

    def serve_forever(self, poll_interval: float = 0.05) -> None:
        """Look for the request to stop every 50 ms instead of 500."""
        self._gc = [0, 599]  # polls from one of its garbage collections to the next: every 30 s, as before
        super().serve_forever(poll_interval)


def listen(
    entity: AE,
    address: tuple[str, int],
    handlers: list[evt.EventHandlerType],
    server_class: type[PromptServer] = PromptServer,
    **options: Any,
) -> ThreadedAssociationServer:
    """Accept associations in a thread of its own; returns when the port is open. `options` are those of the class.

    Raises:
        OSError: the address is in use or not one of this machine.
    """
    server = entity.make_server(address, evt_handlers=handlers, server_class=server_class, **options)
    entity._servers.append(server)  # from where its shutdown removes it
    threading.Thread(
        target=server.serve_forever, name=f"AcceptorServer:{server.server_address[1]}", daemon=True
    ).start()
    return server


def prepare_connection(event: evt.Event, timeout_seconds: float) -> None:
    """Handler of `evt.EVT_CONN_OPEN` on both sides: no delay, and no wait without an end.

    Commands are small: without TCP_NODELAY each waits for the peer's delayed acknowledgement of the one before.
    pynetdicom's own timers do not see a peer that stops in the middle of a PDU, the socket's does.
    """
    if event.assoc.is_requestor:
        _keep_answers(event.assoc)
        _send_whole(event.assoc)
    event.assoc._reactor_checkpoint = _Checkpoint(event.assoc)
    wrapper = event.assoc.dul.socket
    if wrapper is None or wrapper.socket is None:  # the peer was gone again at once
        return
    wrapper.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    wrapper.socket.settimeout(timeout_seconds)


def _keep_answers(association: Association) -> None:
    """Leave the answer to a request to the thread that waits for it.

    The thread that serves an association can be past the point where pynetdicom pauses it when a request is sent. Where
    it then goes on only after the answer came, it takes the answer for an unexpected message and drops it.
    """
    wait_for_message = association.dimse.get_msg
    messages = association.dimse.msg_queue

    def get_msg(block: bool = False) -> Any:
        if block:
            return wait_for_message(block)
        with messages.mutex:
            if not messages.queue:
                return None, None
            message = messages.queue[0][1]  # None where the connection is over
            is_asking = not association._reactor_checkpoint.is_set()
            if is_asking and not (message is not None and message.is_valid_request):
                return None, None
            return messages.queue.popleft()

    association.dimse.get_msg = get_msg  # type: ignore[method-assign]


def _send_whole(association: Association) -> None:
    """Send one message after the other: fragments of two may not mix (PS3.8 annex E).

    The answer to an N-EVENT-REPORT is sent by a thread of its own, also while an object is being sent.
    """
    send_msg, lock = association.dimse.send_msg, threading.Lock()

    def send(primitive: Any, context_id: int) -> None:
        with lock:
            send_msg(primitive, context_id)

    association.dimse.send_msg = send  # type: ignore[method-assign]


class _Checkpoint(threading.Event):
    """Where the thread that serves an association waits while a request is under way: it says so all the time.

    pynetdicom says it once, and the thread that answered an N-EVENT-REPORT takes it back at its end, whoever waits: the
    next request, or the release, would wait for ever for a pause that is there.
    """

    def __init__(self, association: Association) -> None:
        super().__init__()
        self._association = association
        self.set()

    def wait(self, timeout: float | None = None) -> bool:
        """Returns when nothing is under way; `timeout` is not used, as pynetdicom gives none."""
        while not super().wait(_PAUSE_SECONDS):
            self._association._is_paused = True
        return True
