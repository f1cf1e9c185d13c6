"""Random series of a patient made of spheres: what is regular comes out exact, what is repaired nearly so."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom import Dataset
from pydicom.uid import EnhancedCTImageStorage, LegacyConvertedEnhancedCTImageStorage

from pulmo_models.codes import CautionCode
from pulmo_models.geometry import index_to_lps, lps_to_index
from pulmo_models.mapping import frame_to_index, mask_on_frames, on_frame
from pulmo_models.types import Mask, Volume
from pulmo_node.assemble import assemble_ct, describe
from tests.ct_factory import enhanced_from, set_pixels, write_datasets, write_part10
from tests.phantom import EDGE_MM, Sphere, measured
from tests.random_series import Example, copied, even, examples, gapped, runs, uneven


def assembled(files: Callable[[Path], Sequence[Path]]) -> Volume:
    with TemporaryDirectory() as folder:
        paths = files(Path(folder))
        return assemble_ct(paths, describe(paths))


# Regular series.


Company = Callable[[Example, list[Dataset]], list[Dataset]]


def as_they_are(_example: Example, _datasets: list[Dataset]) -> list[Dataset]:
    return []


def repetitions(example: Example, datasets: list[Dataset]) -> list[Dataset]:
    return [copied(datasets[example.random.randrange(len(datasets))]) for _ in range(2)]


def foreign_objects(example: Example, datasets: list[Dataset]) -> list[Dataset]:
    localizer, mip, without_position, without_pixels = (copied(example.random.choice(datasets)) for _ in range(4))
    localizer.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    mip.ImageType = ["DERIVED", "SECONDARY", "MIP"]
    del without_position.ImagePositionPatient
    del without_pixels.PixelData
    return [localizer, mip, without_position, without_pixels]


def other_stack(keyword: str, own: object, other: object) -> Company:
    """A second stack at the same positions that the rule does not prefer; its pixels are others."""

    def stack(_example: Example, datasets: list[Dataset]) -> list[Dataset]:
        found = [copied(dataset) for dataset in datasets]
        for dataset, twin in zip(datasets, found, strict=True):
            setattr(dataset, keyword, own)
            setattr(twin, keyword, other)
            twin.PixelData = bytes(len(twin.PixelData))
        return found

    return stack


def coarser_stack(example: Example, datasets: list[Dataset]) -> list[Dataset]:
    """Every second image in another reconstruction."""
    found = other_stack("ConvolutionKernel", "B50f", "B31f")(example, datasets)[::2]
    return found if len(found) >= 8 else []


COMPANY: dict[Company, CautionCode | None] = {
    as_they_are: None,
    repetitions: CautionCode.REPEATED_IMAGES,
    foreign_objects: CautionCode.SET_ASIDE,
    coarser_stack: CautionCode.OTHER_VOLUMES,
    other_stack("AcquisitionNumber", 1, 2): CautionCode.OTHER_VOLUMES,
    other_stack("ConvolutionKernel", "B50f", "B80f"): CautionCode.OTHER_VOLUMES,
    other_stack("ImageType", ["ORIGINAL", "PRIMARY"], ["DERIVED", "PRIMARY"]): CautionCode.OTHER_VOLUMES,
    other_stack("TemporalPositionIdentifier", 1, 2): CautionCode.OTHER_VOLUMES,
}
"""What comes with a series, and the caution that tells of it."""


def with_overlay_bits(example: Example, datasets: list[Dataset]) -> None:
    """Bits above the high bit, where there are any."""
    for dataset in datasets:
        unused = 16 - dataset.BitsStored
        if unused:
            stored = np.frombuffer(dataset.PixelData, dtype="<u2") & (0xFFFF >> unused)
            noise = np.frombuffer(example.random.randbytes(2 * stored.size), dtype="<u2")
            dataset.PixelData = (stored | noise << dataset.BitsStored).astype("<u2").tobytes()


def with_padding(datasets: list[Dataset]) -> None:
    """A corner of padding, of a value between those of air and tissue that no pixel has."""
    used = np.unique([stored_of(dataset) for dataset in datasets])
    unused = int(used[0]) + 5
    while unused in used:
        unused += 1
    for dataset in datasets:
        stored = stored_of(dataset).copy()
        dataset.add_new("PixelPaddingValue", "SS" if dataset.PixelRepresentation else "US", unused)
        stored[:2, :2] = unused
        set_pixels(dataset, stored)


@pytest.mark.parametrize("multi_frame", [EnhancedCTImageStorage, LegacyConvertedEnhancedCTImageStorage])
@runs(25)
@given(example=examples(even), company=st.sampled_from([as_they_are, foreign_objects]), padded=st.booleans())
def test_regular_multi_frame_series(example: Example, company: Company, multi_frame: str, padded: bool) -> None:
    regular(example, company, multi_frame, padded=padded, overlaid=not padded)


@runs(120)
@given(example=examples(even), company=st.sampled_from(list(COMPANY)), padded=st.booleans(), overlaid=st.booleans())
def test_regular_series(example: Example, company: Company, padded: bool, overlaid: bool) -> None:
    regular(example, company, "", padded=padded, overlaid=overlaid)


def regular(example: Example, company: Company, multi_frame: str, *, padded: bool, overlaid: bool) -> None:
    datasets = example.datasets()
    truth = np.stack([hu_of(dataset) for dataset in datasets])
    if padded and not example.layout.get("bits_stored"):
        with_padding(datasets)
        truth[:, :2, :2] = -1024
    elif overlaid:
        with_overlay_bits(example, datasets)
    others = company(example, datasets)

    def files(folder: Path) -> list[Path]:
        if not multi_frame:
            return write_datasets([*datasets, *others], folder, seed=example.random.randrange(2**32))
        order = example.random.sample(datasets, len(datasets))
        write_part10(enhanced_from(order, multi_frame), folder / "enhanced.dcm")
        return [folder / "enhanced.dcm", *write_datasets(others, folder / "others")]

    volume = assembled(files)
    assert volume.native
    caution = COMPANY[company] if others else None
    assert {c.code for c in volume.cautions} == ({caution} if caution else set())
    np.testing.assert_allclose(volume.hu, truth, atol=1e-3)
    for sphere in example.spheres:
        found = measured(volume, sphere, 0.2)
        assert np.linalg.norm(found.centre - sphere.centre) < 0.1
        assert found.flat_error_hu < 1.001
        assert found.volume_mm3 == pytest.approx(sphere.volume_mm3, rel=0.02)
    assert all((frame.frame_number is None) == (not multi_frame) for frame in volume.frames)
    exact_mapping(volume, example, datasets, others)


def stored_of(dataset: Dataset) -> np.ndarray:
    kind = "<i2" if dataset.PixelRepresentation else "<u2"
    return np.frombuffer(dataset.PixelData, dtype=kind).reshape(dataset.Rows, dataset.Columns)


def hu_of(dataset: Dataset) -> np.ndarray:
    return np.asarray(stored_of(dataset) * float(dataset.RescaleSlope) + float(dataset.RescaleIntercept))


def uids_of(dataset: Dataset, others: list[Dataset]) -> set[str]:
    """Its own, and those of exact repetitions, which may stand for it."""
    alike = (o for o in others if o.get("PixelData") == dataset.PixelData and "ImagePositionPatient" in o)
    same = (
        o for o in alike if o.ImagePositionPatient == dataset.ImagePositionPatient and o.ImageType == dataset.ImageType
    )
    return {dataset.SOPInstanceUID, *(o.SOPInstanceUID for o in same)}


def exact_mapping(volume: Volume, example: Example, datasets: list[Dataset], others: list[Dataset]) -> None:
    """Every slice names its image, and a voxel is the pixel of that image at its place."""
    for frame, dataset, origin in zip(volume.frames, datasets, example.scan.origins, strict=True):
        if frame.frame_number is None:
            assert frame.sop_instance_uid in uids_of(dataset, others)
        assert np.abs(np.array(frame.origin_lps_mm) - np.array(dataset.ImagePositionPatient, dtype=float)).max() < 1e-9
        assert np.linalg.norm(np.array(frame.origin_lps_mm) - origin) <= example.rounding_mm
    for _ in range(3):
        index = tuple(example.random.randrange(size) for size in volume.hu.shape)
        point = on_frame(volume, index)
        assert (point.frame, point.row, point.column) == index
        place = example.scan.places(index[0])[index[1], index[2]]
        assert np.linalg.norm(np.subtract(index_to_lps(volume.affine, index), place)) < 0.005 + 2 * example.rounding_mm


# Repaired series.


@runs(40)
@given(example=examples(uneven, rounding=(None, 3, 2)))
def test_uneven_series(example: Example) -> None:
    repaired(example, {CautionCode.RESAMPLED})


@runs(30)
@given(example=examples(gapped))
def test_series_with_one_slice_missing(example: Example) -> None:
    volume = repaired(example, {CautionCode.GAP_FILLED})
    (filled,) = volume.interpolated
    place = np.array(index_to_lps(volume.affine, (filled, 0, 0)))
    distances = np.abs((example.scan.origins - place) @ example.scan.normal)
    assert distances.min() > 0.9 * volume.spacing_mm[0]


@runs(40)
@given(example=examples(even, most_drift=0.5, rounding=(None, 3, 2)))
def test_tilted_series(example: Example) -> None:
    repaired(example, {CautionCode.RESHEARED})


@runs(15)
@given(example=examples(gapped, most_drift=0.4, rounding=(None, 3)))
def test_tilted_series_with_one_slice_missing(example: Example) -> None:
    repaired(example, {CautionCode.RESHEARED, CautionCode.GAP_FILLED})


@runs(15)
@given(example=examples(uneven, most_drift=0.4, rounding=(None, 3)))
def test_tilted_uneven_series(example: Example) -> None:
    repaired(example, {CautionCode.RESHEARED, CautionCode.RESAMPLED})


def repaired(example: Example, codes: set[CautionCode]) -> Volume:
    datasets = example.datasets()
    seed = example.random.randrange(2**32)
    volume = assembled(lambda folder: write_datasets(datasets, folder, seed=seed))
    assert not volume.native
    assert {caution.code for caution in volume.cautions} == codes
    orthogonal = volume.affine[:3, :3] / volume.spacing_mm
    assert np.abs(orthogonal.T @ orthogonal - np.eye(3)).max() < 1e-9
    widest = float(np.diff(example.scan.origins @ example.scan.normal).max())
    for sphere in example.spheres:
        found = measured(volume, sphere, widest / 2 + 0.7)
        assert np.linalg.norm(found.centre - sphere.centre) < 0.3
        assert found.flat_error_hu < 5
    assert [frame.sop_instance_uid for frame in volume.frames] == [dataset.SOPInstanceUID for dataset in datasets]
    for sphere in example.spheres:
        mapping_through_space(volume, example, sphere)
    return volume


def mapping_through_space(volume: Volume, example: Example, sphere: Sphere) -> None:
    """A point leads to the nearest image and back; a mask on the images lies where the sphere lies."""
    scan, tolerance = example.scan, 0.005 + 2 * example.rounding_mm
    point = on_frame(volume, lps_to_index(volume.affine, sphere.centre))
    off_plane = (np.array(sphere.centre) - scan.origins) @ scan.normal
    assert abs(abs(off_plane[point.frame]) - np.abs(off_plane).min()) < tolerance
    assert point.off_plane_mm == pytest.approx(off_plane[point.frame], abs=tolerance)
    row, column = np.array(scan.orientation[:3]), np.array(scan.orientation[3:])
    on_plane = (
        scan.origins[point.frame]
        + point.row * scan.pixel_spacing[0] * column
        + point.column * scan.pixel_spacing[1] * row
    )
    assert np.linalg.norm(on_plane + point.off_plane_mm * scan.normal - sphere.centre) < tolerance
    back = index_to_lps(volume.affine, frame_to_index(volume, point.frame, point.row, point.column))
    assert np.linalg.norm(np.subtract(back, on_plane)) < tolerance

    inside = volume.hu > (sphere.hu - 860) / 2
    grid = np.moveaxis(np.indices(volume.hu.shape), 0, -1) @ volume.affine[:3, :3].T + volume.affine[:3, 3]
    inside &= np.linalg.norm(grid - sphere.centre, axis=-1) < sphere.radius + EDGE_MM
    places = []
    for drawn in mask_on_frames(volume, Mask(origin=(0, 0, 0), voxels=inside)):
        pixels = np.zeros(scan.matrix, dtype=bool)
        pixels[drawn.region] = drawn.pixels
        places.append(scan.places(drawn.frame)[pixels])
    depth = np.linalg.norm(np.concatenate(places) - sphere.centre, axis=1) - sphere.radius
    reach = max(volume.spacing_mm) / 2 + 0.5 * float(np.diff(scan.origins @ scan.normal).max()) + 0.5
    assert depth.max() < reach
    assert np.linalg.norm(np.concatenate(places).mean(axis=0) - sphere.centre) < 1.0
