"""Heat maps of radiographs: colour secondary captures for people, a parametric map for machines.

A capture is the film as it is displayed, 0.6 of it under 0.4 of the map in colours from blue (nothing) to red, and its
name; where the network did not look there is the film alone. A parametric map (PS3.3 A.75) holds one frame for each
finding, 0 to 1, Gradient-weighted class activation (130403, DCM). A radiograph has no frame of reference, so the map
has one of its own: its plane at z = 0, the centre of the film's first pixel its origin; without a spacing a pixel
counts as 1 mm.
"""

from __future__ import annotations

from collections.abc import Sequence

import highdicom as hd
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont
from pydicom.dataset import Dataset

from pulmo_models.types import ClassScore, Findings, HeatMap, Radiograph, RadiographSeries
from pulmo_node.encode import codes
from pulmo_node.encode.captures import CaptureSeries, capture
from pulmo_node.encode.film_records import FilmRecord, ScoreRecord, film_of, image_words
from pulmo_node.encode.finish import finish
from pulmo_node.encode.identity import EncodedObject, Equipment, ResultContext, ascii_text, library_errors
from pulmo_node.encode.report import percent
from pulmo_node.encode.source import bare_header, read_header

CAPTURES = CaptureSeries(
    identity="heat-map",
    offset=3,
    kind="heat maps",
    derivation="Radiograph under the Grad-CAM heat map of one finding",
)
MAPS_SERIES_OFFSET = 6
CAPTURE_PIXELS = 1024  # longer side of a capture, at most
MAP_PIXELS = 256  # longer side of a parametric map, at most; the map itself has 7 x 7 cells

_FILM_SHARE = 0.6


def encode_heat_maps(
    findings: Findings,
    records: Sequence[FilmRecord],
    series: RadiographSeries,
    equipment: Equipment,
    context: ResultContext,
) -> tuple[EncodedObject, ...]:
    """One secondary capture for each finding of each radiograph that has a heat map.

    Raises:
        Permanent: a source file cannot be read, or a picture cannot be encoded.
    """
    weights = findings.pipeline.weights_sha256
    encoded: list[EncodedObject] = []
    for number, (found, record) in enumerate(zip(findings.images, records, strict=True), start=1):
        film = film_of(found, series)
        header = read_header(film.source)
        for score, scored in zip(found.class_scores, record.class_scores, strict=True):
            if score.heat_map is None:
                continue
            picture = heat_map_picture(film, score.heat_map, title(scored))
            built = capture(picture, CAPTURES, len(encoded), weights, header, equipment, context)
            built.ImageComments = ascii_text(scored.comment(image_words(number, len(records))))
            reference = Dataset()
            reference.ReferencedSOPClassUID = film.source.sop_class_uid
            reference.ReferencedSOPInstanceUID = film.source.sop_instance_uid
            built.SourceImageSequence = [reference]
            built.PatientOrientation = header.get("PatientOrientation") or []
            encoded.append(finish(built, "heat-map", header, context))
    return tuple(encoded)


def title(score: ScoreRecord) -> str:
    """What a picture says of its finding."""
    side = "at or above" if score.positive else "below"
    return f"{score.label} {percent(score.probability):.0f} %, {side} {percent(score.threshold):.0f} %"


