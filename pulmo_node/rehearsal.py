"""A small made-up series, assembled and reported once, so that the first real one waits for nothing to be loaded.

Libraries load parts of themselves, code tables and fonts when they are first used: half a second and more that belongs
to the start of the node. What is written is thrown away.
"""

from __future__ import annotations

import json
import tempfile
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from pulmo_models.types import CONCEPT_NAMES, Axis, Concept, Findings, Mask, Nodule, PipelineInfo, Volume
from pulmo_node import assemble, encode
from pulmo_node.durable import disk_refusal
from pulmo_node.errors import Permanent
from pulmo_node.synthetic import write_phantom_series

_SHAPE = (16, 64, 64)
_STEP_MM = 3.0
_AT = (2, 24, 30)  # first voxel of the nodule
_SIZE = (2, 4, 6)


def rehearse() -> None:
    """Write a series, assemble it, encode findings in it; all of it in memory and a folder that is removed.

    Raises:
        Transient: the disk refuses.
        Rejected, Permanent: of the stages.
    """
    with disk_refusal("rehearsing a report"), tempfile.TemporaryDirectory(prefix="pulmo-") as scratch:
        affine = np.array([[0, 0, _STEP_MM, 0], [0, _STEP_MM, 0, 0], [_STEP_MM, 0, 0, 0], [0, 0, 0, 1]])
        hu = np.full(_SHAPE, -850.0, dtype=np.float32)
        hu[_box()] = 40.0
        write_phantom_series(Path(scratch), hu, affine, name="rehearsal")
        paths = sorted(Path(scratch).iterdir())
        volume = assemble.assemble(paths, assemble.describe(paths))
        if not isinstance(volume, Volume):
            raise Permanent("the series of the rehearsal is no volume")
        context = encode.ResultContext(
            series_instance_uid=volume.series.series_instance_uid,
            revision=1,
            pipeline="rehearsal",
            settings_sha256="",
            content_datetime=datetime.now(UTC),
        )
        findings = _findings(volume)
        encode.encode_findings(findings, volume, context)
        json.dumps(encode.findings_to_json(findings, volume, context))


def _box() -> tuple[slice, slice, slice]:
    (z, y, x), (depth, height, width) = _AT, _SIZE
    return slice(z, z + depth), slice(y, y + height), slice(x, x + width)


def _findings(volume: Volume) -> Findings:
    """One nodule with made-up numbers."""
    (z, y, x), (_, height, width) = _AT, _SIZE
    row, column = y + (height - 1) / 2, x + (width - 1) / 2
    centre = (volume.affine @ [z, row, column, 1.0])[:3].tolist()
    nodule = Nodule(
        centre_lps_mm=(centre[0], centre[1], centre[2]),
        centre_index=(z, int(row), int(column)),
        mask=Mask(origin=_AT, voxels=np.ones(_SIZE, dtype=bool)),
        candidate_score=0.5,
        detection_probability=0.5,
        malignancy_probability=0.5,
        concepts=tuple(Concept(name=name, value=3.0, contribution=0.1) for name in CONCEPT_NAMES),
        long_axis=Axis(length_mm=width * _STEP_MM, start=(z, row, x - 0.5), end=(z, row, x + width - 0.5)),
        short_axis=Axis(length_mm=height * _STEP_MM, start=(z, y - 0.5, column), end=(z, y + height - 0.5, column)),
        volume_mm3=float(np.prod(_SIZE)) * _STEP_MM**3,
        mean_hu=40.0,
        min_hu=40.0,
        max_hu=40.0,
        laterality="left",
        pleura_distance_mm=5.0,
    )
    pipeline = PipelineInfo(label="rehearsal", name="rehearsal", version="0", weights_name="", weights_sha256="0" * 64)
    return Findings(pipeline=pipeline, nodules=(nodule,))
