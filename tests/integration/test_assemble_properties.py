"""Random series of a patient made of spheres: what is regular comes out exact, what is repaired nearly so, what is
spoiled ends in its own code.

The examples are the same in every run (`derandomize`), so that a failure is one of the code.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st
from pydicom import Dataset
from pydicom.uid import EnhancedCTImageStorage, LegacyConvertedEnhancedCTImageStorage, generate_uid

from pulmo_models.codes import CautionCode, RejectionCode
from pulmo_models.geometry import index_to_lps, lps_to_index
from pulmo_models.mapping import frame_to_index, mask_on_frames, on_frame
from pulmo_models.types import Mask, Volume
from pulmo_node.assemble import assemble_ct, describe
from pulmo_node.errors import Rejected
from tests.ct_factory import enhanced_from, set_pixels, write_datasets, write_part10
from tests.phantom import EDGE_MM, Scan, Sphere, file_orientation, measured, middle_of

ROOM_MM = 3.0  # between a sphere's slope and the border of the scan
LAYOUTS = (
    {},
    {"signed": True, "intercept": 0.0},
    {"slope": 0.5, "intercept": -1000.0},
    {"slope": 2.0},
    {"slope": 0.1, "intercept": -1024.0},
    {"bits_stored": 12},
    {"bits_stored": 13, "signed": True, "intercept": 0.0},
)


def runs(examples: int) -> settings:
    """As many examples, the same ones every time. A failure is told as it is: to shrink it would take minutes."""
    return settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        phases=(Phase.explicit, Phase.generate),
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
    )


# The scan.


@dataclass(frozen=True, kw_only=True, eq=False)
class Example:
    """A series with its truth."""

    scan: Scan
    spheres: tuple[Sphere, Sphere]
    layout: dict[str, float]
    decimals: int | None
    random: Random

    def datasets(self) -> list[Dataset]:
        return self.scan.datasets(self.spheres, decimals=self.decimals, **self.layout)

    @property
    def rounding_mm(self) -> float:
        """How far a position in the file may be off, in space."""
        return 1e-6 if self.decimals is None else 3**0.5 / 2 * 10.0**-self.decimals


def about(axis: np.ndarray, angle: float) -> np.ndarray:
    """Rotation about a unit vector (Rodrigues)."""
    cross = np.cross(np.eye(3), axis)
    return np.asarray(np.eye(3) - np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross)


@st.composite
def rotations(draw: st.DrawFn) -> np.ndarray:
    """Head or feet first, turned by any angle in the plane, and tipped by 30 degrees at most."""
    angle = st.floats(0, 2 * np.pi)
    base = draw(st.sampled_from([np.eye(3), np.diag([-1.0, 1.0, -1.0])]))
    direction = draw(angle)
    tip = about(np.array([np.cos(direction), np.sin(direction), 0.0]), draw(st.floats(0, np.radians(30))))
    return np.asarray(tip @ base @ about(np.array([0.0, 0.0, 1.0]), draw(angle)))


@st.composite
def examples(
    draw: st.DrawFn,
    distances: Callable[[st.DrawFn, float, int], np.ndarray],
    *,
    most_drift: float = 0.0,
    rounding: Sequence[int | None] = (None, 3, 2, 1),
) -> Example:
    """Two spheres side by side in a scan that just holds them.

    ``distances`` draws where the images lie along the normal, given the usual spacing and the least number of images.
    They drift within the plane by up to ``most_drift`` mm a mm, as under a tilted gantry.
    """
    orientation = file_orientation(draw(rotations()))
    between_rows, between_columns = draw(st.floats(0.6, 1.0)), draw(st.floats(0.6, 1.0))
    spacing = round(draw(st.floats(1.4, 2.0)), 3)
    radii = draw(st.floats(7.5, 8.5)), draw(st.floats(7.5, 8.5))
    side = 2 * (max(radii) + EDGE_MM + ROOM_MM)
    along = distances(draw, spacing, int(np.ceil(side / spacing)) + 1)
    drift = np.zeros(2)
    if most_drift:
        steepness, direction = draw(st.floats(0.02, most_drift)), draw(st.floats(0, 2 * np.pi))
        drift = steepness * np.array([np.cos(direction), np.sin(direction)])
    room = np.abs(drift) * np.ptp(along)
    matrix = (int((side + room[0]) / between_rows) + 2, int((2 * side + room[1]) / between_columns) + 2)
    row, column = np.array(orientation[:3]), np.array(orientation[3:])
    path = np.cross(row, column) + drift[0] * column + drift[1] * row
    corner = np.array([draw(st.floats(-300, 300)) for _ in range(3)])
    scan = Scan(
        orientation=orientation,
        pixel_spacing=(round(between_rows, 5), round(between_columns, 5)),
        matrix=matrix,
        origins=corner + along[:, None] * path,
    )
    middle, beside = middle_of(scan), side / 2 * row
    spheres = tuple(
        Sphere(centre=tuple((middle + sign * beside).tolist()), radius=radius, hu=float(draw(st.integers(-300, 300))))
        for sign, radius in zip((-1, 1), radii, strict=True)
    )
    return Example(
        scan=scan,
        spheres=(spheres[0], spheres[1]),
        layout=dict(draw(st.sampled_from(LAYOUTS))),
        decimals=draw(st.sampled_from(list(rounding))),
        random=Random(draw(st.integers(0, 2**32))),
    )


def even(_draw: st.DrawFn, spacing: float, count: int) -> np.ndarray:
    return spacing * np.arange(count)


def uneven(draw: st.DrawFn, spacing: float, count: int) -> np.ndarray:
    """Distances that swing about the spacing, or change half way."""
    k = np.arange(count + 3)
    if draw(st.booleans()):
        swing = draw(st.floats(0.15, 0.25)) * np.cos(draw(st.floats(0.3, 1.2)) * k + draw(st.floats(0, 2 * np.pi)))
    else:
        swing = np.where(k < draw(st.integers(4, count - 4)), 0.0, draw(st.floats(-0.3, 0.4)))
    along = np.concatenate([[0], np.cumsum(spacing * (1 + swing))])
    line = np.polyval(np.polyfit(np.arange(len(along)), along, 1), np.arange(len(along)))
    assume(np.abs(along - line).max() > 0.15)  # else it passes for regular
    return np.asarray(along)


def gapped(draw: st.DrawFn, spacing: float, count: int) -> np.ndarray:
    return np.delete(spacing * np.arange(count + 1), draw(st.integers(2, count - 2)))


def assembled(files: Callable[[Path], Sequence[Path]]) -> Volume:
    with TemporaryDirectory() as folder:
        paths = files(Path(folder))
        return assemble_ct(paths, describe(paths))


# Regular series.


Company = Callable[[Example, list[Dataset]], list[Dataset]]


def copied(dataset: Dataset) -> Dataset:
    dataset = deepcopy(dataset)
    dataset.SOPInstanceUID = generate_uid()
    return dataset


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


# Spoiled series.

Spoiler = Callable[[list[Dataset], Random], None]


def setting(keyword: str, value: object, *, everywhere: bool = False) -> Spoiler:
    """Another value in one image, or in all."""

    def spoil(datasets: list[Dataset], random: Random) -> None:
        for dataset in datasets if everywhere else [random.choice(datasets)]:
            if value is None:
                del dataset[keyword]
            else:
                setattr(dataset, keyword, value)

    return spoil


def without_two(datasets: list[Dataset], random: Random) -> None:
    first = random.randrange(1, len(datasets) - 4)
    del datasets[first + random.randrange(3) + 1], datasets[first]


def moved(datasets: list[Dataset], first: int, last: int, along: np.ndarray) -> None:
    for dataset in datasets[first:last]:
        place = np.array(dataset.ImagePositionPatient, dtype=float) + along
        dataset.ImagePositionPatient = [f"{value:.6f}" for value in place]


def normal_of(dataset: Dataset) -> np.ndarray:
    cosines = np.array(dataset.ImageOrientationPatient, dtype=float)
    return np.cross(cosines[:3], cosines[3:])


def step_of(datasets: list[Dataset]) -> float:
    first, second = (np.array(d.ImagePositionPatient, dtype=float) for d in datasets[:2])
    return float((second - first) @ normal_of(datasets[0]))


def torn_apart(datasets: list[Dataset], random: Random) -> None:
    """A gap of 2.4 to 2.6 spacings: neither a missing slice nor a wider spacing."""
    at = random.randrange(3, len(datasets) - 3)
    moved(datasets, at, len(datasets), random.uniform(1.4, 1.6) * step_of(datasets) * normal_of(datasets[0]))


def shifted_in_plane(datasets: list[Dataset], random: Random) -> None:
    at = random.randrange(2, len(datasets) - 2)
    moved(datasets, at, at + 1, random.uniform(1.5, 9) * np.array(datasets[0].ImageOrientationPatient[:3], dtype=float))


def far_apart(datasets: list[Dataset], random: Random) -> None:
    extra = random.uniform(10.1, 20) * normal_of(datasets[0])
    for k in range(1, len(datasets)):
        moved(datasets, k, len(datasets), extra)


def coronal(datasets: list[Dataset], _random: Random) -> None:
    """Turned as a whole by 90 degrees about the patient's left-right axis."""
    turn = about(np.array([1.0, 0.0, 0.0]), np.pi / 2)
    for dataset in datasets:
        cosines = np.array(dataset.ImageOrientationPatient, dtype=float).reshape(2, 3) @ turn.T
        dataset.ImageOrientationPatient = [f"{value:.10f}" for value in cosines.ravel()]
        place = turn @ np.array(dataset.ImagePositionPatient, dtype=float)
        dataset.ImagePositionPatient = [f"{value:.8f}" for value in place]


