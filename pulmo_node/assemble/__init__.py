"""Stage "assemble": Part 10 files in, one `Volume` or `Radiograph` out, or `Rejected` with a code and a sentence.

Input: the files of one series. Output: HU float32 on a regular grid with its affine to LPS mm, or one radiograph.
Errors: `pulmo_node.errors.Rejected`, its code one of `RejectionCode`; nothing else is raised for bad files.
Governed by PS3.3 C.7.6.2 (Image Plane), C.7.6.3 (Image Pixel), C.8.2 (CT Image), C.7.6.16 (functional groups).
The rules are told in docs/assembly.md.

In the order of the data: `folder` (what lies there), `headers` and `frames` (where each image lies), `stacks` (what
could be a volume), `geometry` and `levels` (its grid), `plan` and `choice` (which one is taken), `regular`, `slices`,
`pixels` and `decoding` (its voxels), `ct` (the volume).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pulmo_models.codes import RejectionCode
from pulmo_models.types import Radiograph, SeriesDescription, Volume
from pulmo_node.assemble.ahead import ReadAhead
from pulmo_node.assemble.ct import assemble_ct, planned_ct
from pulmo_node.assemble.folder import FoundFolder, FoundSeries, describe, find_series
from pulmo_node.assemble.frames import SetAside
from pulmo_node.assemble.headers import SeriesFiles
from pulmo_node.assemble.plan import check_one_patient, plan_ct
from pulmo_node.assemble.planned import PlannedVolume, SeriesPlan
from pulmo_node.assemble.radiograph import assemble_radiograph
from pulmo_node.assemble.regular import ShareCallback
from pulmo_node.errors import Rejected

__all__ = [
    "FoundFolder",
    "FoundSeries",
    "PlannedVolume",
    "ReadAhead",
    "Rejected",
    "RejectionCode",
    "SeriesFiles",
    "SeriesPlan",
    "SetAside",
    "assemble",
    "assemble_ct",
    "assemble_radiograph",
    "check_one_patient",
    "describe",
    "find_series",
    "plan_ct",
    "planned_ct",
]


def assemble(
    paths: Sequence[Path],
    series: SeriesDescription,
    files: SeriesFiles | None = None,
    progress: ShareCallback = lambda _: None,
) -> Volume | Radiograph:
    """Build what the modality of the series asks for: CT a volume, CR and DX a radiograph.

    `files` holds the headers that were read for `describe`, where they are at hand; `progress` is called with the share
    of the images that are read.

    Raises:
        Rejected: the files hold no axial volume, or not one radiograph; says why.
    """
    if series.modality == "CT":
        return assemble_ct(paths, series, files=files, progress=progress)
    if series.modality in ("CR", "DX"):
        return assemble_radiograph(paths, series)
    raise Rejected(
        RejectionCode.UNSUPPORTED_MODALITY,
        f"the modality is {series.modality or 'not given'}, and only CT, CR and DX are analysed",
        tag="(0008,0060) Modality",
    )
