"""What other programs say of the result objects: dciodvfy (dicom3tools), dsrdump (DCMTK), highdicom's readers."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import highdicom as hd
import numpy as np
import pytest

from pulmo_models.types import Volume
from pulmo_node.encode import EncodedObject, encode_findings, encode_rejection
from tests.conftest import data_folder
from tests.ct_factory import enhanced_from, write_part10
from tests.encode_factory import (
    INFO,
    chest_datasets,
    make_context,
    make_findings,
    make_nodule,
    read_object,
    read_volume,
    write_volume,
)

# Warnings that stand, each with its reason. Everything else that dciodvfy says is a failure.
ALLOWED = (
    # A private scheme is private; both are declared in the Coding Scheme Identification Sequence (0008,0110).
    r"Warning - Unrecognized defined term <(99PULMO|99LIDCQIICR)> for value 1 of attribute <Coding Scheme Designator>",
    # IHE AI Results asks for the Device UID of each contributing equipment; Debian's dicom3tools of 2022 is older than
    # PS3.3 C.12.1.1.5's Device UID. The second line follows from the first.
    r"Warning - Attribute is not present in standard DICOM IOD - \(0x0018,0x1002\) UI Device UID ",
    r"Warning - Dicom dataset contains attributes not present in standard DICOM IOD"
    r" - this is a Standard Extended SOP Class",
)


def _run(*command: str) -> subprocess.CompletedProcess[str]:
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed (Debian: dicom3tools, dcmtk)")
    return subprocess.run(command, capture_output=True, text=True, errors="replace", check=False, timeout=60)


def _dciodvfy(path: Path) -> list[str]:
    result = _run("dciodvfy", str(path))
    lines = (result.stdout + result.stderr).splitlines()
    assert any(line in ("CTImage", "EnhancedCTImage", "Comprehensive3DSR", "Segmentation") for line in lines), lines
    return [line for line in lines if re.match(r"(Error|Warning)", line)]


def complaints(path: Path, inherited: Sequence[str] = ()) -> list[str]:
    """Errors and warnings of dciodvfy that are neither allowed nor inherited."""
    found = [line for line in _dciodvfy(path) if line not in inherited]
    return [line for line in found if not any(re.fullmatch(allowed, line) for allowed in ALLOWED)]


def _all_objects(volume: Volume, centres: Sequence[tuple[int, int, int]]) -> list[EncodedObject]:
    nodules = [make_nodule(volume, centre, seed=seed) for seed, centre in enumerate(centres)]
    context = make_context(volume)
    paths = sorted({Path(source.path) for source in volume.frames if source.path})
    return [
        *encode_findings(make_findings(volume, nodules, ("A caution.",)), volume, context),
        *encode_findings(make_findings(volume, (), ("A caution.",)), volume, context),
        encode_rejection(paths, "NO_LUNGS", "There are no lungs in it.", context),
        encode_rejection(paths, "ANALYSIS_FAILED", "Out of memory.", context, INFO),
    ]


def _validate(objects: Sequence[EncodedObject], folder: Path, source: Path | None = None) -> None:
    """Each object passes; a warning that the source image draws word for word is inherited.

    Patient and study attributes are copied as they are (an empty Study ID, a name without a caret). Errors never pass.
    """
    inherited = [] if source is None else [line for line in _dciodvfy(source) if line.startswith("Warning")]
    for number, encoded in enumerate(objects):
        path = folder / f"{number}.{encoded.kind}.dcm"
        path.write_bytes(encoded.content)
        assert complaints(path, inherited) == []
        if encoded.kind == "sr":
            dump = _run("dsrdump", str(path))
            assert dump.returncode == 0, dump.stderr
            assert not [line for line in dump.stderr.splitlines() if line.startswith("E:")]
            hd.sr.srread(BytesIO(encoded.content))
        else:
            hd.seg.segread(BytesIO(encoded.content))


def test_objects_of_a_single_frame_series(tmp_path: Path) -> None:
    volume = write_volume(chest_datasets(), tmp_path / "ct")
    _validate(_all_objects(volume, [(3, 10, 12), (8, 28, 33)]), tmp_path)


@pytest.mark.parametrize("repair", ["gap", "uneven", "tilt"])
def test_objects_of_a_repaired_series(tmp_path: Path, repair: str) -> None:
    """The SEG lies on the acquired images: without one of them, unevenly spaced, or sheared."""
    datasets = chest_datasets((16, 40, 48))
    if repair == "gap":
        del datasets[4]
    for k, dataset in enumerate(datasets):
        x, y, z = (float(value) for value in dataset.ImagePositionPatient)
        if repair == "uneven" and k > 7:
            dataset.ImagePositionPatient = [x, y, z + (k - 7) * 0.75]
        if repair == "tilt":
            dataset.ImagePositionPatient = [x, y + k * 0.6, z]
    volume = write_volume(datasets, tmp_path / "ct")
    assert not volume.native
    _validate(_all_objects(volume, [(3, 10, 12), (8, 28, 33)]), tmp_path)


@pytest.mark.parametrize("count", [1, 2])
def test_objects_of_a_multi_frame_series(tmp_path: Path, count: int) -> None:
    datasets = chest_datasets()
    size = len(datasets) // count
    paths = [tmp_path / f"{number}.ct" for number in range(count)]
    for number, path in enumerate(paths):
        write_part10(enhanced_from(datasets[number * size : (number + 1) * size]), path)
    volume = read_volume(paths)
    _validate(_all_objects(volume, [(3, 10, 12), (8, 28, 33)]), tmp_path)


def test_objects_with_a_multibyte_name(tmp_path: Path) -> None:
    datasets = chest_datasets()
    for dataset in datasets:
        dataset.SpecificCharacterSet = "ISO_IR 192"
        dataset.PatientName = "Wang^XiaoDong=王^小东"
    _validate(_all_objects(write_volume(datasets, tmp_path / "ct"), [(3, 10, 12)]), tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"CompletionFlag": None}, id="no-completion-flag"),
        pytest.param({"CurrentRequestedProcedureEvidenceSequence": None}, id="no-evidence"),
    ],
)
def test_the_validator_sees_a_broken_object(tmp_path: Path, change: dict[str, None]) -> None:
    """The check itself can fail."""
    volume = write_volume(chest_datasets(), tmp_path / "ct")
    dataset = read_object(_all_objects(volume, [(3, 10, 12)])[0])
    for keyword in change:
        delattr(dataset, keyword)
    dataset.save_as(tmp_path / "broken.dcm")
    assert complaints(tmp_path / "broken.dcm")


REAL = [
    pytest.param("ct_cptac_c3n-00247", [(33, 168, 106), (60, 250, 380)], id="cptac"),
    pytest.param("ct_lidc_idri_0063", [(66, 333, 187)], id="lidc", marks=pytest.mark.slow),
    pytest.param("ct_lungdx_a0001", [(30, 200, 150)], id="lungdx", marks=pytest.mark.slow),
    pytest.param("ct_lungdx_a0002_thick8mm", [(15, 200, 150)], id="lungdx-8mm", marks=pytest.mark.slow),
    pytest.param("ct_qin_lsc_0055", [(60, 200, 150)], id="qin", marks=pytest.mark.slow),
    pytest.param("ct_lungfcp_0001_slab", [(40, 200, 150)], id="lungfcp", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("folder", "centres"), REAL)
def test_objects_of_a_real_series(tmp_path: Path, folder: str, centres: list[tuple[int, int, int]]) -> None:
    volume = read_volume(sorted(data_folder(f"{folder}/dicom").glob("*.dcm")))
    objects = _all_objects(volume, centres)
    _validate(objects, tmp_path, Path(volume.frames[0].path or ""))
    seg = hd.seg.segread(BytesIO(objects[1].content))
    for number, centre in enumerate(centres, start=1):
        expected = make_nodule(volume, centre, seed=number - 1).mask.to_volume(volume.hu.shape)
        decoded = seg.get_pixels_by_source_instance(
            [source.sop_instance_uid for source in volume.frames],
            segment_numbers=[number],
            combine_segments=False,
            assert_missing_frames_are_empty=True,
            ignore_spatial_locations=False,
        )[..., 0]
        np.testing.assert_array_equal(decoded.astype(bool), expected)
