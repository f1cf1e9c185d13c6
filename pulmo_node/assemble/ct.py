"""CT files to one `Volume`, or `Rejected` with the reason why they hold none.

Input: the files of one series in any order. Output: HU ascending along the normal (row cosines x column cosines).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pulmo_models.codes import CautionCode
from pulmo_models.types import Caution, SeriesDescription, SourceFrame, Volume
from pulmo_node.assemble.frames import Frame
from pulmo_node.assemble.geometry import Axes
from pulmo_node.assemble.headers import SeriesFiles
from pulmo_node.assemble.plan import MINIMUM_SLICES, plan_ct
from pulmo_node.assemble.planned import SeriesPlan, listing
from pulmo_node.assemble.regular import ShareCallback, read_hu
from pulmo_node.assemble.slices import SliceReader


def assemble_ct(
    paths: Sequence[Path],
    series: SeriesDescription,
    *,
    minimum_slices: int = MINIMUM_SLICES,
    files: SeriesFiles | None = None,
    progress: ShareCallback = lambda _: None,
) -> Volume:
    """Assemble the volume that `plan_ct` chooses.

    Args:
        paths: Part 10 files of one series, in any order.
        series: what `describe` said of them; goes into the volume.
        minimum_slices: fewer images are refused.
        files: the headers that were read for `describe`, where they are at hand.
        progress: called with the share of the images that are in the volume.

    Returns:
        float32 HU, nothing below -1024; the affine is orthogonal and right-handed in (column, row, slice) terms.
        ``cautions`` tell of every repair, of what was left out, and of the other volumes that the series holds.

    Raises:
        Rejected: see docs/assembly.md for every code.
    """
    reader = SliceReader(files)
    return planned_ct(plan_ct(paths, minimum_slices=minimum_slices, reader=reader), series, reader, progress)


def planned_ct(
    plan: SeriesPlan,
    series: SeriesDescription,
    reader: SliceReader | None = None,
    progress: ShareCallback = lambda _: None,
) -> Volume:
    """The volume that a plan chose; `reader` is the one that it was made with, where that is at hand.

    Raises:
        Rejected: the plan chose none, or the pixels cannot be read.
    """
    chosen = plan.chosen
    if plan.rejection:
        raise plan.rejection
    if chosen is None or chosen.grid is None:
        raise ValueError("a plan holds a chosen volume or a rejection")
    grid = chosen.grid
    return Volume(
        hu=read_hu(grid, reader or SliceReader(), progress),
        affine=grid.affine,
        frame_of_reference_uid=grid.frames[0].frame_of_reference_uid,
        series=series,
        frames=tuple(_source(frame, grid.axes) for frame in grid.frames),
        native=grid.native,
        interpolated=grid.interpolated,
        acquisition=chosen.acquisition,
        cautions=(*chosen.cautions, *_of_the_series(plan)),
    )


def _source(frame: Frame, axes: Axes) -> SourceFrame:
    between_rows_mm, between_columns_mm = frame.pixel_spacing_mm
    return SourceFrame(
        sop_class_uid=frame.sop_class_uid,
        sop_instance_uid=frame.sop_instance_uid,
        frame_number=frame.frame_number,
        path=str(frame.path),
        rows=frame.rows,
        columns=frame.columns,
        origin_lps_mm=_triple(frame.position_lps_mm),
        row_step_lps_mm=_triple(axes.column * between_rows_mm),
        column_step_lps_mm=_triple(axes.row * between_columns_mm),
        instance_number=frame.instance_number or None,
    )


def _triple(vector: npt.NDArray[np.float64]) -> tuple[float, float, float]:
    return float(vector[0]), float(vector[1]), float(vector[2])


def _of_the_series(plan: SeriesPlan) -> list[Caution]:
    """What the series holds beside the chosen volume."""
    cautions = []
    others = [volume for volume in plan.volumes if not volume.chosen]
    if others:
        listed = listing([f"{volume.description} ({volume.reason})" for volume in others])
        sentence = f"Other images of the series were not analysed: {listed}."
        cautions.append(Caution(code=CautionCode.OTHER_VOLUMES, sentence=sentence))
    if plan.set_aside:
        listed = listing([f"{item.file}: {item.reason}" for item in plan.set_aside])
        sentence = f"Left out of the volume ({len(plan.set_aside)}): {listed}."
        cautions.append(Caution(code=CautionCode.SET_ASIDE, sentence=sentence))
    return cautions
