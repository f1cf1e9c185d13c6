"""What is shown of a report, the same in the terminal and as HTML: blocks of facts, tables and lines."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydicom.uid import UID

from pulmo_node.encode import codes
from pulmo_node.reading.beside import Picture, ReadResult
from pulmo_node.reading.groups import Algorithm, Group, Number
from pulmo_node.reading.items import number_text, unit_text
from pulmo_node.reading.report import Report, Section

Facts = tuple[tuple[str, str], ...]

_CLASS_NAMES = {"1.2.840.10008.5.1.4.1.1.66.7": "Label Map Segmentation Storage"}  # younger than pydicom's dictionary


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of words under headings."""

    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    bars: int | None = None  # the column whose numbers are also worth a bar, negative ones to the left


@dataclass(frozen=True, kw_only=True)
class Block:
    """A part of the report as it is shown."""

    heading: str
    facts: Facts = ()
    tables: tuple[Table, ...] = ()
    lines: tuple[str, ...] = ()
    pictures: tuple[Path, ...] = ()  # secondary captures


def lay_out(result: ReadResult, *, patient: bool = False) -> tuple[Block, ...]:
    """The blocks of a report: head with overview, one for each group, what else it says, and where it all comes from.

    Name, identifier, birth date and sex of the patient are among them only where `patient` says so.
    """
    report = result.report
    algorithms = {group.algorithm for group in report.groups}
    (common,) = algorithms if len(algorithms) == 1 else (None,)  # said once, where it made all groups
    of_groups = [_group_block(group, number, result, common) for number, group in enumerate(report.groups, start=1)]
    shown = {path for block in of_groups for path in block.pictures}
    rest = tuple(picture.path for picture in result.pictures if picture.path not in shown)
    return (
        _head(report, rest, patient=patient),
        *of_groups,
        *(_section_block(section) for section in report.sections),
        Block(heading="Provenance", facts=tuple((name, value) for name, value in _provenance(report, common) if value)),
    )


def label_of(group: Group, number: int) -> str:
    """What to call a group: the words of its tracking identifier, without what viewers put before them."""
    identifier = group.tracking_identifier
    if identifier.lower().startswith("cornerstone"):  # tool and label, separated by colons; the label may be missing
        _, _, rest = identifier.partition(":")
        identifier = rest.partition(":")[2]
    return identifier or f"Group {number}"


def _head(report: Report, pictures: tuple[Path, ...], *, patient: bool) -> Block:
    """Title, when and by what it was made, whom it is on, an overview of the groups."""
    who = report.patient
    facts = [
        ("Made", report.made_at),
        ("By", ", ".join(part for part in (report.model, report.manufacturer) if part)),
        ("Status", ", ".join(report.flags)),
    ]
    if patient:
        facts += [
            ("Patient", who.name),
            ("Patient ID", who.identifier),
            ("Birth date", who.birth_date),
            ("Sex", who.sex),
        ]
    facts.append(("Study", report.study_instance_uid))
    return Block(
        heading="Structured report" if report.title is None else report.title.meaning,
        facts=tuple((name, value) for name, value in facts if value),
        tables=(_overview(report.groups),) if report.groups else (),
        pictures=pictures,
    )


def _provenance(report: Report, algorithm: Algorithm | None) -> Iterator[tuple[str, str]]:
    """What made the report, of what; which other reports it replaces."""
    yield "Report", report.sop_instance_uid
    yield from (("Replaces", uid) for uid in report.predecessors)
    yield from report.context
    yield from _algorithm_facts(algorithm)
    for one in report.equipment:
        made = " ".join(part for part in (one.manufacturer, one.model, one.version) if part)
        yield one.purpose or "Equipment", made
    counted = Counter((one.series_instance_uid, one.sop_class_uid) for one in report.evidence)
    for (series, sop_class), count in counted.items():
        yield "Rests on", f"{count} x {_CLASS_NAMES.get(sop_class) or UID(sop_class).name}, series {series}"
    if report.library_images:
        yield "Image library", f"{report.library_images} images"


def _overview(groups: Sequence[Group]) -> Table:
    rows = []
    for number, group in enumerate(groups, start=1):
        finding = "" if group.finding is None else group.finding.meaning
        sites = "; ".join(map(str, group.sites))
        rows.append((label_of(group, number), finding, sites, ". ".join(group.comments)))
    return _without_empty_columns(Table(headings=("group", "finding", "site", "comment"), rows=tuple(rows)))


def _without_empty_columns(table: Table) -> Table:
    kept = [column for column in range(len(table.headings)) if any(row[column] for row in table.rows)]
    return Table(
        headings=tuple(table.headings[column] for column in kept),
        rows=tuple(tuple(row[column] for column in kept) for row in table.rows),
    )


def _group_block(group: Group, number: int, result: ReadResult, common: Algorithm | None) -> Block:
    tables = (_measurements(group), _concepts(group), _evaluations(group))
    return Block(
        heading=label_of(group, number),
        facts=tuple((name, value) for name, value in _group_facts(group, result, common) if value),
        tables=tuple(table for table in tables if table.rows),
        lines=tuple(line for line in (*group.comments, _malignancy(group)) if line),
        pictures=tuple(picture.path for picture in result.pictures if _shows(picture, group)),
    )


