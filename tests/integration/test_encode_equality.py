"""One number, three places: what the SR holds, what findings.json says and what stands in the table of findings are the
same to the last digit, at the stated precision, in units that UCUM knows.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping
from contextlib import closing
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import Dataset
from pydicom.sr._concepts_dict import concepts as dictionary
from pydicom.sr.coding import Code

from pulmo_models.types import Axis, Findings, Nodule, Volume
from pulmo_node.encode import codes, encode_findings, findings_to_json
from pulmo_node.store import SqlStore
from tests.encode_factory import (
    chest_datasets,
    make_context,
    make_findings,
    make_nodule,
    measurement_groups,
    read_object,
    write_volume,
)
from tests.integration.store_scene import Scene, SetClock, new_database, result

Key = tuple[str, str, str]  # scheme, code value, value of the derivation

# Digits after the point that docs/results.md states for the SR, by unit or, where there is none, by code
DIGITS_BY_UNIT = {"mm": 2, "mm3": 1, "[hnsf'U]": 1, "%": 2}
DIGITS_OF_CONCEPTS = 2
DIGITS_OF_SCORES = 4


def _key(code: Code, derivation: Code | None = None) -> Key:
    return code.scheme_designator, code.value, "" if derivation is None else derivation.value


def _places() -> dict[Key, tuple[str, ...]]:
    """Where findings.json has the number of each code of the SR: a path of keys within a nodule."""
    places: dict[Key, tuple[str, ...]] = {
        _key(codes.LONG_AXIS): ("long_axis_mm",),
        _key(codes.SHORT_AXIS): ("short_axis_mm",),
        _key(codes.VOLUME): ("volume_mm3",),
        _key(codes.ATTENUATION, codes.MEAN): ("mean_hu",),
        _key(codes.ATTENUATION, codes.MINIMUM): ("min_hu",),
        _key(codes.ATTENUATION, codes.MAXIMUM): ("max_hu",),
        _key(codes.DISTANCE_TO_PLEURA): ("pleura_distance_mm",),
        _key(codes.PROBABILITY_OF_CANCER): ("malignancy_probability",),
        _key(codes.DETECTION_PROBABILITY): ("detection_probability",),
        _key(codes.CANDIDATE_SCORE): ("candidate_score",),
        _key(codes.MALIGNANCY_BIAS): ("malignancy_bias",),
    }
    for name, code in codes.CONCEPTS.items():
        places[_key(code)] = ("concepts", name, "value")
        places[_key(codes.CONTRIBUTIONS[name])] = ("concepts", name, "contribution")
    return places


def _awkward(volume: Volume) -> Findings:
    """Nodules with numbers that binary fractions do not hold, that round up, down and to 0, and with both signs."""
    random = np.random.default_rng(11)
    nodules: list[Nodule] = []
    for number, centre in enumerate([(3, 10, 12), (8, 28, 33), (6, 20, 20)]):
        nodule = make_nodule(volume, centre, seed=number)
        length_mm = float(random.uniform(3, 40))
        nodules.append(
            replace(
                nodule,
                long_axis=_of_length(nodule.long_axis, length_mm),
                short_axis=_of_length(nodule.short_axis, length_mm * 0.7),
                volume_mm3=float(random.uniform(20, 30_000)),
                mean_hu=(0.25, -433.349999, -0.04)[number],
                malignancy_probability=(0.55, 0.070049, 1e-9)[number],
                detection_probability=(0.29, 0.999951, 0.57)[number],
                candidate_score=(1.0, 0.12345, 1 / 3)[number],
                laterality=("left", "right", None)[number],
                pleura_distance_mm=(0.0, 12.345, None)[number],
                concepts=tuple(
                    replace(concept, value=float(random.normal(3, 2)), contribution=float(random.normal(0, 1)))
                    for concept in nodule.concepts
                ),
            )
        )
    return make_findings(volume, nodules)


def _of_length(axis: Axis, length_mm: float) -> Axis:
    return replace(axis, length_mm=length_mm)


def _numbers(group: Dataset) -> dict[Key, tuple[Decimal, float, str]]:
    """Decimal as written, binary number and unit of every NUM of a group."""
    found = {}
    for item in group.ContentSequence:
        if item.ValueType != "NUM":
            continue
        name, measured = item.ConceptNameCodeSequence[0], item.MeasuredValueSequence[0]
        derivations = [
            child.ConceptCodeSequence[0].CodeValue
            for child in item.get("ContentSequence", [])
            if child.ValueType == "CODE" and child.ConceptNameCodeSequence[0].CodeValue == "121401"
        ]
        key = name.CodingSchemeDesignator, name.CodeValue, "".join(derivations)
        assert key not in found
        unit = measured.MeasurementUnitsCodeSequence[0]
        assert unit.CodingSchemeDesignator == "UCUM"
        found[key] = Decimal(str(measured.NumericValue)), float(measured.FloatingPointValue), str(unit.CodeValue)
    return found


def _at(nodule: Mapping[str, Any], place: tuple[str, ...]) -> Any:
    found: Any = nodule
    for key in place:
        found = found[key]
    return found


def _row(database: Path, segment_number: int) -> dict[str, Any]:
    """The row of a nodule as another program reads it: by SQL, without the node."""
    with closing(sqlite3.connect(database)) as connection:
        connection.row_factory = sqlite3.Row
        found = connection.execute("SELECT * FROM findings WHERE segment_number = ?", (segment_number,)).fetchall()
    (row,) = found
    return {**dict(row), "concepts": json.loads(row["concepts"])}


@pytest.fixture(scope="module")
def volume(tmp_path_factory: pytest.TempPathFactory) -> Volume:
    return write_volume(chest_datasets(), tmp_path_factory.mktemp("ct"))


def test_every_number_is_the_same_in_sr_json_and_table(volume: Volume, tmp_path: Path) -> None:
    findings, context = _awkward(volume), make_context(volume)
    written = json.dumps(findings_to_json(findings, volume, context))
    url = new_database(tmp_path)
    with SqlStore(url, SetClock()) as store:
        scene = Scene(store, SetClock())
        store.job_encoded(scene.queued(), [result("sr"), result("seg")], written)
    plain = json.loads(written)
    report = read_object(encode_findings(findings, volume, context)[0])
    places = _places()
    known_units = {value for meanings in dictionary["UCUM"].values() for value in meanings}
    for group, numbers in zip(measurement_groups(report), plain["nodules"], strict=True):
        nodule = {**numbers, "malignancy_bias": plain["malignancy_bias"]}
        row = _row(Path(url.removeprefix("sqlite:///")), nodule["segment_number"])
        found = _numbers(group)
        expected = {key for key, place in places.items() if _at(nodule, place) is not None}
        assert set(found) == expected
        for key, (decimal, binary, unit) in found.items():
            in_json, in_table = (_at(source, places[key]) for source in (nodule, row))
            assert in_table == in_json
            assert decimal == Decimal(repr(in_json)) * (100 if unit == "%" else 1)
            assert binary == float(decimal)
            assert unit in known_units
            assert -decimal.as_tuple().exponent <= _digits(key, unit)
        for field in ("tracking_uid", "laterality", "segment_number"):
            assert row[field] == nodule[field]
        assert [row[f"centre_{axis}_mm"] for axis in "xyz"] == nodule["centre_lps_mm"]


def _digits(key: Key, unit: str) -> int:
    if unit != "1":
        return DIGITS_BY_UNIT[unit]
    return DIGITS_OF_CONCEPTS if key in {_key(code) for code in codes.CONCEPTS.values()} else DIGITS_OF_SCORES


def test_every_number_of_a_nodule_in_findings_json_is_in_the_sr(volume: Volume) -> None:
    """Besides its place, which the SR gives as lines on an image."""
    plain = findings_to_json(_awkward(volume), volume, make_context(volume))
    told = {place[0] for place in _places().values()}
    for nodule in plain["nodules"]:
        numbers = {key for key, value in nodule.items() if isinstance(value, (int, float, dict))}
        assert numbers - told == {"segment_number"}
