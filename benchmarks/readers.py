"""Three readers on the same series: this node, SimpleITK, highdicom. The table of docs/assembly_comparison.md.

    python -m benchmarks.readers [--data FOLDER]

Of each reader: what it makes of the series, and how wrong that is. The values of the made series grow by 5 HU a mm
along each axis of the patient, so a voxel tells how many mm it lies from where the reader puts it; real series are
compared with the values and positions in their files. FOLDER holds the test data; the made series need none.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import highdicom as hd
import numpy as np
import numpy.typing as npt
import pydicom
import SimpleITK as sitk
from pydicom import Dataset

from pulmo_node.assemble import assemble_ct, describe
from pulmo_node.errors import Rejected
from tests.ct_factory import ct_datasets, set_pixels, write_datasets, write_part10

HU_A_MM = 5.0
MIDDLE = np.array([0.0, 0.0, 0.0])  # of the made series, nearly: 0 HU
FULL = (
    "ct_cptac_c3n-00247/dicom", "ct_lidc_idri_0063/dicom", "ct_lungdx_a0001/dicom", "ct_lungdx_a0002_thick8mm/dicom",
    "ct_qin_lsc_0055/dicom", "ct_lungfcp_0001_slab/dicom", "ct_ricord1a_jpeglossless_slab",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True, eq=False)
class Read:
    """What a reader makes of a series."""

    affine: npt.NDArray[np.float64]  # (slice, row, column, 1) -> LPS mm
    values: npt.NDArray[np.generic]


def ours(paths: Sequence[Path]) -> Read:
    """`pulmo_node.assemble`; fewer slices than an analysis needs are allowed here."""
    volume = assemble_ct(paths, describe(paths), minimum_slices=2)
    return Read(affine=volume.affine, values=volume.hu)


def simpleitk(paths: Sequence[Path]) -> Read:
    """`ImageSeriesReader` with the file names in the order that GDCM finds."""
    names = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(paths[0].parent))
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(names or [str(path) for path in paths])
    image = reader.Execute()
    axes = np.array(image.GetDirection()).reshape(3, 3) * image.GetSpacing()
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = axes[:, ::-1], image.GetOrigin()
    return Read(affine=affine, values=sitk.GetArrayFromImage(image))


def highdicom(paths: Sequence[Path]) -> Read:
    """`highdicom.get_volume_from_series`."""
    volume = hd.get_volume_from_series([pydicom.dcmread(path) for path in paths])
    return Read(affine=volume.affine, values=volume.array)


READERS: dict[str, Callable[[Sequence[Path]], Read]] = {"ours": ours, "SimpleITK": simpleitk, "highdicom": highdicom}


def compared(paths: Sequence[Path], judge: Callable[[Read], str]) -> dict[str, str]:
    """What each reader makes of the files, in a few words."""
    found = {}
    for name, read in READERS.items():
        try:
            result = read(paths)
            spacing = np.linalg.norm(result.affine[:3, 0])
            found[name] = f"{len(result.values)} slices of {spacing:.3f} mm, {judge(result)}"
        except Rejected as rejected:
            found[name] = rejected.code
        except (RuntimeError, ValueError, AttributeError, KeyError, TypeError) as exc:
            found[name] = f"refused: {' '.join(str(exc).split())[:60]}"
    return found


def field(places: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """HU of places (..., 3)."""
    return np.asarray((places - MIDDLE) @ (HU_A_MM, HU_A_MM, HU_A_MM))


def by_the_field(read: Read) -> str:
    """The largest distance of a voxel from where its value belongs, air left out; and how many are left out."""
    places = np.moveaxis(np.indices(read.values.shape), 0, -1) @ read.affine[:3, :3].T + read.affine[:3, 3]
    values = read.values.astype(np.float64)
    told = values > -1000
    error = np.abs(values - field(places))[told] / HU_A_MM
    return f"up to {error.max():.2f} mm wrong" if error.max() > 0.05 else "right"


def by_the_files(paths: Sequence[Path]) -> Callable[[Read], str]:
    """Of every file: how far the nearest slice lies from its first pixel, and how much its values differ."""

    def judge(read: Read) -> str:
        farthest, worst = 0.0, 0.0
        inverse = np.linalg.inv(read.affine)
        for path in paths:
            dataset = pydicom.dcmread(path)
            hu = dataset.pixel_array * float(dataset.RescaleSlope) + float(dataset.RescaleIntercept)
            first = np.array(dataset.ImagePositionPatient, dtype=float)
            k = int(np.clip(np.rint((inverse @ [*first, 1])[0]), 0, len(read.values) - 1))
            farthest = max(farthest, float(np.linalg.norm((read.affine @ [k, 0, 0, 1])[:3] - first)))
            if read.values.shape[1:] == hu.shape:
                difference = np.maximum(read.values[k], -1024.0) - np.maximum(hu, -1024.0)
                worst = max(worst, float(np.abs(difference).max()))
        return f"{farthest:.4f} mm, {worst:.4g} HU off, from {read.values.min():.0f} HU up"

    return judge


def made(
    change: Callable[[list[Dataset]], list[Dataset] | None], slices: int = 40, spacing: float = 2.0
) -> list[Dataset]:
    """A made series of 16 x 16 pixels, changed; its values are then those of the field at its positions."""
    datasets = ct_datasets(np.zeros((slices, 16, 16)), (spacing, 0.7, 0.7), (-5, -5, -40), slope=0.05)
    datasets = change(datasets) or datasets
    for dataset in datasets:
        cosines = np.array(dataset.ImageOrientationPatient, dtype=float)
        rows, columns = np.indices((16, 16))[..., None] * 0.7
        places = np.array(dataset.ImagePositionPatient, dtype=float) + columns * cosines[:3] + rows * cosines[3:]
        stored = np.rint((field(places) - float(dataset.RescaleIntercept)) / float(dataset.RescaleSlope))
        padding = dataset.get("PixelPaddingValue")
        if padding is not None:
            stored[0] = padding
        set_pixels(dataset, np.clip(stored, 0, 32767) if dataset.PixelRepresentation else np.clip(stored, 0, 65535))
    return datasets


def _positions(offset: Callable[[int], Sequence[float]], decimals: int = 6) -> Callable[[list[Dataset]], None]:
    def change(datasets: list[Dataset]) -> None:
        for k, dataset in enumerate(datasets):
            place = np.add(np.array(dataset.ImagePositionPatient, dtype=float), offset(k))
            dataset.ImagePositionPatient = [f"{value:.{decimals}f}" for value in place]

    return change


def _mixed_values(datasets: list[Dataset]) -> None:
    """Every second slice is signed, with another rescale."""
    for dataset in datasets[1::2]:
        dataset.PixelRepresentation, dataset.RescaleSlope, dataset.RescaleIntercept = 1, 0.1, -1000


def _padded(datasets: list[Dataset]) -> None:
    """The first row is padding, in the file 0 HU."""
    for dataset in datasets:
        dataset.add_new("PixelPaddingValue", "US", 60_000)


def _phases(datasets: list[Dataset]) -> None:
    for k, dataset in enumerate(datasets):
        dataset.AcquisitionNumber = 1 + k % 2
        dataset.ImagePositionPatient = datasets[k - k % 2].ImagePositionPatient


def _feet_first(datasets: list[Dataset]) -> None:
    for k, dataset in enumerate(datasets):
        dataset.ImageOrientationPatient = [-1, 0, 0, 0, 1, 0]
        dataset.ImagePositionPatient = [5, -5, 40 - 2 * k]


MADE: dict[str, Callable[[], list[Dataset]]] = {
    "feet first": lambda: made(_feet_first),
    "positions rounded to 1 decimal, 1.25 mm": lambda: made(_positions(lambda _: (0, 0, 0), 1), 80, 1.25),
    "a jump of 0.4 mm behind slice 250 of 300": lambda: made(_positions(lambda k: (0, 0, 0.4 * (k >= 250))), 300, 1.25),
    "spacing 2 mm, then 2.5 mm": lambda: made(_positions(lambda k: (0, 0, 0.5 * max(0, k - 20)))),
    "one slice missing": lambda: made(lambda d: d[:17] + d[18:]),
    "three slices missing": lambda: made(lambda d: d[:17] + d[20:]),
    "gantry tilt of 2.4 degrees": lambda: made(_positions(lambda k: (0, 2 * k * np.tan(np.radians(2.4)), 0))),
    "gantry tilt of 20 degrees": lambda: made(_positions(lambda k: (0, 2 * k * np.tan(np.radians(20)), 0))),
    "rescale and sign change from slice to slice": lambda: made(_mixed_values),
    "padding within the range of tissue": lambda: made(_padded),
    "two phases in one series": lambda: made(_phases),
    "one image twice": lambda: made(lambda d: [*d, d[3]]),
}


def main() -> None:
    """Print the table."""
    warnings.simplefilter("ignore")
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of the test data")
    data = parser.parse_args().data
    print("| series | " + " | ".join(READERS) + " |\n|---|" + "---|" * len(READERS))
    with TemporaryDirectory() as scratch:
        for number, (name, make) in enumerate(MADE.items()):
            _print(name, write_datasets(make(), Path(scratch) / str(number), seed=2), by_the_field)
        if data:
            for folder in FULL:
                paths = sorted(path for path in (data / folder).rglob("*") if path.is_file())
                _print(folder.split("/")[0], paths, by_the_files(paths))
            paths = sorted((data / "ct_edge_cases/gantry_tilt").iterdir())
            _print("gantry_tilt", paths, by_the_files(paths))
            paths = _with_frame_of_reference(data, Path(scratch) / "gap")
            _print("slice_increment_inconsistent", paths, by_the_files(paths))


def _print(name: str, paths: Sequence[Path], judge: Callable[[Read], str]) -> None:
    found = compared(paths, judge)
    print(f"| {name} | " + " | ".join(found[reader] for reader in READERS) + " |", flush=True)


def _with_frame_of_reference(data: Path, folder: Path) -> list[Path]:
    """The files name none, for which reason alone ours would refuse them."""
    folder.mkdir()
    paths = []
    for path in sorted((data / "ct_edge_cases/slice_increment_inconsistent").iterdir()):
        dataset = pydicom.dcmread(path)
        dataset.FrameOfReferenceUID = "1.2.3"
        paths.append(folder / path.name)
        write_part10(dataset, paths[-1])
    return paths


if __name__ == "__main__":
    main()
