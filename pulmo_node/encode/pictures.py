"""Results as pictures, for systems that show neither SR nor SEG: one of each nodule, and a page with all of them.

Numbers are those of the report (`report.NoduleRecord`), with fewer digits. No picture names the patient: that is left
to the header of the object that carries it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from PIL import Image, ImageDraw, ImageFont

from pulmo_models.types import Axis, Findings, Nodule, Volume
from pulmo_node.encode import codes
from pulmo_node.encode.identity import RESEARCH_USE, ResultContext, ascii_text
from pulmo_node.encode.keyimage import TEXT_RGB, render_views
from pulmo_node.encode.planes import render_planes
from pulmo_node.encode.presentation import key_mask
from pulmo_node.encode.report import (
    NoduleRecord,
    acquisition_text,
    caution_text,
    malignancy_bias,
    nodule_records,
    percent,
)

VIEW_PIXELS = 480
WIDTH_PIXELS = 2 * VIEW_PIXELS
FOR_RGB = (255, 120, 90)  # speaks for malignancy
AGAINST_RGB = (90, 165, 255)
DIM_RGB = (165, 165, 165)
LINE_RGB = (80, 80, 80)

_MARGIN = 16
_LINE = 20  # pixels from one line of text to the next
_THUMBNAIL = 88
_LEAST_SCALE = 0.5  # of the logit: smaller contributions do not fill their bar
_NO_NODULES = "No lung nodules were found."
_NOT_TOLD = "-"
_COLUMNS = (  # heading and left edge of the columns of the page
    ("nodule", _THUMBNAIL + 2 * _MARGIN),
    ("place", 210),
    ("size", 390),
    ("attenuation", 540),
    ("malignancy", 690),
    ("strongest concepts", 780),
)


def render_nodules(findings: Findings, volume: Volume, context: ResultContext) -> tuple[Image.Image, ...]:
    """The pictures of all nodules, as the key images show them."""
    return nodule_pictures(findings, nodule_records(findings, context), volume)


def nodule_pictures(findings: Findings, records: Sequence[NoduleRecord], volume: Volume) -> tuple[Image.Image, ...]:
    """One RGB picture of each nodule: slice, enlarged nodule with outline and axes, numbers, bars of its concepts.

    The bars of all nodules have one scale.
    """
    scale = max(
        (abs(concept.contribution) for nodule in findings.nodules for concept in nodule.concepts), default=_LEAST_SCALE
    )
    return tuple(
        _nodule_picture(nodule, record, volume, max(scale, _LEAST_SCALE), findings)
        for nodule, record in zip(findings.nodules, records, strict=True)
    )


def summary_page(
    findings: Findings, records: Sequence[NoduleRecord], volume: Volume, context: ResultContext
) -> Image.Image:
    """One RGB page: the volume with the places of the nodules, a row for each of them, cautions, who made it."""
    planes = places_picture(records, volume)
    notes = [line for text in page_notes(findings, volume, context) for line in _wrapped(text)]
    top = _MARGIN + 2 * _LINE
    table = top + planes.height + _MARGIN
    foot = table + 2 * _LINE + len(records) * (_THUMBNAIL + 8)
    picture = Image.new("RGB", (WIDTH_PIXELS, foot + len(notes) * _LINE + 2 * _MARGIN))
    draw = ImageDraw.Draw(picture)
    draw.text((_MARGIN, _MARGIN), page_title(records), fill=TEXT_RGB, font=_font(24))
    if records:
        beside = "circles: places of the nodules, projected onto the middle planes"
        draw.text((WIDTH_PIXELS - _MARGIN, _MARGIN + 8), beside, fill=DIM_RGB, font=_font(14), anchor="ra")
    picture.paste(planes, (0, top))
    if records:
        for heading, left in _COLUMNS:
            draw.text((left, table), heading, fill=DIM_RGB, font=_font(14))
    for number, (nodule, record) in enumerate(zip(findings.nodules, records, strict=True)):
        _draw_row(picture, table + _LINE + 4 + number * (_THUMBNAIL + 8), nodule, record, volume)
    _draw_lines(draw, foot + _MARGIN, notes, DIM_RGB)
    return picture


def places_picture(records: Sequence[NoduleRecord], volume: Volume) -> Image.Image:
    """The middle planes of the volume with the places of the nodules, by their numbers."""
    places = {str(record.segment_number): record.centre_lps_mm for record in records}
    return render_planes(volume, "", WIDTH_PIXELS // 3, places)


def page_title(records: Sequence[NoduleRecord]) -> str:
    """What was found, in a line."""
    if not records:
        return _NO_NODULES
    return f"{len(records)} lung nodule{'s' if len(records) > 1 else ''} found"


def page_notes(findings: Findings, volume: Volume, context: ResultContext) -> list[str]:
    """What holds for the whole: cautions, also those on single nodules, acquisition, who made it when."""
    return [
        *(f"Caution: {ascii_text(caution_text(caution))}" for caution in findings.cautions),
        *(
            f"Caution on nodule {number}: {ascii_text(caution_text(caution))}"
            for number, nodule in enumerate(findings.nodules, start=1)
            for caution in nodule.cautions
        ),
        ascii_text(acquisition_text(volume)),
        f"{ascii_text(context.manufacturer)}, {_maker(findings)}, {context.content_datetime:%Y-%m-%d %H:%M %Z}.",
        RESEARCH_USE,
    ]


def numbers(nodule: Nodule, record: NoduleRecord, volume: Volume) -> dict[str, str]:
    """The numbers of a nodule as people read them, by the names of the columns of the page."""
    places = [_where(nodule, volume)]
    if record.laterality is not None:
        places.insert(0, f"{record.laterality} lung")
    if record.pleura_distance_mm is not None:
        places.append(
            f"{record.pleura_distance_mm:.1f} mm from the pleura" if record.pleura_distance_mm else "touches the pleura"
        )
    volume_mm3, malignancy = record.volume_mm3, record.malignancy_probability
    below = "sides of a box" if volume_mm3 is None else f"{volume_mm3:.0f} mm3"
    attenuation = _NOT_TOLD
    if record.mean_hu is not None:
        attenuation = f"mean {record.mean_hu:.0f} HU\n{record.min_hu:.0f} to {record.max_hu:.0f} HU"
    return {
        "place": "\n".join(places),
        "size": f"{record.long_axis_mm:.1f} x {record.short_axis_mm:.1f} mm\n{below}",
        "attenuation": attenuation,
        "malignancy": _NOT_TOLD if malignancy is None else f"{percent(malignancy):.0f} %",
        "detection": f"{percent(record.detection_probability):.0f} %",
    }


def _where(nodule: Nodule, volume: Volume) -> str:
    """The image that the report draws on, by the number that a viewer lists it under, where the files give numbers."""
    frame = key_mask(nodule, volume).frame
    number = volume.frames[frame].instance_number
    return f"slice {frame + 1} of {len(volume.frames)}" if number is None else f"image {number}"


def _nodule_picture(
    nodule: Nodule, record: NoduleRecord, volume: Volume, scale: float, findings: Findings
) -> Image.Image:
    said = numbers(nodule, record, volume)
    told = [said[name].replace("\n", ", ") for name in ("size", "attenuation", "place") if said[name] != _NOT_TOLD]
    lines = [
        ", ".join(told),
        f"detection {said['detection']}, candidate score {record.candidate_score:.2f}",
    ]
    notes = [f"Caution: {ascii_text(caution_text(caution))}" for caution in nodule.cautions]
    notes.append(f"{_maker(findings)}. {RESEARCH_USE}")
    notes = [line for note in notes for line in _wrapped(note)]
    top = VIEW_PIXELS + _MARGIN // 2
    bars = top + 4 * _LINE
    foot = bars + (len(nodule.concepts) + bool(nodule.concepts)) * _LINE + _MARGIN // 2
    picture = Image.new("RGB", (WIDTH_PIXELS, foot + len(notes) * _LINE + _MARGIN))
    for number, view in enumerate(_views(nodule, volume, VIEW_PIXELS, (nodule.long_axis, nodule.short_axis))):
        picture.paste(view, (number * VIEW_PIXELS, 0))
    draw = ImageDraw.Draw(picture)
    headline = "detection" if record.malignancy_probability is None else "malignancy"
    draw.text((_MARGIN, top), f"{record.label}: {headline} {said[headline]}", fill=TEXT_RGB, font=_font(22))
    _draw_lines(draw, top + 30, lines, TEXT_RGB)
    if nodule.concepts:
        _draw_bars(draw, bars, nodule, scale, malignancy_bias(findings) or 0.0)
    _draw_lines(draw, foot, notes, DIM_RGB)
    return picture


def _views(nodule: Nodule, volume: Volume, size: int, axes: Sequence[Axis] = ()) -> tuple[Image.Image, Image.Image]:
    """The slice on which the axes lie: all slices of a box have one area."""
    return render_views(volume, nodule.extent(volume.hu.shape), size, axes, wanted=round(nodule.long_axis.start[0]))


def _draw_bars(draw: ImageDraw.ImageDraw, top: int, nodule: Nodule, scale: float, bias: float) -> None:
    """A line for each concept: value, rating, and its contribution to the malignancy logit as a bar."""
    rating, zero, number = 190, 690, WIDTH_PIXELS - 80
    half = number - zero - _MARGIN  # the longest bar
    font = _font(14)
    draw.text((_MARGIN, top), "concept, value, rating", fill=DIM_RGB, font=font)
    draw.text((zero, top), f"against | for malignancy (logit; bias {bias:+.2f})", fill=DIM_RGB, font=font, anchor="ma")
    for row, concept in enumerate(nodule.concepts, start=1):
        y = top + row * _LINE
        draw.text((_MARGIN, y), codes.CONCEPTS[concept.name].meaning, fill=TEXT_RGB, font=font)
        meaning = codes.RATINGS[concept.name][concept.rating].meaning
        draw.text((rating - 40, y), f"{concept.value:.1f}", fill=TEXT_RGB, font=font)
        draw.text((rating, y), meaning, fill=DIM_RGB, font=font)
        length = round(half * concept.contribution / scale)
        colour = DIM_RGB
        if length:
            colour = FOR_RGB if length > 0 else AGAINST_RGB
            draw.rectangle([zero + min(length, 0), y + 3, zero + max(length, 0), y + _LINE - 5], fill=colour)
        draw.text((number, y), f"{concept.contribution:+.2f}", fill=colour, font=font)
    draw.line([zero, top + _LINE, zero, top + (len(nodule.concepts) + 1) * _LINE - 2], fill=DIM_RGB)


def _draw_row(picture: Image.Image, top: int, nodule: Nodule, record: NoduleRecord, volume: Volume) -> None:
    draw = ImageDraw.Draw(picture)
    draw.line([_MARGIN, top - 4, WIDTH_PIXELS - _MARGIN, top - 4], fill=LINE_RGB)
    _, detail = _views(nodule, volume, _THUMBNAIL)
    picture.paste(detail, (_MARGIN, top))
    said = numbers(nodule, record, volume)
    strongest = (
        f"{codes.CONCEPTS[concept.name].meaning} {concept.contribution:+.2f}" for concept in nodule.top_concepts()
    )
    said |= {"nodule": record.label, "strongest concepts": "\n".join(strongest)}
    for heading, left in _COLUMNS:
        large = heading in ("nodule", "malignancy")
        draw.multiline_text((left, top + 8), said[heading], fill=TEXT_RGB, font=_font(18 if large else 14), spacing=6)


def _draw_lines(draw: ImageDraw.ImageDraw, top: int, lines: Sequence[str], colour: tuple[int, int, int]) -> None:
    for number, line in enumerate(lines):
        draw.text((_MARGIN, top + number * _LINE), line, fill=colour, font=_font(14))


def _maker(findings: Findings) -> str:
    info = findings.pipeline
    return ascii_text(f"{info.name} {info.version}, weights {info.weights_name}") + f" ({info.weights_sha256[:12]})"


def _wrapped(text: str) -> Iterator[str]:
    """Lines of a text that fit into the page."""
    font, line = _font(14), ""
    for word in text.split():
        longer = f"{line} {word}".strip()
        if line and font.getlength(longer) > WIDTH_PIXELS - 2 * _MARGIN:
            yield line
            longer = word
        line = longer
    yield line


def _font(size: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    return ImageFont.load_default(size=size)
