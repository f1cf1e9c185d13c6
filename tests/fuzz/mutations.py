"""Small CT series in every transfer syntax, and the ways to spoil them.

A `Seed` is a good series as it goes over the wire: encoded data sets without meta header. A mutation is a function of a
random generator and a seed; all that it does follows from the generator, so that a case can be repeated by its number.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

import gdcm
import numpy as np
from pydicom import Dataset, dcmread
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate, get_frame
from pydicom.filereader import read_dataset
from pydicom.tag import Tag
from pydicom.uid import (
    JPEG2000,
    UID,
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    EnhancedCTImageStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

from tests.ct_factory import ct_datasets, enhanced_from, write_part10

SLICES, SIDE = 10, 32
ROOT = "1.2.826.0.1.3680043.8.498.4711"
NUMBER_DIGITS = 9
BOMB_BYTES = 200 << 20

_GDCM = {
    JPEGLosslessSV1: gdcm.TransferSyntax.JPEGLosslessProcess14_1,
    JPEGLossless: gdcm.TransferSyntax.JPEGLosslessProcess14,
    JPEGBaseline8Bit: gdcm.TransferSyntax.JPEGBaselineProcess1,
    JPEGExtended12Bit: gdcm.TransferSyntax.JPEGExtendedProcess2_4,
}
_OPTIONS = {JPEGLSNearLossless: {"jls_error": 2}, JPEG2000: {"j2k_cr": [4]}}
_NATIVE = (ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian)
SYNTAXES = (*_NATIVE, RLELossless, JPEGLSLossless, JPEGLSNearLossless, JPEG2000Lossless, JPEG2000, *_GDCM)


@dataclass(frozen=True, kw_only=True)
class Seed:
    """A good series: one data set a slice, or one of all slices."""

    sop_class_uid: str
    syntax: UID
    data_sets: tuple[bytes, ...]  # inflated where the syntax is deflated


@dataclass(frozen=True, kw_only=True)
class Mutant:
    """A spoiled series: its data sets as they are sent, and which of them were touched."""

    data_sets: tuple[bytes, ...]
    touched: tuple[int, ...]


def sop_instance_uid(number: int) -> str:
    """Of a fixed length, so that it can be replaced in encoded bytes."""
    return f"{ROOT}.{10**NUMBER_DIGITS + number}"


def seeds() -> list[Seed]:
    """The good series, one in every syntax that can be written here, and a multi-frame object."""
    hu = np.random.default_rng(3).normal(40, 30, (SLICES, SIDE, SIDE)).round()
    found = [_seed(hu, UID(syntax)) for syntax in SYNTAXES]
    enhanced = enhanced_from(_datasets(hu))
    enhanced.SOPInstanceUID = sop_instance_uid(0)
    enhanced.file_meta = FileMetaDataset()
    enhanced.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    found.append(
        Seed(sop_class_uid=EnhancedCTImageStorage, syntax=ExplicitVRLittleEndian, data_sets=(encoded(enhanced),))
    )
    return found


def _datasets(hu: np.ndarray, bits: int = 16) -> list[Dataset]:
    datasets = ct_datasets(hu, bits_stored=bits)
    for k, dataset in enumerate(datasets):
        dataset.SOPInstanceUID = sop_instance_uid(k)
        dataset.StudyInstanceUID, dataset.SeriesInstanceUID = f"{ROOT}.1", f"{ROOT}.2"
        dataset.FrameOfReferenceUID = f"{ROOT}.3"
        dataset.file_meta = FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return datasets


def _seed(hu: np.ndarray, syntax: UID) -> Seed:
    data_sets = []
    for dataset in _datasets(hu, 12 if syntax == JPEGExtended12Bit else 16):
        if syntax == JPEGBaseline8Bit:
            stored = np.frombuffer(dataset.PixelData, dtype="<u2")
            dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 8, 8, 7
            dataset.RescaleSlope = 16
            dataset.PixelData = (stored // 16).astype(np.uint8).tobytes()
            dataset["PixelData"].VR = "OB"
        if syntax in _GDCM:
            data_sets.append(_by_gdcm(dataset, _GDCM[syntax]))
            continue
        if not syntax.is_little_endian:
            dataset.PixelData = np.frombuffer(dataset.PixelData, dtype="<u2").astype(">u2").tobytes()
        if syntax.is_encapsulated:
            dataset.compress(syntax, generate_instance_uid=False, **_OPTIONS.get(syntax, {}))
        data_sets.append(encoded(dataset, syntax))
    return Seed(sop_class_uid=CTImageStorage, syntax=syntax, data_sets=tuple(data_sets))


def encoded(dataset: Dataset, syntax: UID | None = None) -> bytes:
    """A data set without meta header, in the byte order and VR of the syntax."""
    syntax = syntax or UID(dataset.file_meta.TransferSyntaxUID)
    stream = BytesIO()
    implicit, little = syntax.is_implicit_VR, syntax.is_little_endian
    bare = Dataset(dataset)
    bare.save_as(stream, implicit_vr=implicit, little_endian=little, enforce_file_format=False)
    return stream.getvalue()


def _by_gdcm(dataset: Dataset, syntax: int) -> bytes:
    """Compress by gdcm; only the frame is taken over, so the data set stays as pydicom writes it."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "a.dcm"
        write_part10(dataset, path)
        reader = gdcm.ImageReader()
        reader.SetFileName(str(path))
        change = gdcm.ImageChangeTransferSyntax()
        change.SetTransferSyntax(gdcm.TransferSyntax(syntax))
        if not reader.Read():
            raise RuntimeError("gdcm cannot read a good file")
        change.SetInput(reader.GetImage())
        if not change.Change():
            raise RuntimeError("gdcm cannot compress a good file")
        writer = gdcm.ImageWriter()
        writer.SetFileName(str(path))
        writer.SetFile(reader.GetFile())
        writer.SetImage(change.GetOutput())
        if not writer.Write():
            raise RuntimeError("gdcm cannot write a good file")
        compressed = dcmread(path)
    dataset.add(compressed["PixelData"])
    return encoded(dataset)


