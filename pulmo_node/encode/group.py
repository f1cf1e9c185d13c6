"""One nodule as a measurement group: volumetric (PS3.16 TID 1411), or without a region (TID 1501) where it has no mask.

highdicom allows no coordinates below the numbers of such a group, because TID 1419 has no such row; the templates are
extensible, and a viewer needs them, so the lines of the two axes are added after the group is built.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
from highdicom import sr
from pydicom.sr.coding import Code

from pulmo_models.mapping import mask_on_frames, on_frame
from pulmo_models.types import Axis, Nodule, Volume
from pulmo_node.encode import codes
from pulmo_node.encode.identity import EncodedObject, Equipment, ascii_text
from pulmo_node.encode.report import NoduleRecord, percent
from pulmo_node.errors import Permanent

_CONTAINS = sr.RelationshipTypeValues.CONTAINS


Group = sr.VolumetricROIMeasurementsAndQualitativeEvaluations | sr.MeasurementsAndQualitativeEvaluations


def measurement_group(
    nodule: Nodule,
    record: NoduleRecord,
    volume: Volume,
    seg: EncodedObject | None,
    equipment: Equipment,
    bias: float | None,
) -> Group:
    """The group of one nodule; `record` holds the numbers, `nodule` the lines of its axes, `seg` its segment.

    Without a segmentation it is a group of measurements without region (TID 1501): the axes are the sides of a box.

    Raises:
        Permanent: an axis does not lie on a slice of the volume.
    """
    side = None if record.laterality is None else codes.SIDES[record.laterality]
    # Where the segmentation, if there is one, shows it too.
    shown = [mask.frame for mask in mask_on_frames(volume, nodule.extent(volume.hu.shape))]
    long_axis, short_axis = (axis_line(axis, volume, shown) for axis in (nodule.long_axis, nodule.short_axis))
    said: dict[str, Any] = {
        "tracking_identifier": sr.TrackingIdentifier(uid=record.tracking_uid, identifier=record.tracking_identifier),
        "finding_category": codes.MORPHOLOGICALLY_ABNORMAL,
        "finding_type": codes.NODULE,
        "finding_sites": [sr.FindingSite(codes.LUNG, laterality=side)],
        "algorithm_id": algorithm_identification(equipment),
        "measurements": _measurements(record, bias, equipment),
        "qualitative_evaluations": [
            sr.QualitativeEvaluation(codes.CONCEPTS[concept.name], codes.RATINGS[concept.name][concept.rating])
            for concept in nodule.concepts
        ],
    }
    group: Group
    if seg is None:
        group = sr.MeasurementsAndQualitativeEvaluations(**said)
    else:
        segment = sr.ReferencedSegment(
            seg.sop_class_uid,
            seg.sop_instance_uid,
            record.segment_number,
            source_series=sr.SourceSeriesForSegmentation(volume.series.series_instance_uid),
        )
        group = sr.VolumetricROIMeasurementsAndQualitativeEvaluations(referenced_segment=segment, **said)
    items = group[0].ContentSequence
    numbers = [item for item in items if item.value_type == sr.ValueTypeValues.NUM]
    numbers[0].ContentSequence = sr.ContentSequence([long_axis])
    numbers[1].ContentSequence = sr.ContentSequence([short_axis])
    items.append(sr.TextContentItem(codes.COMMENT, ascii_text(record.comment), _CONTAINS))
    return group


def algorithm_identification(equipment: Equipment) -> sr.AlgorithmIdentification:
    """TID 4019, with the hash of the weights and the thresholds as parameters."""
    return sr.AlgorithmIdentification(
        name=equipment.model_name,
        version=equipment.software_version,
        parameters=[f"{name}={value}" for name, value in equipment.parameters],
        family=codes.ARTIFICIAL_INTELLIGENCE,
        manufacturer=equipment.manufacturer,
    )


def axis_line(axis: Axis, volume: Volume, among: Collection[int] | None = None) -> sr.CoordinatesForMeasurement:
    """A diameter as an SCOORD: (column, row), the centre of the first pixel at 0.5, 0.5 (C.18.6.1.2).

    It is drawn on the acquired image nearest to its slice, of those in ``among``.

    Raises:
        Permanent: the axis does not lie on one slice of the volume.
    """
    slice_index = round(axis.start[0])
    if slice_index != round(axis.end[0]) or not 0 <= slice_index < len(volume.hu):
        raise Permanent(f"an axis of series {volume.series.series_instance_uid} does not lie on one of its slices")
    start = on_frame(volume, (slice_index, *axis.start[1:]), among)
    end = on_frame(volume, (slice_index, *axis.end[1:]), (start.frame,))
    source = volume.frames[start.frame]
    points = np.array([[point.column + 0.5, point.row + 0.5] for point in (start, end)])
    return sr.CoordinatesForMeasurement(
        sr.GraphicTypeValues.POLYLINE,
        points,
        sr.SourceImageForRegion(
            source.sop_class_uid,
            source.sop_instance_uid,
            None if source.frame_number is None else [source.frame_number],
        ),
    )


def _measurements(record: NoduleRecord, bias: float | None, equipment: Equipment) -> list[sr.Measurement]:
    """Every number of the record.

    The axes come first, because the viewer looks for coordinates in the first number; then what it should write beside
    the line, where it has room for a few. What a network of the pipeline yields names that network (TID 4019): the
    first one proposes, the last one characterises. All else is measured on the mask, by the algorithm of the group.
    """
    proposal, characterisation = (
        (_stage_identification(equipment.stages[place]) if equipment.stages else None) for place in (0, -1)
    )

    def length(name: Code, value: float) -> sr.Measurement:
        return sr.Measurement(name, value, codes.MILLIMETRE)

    def attenuation(value: float, derivation: Code) -> sr.Measurement:
        return sr.Measurement(codes.ATTENUATION, value, codes.HOUNSFIELD_UNIT, derivation=derivation)

    def characterised(name: Code, value: float, unit: Code = codes.NO_UNITS) -> sr.Measurement:
        return sr.Measurement(name, value, unit, algorithm_id=characterisation)

    found = [length(codes.LONG_AXIS, record.long_axis_mm), length(codes.SHORT_AXIS, record.short_axis_mm)]
    if record.volume_mm3 is not None:
        found.append(sr.Measurement(codes.VOLUME, record.volume_mm3, codes.CUBIC_MILLIMETRE))
    if record.malignancy_probability is not None:
        probability = percent(record.malignancy_probability)
        found.append(characterised(codes.PROBABILITY_OF_CANCER, probability, codes.PERCENT))
    found.append(characterised(codes.DETECTION_PROBABILITY, percent(record.detection_probability), codes.PERCENT))
    found.append(sr.Measurement(codes.CANDIDATE_SCORE, record.candidate_score, codes.NO_UNITS, algorithm_id=proposal))
    by_derivation = ((codes.MEAN, record.mean_hu), (codes.MINIMUM, record.min_hu), (codes.MAXIMUM, record.max_hu))
    found += [attenuation(value, derivation) for derivation, value in by_derivation if value is not None]
    if record.pleura_distance_mm is not None:
        found.append(length(codes.DISTANCE_TO_PLEURA, record.pleura_distance_mm))
    for name, concept in record.concepts.items():
        found.append(characterised(codes.CONCEPTS[name], concept.value))
        found.append(characterised(codes.CONTRIBUTIONS[name], concept.contribution))
    if bias is not None:
        found.append(characterised(codes.MALIGNANCY_BIAS, bias))
    return found


def _stage_identification(stage: Equipment) -> sr.AlgorithmIdentification:
    """TID 4019 of a network, short because it stands below many numbers; the group has its weights and thresholds."""
    return sr.AlgorithmIdentification(name=stage.model_name, version=stage.software_version)
