"""Receive: a DICOM storage and verification SCP.

Input: C-STORE and C-ECHO requests. Output: the peer's bytes in the instance store, a committed row, then the answer.
The data set is never decoded and encoded again: only its head, up to (0020,000E), is read to learn its identity.
Governed by DICOM PS3.4 B (storage), PS3.7 9.1.1 (C-STORE), PS3.8 9.3.4 (A-ASSOCIATE-RJ), PS3.10 7 (file format).

Statuses: 0x0000 once file and row are durable, also for an instance that is there already and for a conflict;
0xA700 where storage or database refuse, 0xA900 where the data set is not what the command says, 0xC000 where it
cannot be understood, each with an Error Comment. None of them ends the association.

In reading order: `head` (what a data set says that it is), `receiver` (the SCP).
"""

from __future__ import annotations

from pulmo_node.receive.head import InstanceHead, Refused, describe, encode_meta, read_head
from pulmo_node.receive.receiver import Receiver, ReceiveSettings

__all__ = ["InstanceHead", "ReceiveSettings", "Receiver", "Refused", "describe", "encode_meta", "read_head"]
