"""Segmentation object: one SEG with every nodule as a segment (PS3.3 A.51, C.8.20).

It lies on the acquired images, whatever was done to the volume that was analysed. Each frame points at its source
image, the segment of a nodule carries the tracking identifier and UID of its measurement group in the SR. BINARY, and
only the images that a mask touches, unless the options say otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import highdicom as hd
import numpy as np
from pydicom.dataset import Dataset

from pulmo_models.mapping import FrameMask, frame_spacing_mm, mask_on_frames
from pulmo_models.types import Findings, Laterality, Mask, SourceFrame, Volume
from pulmo_node.encode import codes
from pulmo_node.encode.finish import finish
from pulmo_node.encode.identity import EncodedObject, Equipment, ResultContext, library_errors
from pulmo_node.encode.overlapping import Labels, nearest_place, pieces_of, set_pixels, tokens_of
from pulmo_node.encode.report import NoduleRecord
from pulmo_node.encode.source import frame_as_image, frame_positions_mm, image_header, read_header
from pulmo_node.errors import Permanent

_TYPES = hd.seg.SegmentationTypeValues

_NODULES_RGB = (
    (230, 25, 75),
    (60, 180, 75),
    (0, 130, 200),
    (255, 225, 25),
    (245, 130, 48),
    (145, 30, 180),
    (70, 240, 240),
    (240, 50, 230),
    (210, 245, 60),
    (0, 128, 128),
)
_LUNGS_RGB: Mapping[Laterality, tuple[int, int, int]] = {"left": (202, 164, 140), "right": (224, 186, 162)}  # pale


def encode_seg(
    findings: Findings, records: Sequence[NoduleRecord], volume: Volume, equipment: Equipment, context: ResultContext
) -> EncodedObject:
    """The segmentation of at least one nodule; segment n is ``findings.nodules[n - 1]``.

    By the options of the context a label map (PS3.3 A.51 with SOP class Label Map Segmentation), with frames for images
    that no mask touches, and with the lungs as last segments. A label map gives each pixel one segment: where nodules
    overlap, BINARY is written instead, so that no mask is cut.

    Raises:
        Permanent: a mask leaves the volume, a source file cannot be read, or the sources cannot carry a SEG.
    """
    options, weights_sha256 = context.options, findings.pipeline.weights_sha256
    sides = sorted(findings.lungs) if options.lung_segments else []
    masks = _masks_on_frames([nodule.mask for nodule in findings.nodules], volume)
    lungs = _masks_on_frames([findings.lungs[side] for side in sides], volume)
    touched = {mask.frame for found in (*masks, *lungs) for mask in found}
    used = list(range(len(volume.frames))) if options.empty_frames else sorted(touched)
    labels, overlap = _label_map(masks, lungs, used, volume.frames)
    pieces = pieces_of(masks, lungs, labels, _planes(used)) if overlap else {}
    labelmap = options.segmentation == "labelmap" and not overlap
    header, source_arguments = _source_arguments([volume.frames[frame] for frame in used], volume)
    with library_errors("SEG", context.series_instance_uid):
        built = hd.seg.Segmentation(
            pixel_array=tokens_of(pieces, labels) if overlap else labels,
            segmentation_type=_TYPES.LABELMAP if labelmap else _TYPES.BINARY,
            segment_descriptions=[
                *(_nodule_segment(record, equipment) for record in records),
                *(_lung_segment(n, side, equipment) for n, side in enumerate(sides, start=len(records) + 1)),
            ],
            series_instance_uid=context.uid("seg-series", weights_sha256),
            series_number=context.seg_series_number,
            sop_instance_uid=context.uid("seg", weights_sha256),
            instance_number=1,
            manufacturer=equipment.manufacturer,
            manufacturer_model_name=equipment.model_name,
            software_versions=equipment.software_version,
            device_serial_number=equipment.serial_number,
            content_label="NODULES",
            content_description="Lung nodules and lungs" if sides else "Lung nodules",
            series_description="Pulmo nodules SEG",
            omit_empty_frames=not options.empty_frames,
            contributing_equipment=equipment.contributing_items(context),
            **source_arguments,
        )
        if overlap:
            set_pixels(built, pieces, [volume.frames[frame] for frame in used])
        _complete(built, [volume.frames[frame] for frame in used], volume)
    return finish(built, "seg", header, context, context.uid("dimension-organization", weights_sha256))


def _complete(built: hd.seg.Segmentation, sources: Sequence[SourceFrame], volume: Volume) -> None:
    """What highdicom does not know, or writes although it does harm."""
    # It describes the background of a label map as segment 0. That is no segment, and OHIF, which counts the items of
    # the sequence, then shows each nodule in the colour and at the place of its neighbour.
    built.SegmentSequence = [segment for segment in built.SegmentSequence if segment.SegmentNumber > 0]
    if _several_objects(sources):
        _refer_to_frames(built, sources)
    _set_spacing(built.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0], volume)


def _masks_on_frames(masks: Sequence[Mask], volume: Volume) -> list[tuple[FrameMask, ...]]:
    """Each mask on the acquired images."""
    for mask in masks:
        if min(mask.origin) < 0 or any(s.stop > n for s, n in zip(mask.slices, volume.hu.shape, strict=True)):
            raise Permanent(f"a mask leaves the volume of {volume.series.series_instance_uid}")
    return [mask_on_frames(volume, mask) for mask in masks]


def _planes(used: Sequence[int]) -> dict[int, int]:
    """Which of the images of the object a frame of the volume is."""
    return {frame: plane for plane, frame in enumerate(used)}


def _label_map(
    nodules: Sequence[Sequence[FrameMask]],
    lungs: Sequence[Sequence[FrameMask]],
    used: Sequence[int],
    frames: Sequence[SourceFrame],
) -> tuple[Labels, bool]:
    """Segment numbers on the images that are ``used``, in their order, and whether nodules overlap.

    A pixel of several nodules has the number of the last. A lung is what no nodule takes, so that a viewer draws it
    around them.
    """
    plane_of = _planes(used)
    shape, count = (len(used), frames[0].rows, frames[0].columns), len(nodules) + len(lungs)
    labels: Labels = np.zeros(shape, dtype=np.uint8) if count < 256 else np.zeros(shape, dtype=np.uint16)
    overlap = False
    for number, found in enumerate(nodules, start=1):
        for mask in found:
            region = labels[plane_of[mask.frame]][mask.region]
            overlap = overlap or bool(region[mask.pixels].any())
            region[mask.pixels] = number
    for number, found in enumerate(lungs, start=len(nodules) + 1):
        for mask in found:
            region = labels[plane_of[mask.frame]][mask.region]
            region[mask.pixels & (region == 0)] = number
    return labels, overlap


def _set_spacing(measures: Dataset, volume: Volume) -> None:
    """Spacing between slices: highdicom copies it from the source, which may lack it or be wrong.

    It is the measured one of the acquired images, and left out where they lie unevenly.
    """
    spacing_mm = frame_spacing_mm(volume)
    if spacing_mm is not None:
        measures.SpacingBetweenSlices = f"{spacing_mm:.6g}"
    elif "SpacingBetweenSlices" in measures:
        del measures.SpacingBetweenSlices


def _source_arguments(sources: Sequence[SourceFrame], volume: Volume) -> tuple[Dataset, dict[str, Any]]:
    """The full header of the first source, and the arguments that tie the planes to their source images."""
    headers = {source.sop_instance_uid: read_header(source) for source in sources}
    first = headers[sources[0].sop_instance_uid]
    uid, spacing_mm = volume.frame_of_reference_uid, volume.spacing_mm[0]
    if _several_objects(sources):
        frames = [
            frame_as_image(
                headers[source.sop_instance_uid], source, frame_of_reference_uid=uid, slice_spacing_mm=spacing_mm
            )
            for source in sources
        ]
        return first, {"source_images": frames}
    images = [
        image_header(header, frame_of_reference_uid=uid, slice_spacing_mm=spacing_mm) for header in headers.values()
    ]
    if sources[0].frame_number is None:
        for image in images[1:]:  # the volume is regular within its tolerance; highdicom accepts no jitter
            image.ImageOrientationPatient = images[0].ImageOrientationPatient
            image.FrameOfReferenceUID = images[0].FrameOfReferenceUID
        return first, {"source_images": images}
    positions_mm = frame_positions_mm(first, [source.frame_number or 1 for source in sources])
    return first, {
        "source_images": images,
        "plane_positions": [
            hd.PlanePositionSequence(hd.CoordinateSystemNames.PATIENT, position.tolist()) for position in positions_mm
        ],
        "pixel_measures": images[0].SharedFunctionalGroupsSequence[0].PixelMeasuresSequence,
    }


def _several_objects(sources: Sequence[SourceFrame]) -> bool:
    """Whether frames of multi-frame objects come from more than one of them, which highdicom takes no list of."""
    multi_frame = any(source.frame_number is not None for source in sources)
    return multi_frame and len({source.sop_instance_uid for source in sources}) > 1


def _refer_to_frames(built: hd.seg.Segmentation, sources: Sequence[SourceFrame]) -> None:
    """Name object and frame where highdicom was shown each frame as an image of its own (`frame_as_image`)."""
    places = np.array([source.origin_lps_mm for source in sources])
    for groups in built.PerFrameFunctionalGroupsSequence:
        source = sources[nearest_place(groups, places)]
        (item,) = groups.DerivationImageSequence[0].SourceImageSequence
        item.ReferencedSOPClassUID = source.sop_class_uid
        if source.frame_number is not None:
            item.ReferencedFrameNumber = source.frame_number
    references = []
    for sop_class_uid, sop_instance_uid in dict.fromkeys((s.sop_class_uid, s.sop_instance_uid) for s in sources):
        reference = Dataset()
        reference.ReferencedSOPClassUID, reference.ReferencedSOPInstanceUID = sop_class_uid, sop_instance_uid
        references.append(reference)
    built.SourceImageSequence = references
    built.ReferencedSeriesSequence[0].ReferencedInstanceSequence = references


def _nodule_segment(record: NoduleRecord, equipment: Equipment) -> hd.seg.SegmentDescription:
    segment = hd.seg.SegmentDescription(
        segment_number=record.segment_number,
        segment_label=record.label,
        segmented_property_category=codes.MORPHOLOGICALLY_ABNORMAL,
        segmented_property_type=codes.NODULE,
        algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=_algorithm(equipment),
        tracking_uid=record.tracking_uid,
        tracking_id=record.tracking_identifier,
        anatomic_regions=[codes.LUNG],
        display_color=_colour(_NODULES_RGB[(record.segment_number - 1) % len(_NODULES_RGB)]),
    )
    if record.laterality is not None:
        segment.AnatomicRegionSequence[0].AnatomicRegionModifierSequence = [_side(record.laterality)]
    return segment


def _lung_segment(number: int, side: Laterality, equipment: Equipment) -> hd.seg.SegmentDescription:
    segment = hd.seg.SegmentDescription(
        segment_number=number,
        segment_label=f"{side.capitalize()} lung",
        segmented_property_category=codes.ANATOMICAL_STRUCTURE,
        segmented_property_type=codes.LUNG,
        algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=_algorithm(equipment),
        display_color=_colour(_LUNGS_RGB[side]),
    )
    segment.SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence = [_side(side)]
    return segment


def _algorithm(equipment: Equipment) -> hd.AlgorithmIdentificationSequence:
    return hd.AlgorithmIdentificationSequence(
        name=equipment.model_name,
        family=codes.ARTIFICIAL_INTELLIGENCE,
        version=equipment.software_version,
        source=equipment.manufacturer,
        parameters=dict(equipment.parameters),
    )


def _side(side: Laterality) -> hd.sr.CodedConcept:
    return hd.sr.CodedConcept.from_code(codes.SIDES[side])


def _colour(rgb: tuple[int, int, int]) -> hd.color.CIELabColor:
    return hd.color.CIELabColor.from_rgb(*rgb)