def heat_map_picture(film: Radiograph, heat_map: HeatMap, words: str) -> Image.Image:
    """The film under its heat map, RGB, with a line of text; pixels are made square."""
    rows, columns = film.pixels.shape
    grey = Image.fromarray(np.rint(film.display * 255).astype(np.uint8))
    height, width = rows * max(film.pixel_aspect, 1.0), columns * max(1 / film.pixel_aspect, 1.0)
    shrink = min(1.0, CAPTURE_PIXELS / max(height, width))
    size = max(1, round(width * shrink)), max(1, round(height * shrink))
    shown = np.asarray(grey.resize(size, Image.Resampling.BOX), dtype=np.float64)[..., None] / 255
    scaled = _scaled(heat_map, size[1] / rows, size[0] / columns)
    heat = scaled.on_image(size[1], size[0]).astype(np.float64)
    seen = HeatMap(values=np.ones_like(scaled.values), box=scaled.box).on_image(size[1], size[0])[..., None] > 0
    blended = np.where(seen, _FILM_SHARE * shown + (1 - _FILM_SHARE) * _jet(heat), shown)
    picture = Image.fromarray(np.rint(np.broadcast_to(blended, (*heat.shape, 3)) * 255).astype(np.uint8))
    font = ImageFont.load_default(size=max(12, size[0] // 40))
    place = size[0] / 2, size[1] - 8  # viewers write into the corners
    draw = ImageDraw.Draw(picture)
    draw.text(place, ascii_text(words), "white", font, anchor="ms", stroke_width=2, stroke_fill="black")
    return picture


def encode_parametric_maps(
    findings: Findings, series: RadiographSeries, equipment: Equipment, context: ResultContext
) -> tuple[EncodedObject, ...]:
    """One parametric map for each radiograph that has heat maps.

    Raises:
        Permanent: a source file cannot be read, or a map cannot be encoded.
    """
    weights = findings.pipeline.weights_sha256
    encoded: list[EncodedObject] = []
    for number, found in enumerate(findings.images, start=1):
        film = film_of(found, series)
        header = read_header(film.source)
        scores = [(score, score.heat_map) for score in found.class_scores if score.heat_map is not None]
        if scores:
            uid = f"parametric-map {film.source.sop_instance_uid}"
            with library_errors("parametric map", context.series_instance_uid):
                built = _parametric_map(scores, film, header, equipment, context, weights)
                built.InstanceNumber = number
            organization = context.uid(f"{uid} dimensions", weights)
            encoded.append(finish(built, "parametric-map", header, context, organization))
    return tuple(encoded)


def _parametric_map(
    scores: Sequence[tuple[ClassScore, HeatMap]],
    film: Radiograph,
    header: Dataset,
    equipment: Equipment,
    context: ResultContext,
    weights: str,
) -> hd.pm.ParametricMap:
    rows, columns = film.pixels.shape
    shrink = min(1.0, MAP_PIXELS / max(rows, columns))
    height, width = max(1, round(rows * shrink)), max(1, round(columns * shrink))
    down, along = rows / height, columns / width  # pixels of the film in one of the map
    spacing = film.spacing_mm or (film.pixel_aspect, 1.0)
    planes = [_scaled(heat, 1 / down, 1 / along).on_image(height, width) for _, heat in scores]
    source = bare_header(header)
    source.FrameOfReferenceUID = context.uid(f"parametric-map frame {film.source.sop_instance_uid}", weights)
    source.PositionReferenceIndicator = ""
    source.ImagePositionPatient, source.ImageOrientationPatient = [0, 0, 0], [1, 0, 0, 0, 1, 0]
    source.PixelSpacing, source.SliceThickness = list(spacing), 1
    built = hd.pm.ParametricMap(
        source_images=[source],
        pixel_array=np.stack(planes, axis=-1)[None].astype(np.float32),
        series_instance_uid=context.uid("parametric-map-series", weights),
        series_number=equipment.series_base + MAPS_SERIES_OFFSET,
        sop_instance_uid=context.uid(f"parametric-map {film.source.sop_instance_uid}", weights),
        instance_number=1,
        manufacturer=equipment.manufacturer,
        manufacturer_model_name=equipment.model_name,
        software_versions=equipment.software_version,
        device_serial_number=equipment.serial_number,
        contains_recognizable_visual_features=False,
        real_world_value_mappings=[[_mapping(score.label)] for score, _ in scores],
        voi_lut_transformations=[hd.VOILUTTransformation(window_center=0.5, window_width=1.0)],
        content_label="HEATMAP",
        content_description="Grad-CAM heat maps, one frame a finding",
        content_qualification=hd.ContentQualificationValues.RESEARCH,
        derived_pixel_contrast=hd.pm.DerivedPixelContrastValues.NONE,
        pixel_measures=hd.PixelMeasuresSequence(
            pixel_spacing=[_ds(spacing[0] * down), _ds(spacing[1] * along)], slice_thickness=1.0
        ),
        plane_positions=[
            hd.PlanePositionSequence(
                hd.CoordinateSystemNames.PATIENT,
                [_ds((along - 1) / 2 * spacing[1]), _ds((down - 1) / 2 * spacing[0]), 0.0],
            )
        ],
        contributing_equipment=equipment.contributing_items(context),
    )
    built.SeriesDescription = equipment.series_description("parametric map")
    built.BodyPartExamined = "CHEST"  # no paired part, so no laterality is asked for
    return built


def _mapping(label: str) -> hd.pm.RealWorldValueMapping:
    return hd.pm.RealWorldValueMapping(
        lut_label=ascii_text(label)[:16],
        lut_explanation=ascii_text(f"Grad-CAM of {label}"),
        unit=codes.NO_UNITS,
        value_range=(0.0, 1.0),
        slope=1.0,
        intercept=0.0,
        quantity_definition=codes.GRADIENT_WEIGHTED_CLASS_ACTIVATION,
    )


def _scaled(heat_map: HeatMap, down: float, along: float) -> HeatMap:
    """The map of an image that has so many times as many rows and columns."""
    first_row, first_column, end_row, end_column = heat_map.box
    box = (first_row * down, first_column * along, end_row * down, end_column * along)
    return HeatMap(values=heat_map.values, box=box)


def _jet(heat: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """0..1 to RGB 0..1 through blue, cyan, yellow and red, as the well-known colour map of that name."""
    colours: npt.NDArray[np.float64] = np.clip(1.5 - np.abs(4 * heat[..., None] - np.array([3.0, 2.0, 1.0])), 0, 1)
    return colours


def _ds(value: float) -> float:
    """Short enough for a decimal string (PS3.5 6.2, DS)."""
    return float(f"{value:.10g}")
