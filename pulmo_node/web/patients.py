"""Who a study is of, read from one of its images: the database does not know, and nothing of it is kept."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pydicom

from pulmo_node.assemble.files import READ_ERRORS

_TAGS = ["SpecificCharacterSet", "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "AccessionNumber"]
_LONGEST = 200  # characters of a value that are shown


@dataclass(frozen=True, kw_only=True)
class Patient:
    """What the header says; as hostile as whoever sent it."""

    name: str = ""
    patient_id: str = ""
    birth_date: str = ""
    sex: str = ""
    accession_number: str = ""


def read_patient(path: Path) -> Patient:
    """Empty values where they are missing or cannot be read."""
    try:
        header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=_TAGS)
        return Patient(
            name=_name(_text(header.get("PatientName"))),
            patient_id=_text(header.get("PatientID")),
            birth_date=_text(header.get("PatientBirthDate")),
            sex=_text(header.get("PatientSex")),
            accession_number=_text(header.get("AccessionNumber")),
        )
    except READ_ERRORS:
        return Patient()


def _name(text: str) -> str:
    """`Family^Given^Middle` (PS3.5, 6.2.1) as people write it: `Family, Given Middle`."""
    family, *others = (part.strip() for part in text.split("^"))
    rest = " ".join(part for part in others if part)
    return f"{family}, {rest}" if rest else family


def _text(value: object) -> str:
    return "" if value is None else str(value)[:_LONGEST]
