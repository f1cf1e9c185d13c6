"""Writes a synthetic volume as a CT series, for the demo: valid CT Image Storage objects (PS3.3 A.3), no patient."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian, generate_uid

from pulmo_models import __version__

_INTERCEPT = -1024


def write_phantom_series(
    folder: Path,
    hu: npt.NDArray[np.float32],
    affine: npt.NDArray[np.float64],
    *,
    name: str,
    patient_position: str = "HFS",
) -> str:
    """Write an axial volume as one file per slice; returns the Study Instance UID.

    Args:
        folder: is made where it does not exist.
        hu: ``(slices, rows, columns)`` in Hounsfield units.
        affine: 4 x 4, index ``(slice, row, column)`` to LPS mm, axes parallel to the patient's.
        name: which phantom it is; equal names give equal UIDs.
        patient_position: how the patient lay (0018,5100); the affine says so already, and it is what places results.
    """
    folder.mkdir(parents=True, exist_ok=True)

    def uid(of: str) -> UID:
        return generate_uid(entropy_srcs=[f"pulmo phantom {name} {of}"])

    stored = np.clip(np.rint(hu) - _INTERCEPT, 0, 4095).astype("<u2")
    for index in range(hu.shape[0]):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID = CTImageStorage
        meta.MediaStorageSOPInstanceUID = uid(f"instance {index}")
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        image = Dataset()
        image.file_meta = meta
        image.SOPClassUID = CTImageStorage
        image.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
        _describe(image, name)
        image.PatientPosition = patient_position
        image.StudyInstanceUID = uid("study")
        image.SeriesInstanceUID = uid("series")
        image.FrameOfReferenceUID = uid("frame of reference")
        image.InstanceNumber = index + 1
        _place(image, affine, index, stored.shape[1:])
        image.PixelData = stored[index].tobytes()
        image.save_as(folder / f"{index + 1:04d}.dcm", enforce_file_format=True)
    return uid("study")


def _describe(image: Dataset, name: str) -> None:
    image.SpecificCharacterSet = "ISO_IR 192"
    image.ImageType = ["DERIVED", "PRIMARY", "AXIAL"]
    image.DerivationDescription = "synthetic phantom, no patient"
    image.Modality = "CT"
    image.Manufacturer = "Pulmo Node"
    image.ManufacturerModelName = "phantom"
    image.SoftwareVersions = __version__
    image.PatientName = "Phantom^Chest"
    image.PatientID = "PULMO-PHANTOM"
    image.PatientBirthDate = ""
    image.PatientSex = "O"
    image.ReferringPhysicianName = ""
    image.AccessionNumber = ""
    image.StudyID = "1"
    image.StudyDate = image.SeriesDate = image.ContentDate = image.AcquisitionDate = "20260101"
    image.StudyTime = image.SeriesTime = image.ContentTime = image.AcquisitionTime = "120000"
    image.StudyDescription = "Pulmo Node phantom"
    image.SeriesDescription = f"chest phantom {name}"
    image.SeriesNumber = 1
    image.AcquisitionNumber = 1
    image.BodyPartExamined = "CHEST"
    image.PositionReferenceIndicator = ""
    image.KVP = "120"
    image.ConvolutionKernel = "SYNTHETIC"


def _place(image: Dataset, affine: npt.NDArray[np.float64], index: int, shape: tuple[int, ...]) -> None:
    slice_step, row_step, column_step = (affine[:3, axis] for axis in range(3))
    row_mm, column_mm = float(np.linalg.norm(row_step)), float(np.linalg.norm(column_step))
    image.SliceThickness = f"{np.linalg.norm(slice_step):.6g}"
    image.ImagePositionPatient = [f"{value:.6g}" for value in affine[:3, 3] + index * slice_step]
    image.ImageOrientationPatient = [f"{value:.6g}" for value in (*(column_step / column_mm), *(row_step / row_mm))]
    image.PixelSpacing = [f"{row_mm:.6g}", f"{column_mm:.6g}"]
    image.Rows, image.Columns = shape
    image.SamplesPerPixel = 1
    image.PhotometricInterpretation = "MONOCHROME2"
    image.BitsAllocated, image.BitsStored, image.HighBit = 16, 12, 11
    image.PixelRepresentation = 0
    image.RescaleIntercept, image.RescaleSlope, image.RescaleType = str(_INTERCEPT), "1", "HU"
    image.WindowCenter, image.WindowWidth = "-600", "1500"
