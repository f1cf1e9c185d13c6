"""Deliver: a DICOM storage and verification SCU, and a STOW-RS client.

Input: Part 10 files and a peer. Output: the peer's status in words. The bytes of a file are sent as they are, never
decoded or encoded again, so its transfer syntax must be one that the peer accepted for its SOP class.
Governed by DICOM PS3.4 B (storage), PS3.7 9.1.1 and C (statuses), PS3.8 9.3 (association).

Errors: `Transient` where the peer cannot be reached, rejects or aborts the association, does not answer in time or
is out of resources (0xA7xx); `Permanent` where it refuses the object. There is no retry here: `domain/retry.py`
decides.

In reading order: `files` (what is sent), `link` (an open association), `sender` (opens them), `stow` (destinations
that are DICOMweb servers).
"""

from __future__ import annotations

from pulmo_node.deliver.link import AssociationLink
from pulmo_node.deliver.sender import DicomSender
from pulmo_node.deliver.stow import ResultSenders, StowSender

__all__ = ["AssociationLink", "DicomSender", "ResultSenders", "StowSender"]