# Mutations of the bytes of one data set.


def flip_bits(random: Random, data: bytearray, _seed: Seed) -> bytes:
    for _ in range(random.randint(1, 8)):
        data[_place(random, data)] ^= 1 << random.randrange(8)
    return bytes(data)


def overwrite(random: Random, data: bytearray, _seed: Seed) -> bytes:
    for _ in range(random.randint(1, 4)):
        at = _place(random, data)
        data[at : at + random.randint(1, 8)] = random.randbytes(random.randint(0, 8))
    return bytes(data)


def truncate(random: Random, data: bytearray, _seed: Seed) -> bytes:
    return bytes(data[: _place(random, data)])


def move_a_piece(random: Random, data: bytearray, _seed: Seed) -> bytes:
    """Delete, repeat or displace a piece."""
    at, length, to = _place(random, data), random.choice((1, 2, 8, 64, 700)), _place(random, data)
    piece = data[at : at + length]
    if random.random() < 0.7:
        del data[at : at + length]
    if random.random() < 0.7:
        data[to:to] = piece * random.choice((1, 1, 2, 50))
    return bytes(data)


def wrong_length(random: Random, data: bytearray, seed: Seed) -> bytes:
    """Another length, VR or tag where an element begins."""
    order = "<" if seed.syntax.is_little_endian else ">"
    keyword = random.choice(_KEYWORDS)
    at = data.find(struct.pack(f"{order}HH", Tag(keyword).group, Tag(keyword).element))
    if at < 0:
        return flip_bits(random, data, seed)
    lengths = (0, 1, 2, 3, 0xFF, 0x7FFF, 0xFFFE, 0xFFFF, 0x10000, 0x7FFFFFFF, 0xFFFFFFFE, 0xFFFFFFFF)
    length = random.choice(lengths)
    what = random.randrange(4)
    if what == 0:
        data[at + 6 : at + 8] = struct.pack(f"{order}H", length & 0xFFFF)
    elif what == 1:
        data[at + 4 : at + 8] = struct.pack(f"{order}I", length)
    elif what == 2:
        data[at + 4 : at + 12] = (
            random.choice((b"SQ", b"UN", b"OB", b"OW", b"UT")) + bytes(2) + struct.pack(f"{order}I", length)
        )
    else:
        data[at + 4 : at + 6] = random.choice((b"SQ", b"UN", b"DS", b"AT", b"FD", b"OF", b"\0\0", b"zz"))
    return bytes(data)


