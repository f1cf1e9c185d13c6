"""Time and memory of assembly beside SimpleITK's `ImageSeriesReader`, on the same files in the same run.

    python -m benchmarks.assembly [--out bench-out] [--repeats 3] [--quick]

The series is written three times, uncompressed, in JPEG Lossless SV1 and in JPEG-LS, its slices those of a real series
(repeated until there are enough) or else noise over a cylinder. Each reading takes place in a process of its own, files
in the page cache, the readers taking turns. Ours includes the reading of all headers, the order and every check;
SimpleITK is given the files in order. Processor time includes that of the processes that decode, and tells more than
the clock where the machine is busy. Growth of memory is the peak of the resident set beyond what the imports took, as a
multiple of the float32 volume; ours also with the processes that decode, whole.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import gdcm
import numpy as np
import numpy.typing as npt
import SimpleITK as sitk
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, JPEGLSLossless, generate_uid

from benchmarks import report
from benchmarks.report import Options, Row, Table, compared, row
from pulmo_models.types import Volume
from pulmo_node.assemble import SeriesFiles, assemble, decoding, describe

SIDE = 512
SPACING_MM = (1.25, 0.7, 0.7)
KINDS: dict[str, str | int] = {
    "explicit little endian": "",
    "JPEG Lossless SV1": gdcm.TransferSyntax.JPEGLosslessProcess14_1,
    "JPEG-LS": "jls",
}


_SLICES, _QUICK_SLICES = 300, 40
_CPTAC = "ct_cptac_c3n-00247/dicom"
_QUANTITIES = {
    "seconds": ("time", "s"),
    "processor": ("processor time", "s"),
    "growth": ("growth of memory", "volumes"),
}


def run(options: Options) -> Table:
    """Both readers on each kind of file."""
    real = options.data / _CPTAC if options.data and (options.data / _CPTAC).is_dir() else None
    images = slices_of(real) if real else noise(16)
    count = _QUICK_SLICES if options.quick else _SLICES
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as scratch:
        for number, (kind, how) in enumerate(KINDS.items()):
            folder = Path(scratch) / str(number)
            folder.mkdir()
            write_series(folder, images, count, how)
            rows += _of_kind(kind, folder, options.repeats)
    return Table(
        name="assembly",
        title="Assembly beside SimpleITK",
        protocol=(
            f"{count} slices of {SIDE} x {SIDE}, {'of a real series' if real else 'noise over a cylinder'}, each "
            "reading in a fresh process, files in the page cache. Here: all headers, the order, every check included; "
            "SimpleITK's `ImageSeriesReader` is given the files in order. Processor time includes that of the "
            "processes that decode, which start anew in each run and stay in the node. Both volumes are equal from "
            "-1024 HU on."
        ),
        rows=tuple(rows),
    )


def _of_kind(kind: str, folder: Path, repeats: int) -> list[Row]:
    runs: dict[str, list[dict[str, float]]] = {"assemble": [], "simpleitk": []}
    for _ in range(repeats):
        for reader, found in runs.items():
            command = [sys.executable, "-m", "benchmarks.assembly", "--measure", reader, str(folder)]
            found.append(json.loads(subprocess.run(command, check=True, capture_output=True).stdout))
    if len({each["sum"] for found in runs.values() for each in found}) > 1:
        raise SystemExit(f"{kind}: the volumes differ")
    rows = []
    for quantity, (name, unit) in _QUANTITIES.items():
        theirs = row(f"{kind}, {name}, SimpleITK", [each[quantity] for each in runs["simpleitk"]], unit)
        rows += [compared(row(f"{kind}, {name}", [each[quantity] for each in runs["assemble"]], unit), theirs), theirs]
    whole = [each["growth_with_processes"] for each in runs["assemble"]]
    return [*rows, row(f"{kind}, growth with the processes that decode", whole, "volumes")]


def measured(reader: str, folder: Path) -> dict[str, float]:
    """Read one folder in this process."""
    paths = sorted(folder.iterdir())
    for path in paths:
        path.read_bytes()  # into the page cache
    readers: dict[str, Callable[[list[Path]], Volume | sitk.Image]] = {"assemble": ours, "simpleitk": theirs}
    read = readers[reader]
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before, start, processor = resident_bytes("VmRSS"), time.perf_counter(), processor_seconds()
    volume = read(paths)
    seconds = time.perf_counter() - start
    growth = resident_bytes("VmHWM") - before
    hu = volume.hu if isinstance(volume, Volume) else sitk.GetArrayViewFromImage(volume)
    volume_bytes = hu.size * 4
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    others = sum(resident_bytes("VmHWM", int(child)) for child in children)
    decoding.end_idle()  # only then does their time count
    return {
        "seconds": seconds,
        "processor": processor_seconds() - processor,
        "growth": growth / volume_bytes,
        "growth_with_processes": (growth + others) / volume_bytes,
        "sum": float(sum(np.maximum(image, -1024).astype(np.float64).sum() for image in hu)),
    }


def ours(paths: list[Path]) -> Volume:
    """The volume of `pulmo_node.assemble`, as the node calls it."""
    files = SeriesFiles()
    volume = assemble(paths, describe(paths, files=files), files)
    if not isinstance(volume, Volume):
        raise SystemExit("not a CT series")
    return volume


def theirs(paths: list[Path]) -> sitk.Image:
    """The volume of SimpleITK."""
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames([str(path) for path in paths])
    image: sitk.Image = reader.Execute()
    return image


def processor_seconds() -> float:
    """Of this process, and of those that it started and that have ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def resident_bytes(what: str, process: int | None = None) -> int:
    """``VmRSS`` (now) or ``VmHWM`` (peak) of a process, of this one by default."""
    lines = Path(f"/proc/{process or 'self'}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{what}:"))


