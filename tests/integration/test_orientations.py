"""The same patient scanned head first, feet first, prone, on the side and oblique: the same findings, the same places.

Native volumes, and volumes that were repaired: what is found lies where the spheres are, and segmentation and report
point at the right pixels of the images that were acquired, by the headers of these images alone.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from pydicom import dcmread

from pulmo_models.geometry import index_to_lps
from pulmo_models.mapping import on_frame
from pulmo_models.types import Findings, Volume
from pulmo_node.assemble import assemble_ct, describe
from pulmo_node.encode import encode_findings, findings_to_json
from tests.conftest import data_folder
from tests.ct_factory import write_datasets
from tests.encode_factory import items_named, make_context, measurement_groups, read_object, read_volume
from tests.spheres import (
    ORIENTATIONS,
    SHAPE,
    SPACING,
    SPHERES,
    find,
    images_of,
    measured_lines,
    scan,
    segmented_places,
)


def assert_spheres_found(findings: Findings) -> None:
    assert len(findings.nodules) == len(SPHERES)
    for nodule, sphere in zip(findings.nodules, SPHERES, strict=True):
        assert np.linalg.norm(np.subtract(nodule.centre_lps_mm, sphere.centre)) < 0.3
        assert nodule.volume_mm3 == pytest.approx(sphere.volume_mm3, rel=0.1)
        assert nodule.long_axis.length_mm == pytest.approx(2 * sphere.radius_mm, abs=1.0)


def _axes(volume: Volume) -> npt.NDArray[np.float64]:
    """Unit vectors along slice, row and column, as columns."""
    directions: npt.NDArray[np.float64] = volume.affine[:3, :3] / volume.spacing_mm
    return directions


def assert_objects_on_the_acquired_pixels(volume: Volume, findings: Findings, *, longest_way_mm: float = 1e-3) -> None:
    """By the headers of the source images alone. A line may lie ``longest_way_mm`` off the slice it was measured on."""
    sr, seg = encode_findings(findings, volume, make_context(volume))
    images = images_of(volume)
    segments = segmented_places(seg, images)
    lines = measured_lines(sr, images)
    pixel_mm = SPACING[1]
    for number, (sphere, axes) in enumerate(zip(SPHERES, lines, strict=True), start=1):
        for uid, image in images.items():
            plane = image.place(*np.indices(SHAPE[1:]))
            truth = plane[np.linalg.norm(plane - sphere.centre, axis=-1) <= sphere.radius_mm - pixel_mm]
            drawn = segments[number].get(uid, np.empty((0, 3)))
            # what lies well inside of the sphere is drawn; an image between two slices may take that of the smaller cut
            assert len(drawn) >= 0.8 * len(truth)
            # what is drawn lies in the sphere, up to half a voxel
            reach = sphere.radius_mm + 0.5 * np.linalg.norm(SPACING)
            assert (np.linalg.norm(drawn - sphere.centre, axis=-1) <= reach).all()
        nodule = findings.nodules[number - 1]
        for axis, (uid, ends) in zip((nodule.long_axis, nodule.short_axis), axes.values(), strict=True):
            assert uid in segments[number], "a line on an image that does not show the nodule"
            measured = np.array([index_to_lps(volume.affine, end) for end in (axis.start, axis.end)])
            off = (ends - measured) @ _axes(volume)
            assert np.abs(off[:, 1:]).max() < 1e-3, "the line is moved within the plane"
            assert np.abs(off[:, 0]).max() <= longest_way_mm


def spacing_in_seg(volume: Volume, findings: Findings) -> float | None:
    _, seg = encode_findings(findings, volume, make_context(volume))
    measures = read_object(seg).SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    return measures.get("SpacingBetweenSlices")


@pytest.mark.parametrize("name", list(ORIENTATIONS))
def test_every_orientation(name: str, tmp_path: Path) -> None:
    volume = read_volume(write_datasets(scan(ORIENTATIONS[name]), tmp_path, seed=4))
    assert volume.native
    findings = find(volume)
    assert_spheres_found(findings)
    assert_objects_on_the_acquired_pixels(volume, findings)


SOME = ("head first", "feet first", "decubitus left", "oblique")


@pytest.mark.parametrize("name", SOME)
def test_resampled(name: str, tmp_path: Path) -> None:
    """Thin slices in the middle of the scan, thicker ones at its ends."""
    distances = np.concatenate([np.arange(0, 16, 2.5), 17.5 + np.arange(24) * 1.5, 54.5 + np.arange(8) * 2.5])
    volume = read_volume(write_datasets(scan(ORIENTATIONS[name], distances.tolist()), tmp_path, seed=4))
    assert not volume.native
    assert "RESAMPLED" in [caution.code for caution in volume.cautions]
    findings = find(volume)
    assert_spheres_found(findings)
    assert_objects_on_the_acquired_pixels(volume, findings, longest_way_mm=1.25)
    assert spacing_in_seg(volume, findings) is None


@pytest.mark.parametrize("name", SOME)
def test_resheared(name: str, tmp_path: Path) -> None:
    tilt = float(np.tan(np.radians(12)))
    volume = read_volume(write_datasets(scan(ORIENTATIONS[name], shift_mm_per_mm=(tilt, 0.0)), tmp_path, seed=4))
    assert not volume.native
    assert "RESHEARED" in [caution.code for caution in volume.cautions]
    findings = find(volume)
    assert_spheres_found(findings)
    assert_objects_on_the_acquired_pixels(volume, findings, longest_way_mm=0.01)
    assert spacing_in_seg(volume, findings) == pytest.approx(SPACING[0], abs=1e-4)


@pytest.mark.parametrize("name", SOME)
def test_gap_filled(name: str, tmp_path: Path) -> None:
    """The missing image is one that shows the second sphere."""
    datasets = scan(ORIENTATIONS[name])
    normal = np.cross(ORIENTATIONS[name][:3], ORIENTATIONS[name][3:])
    heights = [float(np.array(dataset.ImagePositionPatient, dtype=float) @ normal) for dataset in datasets]
    missing = int(np.abs(np.array(heights) - np.array(SPHERES[1].centre) @ normal - 3.0).argmin())
    volume = read_volume(write_datasets(datasets[:missing] + datasets[missing + 1 :], tmp_path, seed=4))
    assert (volume.native, volume.interpolated, len(volume.frames)) == (False, (missing,), SHAPE[0] - 1)
    assert "GAP_FILLED" in [caution.code for caution in volume.cautions]
    findings = find(volume)
    assert_spheres_found(findings)
    assert [caution.code for caution in findings.nodules[1].cautions] == ["TOUCHES_INTERPOLATED"]
    assert_objects_on_the_acquired_pixels(volume, findings, longest_way_mm=SPACING[0] + 0.01)
    assert spacing_in_seg(volume, findings) is None
    plain = findings_to_json(findings, volume, make_context(volume))
    assert [caution["code"] for caution in plain["nodules"][1]["cautions"]] == ["TOUCHES_INTERPOLATED"]
    (sr, _) = encode_findings(findings, volume, make_context(volume))
    (comment,) = items_named(measurement_groups(read_object(sr))[1], "Comment")
    assert comment.TextValue.endswith("[TOUCHES_INTERPOLATED]")


def test_a_real_tilted_scan_points_at_its_pixels() -> None:
    """Four GE slices tilted by 18.5 degrees: each voxel is what the image holds at the point that the mapping names."""
    paths = sorted(data_folder("ct_edge_cases/gantry_tilt").glob("*.dcm"))
    volume = assemble_ct(paths, describe(paths), minimum_slices=4)
    assert "RESHEARED" in [caution.code for caution in volume.cautions]
    stored = {}
    for path in paths:
        dataset = dcmread(path)
        hu = dataset.pixel_array.astype(float) * dataset.RescaleSlope + dataset.RescaleIntercept
        stored[dataset.SOPInstanceUID] = np.maximum(hu, -1024)
    random = np.random.default_rng(8)
    compared = 0
    for index in random.integers(0, volume.hu.shape, size=(400, 3)).tolist():
        point = on_frame(volume, index)
        image = stored[volume.frames[point.frame].sop_instance_uid]
        row, column = int(np.floor(point.row + 1e-6)), int(np.floor(point.column + 1e-6))
        if not (0 <= row < image.shape[0] - 1 and 0 <= column < image.shape[1] - 1):
            continue
        patch = image[row : row + 2, column : column + 2]
        if (patch <= -1000).any():
            continue  # padding takes no part
        down, right = point.row - row, point.column - column
        expected = (1 - down) * (patch[0] @ [1 - right, right]) + down * (patch[1] @ [1 - right, right])
        assert volume.hu[tuple(index)] == pytest.approx(expected, abs=0.05)
        assert abs(point.off_plane_mm) < 0.01
        compared += 1
    assert compared > 100
