"""Why a request or a report is not taken."""

from __future__ import annotations

from pulmo_node.dimse import DimseStatus


class Refused(Exception):
    """It is answered with a failure status; the text is for the log."""

    def __init__(self, status: DimseStatus, reason: str) -> None:
        super().__init__(reason)
        self.status = status
