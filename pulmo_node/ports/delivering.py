"""What the delivery of results to a destination needs."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from pulmo_node.domain.deliveries import Peer, ResultObject


class ResultLink(Protocol):
    """An open association to a destination."""

    @property
    def commits(self) -> bool:
        """Whether storage commitment was wanted and the peer offers it."""
        ...

    def request_commitment(self, transaction_uid: str, instances: Sequence[tuple[str, str]]) -> None:
        """N-ACTION for pairs of SOP Class UID and SOP Instance UID.

        Raises:
            Transient: association lost, no answer.
            Permanent: refused.
        """
        ...

    def store(self, file: Path, result: ResultObject) -> str:
        """C-STORE one object; the status in words where the peer answered Success or a warning.

        Raises:
            Transient: association lost, peer busy (0xA7xx).
            Permanent: refused (0xA9xx, 0xCxxx, 0x01xx), or its SOP class was not accepted at negotiation.
        """
        ...


class ResultSender(Protocol):
    """Delivers result objects."""

    def open(self, peer: Peer) -> AbstractContextManager[ResultLink]:
        """Open an association. Raises `Transient` where the peer cannot be reached or rejects."""
        ...

    def echo(self, peer: Peer) -> float:
        """C-ECHO; seconds it took. Raises `Transient`."""
        ...