def nested_sequences(random: Random, data: bytearray, seed: Seed) -> bytes:
    """Sequences in sequences, with and without lengths, at the front or before the pixels."""
    depth = random.choice((3, 60, 400, 3000, 20_000))
    order = "<" if seed.syntax.is_little_endian else ">"
    tag = random.choice(((0x0008, 0x1140), (0x0040, 0x0275), (0x5200, 0x9229)))
    vr = b"" if seed.syntax.is_implicit_VR else b"SQ\0\0"
    one = struct.pack(f"{order}HH", *tag) + vr + struct.pack(f"{order}IHHI", 0xFFFFFFFF, 0xFFFE, 0xE000, 0xFFFFFFFF)
    end = struct.pack(f"{order}HHIHHI", 0xFFFE, 0xE00D, 0, 0xFFFE, 0xE0DD, 0)
    nest = one * depth + (end * depth if random.random() < 0.5 else b"")
    at = data.find(struct.pack(f"{order}HH", *random.choice(((0x0008, 0x0016), (0x0020, 0x000D), (0x0028, 0x0002)))))
    return bytes(data[:at] + nest + data[at:])


def bomb(random: Random, data: bytearray, seed: Seed) -> bytes:
    """A frame that is small in the file and large when it is decoded."""
    if seed.syntax == DeflatedExplicitVRLittleEndian:
        return bytes(data[: data.rfind(b"OW")]) + b"OW\0\0" + struct.pack("<I", BOMB_BYTES)  # zeros follow: `deflated`
    if not seed.syntax.is_encapsulated:
        return huge_numbers(random, data, seed)
    dataset = _parsed(bytes(data), seed.syntax)
    frame = bytearray(get_frame(dataset.PixelData, 0, number_of_frames=1))
    side = random.choice((33, 1000, 4096, 20_000, 65_535))
    if seed.syntax == RLELossless:
        frame = frame[:64] + b"\x81\x00" * random.choice((100, 100_000))
    elif frame[:4] == b"\xff\x4f\xff\x51":
        at = random.choice((8, 12, 16, 20, 24, 28, 32, 36, 38))
        frame[at : at + 4] = struct.pack(">I", random.choice((0, 1, side, 2**31, 2**32 - 1)))
    else:
        marker = next(m for m in (b"\xff\xc0", b"\xff\xc1", b"\xff\xc3", b"\xff\xf7") if m in frame)
        at = frame.index(marker) + 5
        frame[at : at + 4] = struct.pack(">HH", random.choice((0, SIDE, side)), side)
    if random.random() < 0.5:
        dataset.Rows = dataset.Columns = side
    dataset.PixelData = encapsulate([bytes(frame)])
    dataset["PixelData"].is_undefined_length = True
    return encoded(dataset, seed.syntax)


def broken_frame(random: Random, data: bytearray, seed: Seed) -> bytes:
    """Mutate what lies behind the tag of the pixel data only: fragments, offset table, codestream."""
    order = "<" if seed.syntax.is_little_endian else ">"
    at = data.rfind(struct.pack(f"{order}HH", 0x7FE0, 0x0010))
    head, pixels = data[:at], data[at:]
    spoil = random.choice((flip_bits, overwrite, truncate, move_a_piece))
    return bytes(head) + spoil(random, pixels, seed)


def huge_numbers(random: Random, data: bytearray, seed: Seed) -> bytes:
    """Absurd values of the elements that a volume is made by."""
    dataset = _parsed(bytes(data), seed.syntax)
    for _ in range(random.randint(1, 3)):
        keyword = random.choice(tuple(_ABSURD))
        dataset.add_new(keyword, _VR[keyword], random.choice(_ABSURD[keyword]))
    return encoded(dataset, seed.syntax)


def absurd_text(random: Random, data: bytearray, seed: Seed) -> bytes:
    """Another text of the same length in a decimal string or UID."""
    order = "<" if seed.syntax.is_little_endian else ">"
    keyword = random.choice(("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "RescaleSlope",
                             "RescaleIntercept", "AcquisitionNumber", "SeriesInstanceUID", "ImageType"))  # fmt: skip
    at = data.find(struct.pack(f"{order}HH", Tag(keyword).group, Tag(keyword).element)) + 8
    text = random.choice((b"nan", b"inf", b"-inf", b"1e308", b"-1e308", b"1e-320", b"", b"\\\\\\", b"DOE^JANE",
                          b"1,5", b"0x10", b"\xff\xfe\x00", b"1\\2", b"9" * 16))  # fmt: skip
    data[at : at + len(text)] = text
    return bytes(data)


def _parsed(data: bytes, syntax: UID) -> Dataset:
    dataset = Dataset(read_dataset(BytesIO(data), syntax.is_implicit_VR, syntax.is_little_endian))
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    return dataset


