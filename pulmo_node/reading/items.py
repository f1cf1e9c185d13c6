"""One content item of a structured report (PS3.3 C.17.3): its name, its value, its children.

Nothing is taken for granted, since the report may be anybody's: a missing name, value or code is None or "".
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes as dictionary
from pydicom.sr.coding import Code

_REFERENCES = {"IMAGE": "image", "COMPOSITE": "object", "WAVEFORM": "waveform"}


def children(item: Dataset) -> Sequence[Dataset]:
    """What stands below an item, in order."""
    found: Sequence[Dataset] = item.get("ContentSequence") or ()
    return found


def code_in(item: Dataset, keyword: str) -> Code | None:
    """The first code of a sequence of an item."""
    sequence = item.get(keyword) or ()
    if not sequence:
        return None
    code = sequence[0]
    value = code.get("CodeValue") or code.get("LongCodeValue") or code.get("URNCodeValue") or ""
    return Code(str(value), str(code.get("CodingSchemeDesignator") or ""), str(code.get("CodeMeaning") or ""))


def name_of(item: Dataset) -> Code | None:
    """The concept name of an item."""
    return code_in(item, "ConceptNameCodeSequence")


def is_named(item: Dataset, *names: Code) -> bool:
    """Whether an item has one of these names, by the code; SRT codes count as their SNOMED CT successors."""
    found = name_of(item)
    return found is not None and any(found == name for name in names)


def named(items: Sequence[Dataset], *names: Code) -> list[Dataset]:
    """Those of the items that have one of these names."""
    return [item for item in items if is_named(item, *names)]


def first_text(items: Sequence[Dataset], name: Code) -> str:
    """The value of the first item of that name, "" where there is none."""
    found = named(items, name)
    return text_of(found[0]) if found else ""


def text_of(item: Dataset) -> str:
    """The value of an item of any type, for people."""
    kind = str(item.get("ValueType", ""))
    if kind == "CODE":
        value = code_in(item, "ConceptCodeSequence")
        return "" if value is None else value.meaning
    if kind == "NUM":
        number, unit = measured(item)
        return " ".join(part for part in (number_text(number), unit_text(unit)) if part)
    if kind in _REFERENCES:
        uids = [
            str(reference.get("ReferencedSOPInstanceUID", "")) for reference in item.get("ReferencedSOPSequence") or ()
        ]
        return f"{_REFERENCES[kind]} {', '.join(uids)}"
    if kind in ("SCOORD", "SCOORD3D"):
        graphic, points = points_of(item)
        return f"{graphic.lower()} of {len(points)} point{'' if len(points) == 1 else 's'}"
    keyword = {"TEXT": "TextValue", "UIDREF": "UID", "PNAME": "PersonName", "TIME": "Time"}.get(kind)
    if kind in ("DATE", "DATETIME"):
        return time_text(str(item.get("Date") or item.get("DateTime") or ""))
    return str(item.get(keyword) or "") if keyword else ""


def measured(item: Dataset) -> tuple[float | None, Code | None]:
    """Value and unit of a NUM item; the value is None where the report gives none (PS3.3 C.18.1)."""
    sequence = item.get("MeasuredValueSequence") or ()
    if not sequence:
        return None, None
    value = sequence[0].get("NumericValue")
    if isinstance(value, Sequence) and not isinstance(value, str):  # more than one value, which DICOM does not allow
        value = value[0] if value else None
    return None if value in (None, "") else float(value), code_in(sequence[0], "MeasurementUnitsCodeSequence")


def number_text(value: float | None) -> str:
    """A number as it was written: no digits are lost and none added."""
    return "" if value is None else repr(value).removesuffix(".0")


def unit_text(unit: Code | None) -> str:
    """The UCUM code, which is short and exact; nothing for a number without unit. HU for the Hounsfield unit."""
    if unit is None or unit == dictionary.UCUM.NoUnits:
        return ""
    return "HU" if unit == dictionary.UCUM.HounsfieldUnit else unit.value


def points_of(item: Dataset) -> tuple[str, tuple[tuple[float, ...], ...]]:
    """Graphic type and points of an SCOORD (column, row in pixels) or SCOORD3D (x, y, z in mm of the patient)."""
    width = 3 if item.get("ValueType") == "SCOORD3D" else 2
    values = [float(value) for value in item.get("GraphicData") or ()]
    points = tuple(tuple(values[k : k + width]) for k in range(0, len(values) - width + 1, width))
    return str(item.get("GraphicType") or ""), points


def time_text(value: str) -> str:
    """A DICOM date and time (DT) for people; as it stands where it is not understood."""
    for given, shown in (
        ("%Y%m%d%H%M%S.%f%z", "%Y-%m-%d %H:%M:%S %z"),
        ("%Y%m%d%H%M%S%z", "%Y-%m-%d %H:%M:%S %z"),
        ("%Y%m%d%H%M%S.%f", "%Y-%m-%d %H:%M:%S"),
        ("%Y%m%d%H%M%S", "%Y-%m-%d %H:%M:%S"),
        ("%Y%m%d%H%M", "%Y-%m-%d %H:%M"),
        ("%Y%m%d", "%Y-%m-%d"),
    ):
        try:
            return f"{datetime.strptime(value, given):{shown}}"
        except ValueError:
            continue
    return value
