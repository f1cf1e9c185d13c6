"""What other programs say of the result objects: dciodvfy (dicom3tools), DCMTK's tools, highdicom's readers, pydicom,
and the IOD tables of the standard.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import highdicom as hd
import numpy as np
import pytest
from pydicom import Dataset, dcmread
from pydicom.uid import Comprehensive3DSRStorage, SegmentationStorage

from pulmo_models.types import Findings, Mask, Volume
from pulmo_node.assemble import find_series
from pulmo_node.encode import EncodedObject, encode_findings, encode_rejection
from pulmo_node.encode.identity import Predecessor, ResultOptions
from tests.conftest import data_folder
from tests.ct_factory import enhanced_from, write_part10
from tests.encode_factory import (
    INFO,
    chest_datasets,
    context_of,
    make_context,
    make_findings,
    make_nodule,
    read_object,
    read_volume,
    write_volume,
)
from tests.iod_check import iod_errors
from tests.unit.test_encode_boxes import RETINANET, boxed
from tests.validators import (
    LABEL_MAP,
    complaints,
    dciodvfy,
    dcmpschk_errors,
    dsrdump_errors,
    read_by_dcm2pdf,
    read_by_dcm2pnm,
)

Centres = Sequence[tuple[int, int, int]]

EVERYTHING = ResultOptions(
    negative_report="air",
    segmentation="labelmap",
    empty_frames=True,
    lung_segments=True,
    image_library=True,
    key_images=True,
    presentation_states=True,
    pdf_report=True,
)
LABEL_MAP_ONLY = ResultOptions(segmentation="labelmap", empty_frames=True, image_library=True, key_images=False)
EARLIER = Predecessor(
    sop_class_uid=Comprehensive3DSRStorage, sop_instance_uid="1.2.826.0.1.1", series_instance_uid="1.2.826.0.1.2"
)


def _findings(volume: Volume, centres: Centres) -> Findings:
    """Nodules on either side, with lungs around them: the halves of the volume."""
    nodules = [make_nodule(volume, centre, seed=seed) for seed, centre in enumerate(centres)]
    nodules = [
        replace(nodule, laterality="left" if number % 2 else "right", pleura_distance_mm=1.25 * number)
        for number, nodule in enumerate(nodules)
    ]
    slices, rows, columns = volume.hu.shape
    half = np.ones((slices, rows, columns // 2), dtype=bool)
    lungs = {"right": Mask(origin=(0, 0, 0), voxels=half), "left": Mask(origin=(0, 0, columns // 2), voxels=half)}
    return replace(make_findings(volume, nodules, ("A caution.",)), lungs=lungs)


def _all_objects(volume: Volume, findings: Findings) -> list[EncodedObject]:
    """Every kind of object, in every form that the options know."""
    nothing = make_findings(volume, (), ("A caution.",))
    paths = sorted({Path(source.path) for source in volume.frames if source.path})
    encoded = []
    for options in (ResultOptions(key_images=False), EVERYTHING):
        context = make_context(volume, options=options, predecessors=(EARLIER,))
        encoded += [
            *encode_findings(findings, volume, context),
            *encode_findings(nothing, volume, context),
            encode_rejection(paths, "NO_LUNGS", "There are no lungs in it.", context),
            encode_rejection(paths, "ANALYSIS_FAILED", "Out of memory.", context, INFO),
        ]
    return encoded


def _objects_on_images(volume: Volume, findings: Findings) -> list[EncodedObject]:
    """The kinds of object that refer to pixels of the source images."""
    encoded = []
    for options in (ResultOptions(key_images=False, presentation_states=True, lung_segments=True), LABEL_MAP_ONLY):
        encoded += encode_findings(findings, volume, make_context(volume, options=options))
    return encoded


def _validate(
    objects: Sequence[EncodedObject], folder: Path, source: Path | None = None, *, broken_source: bool = False
) -> None:
    """Each object passes; a warning that the source image draws word for word is inherited.

    Patient and study attributes are copied as they are (an empty Study ID, a name without a caret). An error passes
    only where a source that is known to be broken has it too, word for word (a Study Date with points in it).
    """
    kinds = ("Warning", "Error") if broken_source else ("Warning",)
    inherited = [] if source is None else [line for line in dciodvfy(source) if line.startswith(kinds)]
    for number, encoded in enumerate(objects):
        path = folder / f"{number}.{encoded.kind}.dcm"
        path.write_bytes(encoded.content)
        assert complaints(path, inherited) == []
        dataset = dcmread(path)
        assert iod_errors(dataset) == []
        assert _rewritten(dataset) == encoded.content
        if encoded.kind == "sr":
            assert dsrdump_errors(path) == []
            hd.sr.srread(BytesIO(encoded.content))
        elif encoded.kind == "seg":
            hd.seg.segread(BytesIO(encoded.content))
        elif encoded.kind == "gsps":
            assert dcmpschk_errors(path) == []
        elif encoded.kind == "pdf":
            document = read_by_dcm2pdf(path)
            assert document.startswith(b"%PDF-")
            assert document == dataset.EncapsulatedDocument[: dataset.EncapsulatedDocumentLength]
        else:
            np.testing.assert_array_equal(read_by_dcm2pnm(path), dataset.pixel_array)


def _rewritten(dataset: Dataset) -> bytes:
    """What pydicom makes of a data set after it has taken every value of it apart."""
    assert list(dataset.iterall())  # decodes each, to the last nested item; otherwise its bytes would be handed through
    buffer = BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def test_objects_of_a_single_frame_series(tmp_path: Path) -> None:
    """All that there is: every kind of object, in every form."""
    volume = write_volume(chest_datasets(), tmp_path / "ct")
    objects = _all_objects(volume, _findings(volume, [(3, 10, 12), (8, 28, 33)]))
    assert {encoded.kind for encoded in objects} == {"sr", "seg", "key-image", "gsps", "pdf"}
    assert {encoded.sop_class_uid for encoded in objects if encoded.kind == "seg"} == {SegmentationStorage, LABEL_MAP}
    _validate(objects, tmp_path)


def test_objects_of_a_detector_of_boxes(tmp_path: Path) -> None:
    volume = write_volume(chest_datasets(), tmp_path / "ct")
    findings = Findings(pipeline=RETINANET, nodules=(boxed(volume),), malignancy_bias=None)
    objects = encode_findings(findings, volume, make_context(volume, options=EVERYTHING, predecessors=(EARLIER,)))
    assert [encoded.kind for encoded in objects] == ["sr", "key-image", "key-image", "gsps", "pdf"]
    _validate(objects, tmp_path)


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
    _validate(_objects_on_images(volume, _findings(volume, [(3, 10, 12), (8, 28, 33)])), tmp_path)


@pytest.mark.parametrize("count", [1, 2])
def test_objects_of_a_multi_frame_series(tmp_path: Path, count: int) -> None:
    datasets = chest_datasets()
    size = len(datasets) // count
    paths = [tmp_path / f"{number}.ct" for number in range(count)]
    for number, path in enumerate(paths):
        write_part10(enhanced_from(datasets[number * size : (number + 1) * size]), path)
    volume = read_volume(paths)
    _validate(_objects_on_images(volume, _findings(volume, [(3, 10, 12), (8, 28, 33)])), tmp_path)


@pytest.mark.parametrize(
    ("character_set", "name"),
    [
        pytest.param("ISO_IR 192", "Wang^XiaoDong=王^小东", id="utf-8"),
        pytest.param(["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎=やまだ^たろう", id="iso-2022"),
    ],
)
def test_objects_with_a_multibyte_name(tmp_path: Path, character_set: str | list[str], name: str) -> None:
    datasets = chest_datasets()
    for dataset in datasets:
        dataset.SpecificCharacterSet, dataset.PatientName = character_set, name
    volume = write_volume(datasets, tmp_path / "ct")
    objects = _objects_on_images(volume, _findings(volume, [(3, 10, 12)]))
    assert {str(read_object(encoded).PatientName) for encoded in objects} == {name}
    _validate(objects, tmp_path)


@pytest.mark.parametrize(
    "keyword",
    [
        pytest.param("CompletionFlag", id="no-completion-flag"),
        pytest.param("CurrentRequestedProcedureEvidenceSequence", id="no-evidence"),
    ],
)
def test_the_validator_sees_a_broken_object(tmp_path: Path, keyword: str) -> None:
    """The check itself can fail."""
    volume = write_volume(chest_datasets(), tmp_path / "ct")
    dataset = read_object(_objects_on_images(volume, _findings(volume, [(3, 10, 12)]))[0])
    delattr(dataset, keyword)
    dataset.save_as(tmp_path / "broken.dcm")
    assert complaints(tmp_path / "broken.dcm")


def test_the_iod_check_sees_a_broken_object(tmp_path: Path) -> None:
    volume = write_volume(chest_datasets(), tmp_path / "ct")
    sr, seg = (read_object(encoded) for encoded in _objects_on_images(volume, _findings(volume, [(3, 10, 12)]))[:2])
    del sr.CompletionFlag
    sr.InstanceNumber = None
    sr.Rows = 1
    groups = sr.ContentSequence[-2].ContentSequence[0].ContentSequence
    long_axis = next(item for item in groups if item.ValueType == "NUM")
    del long_axis.ContentSequence[0].ContentSequence
    del long_axis.RelationshipType
    errors = iod_errors(sr)
    for said in (
        "CompletionFlag is missing",
        "InstanceNumber is empty",
        "Rows is of no module",
        "SCOORD without",
        "RelationshipType",
    ):
        assert [error for error in errors if said in error], said
    assert len(errors) == 5
    del seg.SegmentSequence[0].SegmentedPropertyTypeCodeSequence
    del seg.ContentLabel
    assert len(iod_errors(seg)) == 2


@pytest.mark.filterwarnings("ignore::UserWarning:pydicom")  # of values that are broken on purpose
def test_reports_on_odd_series(tmp_path: Path) -> None:
    """Real files that are rejected for many reasons, broken ones and radiographs among them: the reports are sound."""
    folders = [path for path in data_folder("ct_edge_cases").rglob("*") if path.is_dir()] + [data_folder("cxr_dicom")]
    series = [found for folder in sorted(folders) for found in find_series(folder).series]
    assert len(series) > 15
    for number, found in enumerate(series):
        if found.paths[0].name == "bad_sequence.dcm":
            continue  # its SOP Instance UID is no UID, so that no reference to it can be one
        uid, folder = found.description.series_instance_uid, tmp_path / str(number)
        folder.mkdir()
        reports = [
            encode_rejection(found.paths, "NO_IMAGES", "There is no volume.", context_of(uid, options=options))
            for options in (ResultOptions(), EVERYTHING)
        ]
        _validate(reports, folder, found.paths[0], broken_source=True)


REAL = [
    pytest.param("ct_cptac_c3n-00247", [(33, 168, 106), (60, 250, 380)], id="cptac"),
    pytest.param("ct_lidc_idri_0063", [(66, 333, 187)], id="lidc", marks=pytest.mark.slow),
    pytest.param("ct_lungdx_a0001", [(30, 200, 150)], id="lungdx", marks=pytest.mark.slow),
    pytest.param("ct_lungdx_a0002_thick8mm", [(15, 200, 150)], id="lungdx-8mm", marks=pytest.mark.slow),
    pytest.param("ct_qin_lsc_0055", [(60, 200, 150)], id="qin", marks=pytest.mark.slow),
    pytest.param("ct_lungfcp_0001_slab", [(40, 200, 150)], id="lungfcp", marks=pytest.mark.slow),
    pytest.param("ct_ricord1a_jpeglossless_slab", [(9, 200, 150)], id="ricord", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("folder", "centres"), REAL)
def test_objects_of_a_real_series(tmp_path: Path, folder: str, centres: list[tuple[int, int, int]]) -> None:
    volume = read_volume(sorted(data_folder(f"{folder}/dicom").glob("*.dcm")))
    findings = _findings(volume, centres)
    objects = _all_objects(volume, findings)
    _validate(objects, tmp_path, Path(volume.frames[0].path or ""))
    seg = hd.seg.segread(BytesIO(objects[1].content))
    for number, nodule in enumerate(findings.nodules, start=1):
        expected = nodule.mask.to_volume(volume.hu.shape)
        decoded = seg.get_pixels_by_source_instance(
            [source.sop_instance_uid for source in volume.frames],
            segment_numbers=[number],
            combine_segments=False,
            assert_missing_frames_are_empty=True,
            ignore_spatial_locations=False,
        )[..., 0]
        np.testing.assert_array_equal(decoded.astype(bool), expected)
