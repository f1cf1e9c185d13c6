"""Synthetic CT series with a known truth, for the tests of every stage.

`ct_datasets` makes them, a test may change any element, `write_datasets` writes Part 10 files; `write_ct_series`
does both.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.sequence import Sequence as DicomSequence
from pydicom.uid import CTImageStorage, EnhancedCTImageStorage, ExplicitVRLittleEndian, generate_uid
from pydicom.valuerep import format_number_as_ds

from pulmo_models.mapping import frames_of_grid
from pulmo_models.types import SeriesDescription, Volume

FloatArray = npt.NDArray[np.floating[Any]]

AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)


def ramp_hu(shape: tuple[int, int, int] = (10, 12, 16)) -> npt.NDArray[np.float64]:
    """Whole HU from -1000 up, different in every voxel."""
    return np.arange(np.prod(shape), dtype=np.float64).reshape(shape) - 1000.0


def grid_volume(hu: FloatArray, affine: npt.NDArray[np.float64]) -> Volume:
    """A native volume that no file lies behind."""
    return Volume(
        hu=hu.astype(np.float32),
        affine=affine,
        frame_of_reference_uid="1.2",
        series=SeriesDescription(study_instance_uid="1", series_instance_uid="2", modality="CT"),
        frames=frames_of_grid(affine, hu.shape),
    )


def true_affine(
    spacing_mm: Sequence[float], origin_lps_mm: Sequence[float], orientation: Sequence[float] = AXIAL
) -> npt.NDArray[np.float64]:
    """The affine (slice, row, column, 1) -> LPS mm of the series that `ct_datasets` makes of the same arguments."""
    row, column = np.array(orientation[:3]), np.array(orientation[3:])
    affine = np.eye(4)
    affine[:3, 0] = np.cross(row, column) * spacing_mm[0]
    affine[:3, 1] = column * spacing_mm[1]
    affine[:3, 2] = row * spacing_mm[2]
    affine[:3, 3] = origin_lps_mm
    return affine


def ct_datasets(
    hu: FloatArray,
    spacing_mm: Sequence[float] = (2.5, 0.7, 0.8),
    origin_lps_mm: Sequence[float] = (-120.0, -110.0, -300.0),
    orientation: Sequence[float] = AXIAL,
    *,
    slope: float = 1.0,
    intercept: float = -1024.0,
    signed: bool = False,
    bits_stored: int = 16,
) -> list[Dataset]:
    """One CT Image data set per slice of ``hu`` (slices, rows, columns), ascending along the normal.

    ``spacing_mm`` is (slice, row, column), ``origin_lps_mm`` the centre of voxel (0, 0, 0). HU must be whole steps of
    the rescale, so that the truth is exact.
    """
    affine = true_affine(spacing_mm, origin_lps_mm, orientation)
    study, series, frame_of_reference = generate_uid(), generate_uid(), generate_uid()
    datasets = []
    for k, image in enumerate(hu):
        ds = Dataset()
        ds.SOPClassUID, ds.SOPInstanceUID = CTImageStorage, generate_uid()
        ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.FrameOfReferenceUID = study, series, frame_of_reference
        ds.Modality, ds.ImageType = "CT", ["ORIGINAL", "PRIMARY", "AXIAL"]
        ds.PatientName, ds.PatientID, ds.PatientBirthDate, ds.PatientSex = "Phantom^Peter", "PHANTOM-1", "", ""
        ds.StudyDate, ds.StudyTime, ds.AccessionNumber, ds.StudyID = "20260101", "120000", "", "1"
        ds.ReferringPhysicianName, ds.Manufacturer = "", "Phantom"
        ds.SeriesNumber, ds.InstanceNumber, ds.AcquisitionNumber = 1, k + 1, 1
        ds.BodyPartExamined, ds.SeriesDescription, ds.ConvolutionKernel = "CHEST", "phantom", "B50f"
        ds.PositionReferenceIndicator = ""
        ds.SliceThickness = 99  # a trap: the spacing comes from the positions
        ds.ImagePositionPatient = [format_number_as_ds(float(value)) for value in (affine @ [k, 0, 0, 1])[:3]]
        ds.ImageOrientationPatient = [format_number_as_ds(float(value)) for value in orientation]
        ds.PixelSpacing = [spacing_mm[1], spacing_mm[2]]
        ds.RescaleSlope, ds.RescaleIntercept, ds.RescaleType = slope, intercept, "HU"
        ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
        ds.Rows, ds.Columns = image.shape
        ds.BitsAllocated, ds.BitsStored, ds.HighBit = 16, bits_stored, bits_stored - 1
        ds.PixelRepresentation = int(signed)
        set_pixels(ds, (image - intercept) / slope)
        datasets.append(ds)
    return datasets


FIELD_HU_PER_MM = np.array([2.0, -3.0, 1.5])
FIELD_ORIGIN_LPS_MM = np.array([-110.0, -100.0, -270.0])


def field_hu(places_lps_mm: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """HU of a patient whose density grows evenly, at places ``(..., 3)``: linear interpolation leaves it exact."""
    return 40.0 + (places_lps_mm - FIELD_ORIGIN_LPS_MM) @ FIELD_HU_PER_MM


def field_datasets(
    origins_lps_mm: Sequence[Sequence[float]],
    size: tuple[int, int] = (12, 16),
    pixel_mm: tuple[float, float] = (0.7, 0.8),
    orientation: Sequence[float] = AXIAL,
) -> list[Dataset]:
    """Images of that patient whose pixels (0, 0) lie at these places, wherever that is; exact to 0.04 HU."""
    in_plane = true_affine((1.0, *pixel_mm), (0, 0, 0), orientation)[:3, 1:3]
    grid = np.moveaxis(np.indices(size), 0, -1) @ in_plane.T
    hu = np.stack([field_hu(np.asarray(origin) + grid) for origin in origins_lps_mm])
    step = 1 / 16
    stored_hu = np.rint((hu + 1024) / step) * step - 1024
    datasets = ct_datasets(stored_hu, (1.0, *pixel_mm), orientation=orientation, slope=step)
    for ds, origin in zip(datasets, origins_lps_mm, strict=True):
        ds.ImagePositionPatient = [format_number_as_ds(float(value)) for value in origin]
    return datasets


def places_of(volume: Volume) -> npt.NDArray[np.float64]:
    """LPS mm of every voxel, ``(slices, rows, columns, 3)``, by the affine."""
    indices = np.moveaxis(np.indices(volume.hu.shape), 0, -1)
    return indices @ volume.affine[:3, :3].T + volume.affine[:3, 3]


def set_pixels(ds: Dataset, stored: FloatArray | npt.NDArray[np.integer[Any]]) -> None:
    """Write stored values in the layout that the data set declares."""
    kind = "i" if ds.PixelRepresentation else "u"
    whole = np.rint(stored)
    info = np.iinfo(f"{kind}{ds.BitsAllocated // 8}")
    assert np.allclose(whole, stored, atol=1e-6), "HU are no whole steps of the rescale"
    assert whole.min() >= info.min, "the stored values do not fit"
    assert whole.max() <= info.max, "the stored values do not fit"
    ds.PixelData = whole.astype(info.dtype).tobytes()
    ds["PixelData"].VR = "OW"


def write_datasets(datasets: Sequence[Dataset], folder: Path, *, seed: int | None = None) -> list[Path]:
    """Write Part 10 files, named and returned in an order that ``seed`` shuffles (None: as given)."""
    order = np.arange(len(datasets))
    if seed is not None:
        np.random.default_rng(seed).shuffle(order)
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number, k in enumerate(order):
        path = folder / f"IM{number:04d}.dcm"
        write_part10(datasets[int(k)], path)
        paths.append(path)
    return paths


def write_part10(ds: Dataset, path: Path, transfer_syntax: str = ExplicitVRLittleEndian) -> None:
    """Write one Part 10 file; a data set that was read keeps the transfer syntax it has."""
    if not hasattr(ds, "file_meta"):
        ds.file_meta = FileMetaDataset()
        ds.file_meta.TransferSyntaxUID = transfer_syntax
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    ds.save_as(path, enforce_file_format=True)


def write_ct_series(
    folder: Path,
    hu: FloatArray,
    spacing_mm: Sequence[float] = (2.5, 0.7, 0.8),
    origin_lps_mm: Sequence[float] = (-120.0, -110.0, -300.0),
    orientation: Sequence[float] = AXIAL,
    **pixel_layout: Any,
) -> list[Path]:
    """Write a series of single-frame CT images in shuffled order; arguments as `ct_datasets`."""
    return write_datasets(ct_datasets(hu, spacing_mm, origin_lps_mm, orientation, **pixel_layout), folder, seed=1)


def enhanced_from(datasets: Sequence[Dataset], sop_class_uid: str = EnhancedCTImageStorage) -> Dataset:
    """One multi-frame object with the frames of single-frame data sets, in the order given.

    What is equal in all frames goes into the shared functional groups, the rest into the per-frame ones.
    """
    first = datasets[0]
    ds = Dataset()
    for element in first:
        if element.keyword not in {
            "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness", "RescaleSlope",
            "RescaleIntercept", "RescaleType", "PixelData", "ConvolutionKernel", "AcquisitionNumber",
        }:  # fmt: skip
            ds.add(deepcopy(element))
    ds.SOPClassUID, ds.SOPInstanceUID = sop_class_uid, generate_uid()
    ds.NumberOfFrames = len(datasets)
    ds.SharedFunctionalGroupsSequence = DicomSequence([Dataset()])
    ds.PerFrameFunctionalGroupsSequence = DicomSequence([Dataset() for _ in datasets])
    for macro, keywords in (
        ("PlanePositionSequence", ("ImagePositionPatient",)),
        ("PlaneOrientationSequence", ("ImageOrientationPatient",)),
        ("PixelMeasuresSequence", ("PixelSpacing", "SliceThickness")),
        ("PixelValueTransformationSequence", ("RescaleSlope", "RescaleIntercept", "RescaleType")),
        ("CTReconstructionSequence", ("ConvolutionKernel",)),
    ):
        items = []
        for source in datasets:
            item = Dataset()
            for keyword in keywords:
                item.add(deepcopy(source[keyword]))
            items.append(item)
        if all(item == items[0] for item in items):
            setattr(ds.SharedFunctionalGroupsSequence[0], macro, DicomSequence([items[0]]))
        else:
            for group, item in zip(ds.PerFrameFunctionalGroupsSequence, items, strict=True):
                setattr(group, macro, DicomSequence([item]))
    for group, source in zip(ds.PerFrameFunctionalGroupsSequence, datasets, strict=True):
        content = Dataset()
        content.FrameAcquisitionNumber = source.AcquisitionNumber
        group.FrameContentSequence = DicomSequence([content])
    ds.PixelData = b"".join(source.PixelData for source in datasets)
    ds["PixelData"].VR = "OW"
    return ds
