"""`pulmo-node analyze`: the stages from assembly to encoding on a folder, without PACS and without database."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from pulmo_models import registry
from pulmo_models.types import Volume
from pulmo_node import assemble, encode
from pulmo_node.analyse import Analyser
from pulmo_node.errors import Permanent, PulmoError, Rejected

Progress = Callable[[str, float], None]
"""Called with what is being done, and the share of it that is done, 0..1."""

_KINDS = ("sr", "seg", "key-image", "gsps", "pdf", "heat-map", "parametric-map")  # of the objects that `encode` makes


@dataclass(frozen=True, kw_only=True)
class OfflineResult:
    """What became of one series under one pipeline."""

    series_instance_uid: str
    pipeline: str
    folder: Path | None  # where the files lie, None where there are none
    findings: dict[str, Any] | None  # findings.json
    problem: str | None  # why there are none
    rejected: bool = False  # declined for a stated reason, which is no failure


@dataclass(frozen=True, kw_only=True)
class OfflineRun:
    """What became of a folder."""

    results: tuple[OfflineResult, ...]
    set_aside: tuple[assemble.SetAside, ...]  # files that are no DICOM images of any series


def analyse_folder(
    folder: Path,
    out: Path,
    analyser: Analyser,
    pipelines: Sequence[str],
    progress: Progress,
    *,
    options: encode.ResultOptions,
) -> OfflineRun:
    """Analyse every series of a folder with every pipeline that takes it.

    Writes the result objects (``sr.dcm``, ``seg.dcm`` and what `options` ask for; of several of a kind
    ``key-image-1.dcm`` and so on), ``findings.json`` and ``nodule-N.png`` into
    ``OUT/<series_instance_uid>/<pipeline>/``, and into OUT itself as well when there is exactly one result; what an
    earlier run wrote into OUT itself is removed in any case.

    Raises:
        Rejected: the folder cannot be read.
        Permanent: OUT cannot be written.
    """
    found = assemble.find_series(folder)
    results: list[OfflineResult] = []
    for series in found.series:
        for label in pipelines:
            reason = registry.entry(label).accepts(series.description)
            if reason is not None:
                results.append(_problem(series, label, reason, rejected=True))
                continue
            try:
                assemble.check_one_patient(found.of_study(series.description.study_instance_uid))
                results.append(_analyse(series, label, out, analyser, progress, options))
            except Rejected as exc:
                results.append(_problem(series, label, str(exc), rejected=True))
            except PulmoError as exc:
                results.append(_problem(series, label, str(exc), rejected=False))
    written = [result.folder for result in results if result.folder is not None]
    try:
        _clear(out)
        if len(written) == 1:
            for path in written[0].iterdir():
                (out / path.name).write_bytes(path.read_bytes())
    except OSError as exc:
        raise Permanent(f"{exc.filename or out}: {exc.strerror}") from exc
    return OfflineRun(results=tuple(results), set_aside=found.set_aside)


def _problem(series: assemble.FoundSeries, label: str, reason: str, *, rejected: bool) -> OfflineResult:
    return OfflineResult(
        series_instance_uid=series.description.series_instance_uid,
        pipeline=label,
        folder=None,
        findings=None,
        problem=reason,
        rejected=rejected,
    )


def _analyse(
    series: assemble.FoundSeries,
    label: str,
    out: Path,
    analyser: Analyser,
    progress: Progress,
    options: encode.ResultOptions,
) -> OfflineResult:
    progress("assemble", 0.0)
    image = assemble.assemble(series.paths, series.description, progress=partial(progress, "assemble"))
    findings = analyser.analyse(label, image, progress)
    progress("encode", 0.0)
    uid = series.description.series_instance_uid
    context = encode.ResultContext(
        series_instance_uid=uid,
        revision=1,
        pipeline=label,
        settings_sha256=analyser.settings_sha256(label),
        content_datetime=datetime.now(UTC),
        options=options,
    )
    objects = encode.encode_findings(findings, image, context)
    plain = encode.findings_to_json(findings, image, context)
    target = out / uid / label
    pictures = encode.render_nodules(findings, image, context) if isinstance(image, Volume) else ()
    write_results(target, objects, plain, pictures)
    progress("encode", 1.0)
    return OfflineResult(series_instance_uid=uid, pipeline=label, folder=target, findings=plain, problem=None)


def write_results(
    target: Path,
    objects: Sequence[encode.EncodedObject],
    plain: dict[str, Any],
    pictures: Sequence[Image.Image],
) -> None:
    """Write the objects, findings.json and one picture per nodule. Raises `Permanent` where the disk refuses."""
    try:
        target.mkdir(parents=True, exist_ok=True)
        for stale in (*target.glob("nodule-*.png"), *target.glob("*.dcm")):
            stale.unlink()  # of an earlier run, which may have found more
        for name, item in zip(file_names([item.kind for item in objects]), objects, strict=True):
            (target / name).write_bytes(item.content)
        (target / "findings.json").write_text(json.dumps(plain, indent=1) + "\n", encoding="utf-8")
        for number, picture in enumerate(pictures, start=1):
            picture.save(target / f"nodule-{number}.png")
    except OSError as exc:
        raise Permanent(f"{target}: {exc.strerror}") from exc


def file_names(kinds: Sequence[str]) -> list[str]:
    """A file name for each object by its kind: the only one of its kind bears it alone, others a number from 1."""
    counts = Counter(kinds)
    seen: Counter[str] = Counter()
    names = []
    for kind in kinds:
        seen[kind] += 1
        names.append(f"{kind}-{seen[kind]}.dcm" if counts[kind] > 1 else f"{kind}.dcm")
    return names


def _clear(out: Path) -> None:
    """Remove from OUT itself what an earlier run, perhaps of another patient, copied there."""
    if not (out / "findings.json").is_file():
        return  # nothing was: other files of such names are not the node's
    patterns = ("findings.json", "nodule-*.png", *(f"{kind}{number}.dcm" for kind in _KINDS for number in ("", "-*")))
    for stale in (path for pattern in patterns for path in out.glob(pattern)):
        stale.unlink()