def skewed(datasets: list[Dataset], _random: Random) -> None:
    for dataset in datasets:
        cosines = np.array(dataset.ImageOrientationPatient, dtype=float)
        cosines[3:] += 0.05 * cosines[:3]
        dataset.ImageOrientationPatient = [f"{value:.10f}" for value in cosines]


def two_at_one_place(datasets: list[Dataset], random: Random) -> None:
    twin = copied(random.choice(datasets))
    twin.PixelData = bytes(len(twin.PixelData))
    datasets.append(twin)


def one_uid_twice(datasets: list[Dataset], random: Random) -> None:
    one, other = random.sample(datasets, 2)
    one.SOPInstanceUID = other.SOPInstanceUID


def too_few(datasets: list[Dataset], random: Random) -> None:
    del datasets[random.randint(2, 7) :]


def cut_pixels(datasets: list[Dataset], random: Random) -> None:
    dataset = random.choice(datasets)
    dataset.PixelData = dataset.PixelData[: 2 * random.randrange(1, len(dataset.PixelData) // 2)]


def other_class(datasets: list[Dataset], _random: Random) -> None:
    for dataset in datasets:
        dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.7"


SPOILED: dict[Spoiler, RejectionCode] = {
    without_two: RejectionCode.MISSING_SLICE,
    torn_apart: RejectionCode.IRREGULAR_SPACING,
    shifted_in_plane: RejectionCode.SHIFTED_SLICES,
    far_apart: RejectionCode.TOO_THICK,
    coronal: RejectionCode.NOT_AXIAL,
    skewed: RejectionCode.BAD_ORIENTATION,
    two_at_one_place: RejectionCode.DUPLICATE_POSITION,
    one_uid_twice: RejectionCode.DUPLICATE_UID,
    too_few: RejectionCode.TOO_FEW_SLICES,
    cut_pixels: RejectionCode.DECODE_FAILED,
    other_class: RejectionCode.NO_IMAGES,
    setting("ImageType", ["ORIGINAL", "PRIMARY", "LOCALIZER"], everywhere=True): RejectionCode.NO_IMAGES,
    setting("PixelSpacing", ["0", "0"], everywhere=True): RejectionCode.BAD_PIXEL_SPACING,
    setting("PixelSpacing", None, everywhere=True): RejectionCode.BAD_PIXEL_SPACING,
    setting("Rows", 65_535, everywhere=True): RejectionCode.TOO_LARGE,
    setting("FrameOfReferenceUID", None, everywhere=True): RejectionCode.NO_FRAME_OF_REFERENCE,
    setting("FrameOfReferenceUID", "1.2.3"): RejectionCode.SEVERAL_FRAMES_OF_REFERENCE,
    setting("PatientID", "ANOTHER"): RejectionCode.PATIENT_CONFLICT,
    setting("RescaleType", "US"): RejectionCode.NOT_HU,
    setting("RescaleSlope", None): RejectionCode.RESCALE_MISSING,
    setting("RescaleSlope", 0): RejectionCode.RESCALE_MISSING,
    setting("HighBit", 3): RejectionCode.UNSUPPORTED_PIXELS,
    setting("ImagePositionPatient", ["1", "2"]): RejectionCode.UNREADABLE,
}
"""Each way to spoil a series that no repair makes good, and the code that it ends in."""


@runs(100)
@given(example=examples(even, rounding=(None, 3)), spoiler=st.sampled_from(list(SPOILED)))
def test_spoiled_series(example: Example, spoiler: Spoiler) -> None:
    datasets = example.datasets()
    spoiler(datasets, example.random)
    with TemporaryDirectory() as folder:
        paths = write_datasets(datasets, Path(folder), seed=example.random.randrange(2**32))
        series = describe(paths)
        with pytest.raises(Rejected) as caught:
            assemble_ct(paths, series)
    assert caught.value.code == SPOILED[spoiler]
    assert "ANOTHER" not in str(caught.value)
