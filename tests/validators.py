"""Other programs that read what the node writes: dciodvfy (dicom3tools), DCMTK's tools, dcmqi. A test that needs one
that is not installed skips and says so.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pydicom
import pytest
import SimpleITK
from PIL import Image

# Warnings that stand, each with its reason (docs/results.md). Everything else that dciodvfy says is a failure.
ALLOWED = (
    # A private scheme is private; both are declared in the Coding Scheme Identification Sequence (0008,0110).
    r"Warning - Unrecognized defined term <(99PULMO|99LIDCQIICR)> for value 1 of attribute <Coding Scheme Designator>",
    # IHE AI Results asks for the Device UID of each contributing equipment; Debian's dicom3tools of 2022 is older than
    # PS3.3 C.12.1.1.5's Device UID. The second line follows from the first.
    r"Warning - Attribute is not present in standard DICOM IOD - \(0x0018,0x1002\) UI Device UID ",
    r"Warning - Dicom dataset contains attributes not present in standard DICOM IOD"
    r" - this is a Standard Extended SOP Class",
)
# The same build does not know the Label Map Segmentation of 2024, neither as an object, which `tests/iod_check.py`
# judges instead, nor as a segmentation that a report may name a segment of (Referenced Segment Number).
LABEL_MAP = "1.2.840.10008.5.1.4.1.1.66.7"  # Label Map Segmentation Storage; pydicom 3.0 has no name for it
UNKNOWN_IOD = r"Error - Information Object Not found.*"
UNKNOWN_SEGMENTATION = (
    r"Error - Shall not be present for Referenced SOP Class that is not segmentation"
    r" - attribute <ReferencedSegmentNumber>"
)


@dataclass(frozen=True, kw_only=True)
class Segment:
    """A segment as dcmqi reads it."""

    attributes: dict[str, Any]
    image: SimpleITK.Image  # 0 and 1, on the smallest grid that holds the segmentation


def run(*command: str) -> subprocess.CompletedProcess[str]:
    """The ended program; skips the test where it is not installed."""
    beside_python = str(Path(sys.executable).parent)
    program = shutil.which(command[0]) or shutil.which(command[0], path=beside_python)
    if program is None:
        pytest.skip(f"{command[0]} is not installed (Debian: dicom3tools, dcmtk; PyPI: dcmqi)")
    return subprocess.run(
        [program, *command[1:]], capture_output=True, text=True, errors="replace", check=False, timeout=300
    )


def dciodvfy(path: Path) -> list[str]:
    """Its errors and warnings."""
    result = run("dciodvfy", str(path))
    lines = (result.stdout + result.stderr).splitlines()
    assert any(re.fullmatch(rf"\w+|{UNKNOWN_IOD}", line) for line in lines), lines  # the name of the IOD: it was judged
    return [line for line in lines if re.match(r"(Error|Warning)", line)]


def complaints(path: Path, inherited: Sequence[str] = ()) -> list[str]:
    """Errors and warnings of dciodvfy that are neither allowed nor inherited from the source images."""
    dataset = pydicom.dcmread(path, stop_before_pixels=True)
    allowed = list(ALLOWED)
    if dataset.SOPClassUID == LABEL_MAP:
        allowed.append(UNKNOWN_IOD)
    if LABEL_MAP in _referenced_classes(dataset):
        allowed.append(UNKNOWN_SEGMENTATION)
    found = [line for line in dciodvfy(path) if line not in inherited]
    return [line for line in found if not any(re.fullmatch(pattern, line) for pattern in allowed)]


def _referenced_classes(report: pydicom.Dataset) -> list[str]:
    """The SOP classes of what a report rests on; none for other objects."""
    return [
        str(instance.ReferencedSOPClassUID)
        for study in report.get("CurrentRequestedProcedureEvidenceSequence", ())
        for series in study.ReferencedSeriesSequence
        for instance in series.ReferencedSOPSequence
    ]


def dsrdump_errors(path: Path) -> list[str]:
    """What dsrdump has to say against a report besides that it checks no values in ISO_IR 192.

    DCMTK 3.6.7 of 2022 knows no Label Map Segmentation either: where a report names a segment of one, it is told to go
    on after a reference to an object that it takes for no image.
    """
    label_map = LABEL_MAP in _referenced_classes(pydicom.dcmread(path, stop_before_pixels=True))
    dump = run("dsrdump", *(["--ignore-item-errors"] if label_map else []), str(path))
    assert dump.returncode == 0, dump.stderr
    return [line for line in dump.stderr.splitlines() if line.startswith(("E:", "F:"))]


def dcmpschk_errors(path: Path) -> list[str]:
    """What dcmpschk has to say against a presentation state.

    Less that its patterns know no DT that is padded to even length, and no name in ISO_IR 192.
    """
    lines = run("dcmpschk", str(path)).stderr.splitlines()
    assert any("Testing:" in line for line in lines), lines
    allowed = {"ContributionDateTime"}
    if pydicom.dcmread(path, stop_before_pixels=True).get("SpecificCharacterSet") == "ISO_IR 192":
        allowed.add("PatientName")
    affected = [match[1] for line in lines if (match := re.search(r"Affected attribute: (\w+)", line))]
    wrong = [line for line in lines if line.startswith(("E: Error", "F:"))]
    assert len(wrong) == len(affected), lines
    return [line for line, attribute in zip(wrong, affected, strict=True) if attribute not in allowed]


def read_by_dcm2pdf(path: Path) -> bytes:
    """The document in an encapsulated PDF."""
    target = path.with_suffix(".pdf")
    done = run("dcm2pdf", str(path), str(target))
    assert done.returncode == 0, done.stderr
    return target.read_bytes()


def read_by_dcm2pnm(path: Path) -> npt.NDArray[np.uint8]:
    """The pixels of a colour image, (rows, columns, 3)."""
    target = path.with_suffix(".ppm")
    done = run("dcm2pnm", str(path), str(target))
    assert done.returncode == 0, done.stderr
    return np.asarray(Image.open(target))


def read_by_tid1500reader(path: Path, folder: Path) -> dict[str, Any]:
    """A measurement report as dcmqi's JSON."""
    target = folder / f"{path.stem}.tid1500.json"
    done = run("tid1500reader", "--inputDICOM", str(path), "--outputMetadata", str(target))
    assert done.returncode == 0, done.stdout + done.stderr
    found: dict[str, Any] = json.loads(target.read_text(encoding="utf-8"))
    return found


def read_by_segimage2itkimage(path: Path, folder: Path) -> list[Segment]:
    """The segments of a segmentation as dcmqi writes them, in the order of its metadata."""
    target = folder / f"{path.stem}.itk"
    target.mkdir()
    done = run("segimage2itkimage", "--inputDICOM", str(path), "--outputDirectory", str(target), "-p", "s")
    assert done.returncode == 0, done.stdout + done.stderr
    described = json.loads((target / "s-meta.json").read_text(encoding="utf-8"))["segmentAttributes"]
    return [
        Segment(
            attributes=attributes,
            image=SimpleITK.ReadImage(str(target / f"s-{number}.nrrd")) == attributes["labelID"],
        )
        for number, group in enumerate(described, start=1)
        for attributes in group
    ]
