"""The conformance statement says what the node negotiates, seen by peers that propose everything there is."""

from __future__ import annotations

import re
from pathlib import Path

from pydicom.sr.coding import Code
from pydicom.uid import UID, AllTransferSyntaxes
from pynetdicom import AE, build_context, evt
from pynetdicom.sop_class import _STORAGE_CLASSES, _VERIFICATION_CLASSES

from pulmo_node.app import Node
from pulmo_node.deliver import DicomSender
from pulmo_node.dimse import STORAGE_COMMITMENT, VERIFICATION
from pulmo_node.domain.deliveries import Peer
from pulmo_node.encode import codes
from tests.integration.test_node import configuration
from tools import conformance

EVERY_SYNTAX = [str(syntax) for syntax in AllTransferSyntaxes if not syntax.is_private]
EVERY_CLASS = {str(each) for each in (*_STORAGE_CLASSES.values(), *_VERIFICATION_CLASSES.values(), STORAGE_COMMITMENT)}


def table(heading: str, after: str = "") -> list[list[str]]:
    """The rows below a heading of the document, each as the texts of its cells."""
    text = conformance.TARGET.read_text(encoding="utf-8").split(heading, 1)[1]
    lines = text.split(after, 1)[1].splitlines() if after else text.splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("|"))
    rows = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows


def test_the_document_is_what_the_code_says() -> None:
    assert conformance.TARGET.read_text(encoding="utf-8") == conformance.statement(), "run python -m tools.conformance"
    assert "@" not in conformance.statement()


def test_every_code_system_of_the_results_is_named() -> None:
    (section,) = re.findall(r"^### 8\.3 .*?(?=^### )", conformance.statement(), re.MULTILINE | re.DOTALL)
    named = [value.scheme_designator for value in vars(codes).values() if isinstance(value, Code)]
    assert {"SCT", "UMLS", "99PULMO"} <= set(named)
    assert [scheme for scheme in sorted(set(named)) if not re.search(rf"\b{scheme}\b", section)] == []


def test_the_receiver_accepts_what_the_document_says_and_nothing_else(tmp_path: Path) -> None:
    """Every storage class of the standard, each with every transfer syntax, in a context of its own."""
    syntaxes = {
        "images": {row[1] for row in table("Images:")},
        "plain": {row[1] for row in table("Plain:")},
    }
    documented = {(row[1], syntax) for row in table("4.2.1.1 SOP classes") for syntax in syntaxes[row[3]]}
    accepted: set[tuple[str, str]] = set()
    patient = {"association_request_seconds": 300.0, "network_timeout_seconds": 300.0}  # with a machine that is busy
    with Node(configuration(tmp_path, receive=patient)) as node:
        proposals = [(sop_class, syntax) for sop_class in sorted(EVERY_CLASS) for syntax in EVERY_SYNTAX]
        some = [pair for pair in proposals if pair[0] in {row[1] for row in table("4.2.1.1 SOP classes")}]
        others = [(sop_class, EVERY_SYNTAX) for sop_class in sorted(EVERY_CLASS - {pair[0] for pair in some})]
        for batch in _batches([*some, *others]):
            entity = AE("ANYONE")
            entity.acse_timeout = entity.network_timeout = 300.0
            association = entity.associate(
                "127.0.0.1", node.receiver.port, contexts=[build_context(*pair) for pair in batch], ae_title="PULMO"
            )
            if association.is_established:
                accepted |= {(str(c.abstract_syntax), str(c.transfer_syntax[0])) for c in association.accepted_contexts}
                association.release()
    assert accepted == documented


def test_the_sender_proposes_what_the_document_says(tmp_path: Path) -> None:
    documented = {
        (row[1], syntax[1])
        for row in table("4.2.2.1 SOP classes proposed")
        for syntax in table("4.2.2.1 SOP classes proposed", "as they were encoded")
    }
    proposed: list[set[tuple[str, str]]] = []

    def note(event: evt.Event) -> None:
        requested = event.assoc.requestor.requested_contexts
        proposed.append({(str(c.abstract_syntax), str(syntax)) for c in requested for syntax in c.transfer_syntax})

    pacs = AE("PACS")
    pacs.add_supported_context(VERIFICATION)
    server = pacs.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_REQUESTED, note)])
    try:
        port = server.server_address[1]
        for commitment in (False, True):
            peer = Peer(name="pacs", ae_title="PACS", host="127.0.0.1", port=port, commitment=commitment)
            with DicomSender("PULMO").open(peer):
                pass
    finally:
        server.shutdown()
    services = {str(VERIFICATION), str(STORAGE_COMMITMENT)}
    for contexts in proposed:
        assert {pair for pair in contexts if pair[0] not in services} == documented
    assert {pair[0] for pair in proposed[0]} & services == {str(VERIFICATION)}
    assert {pair[0] for pair in proposed[1]} & services == services


def test_every_class_and_syntax_has_the_name_of_the_standard() -> None:
    for row in (*table("4.2.1.1 SOP classes"), *table("Images:"), *table("4.2.2.1 SOP classes proposed")):
        known = UID(row[1]).name
        assert row[0] == known or (known == row[1] and row[0] == "Label Map Segmentation Storage")


def _batches(pairs: list[tuple[str, str | list[str]]]) -> list[list[tuple[str, str | list[str]]]]:
    return [pairs[at : at + 120] for at in range(0, len(pairs), 120)]