def slices_of(folder: Path) -> list[npt.NDArray[np.int16]]:
    """HU of the slices of a real series, in order."""
    volume = ours(sorted(folder.iterdir()))
    if volume.hu.shape[1:] != (SIDE, SIDE):
        raise SystemExit(f"{folder} is no CT series of {SIDE} x {SIDE} pixels")
    return list(volume.hu.astype(np.int16))


def noise(count: int) -> list[npt.NDArray[np.int16]]:
    """A cylinder of soft tissue in air, with the noise of a CT."""
    generator = np.random.default_rng(1)
    y, x = np.mgrid[:SIDE, :SIDE] - SIDE / 2
    cylinder = np.where(np.hypot(x, y) < 200, 40.0, -1000.0)
    return [
        np.maximum(cylinder + generator.normal(0, 25, cylinder.shape), -1024).astype(np.int16) for _ in range(count)
    ]


def write_series(folder: Path, images: list[npt.NDArray[np.int16]], count: int, how: str | int) -> None:
    """Write ``count`` slices, file names in the order of the slices."""
    uids: dict[str, str] = {
        key: generate_uid() for key in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID")
    }
    for k in range(count):
        dataset = ct_slice(images[k * len(images) // count], k, uids)
        path = folder / f"{k:04d}.dcm"
        if how == "jls":
            dataset.compress(JPEGLSLossless, generate_instance_uid=False)
        dataset.save_as(path, enforce_file_format=True)
        if how and how != "jls":
            change_syntax(path, how)


def ct_slice(hu: npt.NDArray[np.int16], number: int, uids: dict[str, str]) -> Dataset:
    """One CT Image, 16 bits signed."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID, dataset.SOPInstanceUID = CTImageStorage, generate_uid()
    for keyword, value in uids.items():
        setattr(dataset, keyword, value)
    dataset.Modality, dataset.ImageType = "CT", ["ORIGINAL", "PRIMARY", "AXIAL"]
    dataset.PatientName, dataset.PatientID = "Benchmark", "BENCHMARK"
    dataset.AcquisitionNumber, dataset.InstanceNumber, dataset.ConvolutionKernel = 1, number + 1, "B70f"
    dataset.ImagePositionPatient = [-179.2, -179.2, number * SPACING_MM[0]]
    dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    dataset.PixelSpacing, dataset.SliceThickness = list(SPACING_MM[1:]), SPACING_MM[0]
    dataset.RescaleSlope, dataset.RescaleIntercept, dataset.RescaleType = 1, -1024, "HU"
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.Rows, dataset.Columns = hu.shape
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 16, 15, 1
    dataset.PixelData = (hu + np.int16(1024)).tobytes()
    dataset["PixelData"].VR = "OW"
    return dataset


def change_syntax(path: Path, syntax: str | int) -> None:
    """Compress a file in place by gdcm."""
    reader = gdcm.ImageReader()
    reader.SetFileName(str(path))
    change = gdcm.ImageChangeTransferSyntax()
    change.SetTransferSyntax(gdcm.TransferSyntax(syntax))
    if not reader.Read():
        raise SystemExit(f"gdcm cannot read {path}")
    change.SetInput(reader.GetImage())
    if not change.Change():
        raise SystemExit(f"gdcm cannot compress {path}")
    writer = gdcm.ImageWriter()
    writer.SetFileName(str(path))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    if not writer.Write():
        raise SystemExit(f"gdcm cannot write {path}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        print(json.dumps(measured(sys.argv[2], Path(sys.argv[3]))))
    else:
        report.main(run, __doc__)
