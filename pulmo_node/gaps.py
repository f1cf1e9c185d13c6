"""Gap repair: ask the PACS that sent a series whether that was all of it, and fetch what is missing.

Input: a series that is quiet, and the SOP Instance UIDs that the node has of it. Output: whether it may be called
complete. C-FIND at series level asks for the number of instances, and at image level, where there are more, for which;
a C-MOVE to the node brings the missing ones, which arrive like any others (PS3.4 C.4.1, C.4.2, study root model).

Each question is asked in a thread of its own, so that a slow PACS holds up no other series. What cannot be had
after the configured attempts is done without. Errors: none leave it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

from pydicom.dataset import Dataset
from pydicom.uid import UID
from pynetdicom import build_context
from pynetdicom.association import Association
from pynetdicom.presentation import PresentationContext

from pulmo_node.domain.deliveries import Peer
from pulmo_node.domain.retry import RetryPolicy
from pulmo_node.domain.series import Series
from pulmo_node.errors import PulmoError, Transient

log = logging.getLogger(__name__)

Dial = Callable[[Peer, list[PresentationContext]], AbstractContextManager[Association]]

_FIND = UID("1.2.840.10008.5.1.4.1.2.2.1")  # Study Root Query/Retrieve Information Model - FIND
_MOVE = UID("1.2.840.10008.5.1.4.1.2.2.2")
_PENDING = frozenset({0xFF00, 0xFF01})
_MOST_UIDS = 100  # of one C-MOVE
_MOST_QUESTIONS = 4  # at once
_SECONDS_PER_INSTANCE = 5.0


class Retriever:
    """Asks a PACS and lets it send."""

    def __init__(self, dial: Dial, ae_title: str) -> None:
        """`dial` opens associations; `ae_title` is that of the node's receiver, as the PACS knows it."""
        self._dial = dial
        self._ae_title = ae_title

    def missing(self, peer: Peer, series: Series, present: Collection[str]) -> tuple[str, ...]:
        """SOP Instance UIDs that the PACS has of a series and the node has not. Raises `Transient`."""
        with self._dial(peer, [build_context(_FIND)]) as association:
            level = _query(series, "SERIES")
            level.NumberOfSeriesRelatedInstances = None
            counts = [found.get("NumberOfSeriesRelatedInstances") for found in _find(association, peer, level)]
            if not counts:
                return ()  # it does not have the series: nothing can be missing
            if all(count is not None and int(count) <= len(present) for count in counts):
                return ()
            level = _query(series, "IMAGE")
            level.SOPInstanceUID = ""
            known = {str(found.get("SOPInstanceUID", "")) for found in _find(association, peer, level)}
        return tuple(sorted(known - {""} - set(present)))

    def fetch(self, peer: Peer, series: Series, uids: Sequence[str]) -> None:
        """Let the PACS send these instances to the node. Raises `Transient` where it could not send all of them."""
        with self._dial(peer, [build_context(_MOVE)]) as association:
            for begin in range(0, len(uids), _MOST_UIDS):
                some = uids[begin : begin + _MOST_UIDS]
                association.dimse_timeout = (association.dimse_timeout or 0.0) + _SECONDS_PER_INSTANCE * len(some)
                identifier = _query(series, "IMAGE")
                identifier.SOPInstanceUID = list(some)
                final = None
                for status, _ in association.send_c_move(identifier, self._ae_title, _MOVE):
                    final = status.get("Status")
                if final is None:
                    raise Transient(f"{peer.name} did not answer: association lost or timed out")
                if final != 0:
                    raise Transient(f"{peer.name} answered 0x{final:04X} to C-MOVE")


@dataclass(kw_only=True)
class _Progress:
    """How far the questions about one series are."""

    instances: int  # of the node, when it was last asked
    attempts: int = 0
    not_before_seconds: float = 0.0  # monotonic
    asking: threading.Thread | None = None
    outcome: str | None = None  # why it is not complete; None: it is


class GapRepair:
    """Holds back series until the PACS that sent them has no more of them."""

    def __init__(
        self,
        retriever: Retriever,
        retry: RetryPolicy,
        *,
        peer_of: Callable[[str], Peer | None],
        instance_uids: Callable[[str], Collection[str]],
        monotonic_seconds: Callable[[], float] = time.monotonic,
    ) -> None:
        """`peer_of` is the PACS to ask for a calling AE title; `instance_uids` what the node has of a series."""
        self._retriever = retriever
        self._retry = retry
        self._peer_of = peer_of
        self._instance_uids = instance_uids
        self._monotonic_seconds = monotonic_seconds
        self._series: dict[str, _Progress] = {}

    def holds_back(self, series: Series) -> bool:
        """Whether a quiet series is not to be called complete yet. Begins to ask where that is not known."""
        peer = self._peer_of(series.calling_ae_title)
        if peer is None:
            return False
        progress = self._series.setdefault(series.series_instance_uid, _Progress(instances=series.number_of_instances))
        if progress.asking is not None:
            if progress.asking.is_alive():
                return True
            progress.asking = None
            if self._settled(series, progress):
                del self._series[series.series_instance_uid]
                return False
        active = sum(one.asking is not None and one.asking.is_alive() for one in self._series.values())
        if self._monotonic_seconds() >= progress.not_before_seconds and active < _MOST_QUESTIONS:
            progress.asking = threading.Thread(
                target=self._ask, args=(peer, series, progress), name="gap repair", daemon=True
            )
            progress.asking.start()
        return True

    def _settled(self, series: Series, progress: _Progress) -> bool:
        """Whether the latest question ends it: nothing is missing, or it was asked often enough."""
        if progress.outcome is None:
            return True
        if series.number_of_instances > progress.instances:
            progress.attempts = 0  # something came: it is worth asking again
        progress.instances = series.number_of_instances
        progress.attempts += 1
        if progress.attempts >= self._retry.max_attempts:
            log.warning("series %s: %s; done without", series.series_instance_uid, progress.outcome)
            return True
        progress.not_before_seconds = self._monotonic_seconds() + self._retry.delay_seconds(progress.attempts)
        return False

    def _ask(self, peer: Peer, series: Series, progress: _Progress) -> None:
        progress.outcome = f"{peer.name} could not be asked"
        try:
            missing = self._retriever.missing(peer, series, self._instance_uids(series.series_instance_uid))
            if not missing:
                progress.outcome = None
                return
            progress.outcome = f"{len(missing)} instances that {peer.name} has are missing"
            log.info("series %s: %s, asked for", series.series_instance_uid, progress.outcome)
            self._retriever.fetch(peer, series, missing)
        except PulmoError as exc:
            progress.outcome = f"{progress.outcome}: {exc}"
        except (RuntimeError, ValueError):  # the association ended, or its query model was not accepted
            progress.outcome = f"{progress.outcome}: {peer.name} does not answer queries"


def _query(series: Series, level: str) -> Dataset:
    identifier = Dataset()
    identifier.QueryRetrieveLevel = level
    identifier.StudyInstanceUID = series.study_instance_uid
    identifier.SeriesInstanceUID = series.series_instance_uid
    return identifier


def _find(association: Association, peer: Peer, identifier: Dataset) -> Iterator[Dataset]:
    for status, found in association.send_c_find(identifier, _FIND):
        code = status.get("Status")
        if code is None:
            raise Transient(f"{peer.name} did not answer: association lost or timed out")
        if code in _PENDING:
            if found is not None:
                yield found
        elif code != 0:
            raise Transient(f"{peer.name} answered 0x{code:04X} to C-FIND")