def _place(random: Random, data: bytearray) -> int:
    """Half of the places lie in the header, which is the smaller part of the bytes."""
    if not data:
        return 0
    return random.randrange(min(len(data), 1400)) if random.random() < 0.5 else random.randrange(len(data))


_ABSURD: dict[str, tuple[object, ...]] = {
    "Rows": (0, 1, 31, 33, 4096, 4097, 20_000, 65_535),
    "Columns": (0, 1, 31, 33, 4096, 4097, 20_000, 65_535),
    "NumberOfFrames": ("0", "-1", "2", "100000", "2147483647"),
    "BitsAllocated": (0, 1, 7, 8, 12, 32, 64, 65_535),
    "BitsStored": (0, 1, 7, 12, 17, 65_535),
    "HighBit": (0, 7, 11, 65_535),
    "SamplesPerPixel": (0, 3, 65_535),
    "PixelRepresentation": (1, 2, 65_535),
    "PixelSpacing": (["0", "0"], ["1e-30", "1e-30"], ["1e30", "1e30"], ["-0.7", "0.7"], ["0.7"]),
    "ImagePositionPatient": (["0", "0", "1e12"], ["1e300", "0", "0"], ["0", "0", "-290.0001"], ["0"]),
    "ImageOrientationPatient": (["0"] * 6, ["1", "0", "0", "1", "0", "0"], ["1e9"] * 6, ["1", "0", "0"]),
    "RescaleSlope": ("0", "1e300", "-1", "1e-300"),
    "RescaleIntercept": ("1e300", "-1e300", "99999"),
    "PixelPaddingValue": (0, 65_535),
    "AcquisitionNumber": ("0", "2147483647"),
    "ImageType": ("LOCALIZER", ["DERIVED", "SECONDARY", "MPR"], ["A"] * 200),
}
_VR = {
    **dict.fromkeys(_ABSURD, "US"),
    **dict.fromkeys(("PixelSpacing", "ImagePositionPatient", "ImageOrientationPatient"), "DS"),
    **dict.fromkeys(("RescaleSlope", "RescaleIntercept"), "DS"),
    **dict.fromkeys(("NumberOfFrames", "AcquisitionNumber"), "IS"),
    "ImageType": "CS",
}
_KEYWORDS = (*_ABSURD, "SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "Modality",
             "PatientID", "PatientName", "FrameOfReferenceUID", "PixelData", "PerFrameFunctionalGroupsSequence",
             "SharedFunctionalGroupsSequence", "ConvolutionKernel")  # fmt: skip

MUTATIONS: dict[Callable[[Random, bytearray, Seed], bytes], int] = {
    flip_bits: 6,
    overwrite: 4,
    truncate: 3,
    move_a_piece: 3,
    wrong_length: 5,
    nested_sequences: 1,
    bomb: 2,
    broken_frame: 5,
    huge_numbers: 5,
    absurd_text: 3,
}
"""Each with its weight."""


def deflated(data: bytes) -> bytes:
    """Raw deflate; a data set that ends with the length of a bomb is followed by as many zeros."""
    count = BOMB_BYTES >> 20 if data.endswith(struct.pack("<I", BOMB_BYTES)) else 0
    return _block(data) + _block(bytes(1 << 20)) * count + zlib.compressobj(wbits=-zlib.MAX_WBITS).flush()


def _block(data: bytes) -> bytes:
    """A piece of a deflate stream that may be repeated."""
    stream = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return stream.compress(data) + stream.flush(zlib.Z_FULL_FLUSH)


def mutant(random: Random, seed: Seed, number: int) -> tuple[str, Mutant]:
    """A spoiled series and the name of what was done; its first touched instance bears the number in its UID."""
    mutation = random.choices(list(MUTATIONS), weights=list(MUTATIONS.values()))[0]
    count = len(seed.data_sets)
    touched = range(count) if random.random() < 0.1 else [random.randrange(count)]
    data_sets = list(seed.data_sets)
    state = random.getstate()
    for k in touched:
        random.setstate(state)  # the same in all of them
        old, new = (sop_instance_uid(n).encode() for n in (k, number * SLICES + k + SLICES))
        data_sets[k] = mutation(random, bytearray(data_sets[k].replace(old, new)), seed)
    if seed.syntax.is_deflated:
        data_sets = [deflated(data) for data in data_sets]
        if random.random() < 0.5:
            data_sets[touched[0]] = flip_bits(random, bytearray(data_sets[touched[0]]), seed)
    return mutation.__name__, Mutant(data_sets=tuple(data_sets), touched=tuple(touched))