def _shows(picture: Picture, group: Group) -> bool:
    return bool(picture.caption) and picture.caption in group.comments


def _group_facts(group: Group, result: ReadResult, common: Algorithm | None) -> Iterator[tuple[str, str]]:
    if group.finding is not None:
        category = "" if group.category is None else f" ({group.category.meaning})"
        yield "Finding", f"{group.finding.meaning}{category}"
    yield from (("Site", str(site)) for site in group.sites)
    if group.segment is not None:
        yield "Segment", _segment_text(group, result)
    regions = [*group.regions, *(region for number in group.numbers for region in number.regions)]
    for uid, frame in dict.fromkeys((region.sop_instance_uid, region.frame_number) for region in regions):
        yield "Drawn on", uid if frame is None or not uid else f"{uid}, frame {frame}"
    yield from group.others
    yield from _algorithm_facts(None if group.algorithm == common else group.algorithm)
    yield "Tracking UID", group.tracking_uid


def _algorithm_facts(algorithm: Algorithm | None) -> Iterator[tuple[str, str]]:
    if algorithm is not None:
        yield (
            "Algorithm",
            ", ".join(part for part in (str(algorithm), algorithm.family, algorithm.manufacturer) if part),
        )
        yield "Parameters", "\n".join(algorithm.parameters)


def _segment_text(group: Group, result: ReadResult) -> str:
    reference = group.segment
    if reference is None:
        return ""
    number = "" if reference.number is None else f"{reference.number} "
    segmentation = result.segmentations.get(reference.sop_instance_uid)
    if segmentation is None:
        return f"{number}of {reference.sop_instance_uid}, which is not beside the report"
    segment = segmentation.segment(reference.number)
    if segment is None:
        return f"{number}is not in {segmentation.kind} segmentation {reference.sop_instance_uid}"
    size = "" if segment.volume_mm3 is None else f", {segment.volume_mm3:.1f} mm3"
    odd = "" if segment.tracking_uid in ("", group.tracking_uid) else "; its tracking UID is ANOTHER one"
    on_images = f"{segment.voxels} voxels on {segment.images} image{'' if segment.images == 1 else 's'}"
    return f"{segment.number}, {segment.label!r} ({segmentation.kind}): {on_images}{size}{odd}"


def _measurements(group: Group) -> Table:
    """The numbers, less those that stand with the concepts."""
    apart = {id(number) for row in _concept_numbers(group) for number in row[1:] if number is not None}
    rows = [
        (_name(number), number_text(number.value), unit_text(number.unit), _by(number))
        for number in group.numbers
        if id(number) not in apart
    ]
    return _without_empty_columns(Table(headings=("measurement", "value", "unit", "by"), rows=tuple(rows)))


def _name(number: Number) -> str:
    return number.name.meaning if number.derivation is None else f"{number.name.meaning}, {number.derivation.meaning}"


def _by(number: Number) -> str:
    return "" if number.algorithm is None else str(number.algorithm)


def _concept_numbers(group: Group) -> list[tuple[str, Number | None, Number]]:
    """Name of a concept, its value, and its contribution to the malignancy, where the report has that."""
    found = []
    for name, code in codes.CONTRIBUTIONS.items():
        contribution = group.number(code)
        if contribution is not None:
            found.append((name, group.number(codes.CONCEPTS[name]), contribution))
    return found


def _concepts(group: Group) -> Table:
    rated = {evaluation.name.value: evaluation.value.meaning for evaluation in group.evaluations}
    rows = [
        (
            codes.CONCEPTS[name].meaning,
            "" if value is None else number_text(value.value),
            rated.get(codes.CONCEPTS[name].value, ""),
            number_text(contribution.value),
        )
        for name, value, contribution in _concept_numbers(group)
    ]
    return Table(headings=("concept", "value", "rating", "contribution"), rows=tuple(rows), bars=3)


def _evaluations(group: Group) -> Table:
    """The coded evaluations, less those that stand with the concepts."""
    apart = {codes.CONCEPTS[name].value for name, *_ in _concept_numbers(group)}
    rows = [(one.name.meaning, one.value.meaning) for one in group.evaluations if one.name.value not in apart]
    return Table(headings=("evaluation", "value"), rows=tuple(rows))


def _malignancy(group: Group) -> str:
    """How the probability of cancer follows from the concepts, "" where the report does not tell."""
    bias = group.number(codes.MALIGNANCY_BIAS)
    values = [contribution.value for *_, contribution in _concept_numbers(group)]
    if bias is None or bias.value is None or not values or any(value is None for value in values):
        return ""
    concepts = sum(value for value in values if value is not None)
    logit = bias.value + concepts
    percent = 100 / (1 + math.exp(-logit))
    return (
        f"Malignancy: bias {bias.value:+.4f}, concepts {concepts:+.4f}, together {logit:+.4f}: sigmoid {percent:.1f} %."
    )


def _section_block(section: Section) -> Block:
    """A section whose items have names worth a column, or all the same one, which then says nothing."""
    names = {name for name, _ in section.lines}
    if len(names) == 1 and section.lines:
        return Block(heading=section.heading, lines=tuple(value for _, value in section.lines))
    return Block(heading=section.heading, facts=section.lines)
