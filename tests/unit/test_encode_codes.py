"""Every code that is written exists with that meaning: in pydicom's dictionaries, the LIDC table, or declared here."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.sr._concepts_dict import concepts
from pydicom.sr.coding import Code

import pulmo_models
import pulmo_node
from pulmo_models.types import CONCEPT_NAMES, CONCEPT_RANGES, Mask
from pulmo_node.encode import codes, encode_findings, encode_rejection
from pulmo_node.encode.identity import ResultOptions
from tests.encode_factory import chest_datasets, make_context, make_findings, make_nodule, read_object, write_volume
from tests.film_results import encoded, film_findings, read_films, risk_findings
from tests.radiograph_factory import film, radiograph, write_series

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

# (value, scheme) -> (meaning that is written, why it is not the dictionary's); docs/results.md lists the same
DELIBERATE = {
    ("103339001", "SCT"): ("Long Axis", "OHIF compares the meaning literally; dictionary: Long axis"),
    ("103340004", "SCT"): ("Short Axis", "OHIF compares the meaning literally; dictionary: Short axis"),
    ("C0034375", "UMLS"): ("Qualitative Evaluations", "TID 1500 row 12; not in pydicom"),
    ("en-GB", "RFC5646"): ("English (United Kingdom)", "language tags are not in pydicom"),
    ("276214006", "SCT"): ("Finding category", "TID 1411, written by highdicom; pydicom has the full SNOMED term"),
    ("260753009", "SCT"): ("Source", "TID 320 and 1601, written by highdicom; pydicom has the full SNOMED term"),
    ("121232", "DCM"): ("Source Series for Segmentation", "written by highdicom; dictionary: lower case"),
    ("399208008", "SCT"): ("Plain chest X-ray", "procedure of radiographs; not in pydicom"),
    ("46621007", "SCT"): ("Atelectasis", "finding in radiographs; not in pydicom"),
    ("8186001", "SCT"): ("Cardiomegaly", "finding in radiographs; pydicom has that meaning under another code"),
    ("95436008", "SCT"): ("Lung consolidation", "finding in radiographs; not in pydicom"),
    ("{pixels}", "UCUM"): ("Pixels", "TID 1602, written by highdicom; a UCUM annotation"),
    ("{-1:1}", "UCUM"): ("{-1:1}", "TID 1604, written by highdicom; a UCUM annotation"),
}

EVERYTHING = ResultOptions(
    empty_frames=True,
    lung_segments=True,
    image_library=True,
    key_images=True,
    presentation_states=True,
    pdf_report=True,
)
LABEL_MAP_AND_AIR = replace(EVERYTHING, segmentation="labelmap", negative_report="air")


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


def _everything_written(folder: Path) -> list[Dataset]:
    """Every kind of object, in every form."""
    volume = write_volume(chest_datasets(), folder)
    nodule = replace(make_nodule(volume, (5, 15, 20)), laterality="left", pleura_distance_mm=2.0)
    lung = Mask(origin=(0, 2, 2), voxels=np.ones((volume.hu.shape[0], 30, 40), dtype=np.bool_))
    findings = replace(make_findings(volume, [nodule], cautions=("A caution.",)), lungs={"left": lung})
    paths = [Path(source.path) for source in volume.frames if source.path]
    found = []
    for options in (ResultOptions(key_images=False), EVERYTHING, LABEL_MAP_AND_AIR):
        context = make_context(volume, options=options)
        found += encode_findings(findings, volume, context)
        found += encode_findings(make_findings(volume), volume, context)
        found.append(encode_rejection(paths, "NO_LUNGS", "No lungs.", context))
    films = read_films(write_series(folder / "films", radiograph(film())))
    for made in (film_findings(films), risk_findings(films)):
        found += encoded(made, films, parametric_maps=True)
    return [read_object(each) for each in found]


def test_each_written_code_is_known(tmp_path: Path) -> None:
    all_written: set[Code] = set()
    for dataset in _everything_written(tmp_path):
        written = set(_codes_of_dataset(dataset))
        unknown = [code for code in written if not _known(code)]
        assert not unknown
        declared = {item.CodingSchemeDesignator for item in dataset.get("CodingSchemeIdentificationSequence", [])}
        assert {code.scheme_designator for code in written if code.scheme_designator.startswith("99")} <= declared
        all_written |= written
    assert {(code.value, code.scheme_designator) for code in all_written} >= set(DELIBERATE)
    assert {code.meaning for code in all_written if (code.value, code.scheme_designator) in DELIBERATE} == {
        meaning for meaning, _ in DELIBERATE.values()
    }


def test_each_deliberate_meaning_is_not_the_dictionarys() -> None:
    for (value, scheme), (meaning, why) in DELIBERATE.items():
        assert meaning not in _dictionary_meanings(Code(value, scheme, meaning))
        assert why


def test_the_docs_list_the_deliberate_meanings() -> None:
    text = (Path(__file__).parents[2] / "docs" / "results.md").read_text(encoding="utf-8")
    table = text.split("Meanings that are not the dictionary's, on purpose:", 1)[1].split("\n\n")[1]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]
    assert {tuple(row[0].split()): row[1] for row in rows} == {
        code: meaning for code, (meaning, _) in DELIBERATE.items()
    }
    assert all(row[2] for row in rows)


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


def _sources() -> Iterator[tuple[str, ast.Module]]:
    for package in (pulmo_node, pulmo_models):
        root = Path(package.__file__ or "").parent
        for path in sorted(root.rglob("*.py")):
            if path != root / "encode" / "codes.py":
                yield str(path.relative_to(root.parent)), ast.parse(path.read_text(encoding="utf-8"))


def test_no_code_is_defined_elsewhere() -> None:
    """No `Code` of literals, no literal in an attribute of a coded entry, no value of a known code spelt out."""
    # Values with fewer digits ("1", "mm", "en-GB") are other things too.
    values = {code.value for code in _codes_of_module() if sum(character.isdigit() for character in code.value) > 3}
    assert {"126000", "18748-4", "RID5707", "C0034375"} <= values
    attributes = {"CodeValue", "LongCodeValue", "CodingSchemeDesignator", "CodeMeaning"}
    faults = []
    for name, tree in _sources():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                called = getattr(node.func, "id", getattr(node.func, "attr", ""))
                arguments = [*node.args, *(keyword.value for keyword in node.keywords)]
                if called in ("Code", "CodedConcept") and any(isinstance(one, ast.Constant) for one in arguments):
                    faults.append(f"{name}:{node.lineno} {called} of a literal")
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant):
                targets = {target.attr for target in node.targets if isinstance(target, ast.Attribute)}
                if targets & attributes:
                    faults.append(f"{name}:{node.lineno} {targets} of a literal")
            if isinstance(node, ast.Constant) and node.value in values:
                faults.append(f"{name}:{node.lineno} the value of a code, {node.value}")
    assert faults == []


def test_what_is_written_is_not_looked_up_elsewhere() -> None:
    """The encoder takes codes from `encode/codes.py` alone, not from a library's dictionary."""
    for name, tree in _sources():
        if "/encode/" in name:
            modules = {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
            assert not [module for module in modules if module.startswith("pydicom.sr.codedict")], name
            attributes = {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
            assert not [one for one in attributes if one.endswith("sr.codes")], name
