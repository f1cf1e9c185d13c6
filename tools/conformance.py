"""Writes docs/conformance.md: the DICOM Conformance Statement, in the order of PS3.2 annex N, its tables from the code.

python -m tools.conformance            # write the file
python -m tools.conformance --check    # 1 where the file is not what would be written
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from pydicom.uid import UID

from pulmo_models import __version__
from pulmo_node.config.sections import NodeSection, ReceiveSection
from pulmo_node.dimse import (
    COMPRESSED,
    IMAGE_SOP_CLASSES,
    IMPLEMENTATION_CLASS_UID,
    RESULT_SOP_CLASSES,
    RESULT_TRANSFER_SYNTAXES,
    STORAGE_COMMITMENT,
    UNCOMPRESSED,
    VERIFICATION,
    DimseStatus,
)

TARGET = Path(__file__).resolve().parents[1] / "docs" / "conformance.md"
PARTS = Path(__file__).resolve().with_name("conformance.md.in")

_WRITTEN = {
    "Comprehensive 3D SR Storage": "every report",
    "Segmentation Storage": 'nodules, with `segmentation = "binary"`',
    "Label Map Segmentation Storage": 'nodules, with `segmentation = "labelmap"`',
    "Secondary Capture Image Storage": "key images",
    "Grayscale Softcopy Presentation State Storage": "with `presentation_states = true`",
    "Encapsulated PDF Storage": "with `pdf_report = true`",
}
_STATUSES = (  # of C-STORE as SCP: status, when
    (
        DimseStatus.SUCCESS,
        "file and row are durable; also for an instance that is there already, and for one with other bytes under a"
        " known UID, which is kept aside",
    ),
    (
        DimseStatus.OUT_OF_RESOURCES,
        "too little space, the database or the disk refuses; to be sent again later",
    ),
    (
        DimseStatus.DATA_SET_DOES_NOT_MATCH_SOP_CLASS,
        "SOP class or instance differ between command, presentation context and data set",
    ),
    (
        DimseStatus.CANNOT_UNDERSTAND,
        "the data set cannot be parsed, or a UID is missing or malformed",
    ),
)


def received_contexts() -> list[tuple[UID, tuple[UID, ...]]]:
    """What the node accepts as an acceptor: SOP class and transfer syntaxes, of an installation with all decoders."""
    default = tuple(UNCOMPRESSED)  # pynetdicom's own default for a service without pixels
    images = UNCOMPRESSED + COMPRESSED
    of_images = ((sop_class, images) for sop_class in IMAGE_SOP_CLASSES)
    return [(VERIFICATION, default), *of_images, (STORAGE_COMMITMENT, default)]


def sent_contexts() -> list[tuple[UID, UID]]:
    """What the node proposes to a destination of results: a presentation context for each pair."""
    return [(sop_class, syntax) for sop_class in RESULT_SOP_CLASSES for syntax in RESULT_TRANSFER_SYNTAXES]


def statement() -> str:
    """The whole document."""
    tables = {
        "version": __version__,
        "implementation_class_uid": str(IMPLEMENTATION_CLASS_UID),
        "ae_title": NodeSection().ae_title,
        "port": str(NodeSection().port),
        "max_pdu": str(ReceiveSection().max_pdu_bytes),
        "associations": str(ReceiveSection().max_associations),
        "per_peer": str(ReceiveSection().max_associations_per_peer),
        "overview": _overview(),
        "received": _rows(
            ("SOP class", "UID", "role", "transfer syntaxes"),
            (
                (sop_class.name, sop_class, _role(sop_class), "images" if sop_class in IMAGE_SOP_CLASSES else "plain")
                for sop_class, _ in received_contexts()
            ),
        ),
        "image_syntaxes": _syntaxes(UNCOMPRESSED + COMPRESSED),
        "plain_syntaxes": _syntaxes(UNCOMPRESSED),
        "sent": _rows(
            ("SOP class", "UID", "written by this version"),
            ((_name(sop_class), sop_class, _WRITTEN.get(_name(sop_class), "no")) for sop_class in RESULT_SOP_CLASSES),
        ),
        "sent_syntaxes": _syntaxes(RESULT_TRANSFER_SYNTAXES),
        "statuses": _rows(
            ("Status", "meaning", "when"),
            ((f"0x{status:04X}", status.name.replace("_", " ").capitalize(), when) for status, when in _STATUSES),
        ),
    }
    text = PARTS.read_text(encoding="utf-8")
    for name, table in tables.items():
        text = text.replace(f"@{name}@", table)
    return text


def _overview() -> str:
    rows = [(sop_class.name, "no", "yes") for sop_class in IMAGE_SOP_CLASSES]
    rows += [(_name(sop_class), "yes", "no") for sop_class in RESULT_SOP_CLASSES if _name(sop_class) in _WRITTEN]
    rows += [
        (VERIFICATION.name, "yes", "yes"),
        (STORAGE_COMMITMENT.name, "yes, configurable", "yes"),
        ("Study Root Query/Retrieve - FIND, MOVE", "yes, configurable", "no"),
    ]
    return _rows(("SOP class", "user of the service (SCU)", "provider (SCP)"), rows)


def _role(sop_class: UID) -> str:
    return "SCP, and SCU by role selection" if sop_class == STORAGE_COMMITMENT else "SCP"


def _name(sop_class: UID) -> str:
    """pydicom's name; of a class that is younger than its dictionary, the standard's."""
    return "Label Map Segmentation Storage" if sop_class == "1.2.840.10008.5.1.4.1.1.66.7" else sop_class.name


def _syntaxes(syntaxes: Iterable[UID]) -> str:
    return _rows(("Transfer syntax", "UID"), ((syntax.name, syntax) for syntax in syntaxes))


def _rows(headings: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [f"| {' | '.join(headings)} |", f"|{'---|' * len(headings)}"]
    return "\n".join([*lines, *(f"| {' | '.join(map(str, row))} |" for row in rows)])


def main() -> int:
    """Write, or compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    if not parser.parse_args().check:
        TARGET.write_text(statement(), encoding="utf-8")
        return 0
    return int(TARGET.read_text(encoding="utf-8") != statement())


if __name__ == "__main__":
    sys.exit(main())
