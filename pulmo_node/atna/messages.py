"""Entries of the audit trail as DICOM audit messages.

Input: entries of the trail. Output: XML by the schema of PS3.15 A.5.1.1, one document for each event that A.5.3 knows
and that happens here: Application Activity, DICOM Instances Transferred (received, delivered), DICOM Study Deleted,
Security Alert (rejected association, replaced configuration). Everything else stays in the trail alone. Written only,
never parsed. Errors: none.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from xml.etree import ElementTree

SUCCESS, MINOR_FAILURE = "0", "4"

_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_DELIVERED = re.compile(r"\S+ to (.+?)(?:: .*)?", re.DOTALL)  # detail of an event "sent" of a delivery
_DELIVERY_SENT = re.compile(r"delivery \d+ sent")

_ACTIVITY = ("110100", "Application Activity")
_STARTED, _STOPPED = ("110120", "Application Start"), ("110121", "Application Stop")
_TRANSFERRED = ("110104", "DICOM Instances Transferred")
_DELETED = ("110105", "DICOM Study Deleted")
_ALERT = ("110113", "Security Alert")
_REJECTED, _CONFIGURED = ("110126", "Node Authentication"), ("110131", "Software Configuration")
_APPLICATION, _LAUNCHER = ("110150", "Application"), ("110151", "Application Launcher")
_TO, _FROM = ("110152", "Destination Role ID"), ("110153", "Source Role ID")
_STUDY_UID = ("110180", "Study Instance UID")

_Code = tuple[str, str]


@dataclass(frozen=True, kw_only=True)
class Source:
    """Who reports."""

    ae_title: str
    host: str
    site: str = ""  # Audit Enterprise Site ID


@dataclass(frozen=True, kw_only=True)
class Destination:
    """A peer that results go to."""

    ae_title: str
    host: str


@dataclass(frozen=True, kw_only=True)
class _Event:
    id: _Code
    action: str  # C, R, U, D or E
    type: _Code | None = None
    outcome: str = SUCCESS
    words: str = ""


def audit_messages(
    entry: Mapping[str, object],
    who: str,
    source: Source,
    *,
    destination_of: Callable[[str], Destination | None] = lambda name: None,
    patient_of: Callable[[str], str | None] = lambda study: None,
) -> Iterator[bytes]:
    """The messages of one entry, UTF-8; none where it is no event of PS3.15 A.5.3.

    `destination_of` finds a peer by its name; `patient_of` the Patient ID of a study, None where it is not to be told.
    """
    action, at = str(entry["action"]), entry.get("at")
    when = at if isinstance(at, datetime) else datetime.now(UTC)

    def written(event: _Event, people: list[ElementTree.Element], *studies: tuple[str, int]) -> bytes:
        return _message(event, when, people, source, [_objects(*each, patient_of) for each in studies])

    own = _person(source.ae_title, host=source.host, other=str(os.getpid()))
    study = str(entry.get("study_instance_uid") or "")
    if action in ("node started", "node stopped"):
        own.set("UserIsRequestor", "false")
        own.insert(0, _coded("RoleIDCode", _APPLICATION))
        launcher = _person(who, requests=True, role=_LAUNCHER)
        kind = _STARTED if action == "node started" else _STOPPED
        yield written(_Event(id=_ACTIVITY, action="E", type=kind), [own, launcher])
    elif action == "association rejected":
        event = _Event(
            id=_ALERT, action="E", type=_REJECTED, outcome=MINOR_FAILURE, words=str(entry.get("reason") or "")
        )
        peer = _person(str(entry["calling_ae_title"]), host=str(entry["address"]), requests=True)
        yield written(event, [own, peer])
    elif action == "configuration replaced":
        yield written(_Event(id=_ALERT, action="E", type=_CONFIGURED), [own, _person(who, requests=True)])
    elif action == "deleted":
        yield written(_Event(id=_DELETED, action="D"), [_person(who, requests=True)], (study, _number(entry, "images")))
    elif action in ("association released", "association aborted"):
        peer = _person(str(entry["calling_ae_title"]), host=str(entry["address"]), requests=True, role=_FROM)
        own.insert(0, _coded("RoleIDCode", _TO))
        outcome = SUCCESS if action.endswith("released") else MINOR_FAILURE
        received = entry.get("studies")
        for uid, count in received.items() if isinstance(received, Mapping) else ():
            yield written(_Event(id=_TRANSFERRED, action="C", outcome=outcome), [peer, own], (uid, int(count)))
    elif _DELIVERY_SENT.fullmatch(action):
        named = _DELIVERED.fullmatch(str(entry.get("detail") or ""))
        name = named[1] if named else ""
        peer_known = destination_of(name) or Destination(ae_title=name, host="")
        own.set("UserIsRequestor", "true")
        own.insert(0, _coded("RoleIDCode", _FROM))
        peer = _person(peer_known.ae_title or name, host=peer_known.host, role=_TO)
        yield written(_Event(id=_TRANSFERRED, action="C"), [own, peer], (study, 1))


def _message(
    event: _Event,
    when: datetime,
    people: list[ElementTree.Element],
    source: Source,
    objects: list[list[ElementTree.Element]],
) -> bytes:
    root = ElementTree.Element("AuditMessage")
    happened = ElementTree.SubElement(
        root,
        "EventIdentification",
        EventActionCode=event.action,
        EventDateTime=when.isoformat(timespec="milliseconds"),
        EventOutcomeIndicator=event.outcome,
    )
    happened.append(_coded("EventID", event.id))
    if event.type is not None:
        happened.append(_coded("EventTypeCode", event.type))
    if event.words:
        ElementTree.SubElement(happened, "EventOutcomeDescription").text = _text(event.words)
    root.extend(people)
    reporter = ElementTree.SubElement(root, "AuditSourceIdentification", AuditSourceID=_text(source.ae_title))
    if source.site:
        reporter.set("AuditEnterpriseSiteID", _text(source.site))
    ElementTree.SubElement(reporter, "AuditSourceTypeCode", {"csd-code": "4"})  # application server process
    for each in objects:
        root.extend(each)
    written: bytes = ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)
    return written


def _person(
    name: str, *, host: str = "", requests: bool = False, role: _Code | None = None, other: str = ""
) -> ElementTree.Element:
    """An ActiveParticipant: person, program or peer."""
    element = ElementTree.Element("ActiveParticipant", UserID=_text(name), UserIsRequestor=str(requests).lower())
    if other:
        element.set("AlternativeUserID", _text(other))
    if host:
        element.set("NetworkAccessPointID", _text(host))
        element.set(
            "NetworkAccessPointTypeCode", "2" if re.fullmatch(r"[0-9.]+|[0-9a-fA-F:]*:[0-9a-fA-F:.]*", host) else "1"
        )
    if role is not None:
        element.append(_coded("RoleIDCode", role))
    return element


def _objects(study: str, instances: int, patient_of: Callable[[str], str | None]) -> list[ElementTree.Element]:
    """The study and, where it is to be told, its patient."""
    patient = patient_of(study)
    found = ElementTree.Element(
        "ParticipantObjectIdentification",
        ParticipantObjectID=_text(study),
        ParticipantObjectTypeCode="2",
        ParticipantObjectTypeCodeRole="3",
    )
    found.append(_coded("ParticipantObjectIDTypeCode", _STUDY_UID))
    ElementTree.SubElement(found, "ParticipantObjectName").text = _text(study)
    description = ElementTree.SubElement(found, "ParticipantObjectDescription")
    ElementTree.SubElement(description, "SOPClass", NumberOfInstances=str(instances))
    if patient is None:
        return [found]
    person = ElementTree.Element(
        "ParticipantObjectIdentification",
        ParticipantObjectID=_text(patient),
        ParticipantObjectTypeCode="1",
        ParticipantObjectTypeCodeRole="1",
    )
    person.append(_coded("ParticipantObjectIDTypeCode", ("2", "Patient Number"), scheme="RFC-3881"))
    ElementTree.SubElement(person, "ParticipantObjectName").text = _text(patient)
    return [found, person]


def _coded(name: str, code: _Code, scheme: str = "DCM") -> ElementTree.Element:
    return ElementTree.Element(name, {"csd-code": code[0], "codeSystemName": scheme, "originalText": code[1]})


def _number(entry: Mapping[str, object], key: str) -> int:
    value = entry.get(key)
    return value if isinstance(value, int) else 0


def _text(value: str) -> str:
    """What XML can hold."""
    return _NOT_XML.sub("?", value)
