"""Segmentation object: one BINARY SEG with every nodule as a segment (PS3.3 A.51, C.8.20).

It lies on the acquired images, whatever was done to the volume that was analysed, and holds only those that a mask
touches. Each frame points at its source image, each segment carries the tracking identifier and UID of its measurement
group in the SR.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import highdicom as hd
import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset

from pulmo_models.mapping import FrameMask, frame_spacing_mm, mask_on_frames
from pulmo_models.types import Nodule, SourceFrame, Volume
from pulmo_node.encode import codes
from pulmo_node.encode.finish import finish
from pulmo_node.encode.identity import EncodedObject, Equipment, ResultContext, library_errors
from pulmo_node.encode.report import NoduleRecord
from pulmo_node.encode.source import frame_as_image, frame_positions_mm, image_header, read_header
from pulmo_node.errors import Permanent

_COLOURS_RGB = (
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


def encode_seg(
    nodules: Sequence[Nodule],
    records: Sequence[NoduleRecord],
    volume: Volume,
    equipment: Equipment,
    weights_sha256: str,
    context: ResultContext,
) -> EncodedObject:
    """The segmentation of at least one nodule; segment n is ``nodules[n - 1]``.

    Raises:
        Permanent: a mask leaves the volume, a source file cannot be read, or the sources cannot carry a SEG.
    """
    masks = _masks_on_frames(nodules, volume)
    sources = [volume.frames[frame] for frame in sorted({mask.frame for found in masks for mask in found})]
    header, source_arguments = _source_arguments(sources, volume)
    with library_errors("SEG", context.series_instance_uid):
        built = hd.seg.Segmentation(
            pixel_array=_pixel_array(masks, volume.frames),
            segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
            segment_descriptions=[_segment(record, equipment) for record in records],
            series_instance_uid=context.uid("seg-series", weights_sha256),
            series_number=context.seg_series_number,
            sop_instance_uid=context.uid("seg", weights_sha256),
            instance_number=1,
            manufacturer=equipment.manufacturer,
            manufacturer_model_name=equipment.model_name,
            software_versions=equipment.software_version,
            device_serial_number=equipment.serial_number,
            content_label="NODULES",
            content_description="Lung nodules",
            series_description="Pulmo nodules SEG",
            omit_empty_frames=True,
            contributing_equipment=[equipment.contributing_item(context)],
            **source_arguments,
        )
        if _several_objects(sources):
            _refer_to_frames(built, sources)
        _set_spacing(built.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0], volume)
    return finish(built, "seg", header, context, context.uid("dimension-organization", weights_sha256))


def _masks_on_frames(nodules: Sequence[Nodule], volume: Volume) -> list[tuple[FrameMask, ...]]:
    """The mask of each nodule on the acquired images."""
    for number, nodule in enumerate(nodules, start=1):
        mask = nodule.mask
        if min(mask.origin) < 0 or any(s.stop > n for s, n in zip(mask.slices, volume.hu.shape, strict=True)):
            raise Permanent(f"the mask of nodule {number} leaves the volume of {volume.series.series_instance_uid}")
    return [mask_on_frames(volume, nodule.mask) for nodule in nodules]


def _pixel_array(
    masks: Sequence[Sequence[FrameMask]], frames: Sequence[SourceFrame]
) -> npt.NDArray[np.unsignedinteger[Any]]:
    """Masks on the images that they touch, one item each, in the order of the images.

    Segment numbers (images, rows, columns), or one 0/1 channel for each segment where they overlap.
    """
    used = sorted({mask.frame for found in masks for mask in found})
    plane_of = {frame: plane for plane, frame in enumerate(used)}
    shape = len(used), frames[0].rows, frames[0].columns
    labels = np.zeros(shape, dtype=np.uint8 if len(masks) < 256 else np.uint16)
    overlap = False
    for number, found in enumerate(masks, start=1):
        for mask in found:
            region = labels[plane_of[mask.frame]][mask.region]
            overlap = overlap or bool(region[mask.pixels].any())
            region[mask.pixels] = number
    if not overlap:
        return labels
    channels = np.zeros((*shape, len(masks)), dtype=np.uint8)
    for number, found in enumerate(masks):
        for mask in found:
            channels[plane_of[mask.frame], ..., number][mask.region] = mask.pixels
    return channels


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
        place = np.array(groups.PlanePositionSequence[0].ImagePositionPatient, dtype=np.float64)
        source = sources[int(np.linalg.norm(places - place, axis=1).argmin())]
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


def _segment(record: NoduleRecord, equipment: Equipment) -> hd.seg.SegmentDescription:
    algorithm = hd.AlgorithmIdentificationSequence(
        name=equipment.model_name,
        family=codes.ARTIFICIAL_INTELLIGENCE,
        version=equipment.software_version,
        source=equipment.manufacturer,
        parameters=dict(equipment.parameters),
    )
    red, green, blue = _COLOURS_RGB[(record.segment_number - 1) % len(_COLOURS_RGB)]
    return hd.seg.SegmentDescription(
        segment_number=record.segment_number,
        segment_label=record.label,
        segmented_property_category=codes.MORPHOLOGICALLY_ABNORMAL,
        segmented_property_type=codes.NODULE,
        algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=algorithm,
        tracking_uid=record.tracking_uid,
        tracking_id=record.tracking_identifier,
        anatomic_regions=[codes.LUNG],
        display_color=hd.color.CIELabColor.from_rgb(red, green, blue),
    )
