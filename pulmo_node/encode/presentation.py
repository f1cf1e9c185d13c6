"""Presentation states: outline, axes and a line of text on the acquired image of each nodule (PS3.3 A.33.1, C.10).

One Grayscale Softcopy Presentation State for each nodule, so that a viewer lists them and shows one at a time; also, a
rescale slope may differ from image to image.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import highdicom as hd
import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset
from pydicom.valuerep import DS

from pulmo_models.mapping import FrameMask, mask_on_frames, on_frame
from pulmo_models.types import Axis, BoolArray, Findings, Nodule, SourceFrame, Volume
from pulmo_node.encode.finish import finish
from pulmo_node.encode.identity import EncodedObject, Equipment, ResultContext, ascii_text, library_errors
from pulmo_node.encode.keyimage import LUNG_WINDOW_HU, OUTLINE_RGB
from pulmo_node.encode.report import NoduleRecord
from pulmo_node.encode.source import bare_header, read_header

SERIES_OFFSET = 4

_PIXEL = hd.pr.AnnotationUnitsValues.PIXEL  # 0\0 is the corner of the first pixel, columns\rows that of the last


def encode_presentation_states(
    findings: Findings, records: Sequence[NoduleRecord], volume: Volume, equipment: Equipment, context: ResultContext
) -> tuple[EncodedObject, ...]:
    """A presentation state for each nodule, in order.

    Raises:
        Permanent: a source file cannot be read, or a presentation state cannot be encoded.
    """
    weights_sha256 = findings.pipeline.weights_sha256
    return tuple(
        _encode(nodule, record, volume, weights_sha256, equipment, context)
        for nodule, record in zip(findings.nodules, records, strict=True)
    )


def _encode(
    nodule: Nodule,
    record: NoduleRecord,
    volume: Volume,
    weights_sha256: str,
    equipment: Equipment,
    context: ResultContext,
) -> EncodedObject:
    shown = key_mask(nodule, volume)
    frame = volume.frames[shown.frame]
    header = read_header(frame)
    image = _image(header, frame)
    with library_errors("presentation state", context.series_instance_uid):
        built = hd.pr.GrayscaleSoftcopyPresentationState(
            referenced_images=[image],
            series_instance_uid=context.uid("gsps-series", weights_sha256),
            series_number=equipment.series_base + SERIES_OFFSET,
            sop_instance_uid=context.uid(f"gsps {record.segment_number}", weights_sha256),
            instance_number=record.segment_number,
            manufacturer=equipment.manufacturer,
            manufacturer_model_name=equipment.model_name,
            software_versions=equipment.software_version,
            device_serial_number=equipment.serial_number,
            series_description=equipment.series_description("GSPS"),
            content_label=f"NODULE_{record.segment_number}",
            content_description=record.label,
            graphic_layers=[_layer()],
            graphic_annotations=[_annotation(nodule, record, volume, shown, image)],
            modality_lut_transformation=_rescale(header, frame),
            voi_lut_transformations=[
                hd.pr.SoftcopyVOILUTTransformation(
                    window_center=[LUNG_WINDOW_HU[0]], window_width=[LUNG_WINDOW_HU[1]], window_explanation=["LUNG"]
                )
            ],
            contributing_equipment=equipment.contributing_items(context),
        )
        built.BodyPartExamined = "CHEST"  # no paired part, so no laterality is asked for
        _set_displayed_area(built.DisplayedAreaSelectionSequence[0], frame)
        if frame.frame_number is not None:  # of all frames, this state is on one
            built.ReferencedSeriesSequence[0].ReferencedImageSequence[0].ReferencedFrameNumber = frame.frame_number
    return finish(built, "gsps", header, context)


def key_mask(nodule: Nodule, volume: Volume) -> FrameMask:
    """The acquired image on which the report draws the long axis of the nodule, with the pixels of the mask there."""
    masks = {mask.frame: mask for mask in mask_on_frames(volume, nodule.extent(volume.hu.shape))}
    start = nodule.long_axis.start
    return masks[on_frame(volume, (round(start[0]), *start[1:]), masks.keys()).frame]


def outlines(pixels: BoolArray) -> list[npt.NDArray[np.float64]]:
    """The borders of a mask along the edges of its pixels, (points, 2) of (column, row), each closed.

    Pixel (r, c) covers c to c + 1 and r to r + 1. Corners only; one border for each part and each hole.
    """
    padded = np.pad(pixels, 1)
    ways: dict[tuple[int, int], list[tuple[int, int]]] = defaultdict(list)
    for row, column in np.argwhere(padded):
        r, c = int(row) - 1, int(column) - 1  # edges run clockwise: the mask lies to their right
        if not padded[row - 1, column]:
            ways[c, r].append((c + 1, r))
        if not padded[row, column + 1]:
            ways[c + 1, r].append((c + 1, r + 1))
        if not padded[row + 1, column]:
            ways[c + 1, r + 1].append((c, r + 1))
        if not padded[row, column - 1]:
            ways[c, r + 1].append((c, r))
    found = []
    while ways:
        line = [next(iter(ways))]
        while len(line) == 1 or line[-1] != line[0]:
            here = line[-1]
            line.append(ways[here].pop())
            if not ways[here]:
                del ways[here]
        found.append(_corners(np.array(line, dtype=np.float64)))
    return found


def _corners(line: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """A closed line without the points at which it goes straight on."""
    steps = np.diff(line, axis=0)
    turns = np.flatnonzero((steps != np.roll(steps, 1, axis=0)).any(axis=1))
    kept = line[turns]
    return np.concatenate([kept, kept[:1]])


def _layer() -> hd.pr.GraphicLayer:
    return hd.pr.GraphicLayer(
        layer_name="NODULES",
        order=1,
        description="Outlines and diameters",
        display_color=hd.color.CIELabColor.from_rgb(*OUTLINE_RGB),
    )


def _annotation(
    nodule: Nodule, record: NoduleRecord, volume: Volume, shown: FrameMask, image: Dataset
) -> hd.pr.GraphicAnnotation:
    """Outline and axes of the nodule with its tracking identifier, and a line of text beside it."""
    lines = [line + np.array([shown.origin[1], shown.origin[0]]) for line in outlines(shown.pixels)]
    frame = volume.frames[shown.frame]
    most = (frame.columns, frame.rows)
    lines += [_axis_line(axis, volume, shown.frame, most) for axis in (nodule.long_axis, nodule.short_axis)]
    rightmost = max((point for line in lines for point in line.tolist()), key=lambda point: point[0])
    return hd.pr.GraphicAnnotation(
        referenced_images=[image],
        graphic_layer=_layer(),
        referenced_frame_number=frame.frame_number,
        graphic_objects=[
            hd.pr.GraphicObject(
                hd.pr.GraphicTypeValues.POLYLINE,
                line,
                _PIXEL,
                tracking_id=record.tracking_identifier,
                tracking_uid=record.tracking_uid,
            )
            for line in lines
        ],
        text_objects=[
            hd.pr.TextObject(
                ascii_text(record.comment)[:1024],
                _PIXEL,
                anchor_point=(rightmost[0], rightmost[1]),
                tracking_id=record.tracking_identifier,
                tracking_uid=record.tracking_uid,
            )
        ],
    )


def _axis_line(axis: Axis, volume: Volume, frame: int, most: tuple[int, int]) -> npt.NDArray[np.float64]:
    """A diameter on an acquired image, as the report draws it; confined to the image, as the units ask for."""
    ends = [on_frame(volume, point, (frame,)) for point in (axis.start, axis.end)]
    line = np.array([(end.column + 0.5, end.row + 0.5) for end in ends])
    confined: npt.NDArray[np.float64] = np.clip(line, 0, most)
    return confined


def _image(header: Dataset, frame: SourceFrame) -> Dataset:
    """What highdicom asks of a referenced image, under its own UID."""
    image = bare_header(header)
    image.SamplesPerPixel = 1
    image.Rows, image.Columns = frame.rows, frame.columns
    return image


def _rescale(header: Dataset, frame: SourceFrame) -> hd.ModalityLUTTransformation | None:
    """Stored values to HU, as the image or its frame says it."""
    item = header
    if frame.frame_number is not None:
        shared = header.get("SharedFunctionalGroupsSequence") or [Dataset()]
        groups = (header.PerFrameFunctionalGroupsSequence[frame.frame_number - 1], shared[0])
        found = [
            group.PixelValueTransformationSequence for group in groups if "PixelValueTransformationSequence" in group
        ]
        item = found[0][0] if found else header
    if item.get("RescaleSlope") is None or item.get("RescaleIntercept") is None:
        return None
    return hd.ModalityLUTTransformation(
        rescale_intercept=float(item.RescaleIntercept),
        rescale_slope=float(item.RescaleSlope),
        rescale_type=hd.RescaleTypeValues.HU,
    )


def _set_displayed_area(area: Dataset, frame: SourceFrame) -> None:
    """The whole image, its pixels as wide and high as they are; highdicom takes them for squares."""
    area.PixelOriginInterpretation = "FRAME"
    area.PresentationPixelSpacing = [
        DS(float(np.linalg.norm(step)), auto_format=True) for step in (frame.row_step_lps_mm, frame.column_step_lps_mm)
    ]
    del area.PresentationPixelAspectRatio
