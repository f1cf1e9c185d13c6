"""Every code that is written exists with that meaning: in pydicom's dictionaries, the LIDC table, or declared here."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydicom.dataset import Dataset
from pydicom.sr._concepts_dict import concepts
from pydicom.sr.coding import Code

import pulmo_node
from pulmo_models.types import CONCEPT_NAMES, CONCEPT_RANGES
from pulmo_node.encode import codes, encode_findings, encode_rejection
from tests.encode_factory import chest_datasets, make_context, make_findings, make_nodule, read_object, write_volume

# The LIDC codes as QIICR/lidc2dicom publishes them (concepts_dict.json, values_dict.json), typed in once more.
# Scheme letters: Q = 99LIDCQIICR, N = NCIt, R = RADLEX (there: RadLex).
LIDC_CONCEPTS = {
    "subtlety": "N C45992 Subtlety score",
    "internalStructure": "Q 200 Internal structure",
    "calcification": "N C3672 Calcification",
    "sphericity": "Q 400 Sphericity",
    "margin": "N C25563 Margin",
    "lobulation": "N C62175 Lobular Pattern",
    "spiculation": "N C28749 Spiculation",
    "texture": "N C41144 Texture",
}
TWO, THREE, FOUR = "Q 002 2 out of 5", "Q 003 3 out of 5", "Q 004 4 out of 5"
LIDC_RATINGS = {
    "subtlety": [
        "Q 101 1 out of 5 (Extremely subtle)",
        "Q 102 2 out of 5 (Moderately subtle)",
        "Q 103 3 out of 5 (Fairly subtle)",
        "Q 104 4 out of 5 (Moderately obvious)",
        "Q 105 5 out of 5 (Obvious)",
    ],
    "internalStructure": ["N C12471 Soft tissue", "N C25278 Fluid", "N C12472 Adipose tissue", "N C73434 Air"],
    "calcification": [
        "R RID35453 Popcorn calcification sign",
        "Q 302 Laminated appearance",
        "R RID5741 Solid appearance",
        "Q 304 Non-central appearance",
        "R RID5827 Central calcification",
        "R RID28473 Absent",
    ],
    "sphericity": ["R RID5811 linear", TWO, "R RID5800 ovoid", FOUR, "R RID5799 round"],
    "margin": ["R RID5709 Indistinct margin", TWO, THREE, FOUR, "R RID5707 Circumscribed margin"],
    "lobulation": ["Q 601 1 out of 5 (No lobulation)", TWO, THREE, FOUR, "Q 605 5 out of 5 (Marked lobulation)"],
    "spiculation": ["Q 701 1 out of 5 (No spiculation)", TWO, THREE, FOUR, "Q 705 5 out of 5 (Marked spiculation)"],
    "texture": [
        "R RID50153 non-solid pulmonary nodule",
        TWO,
        "R RID50152 part-solid pulmonary nodule",
        FOUR,
        "R RID50151 solid pulmonary nodule",
    ],
}
SCHEMES = {"Q": "99LIDCQIICR", "N": "NCIt", "R": "RADLEX"}

# (value, scheme) -> (meaning that is written, why it is not the dictionary's)
DELIBERATE = {
    ("103339001", "SCT"): ("Long Axis", "OHIF compares the meaning literally; dictionary: Long axis"),
    ("103340004", "SCT"): ("Short Axis", "OHIF compares the meaning literally; dictionary: Short axis"),
    ("C0034375", "UMLS"): ("Qualitative Evaluations", "TID 1500 row 12; not in pydicom"),
    ("en-GB", "RFC5646"): ("English (United Kingdom)", "language tags are not in pydicom"),
    ("276214006", "SCT"): ("Finding category", "TID 1411, written by highdicom; pydicom has the full SNOMED term"),
    ("260753009", "SCT"): ("Source", "TID 320, written by highdicom; pydicom has the full SNOMED term"),
    ("121232", "DCM"): ("Source Series for Segmentation", "written by highdicom; dictionary: lower case"),
}


def _dictionary_meanings(code: Code) -> set[str]:
    entries = concepts.get(code.scheme_designator, {})
    return {found[code.value][0] for found in entries.values() if code.value in found}


def _codes_of_module() -> list[Code]:
    found: list[Code] = []
    pending = list(vars(codes).values())
    while pending:
        value = pending.pop()
        if isinstance(value, Code):
            found.append(value)
        elif isinstance(value, dict):
            pending.extend(value.values())
    return found


def _codes_of_dataset(dataset: Dataset) -> Iterator[Code]:
    if "CodeValue" in dataset and "CodingSchemeDesignator" in dataset:
        yield Code(dataset.CodeValue, dataset.CodingSchemeDesignator, dataset.CodeMeaning)
    for element in dataset:
        if element.VR == "SQ":
            for item in element.value:
                yield from _codes_of_dataset(item)


def _lidc(text: str) -> Code:
    letter, value, meaning = text.split(maxsplit=2)
    return Code(value, SCHEMES[letter], meaning)


LIDC = {_lidc(text) for text in (*LIDC_CONCEPTS.values(), *(text for row in LIDC_RATINGS.values() for text in row))}


def _known(code: Code) -> bool:
    if code.scheme_designator == codes.PRIVATE_SCHEME:
        return code in _codes_of_module()
    if (code.value, code.scheme_designator) in DELIBERATE:
        return code.meaning == DELIBERATE[code.value, code.scheme_designator][0]
    return tuple(code) in {tuple(known) for known in LIDC} or code.meaning in _dictionary_meanings(code)


@pytest.mark.parametrize("code", _codes_of_module(), ids=lambda code: f"{code.scheme_designator}-{code.value}")
def test_each_defined_code_is_known(code: Code) -> None:
    assert _known(code), f"{code} is in no dictionary, with that meaning; dictionary: {_dictionary_meanings(code)}"
    assert len(code.value) <= 16
    assert len(code.meaning) <= 64


def test_each_written_code_is_known(tmp_path: Path) -> None:
    volume = write_volume(chest_datasets(), tmp_path)
    context = make_context(volume)
    findings = make_findings(volume, [make_nodule(volume, (5, 15, 20))], cautions=("A caution.",))
    objects = [
        *encode_findings(findings, volume, context),
        *encode_findings(make_findings(volume), volume, context),
        encode_rejection([Path(s.path) for s in volume.frames if s.path], "NO_LUNGS", "No lungs.", context),
    ]
    for encoded in objects:
        dataset = read_object(encoded)
        written = set(_codes_of_dataset(dataset))
        assert written
        unknown = [code for code in written if not _known(code)]
        assert not unknown
        declared = {item.CodingSchemeDesignator for item in dataset.get("CodingSchemeIdentificationSequence", [])}
        assert {code.scheme_designator for code in written if code.scheme_designator.startswith("99")} <= declared


def test_concepts_and_ratings_are_those_of_lidc() -> None:
    assert list(codes.CONCEPTS) == list(codes.CONTRIBUTIONS) == list(codes.RATINGS) == list(CONCEPT_NAMES)
    for name in CONCEPT_NAMES:
        assert tuple(codes.CONCEPTS[name]) == tuple(_lidc(LIDC_CONCEPTS[name]))
        low, high = CONCEPT_RANGES[name]
        assert sorted(codes.RATINGS[name]) == list(range(low, high + 1))
        for rating, text in enumerate(LIDC_RATINGS[name], start=1):
            assert tuple(codes.RATINGS[name][rating]) == tuple(_lidc(text))


def test_no_two_meanings_under_one_code() -> None:
    meanings: dict[tuple[str, str], str] = {}
    for code in _codes_of_module():
        assert meanings.setdefault((code.value, code.scheme_designator), code.meaning) == code.meaning


def test_no_code_is_defined_elsewhere() -> None:
    for path in Path(pulmo_node.__file__).parent.rglob("*.py"):
        if path.name == "codes.py" and path.parent.name == "encode":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                name = getattr(node.func, "id", getattr(node.func, "attr", ""))
                literal = any(isinstance(argument, ast.Constant) for argument in node.args)
                assert not (name in ("Code", "CodedConcept") and literal), f"{path.name}:{node.lineno}"
