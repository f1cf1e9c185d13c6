"""What the DICOM standard asks of an object, read offline from the tables of modules that highdicom ships (PS3.3).

It knows the newest IODs (a Label Map Segmentation), which the dciodvfy of Debian does not. Judged are attributes of
type 1 and 2 of every mandatory module, attributes that no module of the IOD has, and the content items of a structured
report by their value types (PS3.3 C.17.3). Conditions (types 1C and 2C, conditional modules) are not judged: the tables
do not hold them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import highdicom
from pydicom.datadict import keyword_for_tag
from pydicom.dataset import Dataset

_TABLES = Path(highdicom.__file__).parent / "_standard"
_FUNCTIONAL_GROUPS = ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")
_CONTENT = "sr-document-content"  # its attributes repeat at any depth, so `content_errors` judges them
_MEANING_LENGTH, _VALUE_LENGTH = 64, 16  # LO and SH

# What a content item holds besides its name, by value type (PS3.3 C.17.3.2 and C.18)
_VALUES: dict[str, tuple[str, ...]] = {
    "TEXT": ("TextValue",),
    "CODE": ("ConceptCodeSequence",),
    "NUM": ("MeasuredValueSequence",),
    "UIDREF": ("UID",),
    "PNAME": ("PersonName",),
    "DATE": ("Date",),
    "TIME": ("Time",),
    "DATETIME": ("DateTime",),
    "IMAGE": ("ReferencedSOPSequence",),
    "COMPOSITE": ("ReferencedSOPSequence",),
    "SCOORD": ("GraphicData", "GraphicType"),
    "SCOORD3D": ("GraphicData", "GraphicType", "ReferencedFrameOfReferenceUID"),
    "CONTAINER": ("ContinuityOfContent",),
}
_NAMED = {"TEXT", "CODE", "NUM", "UIDREF", "PNAME", "DATE", "TIME", "DATETIME"}
# Fewest and most points of a graphic (C.18.6.1.2)
_POINTS = {"POINT": (1, 1), "MULTIPOINT": (1, None), "POLYLINE": (2, None), "CIRCLE": (2, 2), "ELLIPSE": (4, 4)}


def iod_errors(dataset: Dataset) -> list[str]:
    """What an object lacks or has too much, one sentence each; none where it is as its IOD wants it."""
    iod = _table("sop_class_iod_map").get(dataset.SOPClassUID)
    if iod is None:
        return [f"SOP class {dataset.SOPClassUID} is not in the tables"]
    modules = _table("iod_module_map")[iod]
    errors = []
    for module in modules:
        if module["usage"] == "M" and module["key"] != _CONTENT:
            errors += _missing(dataset, module["key"])
    errors += _foreign(dataset, [module["key"] for module in modules])
    if "ValueType" in dataset:
        errors += content_errors(dataset)
    return sorted(set(errors))


def _missing(dataset: Dataset, module: str) -> Iterator[str]:
    for attribute in _table("module_attribute_map")[module]:
        keyword, kind, path = attribute["keyword"], attribute["type"], attribute["path"]
        if kind not in ("1", "2") or (len(path) == 1 and path[0] in _FUNCTIONAL_GROUPS):
            continue  # a functional group may stand in either of the two, or in none of them
        for item in _items(dataset, path):
            if keyword not in item:
                yield f"{module}: {'.'.join([*path, keyword])} is missing (type {kind})"
            elif kind == "1" and item[keyword].is_empty:
                yield f"{module}: {'.'.join([*path, keyword])} is empty (type 1)"


def _items(dataset: Dataset, path: Sequence[str]) -> list[Dataset]:
    """The data sets at the end of a path of sequences; none where one of them is absent."""
    found = [dataset]
    for keyword in path:
        found = [item for parent in found for item in parent.get(keyword) or ()]
    return found


def _foreign(dataset: Dataset, modules: Sequence[str]) -> Iterator[str]:
    """Attributes at the top that no module of the IOD has."""
    known = {
        attribute["keyword"]
        for module in modules
        for attribute in _table("module_attribute_map")[module]
        if not attribute["path"]
    }
    for element in dataset:
        keyword = keyword_for_tag(element.tag)
        if keyword not in known:
            yield f"{keyword or element.tag} is of no module of the IOD"


def content_errors(item: Dataset, place: str = "root") -> list[str]:
    """What is wrong with a content item and with those below it; `place` is where it stands in the tree."""
    kind = item.get("ValueType", "")
    if kind not in _VALUES:
        return [f"{place}: value type {kind!r}"]
    errors = [f"{place}: {keyword} is missing or empty" for keyword in _VALUES[kind] if not _filled(item, keyword)]
    if place != "root" and not item.get("RelationshipType"):
        errors.append(f"{place}: RelationshipType is missing")
    if kind in _NAMED and not item.get("ConceptNameCodeSequence"):
        errors.append(f"{place}: {kind} without a concept name")
    for keyword in ("ConceptNameCodeSequence", "ConceptCodeSequence"):
        errors += [f"{place}: {wrong}" for code in item.get(keyword) or () for wrong in _code_errors(code)]
    for measured in item.get("MeasuredValueSequence") or ():
        errors += [
            f"{place}: {k} is missing" for k in ("NumericValue", "MeasurementUnitsCodeSequence") if k not in measured
        ]
    children = item.get("ContentSequence") or ()
    if kind in ("SCOORD", "SCOORD3D"):
        errors += [f"{place}: {wrong}" for wrong in _graphic_errors(item, kind, children)]
    for number, child in enumerate(children, start=1):
        name = child.get("ConceptNameCodeSequence")
        errors += content_errors(child, f"{place} / {number} {name[0].get('CodeMeaning') if name else 'no name'}")
    return errors


def _filled(item: Dataset, keyword: str) -> bool:
    return keyword in item and not item[keyword].is_empty


def _code_errors(code: Dataset) -> Iterator[str]:
    value, meaning = str(code.get("CodeValue", "")), str(code.get("CodeMeaning", ""))
    if not (value or code.get("LongCodeValue") or code.get("URNCodeValue")) or not meaning:
        yield "a code without value or meaning"
    if len(value) > _VALUE_LENGTH or len(meaning) > _MEANING_LENGTH:
        yield f"code {value!r} {meaning!r} is too long"


def _graphic_errors(item: Dataset, kind: str, children: Sequence[Dataset]) -> Iterator[str]:
    values, graphic = item.get("GraphicData") or (), item.get("GraphicType", "")
    points, rest = divmod(len(values), 2 if kind == "SCOORD" else 3)
    low, high = _POINTS.get(graphic, (1, None))
    if rest or points < low or (high is not None and points > high):
        yield f"{graphic} of {len(values)} numbers"
    if kind == "SCOORD" and not any(child.get("ValueType") == "IMAGE" for child in children):
        yield "SCOORD without the image that it is drawn on"


@cache
def _table(name: str) -> dict[str, Any]:
    table: dict[str, Any] = json.loads((_TABLES / f"{name}.json").read_text(encoding="utf-8"))
    return table
