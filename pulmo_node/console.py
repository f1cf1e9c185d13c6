"""Tables for people, by rich. Takes values, prints; decides nothing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from pulmo_node.ports import StudyDetail, StudySummary

if TYPE_CHECKING:
    from pulmo_models.types import Caution
    from pulmo_node.inspection import InspectedSeries, InspectedVolume

_STATE_STYLES = {
    "DONE": "green",
    "SENT": "green",
    "COMMITTED": "green",
    "FAILED": "bold red",
    "QUARANTINED": "bold red",
    "REJECTED": "yellow",
    "CANCELLED": "dim",
    "SUPERSEDED": "dim",
}


def styled(state: str) -> str:
    """A state with the colour that it has everywhere."""
    style = _STATE_STYLES.get(state)
    return f"[{style}]{state}[/]" if style else state


def local(at: datetime) -> str:
    """A time for people: local, to the second."""
    return at.astimezone().strftime("%Y-%m-%d %H:%M:%S")


def print_nodules(console: Console, findings: Mapping[str, Any]) -> None:
    """The nodules of a findings.json, or what was found in its radiographs."""
    if findings.get("images"):
        print_films(console, findings)
        return
    table = Table(title="Nodules", caption="Research use only. Positions are LPS mm.")
    table.add_column("#", justify="right")
    table.add_column("position x, y, z (mm)")
    table.add_column("lung")
    for heading in ("long axis (mm)", "volume (mm3)", "detection", "malignancy"):
        table.add_column(heading, justify="right")
    table.add_column("driven by (concept value: contribution)")
    for nodule in findings["nodules"]:
        drivers = sorted(nodule["concepts"].items(), key=lambda item: -abs(item[1]["contribution"]))[:3]
        table.add_row(
            str(nodule["segment_number"]),
            ", ".join(f"{value:.1f}" for value in nodule["centre_lps_mm"]),
            nodule.get("laterality") or "",
            f"{nodule['long_axis_mm']:.1f}",
            _number(nodule["volume_mm3"], 0),
            f"{nodule['detection_probability']:.2f}",
            _number(nodule["malignancy_probability"], 2),
            ", ".join(f"{name} {c['value']:.1f}: {c['contribution']:+.2f}" for name, c in drivers),
        )
    conclusion = " ".join(findings.get("conclusions") or ("No nodules were found.",))
    console.print(table if findings["nodules"] else f"{conclusion} Research use only.", highlight=False)
    for caution in findings["cautions"]:
        console.print(f"[yellow]caution:[/] {_caution_text(caution)}")
    for nodule in findings["nodules"]:
        for caution in nodule.get("cautions", ()):
            console.print(f"[yellow]caution on nodule {nodule['segment_number']}:[/] {_caution_text(caution)}")


def print_films(console: Console, findings: Mapping[str, Any]) -> None:
    """The radiographs of a findings.json."""
    for number, film in enumerate(findings["images"], start=1):
        title = f"Radiograph {number}: {film['view_position'] or 'view not told'}"
        table = Table(title=title, caption="Research use only.")
        for heading in ("finding", "probability", "threshold", "present"):
            table.add_column(heading)
        for score in film["class_scores"]:
            present = "[bold]yes[/]" if score["positive"] else "no"
            table.add_row(score["label"], f"{score['probability']:.2f}", f"{score['threshold']:.2f}", present)
        if film["class_scores"]:
            console.print(table)
        for estimate in film["estimates"]:
            group = f", group {estimate['group']}" if estimate["group"] else ""
            console.print(f"{title}: {estimate['label']} {estimate['value']:.1f}{group}. Research use only.")
        for caution in film["cautions"]:
            console.print(f"[yellow]caution on radiograph {number}:[/] {_caution_text(caution)}")
    for caution in findings["cautions"]:
        console.print(f"[yellow]caution:[/] {_caution_text(caution)}")


def _number(value: float | None, digits: int) -> str:
    """A number that not every pipeline tells."""
    return "" if value is None else f"{value:.{digits}f}"


def _caution_text(caution: Mapping[str, str] | str) -> str:
    """Code and sentence; results that were stored with schema version 1 have the sentence alone."""
    return escape(caution if isinstance(caution, str) else f"{caution['code']}: {caution['sentence']}")


def print_inspection(console: Console, series: InspectedSeries) -> None:
    """What would become of a series: a table for each volume, what was set aside, and the refusal if there is one."""
    name = f" ({escape(series.description)})" if series.description else ""
    console.print(
        f"[bold]series {series.series_instance_uid}[/]{name}: {series.modality or 'no modality'}, {series.files} files",
        highlight=False,
    )
    for number, volume in enumerate(series.volumes, start=1):
        verdict = _verdict(volume, series)
        table = Table(show_header=False, title=f"volume {number}: {verdict}", title_justify="left")
        for key, value in _volume_facts(volume):
            table.add_row(key, escape(value))
        console.print(table, highlight=False)
        for caution in volume.cautions:
            _print_caution(console, caution)
    for caution in series.cautions:
        _print_caution(console, caution)
    for item in series.set_aside:
        console.print(f"[dim]set aside:[/] {escape(f'{item.file}: {item.reason}')}", highlight=False)
    if series.rejection is not None:
        console.print(f"[yellow]refused:[/] {escape('{code}: {reason}'.format_map(series.rejection))}", highlight=False)
    elif not series.volumes:
        console.print("radiographs", highlight=False)


def _verdict(volume: InspectedVolume, series: InspectedSeries) -> str:
    if not volume.chosen:
        return "[yellow]not analysed[/]"
    return "[green]analysed[/]" if series.rejection is None else "[yellow]chosen, then refused[/]"


def _print_caution(console: Console, caution: Caution) -> None:
    console.print(f"[yellow]caution:[/] {escape(f'{caution.code}: {caution.sentence}')}", highlight=False)


def _volume_facts(volume: InspectedVolume) -> Iterator[tuple[str, str]]:
    """Names and values; what the images do not tell is left out."""
    yield "why", volume.reason
    yield "images", f"{volume.images}, from {volume.first_image}"
    yield "extent", f"{volume.extent_mm:.2f} mm from the first image to the last"
    if volume.gaps_mm:
        smallest, median, largest = volume.gaps_mm
        yield "gaps", f"{smallest:.3f} to {largest:.3f} mm between images, median {median:.3f} mm"
    yield "image", f"{volume.rows} x {volume.columns} pixels of {{:.4f}} x {{:.4f}} mm".format(*volume.pixel_spacing_mm)
    yield "normal", "{:.4f}, {:.4f}, {:.4f} (LPS)".format(*volume.normal_lps)
    if volume.shape and volume.spacing_mm and volume.origin_lps_mm and volume.directions:
        yield "grid", " x ".join(map(str, volume.shape)) + " (slices, rows, columns)"
        yield "spacing", " x ".join(f"{step:.4f}" for step in volume.spacing_mm) + " mm"
        yield "origin", ", ".join(f"{value:.2f}" for value in volume.origin_lps_mm) + " mm (LPS)"
        yield "directions", "slices to {}, rows to {}, columns to {}".format(*volume.directions)
        yield "voxels", "as acquired" if volume.native else "interpolated, see the cautions"
    if volume.interpolated_slices:
        yield "interpolated", "slice " + ", ".join(map(str, volume.interpolated_slices))
    yield from ((name, value) for name, value in _acquisition_facts(volume) if value)


def _acquisition_facts(volume: InspectedVolume) -> Iterator[tuple[str, str]]:
    """What the headers record of the acquisition; "" where they do not."""
    thickness_mm, diameter_mm = volume.slice_thickness_mm, volume.reconstruction_diameter_mm
    yield "kernel", f"{volume.kernel} ({volume.kernel_use})" if volume.kernel else ""
    yield "acquisition", volume.acquisition_number
    yield "image type", "\\".join(volume.image_type)
    yield "contrast agent", volume.contrast_agent
    yield "slice thickness", "" if thickness_mm is None else f"{thickness_mm:g} mm (header; not used)"
    yield "field of view", "" if diameter_mm is None else f"{diameter_mm:g} mm"
    yield "patient position", volume.patient_position


def print_studies(console: Console, studies: Sequence[StudySummary]) -> None:
    """The list of studies."""
    table = _unabridged("study", "state", "running", "series", "instances", "jobs", "last change")
    for study in studies:
        counts = (str(study.series), str(study.instances), str(study.jobs))
        table.add_row(study.study_instance_uid, styled(study.state), study.progress, *counts, local(study.updated_at))
    console.print(table)


def print_study(console: Console, study: StudyDetail) -> None:
    """Everything about one study."""
    console.print(f"study {study.summary.study_instance_uid}: {styled(study.summary.state)}")
    table = _unabridged("series", "modality", "state", "revision", "instances", "note", title="Series")
    for series in study.series:
        counts = (str(series.revision), str(series.number_of_instances))
        names = (escape(series.series_instance_uid), escape(series.modality))
        table.add_row(*names, styled(series.state), *counts, escape(series.note or ""))
    console.print(table)
    table = _unabridged("job", "pipeline", "revision", "state", "running", "attempts", "reason", title="Jobs")
    for job in study.jobs:
        reason = f"{job.reason_code}: {job.reason}" if job.reason_code else job.reason or ""
        state = (styled(job.state), job.progress, str(job.attempts))
        table.add_row(str(job.id), job.pipeline, str(job.revision), *state, escape(reason))
    console.print(table)
    headings = ("delivery", "job", "object", "SOP Instance UID", "to", "state", "attempts", "reason")
    table = _unabridged(*headings, title="Deliveries")
    for delivery in study.deliveries:
        result = delivery.result
        table.add_row(
            *(str(delivery.id), str(delivery.job_id), result.kind, result.sop_instance_uid, delivery.destination),
            *(styled(delivery.state), str(delivery.attempts), escape(delivery.reason or "")),
        )
    console.print(table)
    print_events(console, study)


def print_events(console: Console, study: StudyDetail) -> None:
    """The history of a study; equal consecutive events (a hundred instances) as one line."""
    table = _unabridged("time", "subject", "event", "state", "detail", title="Events")
    rows: list[tuple[tuple[str, str, str, str], datetime, int]] = []
    for event in study.events:
        key = (event.subject, event.event, event.state or "", event.detail or "")
        if rows and rows[-1][0] == key:
            rows[-1] = (key, event.at, rows[-1][2] + 1)
        else:
            rows.append((key, event.at, 1))
    for (subject, name, state, detail), at, count in rows:
        table.add_row(local(at), subject, f"{name} x {count}" if count > 1 else name, styled(state), escape(detail))
    console.print(table)


def print_rows(console: Console, headings: Sequence[str], rows: Iterable[Sequence[str]], title: str = "") -> None:
    """Any table of words."""
    table = _unabridged(*headings, title=title or None)
    for row in rows:
        table.add_row(*row)
    console.print(table)


def _unabridged(*headings: str, title: str | None = None) -> Table:
    """A table whose words, UIDs above all, are broken over lines where there is too little room, never cut short."""
    return Table(*(Column(heading, overflow="fold") for heading in headings), title=title)
