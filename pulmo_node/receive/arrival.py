"""One instance on its way to the disk, from the command of its C-STORE request to the answer."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from pydicom.uid import UID

from pulmo_node.dimse import DimseStatus, error_comment, is_uid
from pulmo_node.domain.series import InstanceOutcome, StoredInstance
from pulmo_node.errors import PulmoError, StorageFull, Transient
from pulmo_node.network.storing import StoreAnswer, StoreRequest
from pulmo_node.ports import Clock, IncomingInstance, InstanceStore
from pulmo_node.receive.head import InstanceHead, Refused, describe, encode_meta, find_head, read_head

log = logging.getLogger(__name__)

_FIRST_LOOK_BYTES = 4096  # what stands before (0020,000E) is rarely longer
_NEXT_LOOK_FACTOR = 8


@dataclass(kw_only=True)
class Transfer:
    """What one association has brought so far. Written by its own thread only."""

    calling_ae_title: str
    series_instance_uid: str | None = None
    counts: Counter[str] = field(default_factory=Counter)
    studies: Counter[str] = field(default_factory=Counter)  # instances that were answered with Success, by study


class Arrival:
    """Takes the data set of one request (`DataSetSink`): as soon as its head is there, it goes to the disk as it comes.

    Only the head is ever held in memory, or all of it where the head is longer than any met (or deflated).
    """

    def __init__(
        self,
        request: StoreRequest,
        transfer: Transfer,
        instances: InstanceStore,
        record: Callable[[StoredInstance], InstanceOutcome],
        clock: Clock,
    ) -> None:
        """`record` is `ReceiveStore.record_instance`."""
        self._request = request
        self._transfer_syntax_uid = UID(request.transfer_syntax_uid)
        self._transfer = transfer
        self._instances = instances
        self._record = record
        self._clock = clock
        self._held = bytearray()
        self._look_at_bytes = _FIRST_LOOK_BYTES
        self._head: InstanceHead | None = None
        self._incoming: IncomingInstance | None = None
        self._refusal: StoreAnswer | None = None

    def append(self, fragment: bytes | memoryview) -> None:
        """The next bytes; nothing more is done with them once the instance is refused."""
        if self._refusal is not None:
            return
        with self._refusing():
            if self._incoming is not None:
                self._incoming.append(fragment)
                return
            self._held += fragment
            while self._head is None and len(self._held) >= self._look_at_bytes:
                head = find_head(bytes(self._held[: self._look_at_bytes]), self._transfer_syntax_uid)
                self._look_at_bytes *= _NEXT_LOOK_FACTOR
                if head is not None:
                    self._begin(head)

    def finish(self) -> StoreAnswer:
        """Success once file, folder and row are durable."""
        outcome = ""
        if self._refusal is None:
            with self._refusing():
                outcome = self._store_it()
        answer = self._refusal
        self._transfer.counts[outcome if answer is None else "refused"] += 1
        if answer is None:
            return StoreAnswer(status=DimseStatus.SUCCESS)
        log.warning("instance %s refused with 0x%04X: %s", self._name(), answer.status, answer.comment)
        return answer

    def discard(self) -> None:
        """Leave no part of a file behind."""
        incoming, self._incoming = self._incoming, None
        if incoming is not None:
            incoming.discard()

    def _begin(self, head: InstanceHead) -> None:
        _check_identity(head, self._request)
        self._head = head
        self._transfer.series_instance_uid = head.series_instance_uid
        self._incoming = self._instances.begin(
            study_instance_uid=head.study_instance_uid,
            series_instance_uid=head.series_instance_uid,
            sop_instance_uid=head.sop_instance_uid,
            meta=encode_meta(head, self._transfer_syntax_uid, self._transfer.calling_ae_title),
        )
        self._incoming.append(self._held)
        self._held = bytearray()

    def _store_it(self) -> str:
        if self._head is None:
            self._begin(read_head(bytes(self._held), self._transfer_syntax_uid))
        if self._head is None or self._incoming is None:
            raise RuntimeError("an instance that was not begun")
        instance = describe(
            self._head,
            self._incoming.finish(),
            transfer_syntax_uid=self._transfer_syntax_uid,
            calling_ae_title=self._transfer.calling_ae_title,
            received_at=self._clock.now(),
        )
        outcome = self._record(instance)
        if not self._instances.absolute(instance.path).is_file():
            raise Transient("its study was purged or deleted before it was recorded")
        self._transfer.studies[self._head.study_instance_uid] += 1
        return outcome.value

    @contextmanager
    def _refusing(self) -> Iterator[None]:
        """Whatever goes wrong becomes the answer; the association goes on."""
        try:
            yield
        except Refused as exc:
            self._refuse(exc.status, str(exc))
        except StorageFull:  # the store itself tells when it begins and ends
            self._refuse(DimseStatus.OUT_OF_RESOURCES, "storage is almost full, try again later")
        except PulmoError as exc:
            self._refuse(DimseStatus.OUT_OF_RESOURCES, "not stored, try again later")
            log.error("instance %s not stored: %s", self._name(), exc)
        except Exception as exc:  # noqa: BLE001
            # Boundary: a fault of ours must neither end the association nor cost the sender its instance, so it is
            # asked to try again. Only the type is logged, since a text may quote the data set.
            self._refuse(DimseStatus.OUT_OF_RESOURCES, "internal error, try again later")
            log.error("instance %s not stored: unexpected %s", self._name(), type(exc).__name__)

    def _refuse(self, status: DimseStatus, comment: str) -> None:
        self._refusal = StoreAnswer(status=int(status), comment=error_comment(comment))
        self._held = bytearray()
        self.discard()

    def _name(self) -> str:
        named = self._request.sop_instance_uid
        return named if is_uid(named) else "(no valid UID)"  # any text may stand there


def _check_identity(head: InstanceHead, request: StoreRequest) -> None:
    mismatch = DimseStatus.DATA_SET_DOES_NOT_MATCH_SOP_CLASS
    if request.sop_class_uid != request.abstract_syntax:
        raise Refused(mismatch, "SOP Class UID of the command is not the one negotiated")
    if head.sop_class_uid != request.sop_class_uid:
        raise Refused(mismatch, "SOP Class UID differs between command and data set")
    if head.sop_instance_uid != request.sop_instance_uid:
        raise Refused(mismatch, "SOP Instance UID differs between command and data set")
