"""`pulmo-node inspect`: what the node would make of a series, volume by volume, without analysing it.

Input: the files of a folder or of a stored series. Output: plain values for a table and for JSON, and a picture.
All pixels of the volume that would be analysed are read, and the lungs looked for, unless headers alone are asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from pulmo_models.ct.lungs import localise_lungs
from pulmo_models.ct.scope import partial_lungs
from pulmo_models.pipeline import Rejection
from pulmo_models.types import Caution, RadiographSeries, SeriesDescription, Volume
from pulmo_node import assemble, encode
from pulmo_node.errors import Rejected

MODALITY_OF_VOLUMES = "CT"


@dataclass(frozen=True, kw_only=True)
class Source:
    """The files of a series."""

    paths: tuple[Path, ...]
    description: SeriesDescription
    study: tuple[Path, ...]  # a file of every series of the study


@dataclass(frozen=True, kw_only=True)
class Found:
    """What there is to inspect, and files that belong to no series."""

    series: tuple[Source, ...]
    set_aside: tuple[assemble.SetAside, ...]


@dataclass(frozen=True, kw_only=True)
class InspectedVolume:
    """One stack of images of a series. What is None there is none of: the stack makes no volume, or is one image."""

    chosen: bool
    reason: str  # why it is chosen, or not
    images: int
    first_image: str  # file, with the frame of a multi-frame object
    extent_mm: float  # from the first image to the last
    rows: int
    columns: int
    pixel_spacing_mm: tuple[float, float]  # between rows, between columns
    gaps_mm: tuple[float, float, float] | None  # between neighbouring images: smallest, median, largest
    normal_lps: tuple[float, float, float]  # of the image plane, a unit vector
    shape: tuple[int, int, int] | None  # slices, rows, columns
    spacing_mm: tuple[float, float, float] | None  # the same order
    origin_lps_mm: tuple[float, float, float] | None  # centre of the first voxel
    directions: tuple[str, str, str] | None  # where slices, rows and columns go: R, L, A, P, H or F
    native: bool | None  # every voxel is an acquired pixel
    interpolated_slices: tuple[int, ...]  # of a filled gap, the first slice is 1
    kernel: str
    kernel_use: str
    acquisition_number: str
    image_type: tuple[str, ...]
    contrast_agent: str
    slice_thickness_mm: float | None  # as the header tells it
    reconstruction_diameter_mm: float | None
    patient_position: str
    cautions: tuple[Caution, ...]


@dataclass(frozen=True, kw_only=True)
class InspectedSeries:
    """What would become of a series."""

    series_instance_uid: str
    study_instance_uid: str
    modality: str
    description: str
    files: int
    volumes: tuple[InspectedVolume, ...]
    cautions: tuple[Caution, ...]  # on what the chosen volume shows; none where only headers were read
    set_aside: tuple[assemble.SetAside, ...]
    rejection: dict[str, str] | None  # code and reason, where nothing of the series would be analysed


def in_folder(folder: Path) -> Found:
    """Every series below a folder.

    Raises:
        Rejected: the folder cannot be read.
    """
    found = assemble.find_series(folder)
    series = (
        Source(
            paths=one.paths,
            description=one.description,
            study=found.of_study(one.description.study_instance_uid),
        )
        for one in found.series
    )
    return Found(series=tuple(series), set_aside=found.set_aside)


def of_files(paths: Sequence[Path], study: Sequence[Path]) -> Found:
    """The series of these files; ``study`` holds a file of every series of its study.

    Raises:
        Rejected: no file can be read.
    """
    if not paths:
        return Found(series=(), set_aside=())
    source = Source(paths=tuple(paths), description=assemble.describe(paths), study=tuple(study))
    return Found(series=(source,), set_aside=())


def inspect_series(source: Source, *, headers_only: bool = False) -> tuple[InspectedSeries, Volume | None]:
    """What would become of one series, and the volume that would be analysed, if any; none from headers alone."""
    paths, description = source.paths, source.description
    volumes: tuple[InspectedVolume, ...] = ()
    cautions: tuple[Caution, ...] = ()
    aside: tuple[assemble.SetAside, ...] = ()
    rejection: Rejected | None = None
    volume: Volume | None = None
    try:
        assemble.check_one_patient(source.study)
        if description.modality == MODALITY_OF_VOLUMES:
            plan = assemble.plan_ct(paths)
            volumes, aside, rejection = tuple(map(_volume, plan.volumes)), plan.set_aside, plan.rejection
            if plan.chosen and not headers_only:
                volume = assemble.planned_ct(plan, description)
                cautions = _seen_in(volume)
        else:
            image = assemble.assemble(paths, description)  # radiographs, or a modality that nothing is made of
            if isinstance(image, RadiographSeries):
                cautions = (*image.cautions, *(caution for each in image.images for caution in each.cautions))
    except Rejected as exc:
        rejection = exc
    inspected = InspectedSeries(
        series_instance_uid=description.series_instance_uid,
        study_instance_uid=description.study_instance_uid,
        modality=description.modality,
        description=description.series_description,
        files=len(paths),
        volumes=volumes,
        cautions=cautions,
        set_aside=aside,
        rejection=None if rejection is None else {"code": rejection.code, "reason": rejection.reason},
    )
    return inspected, volume


def _seen_in(volume: Volume) -> tuple[Caution, ...]:
    """Cautions that take the pixels to see. Raises `Rejected`: NO_LUNGS."""
    try:
        lungs = localise_lungs(volume)
    except Rejection as exc:
        raise Rejected(exc.code, exc.sentence) from exc
    partial = partial_lungs(volume, lungs.mask)
    return () if partial is None else (partial,)


def _volume(planned: assemble.PlannedVolume) -> InspectedVolume:
    first, grid = planned.frames[0], planned.grid
    affine = None if grid is None else grid.affine
    made = planned.acquisition
    return InspectedVolume(
        chosen=planned.chosen,
        reason=planned.reason,
        images=len(planned.frames),
        first_image=first.label,
        extent_mm=planned.extent_mm,
        rows=first.rows,
        columns=first.columns,
        pixel_spacing_mm=first.pixel_spacing_mm,
        gaps_mm=_gaps_mm(planned),
        normal_lps=_triple(_normal(planned).round(6) + 0.0),  # no negative zeros
        shape=None if grid is None else grid.shape,
        spacing_mm=planned.spacing_mm,
        origin_lps_mm=None if affine is None else _triple(affine[:3, 3]),
        directions=None if affine is None else _directions(affine),
        native=None if grid is None else grid.native,
        interpolated_slices=() if grid is None else tuple(k + 1 for k in grid.interpolated),
        kernel=made.kernel,
        kernel_use=planned.kernel_use.name.lower(),
        acquisition_number=made.number,
        image_type=made.image_type,
        contrast_agent=made.contrast_agent,
        slice_thickness_mm=made.slice_thickness_mm,
        reconstruction_diameter_mm=made.reconstruction_diameter_mm,
        patient_position=made.patient_position,
        cautions=planned.cautions,
    )


def _normal(planned: assemble.PlannedVolume) -> npt.NDArray[np.float64]:
    cosines = planned.frames[0].row_and_column_cosines
    normal = np.cross(cosines[:3], cosines[3:])
    return normal / (np.linalg.norm(normal) or 1.0)


def _gaps_mm(planned: assemble.PlannedVolume) -> tuple[float, float, float] | None:
    along = np.sort([frame.position_lps_mm @ _normal(planned) for frame in planned.frames])
    gaps = np.diff(along)
    return _triple(np.quantile(gaps, (0, 0.5, 1))) if gaps.size else None


def _triple(vector: npt.NDArray[np.float64]) -> tuple[float, float, float]:
    x, y, z = vector.tolist()
    return x, y, z


def _directions(affine: npt.NDArray[np.float64]) -> tuple[str, str, str]:
    slices, rows, columns = (encode.direction(affine[:3, axis]) for axis in range(3))
    return slices, rows, columns


def planes_picture(volume: Volume) -> Image.Image:
    """The three middle planes of a volume, with its name and grid below."""
    return encode.render_planes(volume, _caption(volume))


def below_one_another(pictures: Sequence[Image.Image]) -> Image.Image:
    """Pictures of one width as one."""
    return Image.fromarray(np.concatenate([np.asarray(picture) for picture in pictures]))


def _caption(volume: Volume) -> str:
    shape = " x ".join(map(str, volume.hu.shape))
    spacing = " x ".join(f"{step:.3f}" for step in volume.spacing_mm)
    repaired = "" if volume.native else "   repaired"
    return f"{volume.series.series_description}   {shape} voxels, {spacing} mm{repaired}"
