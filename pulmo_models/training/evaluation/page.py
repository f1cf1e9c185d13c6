"""The report as one HTML page that needs nothing else: tables, and plots embedded as PNG."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from html import escape
from typing import Any

from pulmo_models.training.evaluation.tables import between, number, table, with_interval

STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, -apple-system, "Segoe UI", "Noto Sans", sans-serif; color: #1f2933; background: #fff;
  max-width: 62rem; margin: 2rem auto 4rem; padding: 0 1.25rem; }
h1 { font-size: 1.6rem; margin: 0 0 .25rem; } h2 { font-size: 1.2rem; margin: 2.4rem 0 .5rem; padding-top: .8rem;
  border-top: 2px solid #1f5f8b; } h3 { font-size: 1rem; margin: 1.4rem 0 .3rem; }
p { margin: .4rem 0; } .muted { color: #5b6670; font-size: .88rem; }
.notice { border-left: 4px solid #b5562b; background: #fbf3ee; padding: .5rem .9rem; margin: 1rem 0; }
table { border-collapse: collapse; margin: .5rem 0 .8rem; font-size: .88rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .22rem .8rem .22rem 0; border-bottom: 1px solid #dfe4e8; vertical-align: top; }
th { font-weight: 600; color: #3c4852; border-bottom-color: #8a949e; } td.n, th.n { text-align: right; }
figure { margin: .6rem 0 1rem; break-inside: avoid; } img { max-width: 100%; height: auto; }
figcaption { color: #5b6670; font-size: .84rem; } .bad { color: #a23b12; font-weight: 600; }
code { font-size: .84rem; overflow-wrap: anywhere; } details { margin: .4rem 0; } summary { cursor: pointer; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; font-size: .78rem; background: #f5f7f8; padding: .6rem; }
@media print { body { max-width: none; margin: 0; font-size: 10.5pt; } h2 { break-after: avoid; }
  table, figure { break-inside: avoid; } .notice { background: none; } @page { margin: 16mm; } }
"""

MANY = 10  # series; more are left to report.json

CAPTIONS = {
    "inserted-froc": "FROC on inserted nodules (synthetic); bands are 95 % intervals by bootstrap of the scans.",
    "inserted-sizes": "Sensitivity by size on inserted nodules (synthetic); lines are 95 % intervals.",
    "inserted-missed": "Inserted nodules without a candidate at the default threshold (synthetic).",
    "inserted-false": "The hottest candidates on nothing known; where a series was not read, some may be nodules.",
    "luna16-froc": "FROC on the LUNA16 folder; bands are 95 % intervals by bootstrap of the scans.",
    "luna16-sizes": "Sensitivity by size on the LUNA16 folder; lines are 95 % intervals.",
    "luna16-missed": "Nodules without a candidate at the default threshold.",
    "luna16-false": "The hottest false candidates.",
    "stage2-roc": "ROC curves.",
    "stage2-reliability": "Reliability: share of positives over mean probability, by bin; larger points hold more.",
    "stage2-concepts": "Concepts: predicted over the mean rating of the readers.",
    "stage2-signs": "Weight in the malignancy logit; correlation of the rating with malignancy; orange: they differ.",
    "stage2-nodules-missed": "Nodules with a probability below 0.5, lowest first (blue: readers, orange: network).",
    "stage2-no-nodules-called": "Patches of no nodule with a probability of 0.5 or more, highest first.",
    "stage2-benign-called": "Rated benign, malignancy probability 0.5 or more, highest first.",
    "stage2-malignant-missed": "Rated malignant, malignancy probability below 0.5, lowest first.",
    "stage2-masks": "The worst masks on the central slice (blue readers, orange network).",
}


def page(report: Mapping[str, Any], images: Mapping[str, bytes]) -> str:
    """The whole page. `images` are PNG by the names of `CAPTIONS`, or ``series-NAME-KIND``."""
    weights = report["weights"]
    parts = [
        f"<h1>Evaluation of {escape(weights['name'])}</h1>",
        f'<p class="muted">version {escape(weights["version"])}, made {escape(report["created"])}, split '
        f"{escape(report['how']['split'])}</p>",
        f'<p class="notice"><b>{escape(report["notice"])}</b> {escape(_on_synthetic_data(report))}</p>',
        _summary(report),
        _section(report, "stage2", "Characterisation (stage 2)", _stage2, images),
        _section(report, "stage1", "Detection (stage 1)", _stage1, images),
        _section(report, "series", "Real series at the default operating point", _series, images),
        _section(report, "phantoms", "Phantoms (synthetic)", _phantoms, images),
        _how(report),
    ]
    body = "\n".join(part for part in parts if part)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Evaluation of {escape(weights['name'])}</title><style>{STYLE}</style></head>\n"
        f"<body>{body}</body></html>\n"
    )


def _on_synthetic_data(report: Mapping[str, Any]) -> str:
    said = []
    if "inserted" in report.get("stage1", {}):
        said.append("the FROC on inserted nodules")
    if report.get("stage2", {}).get("nodules_inserted"):
        said.append(
            f"{report['stage2']['nodules_inserted']} of the {report['stage2']['nodules']} nodule patches of stage 2 "
            "(real nodules, placed into other patients' lungs)"
        )
    if "phantoms" in report:
        said.append("the phantoms")
    return f"On synthetic data: {'; '.join(said)}." if said else "No figure here is on synthetic data."


def _summary(report: Mapping[str, Any]) -> str:
    rows = []
    if "stage2" in report:
        figures = report["stage2"]
        malignancy = figures["malignancy"]
        middle = malignancy["from_8_to_15_mm"]
        rows += [
            ("Detection AUC (stage 2)", with_interval(figures["detection"]["auc"]), ""),
            (
                "Malignancy AUC",
                with_interval(malignancy["auc"]),
                f"diameter alone {with_interval(malignancy['auc_of_the_diameter_alone'])}",
            ),
            (
                "Malignancy AUC, 8-15 mm",
                with_interval(middle["auc"]),
                f"diameter alone {with_interval(middle['auc_of_the_diameter_alone'])}",
            ),
            ("Dice, central slice", with_interval(figures["dice"]["central_slice"]), ""),
            ("Signs that agree", f"{figures['signs']['agreeing']} of {figures['signs']['judged']}", ""),
        ]
    for name, label in (("inserted", "inserted nodules, synthetic"), ("luna16", "LUNA16 folder")):
        if name in report.get("stage1", {}):
            figures = report["stage1"][name]["stage1"]
            rows.append((f"CPM ({label})", with_interval(figures, "cpm", "cpm_ci95"), f"{figures['scans']} scans"))
            rows.append(
                (
                    "Sensitivity at 8 false positives per scan, 6 mm and more",
                    with_interval(figures["from_6_mm"], "at_8_false_per_scan", "at_8_false_per_scan_ci95"),
                    f"{figures['from_6_mm']['nodules']} nodules",
                )
            )
    return table(("", "value [95 % interval]", ""), rows) if rows else ""


def _section(report: Mapping[str, Any], name: str, title: str, make: Any, images: Mapping[str, bytes]) -> str:
    return f"<h2>{escape(title)}</h2>\n{make(report[name], images)}" if name in report else ""


def _stage1(figures: Mapping[str, Any], images: Mapping[str, bytes]) -> str:
    parts = []
    for name, title in (("inserted", "Whole series with inserted nodules (synthetic)"), ("luna16", "LUNA16 folder")):
        if name in figures:
            parts.append(f"<h3>{escape(title)}</h3>{_scans(figures[name])}{_pictures(images, f'{name}-')}")
    if "windows" in figures:
        windows = figures["windows"]
        rows = [(f"{row['false_per_window']:g}", with_interval(row)) for row in windows["sensitivity"]]
        sizes = [
            (r["size"], r["nodules"], number(r["at_1_false_per_window"]), number(r["at_8_false_per_window"]))
            for r in windows["by_size"]
        ]
        parts.append(
            f"<h3>Windows of the patch store</h3>{_muted(windows['protocol'])}"
            f"<p>{windows['windows']} windows, {windows['nodules']} nodules.</p>"
            f"{table(('false positives per window', 'sensitivity'), rows)}"
            f"{table(('size', 'nodules', 'at 1 per window', 'at 8 per window'), sizes)}"
        )
    return "\n".join(parts)


def _scans(figures: Mapping[str, Any]) -> str:
    named = [("stage 1", figures["stage1"])]
    if "undoubted" in figures:
        named.append(("stage 1, doubtful left out", figures["undoubted"]))
    if "both_stages" in figures:
        named.append(("both stages", figures["both_stages"]))
    first = figures["stage1"]
    rows = [
        (f"{row['false_per_scan']:g}", *(with_interval(each["sensitivity"][at]) for _, each in named))
        for at, row in enumerate(first["sensitivity"])
    ]
    rows.append(("CPM", *(with_interval(each, "cpm", "cpm_ci95") for _, each in named)))
    rows.append(("the curve ends at", *(number(each["curve_ends_at_false_per_scan"], 2) for _, each in named)))
    sizes = [
        (
            row["size"],
            row["nodules"],
            number(row["at_1_false_per_scan"]),
            with_interval(row, "at_8_false_per_scan", "at_8_false_per_scan_ci95"),
        )
        for row in [*first["by_size"], {"size": "6 mm and more", **first["from_6_mm"]}]
    ]
    thresholds = [
        (name, number(at["threshold"], 2), f"{at['found']} of {at['nodules']}", number(at["false_per_scan"], 2))
        for name, at in ((name, each["at_the_default_threshold"]) for name, each in named)
    ]
    point = figures["operating_point"]
    rule = (
        f"peak threshold {number(point['peak_threshold'], 4)} at {point['false_per_scan']:g} candidates on nothing per "
        "scan"
    )
    if "detection_threshold" in point:
        rule += (
            f"; detection threshold {number(point['detection_threshold'], 4)} at {point['findings_false_per_scan']:g} "
            "false findings per scan (with a peak threshold of "
            f"{number(point['detection_threshold_holds_for_peak_threshold'], 2)})"
        )
    by_series = [
        (r["series"], r["scans"], r["nodules"], number(r["cpm"]), number(r["from_6_mm_at_8_false_per_scan"]))
        for r in figures["by_series"]
    ]
    of_series = ("stage 1 by series", "scans", "nodules", "CPM", "at 8 per scan, 6 mm and more")
    by_scan = [(row["scan"], row["nodules"], row["found"], row["false"]) for row in figures["by_scan"]]
    return (
        f"{_muted(first['protocol'])}{_muted(figures.get('synthetic', ''))}"
        f"{_muted(figures.get('undoubted', {}).get('protocol', ''))}"
        f"<p>{first['scans']} scans, {first['nodules']} nodules. Operating point from this curve: {escape(rule)}.</p>"
        f"{table(('false positives per scan', *(name for name, _ in named)), rows)}"
        f"{table(('size', 'nodules', 'at 1 per scan', 'at 8 per scan'), sizes)}"
        f"{table(('at the default threshold', 'threshold', 'found', 'false per scan'), thresholds)}"
        f"{table(of_series, by_series) if len(by_series) <= MANY else ''}"
        f"<details><summary>By scan</summary>{table(('scan', 'nodules', 'found', 'false'), by_scan)}</details>"
    )


def _stage2(figures: Mapping[str, Any], images: Mapping[str, bytes]) -> str:
    malignancy, detection = figures["malignancy"], figures["detection"]
    middle = malignancy["from_8_to_15_mm"]
    areas = [
        (name, with_interval(each), each["positives"], each["negatives"], each["patients"])
        for name, each in (
            ("detection", detection["auc"]),
            ("detection, nodules in their own lung", detection["auc_of_nodules_in_their_own_lung"]),
            ("malignancy", malignancy["auc"]),
            ("diameter alone", malignancy["auc_of_the_diameter_alone"]),
            ("malignancy, 8-15 mm", middle["auc"]),
            ("diameter alone, 8-15 mm", middle["auc_of_the_diameter_alone"]),
        )
    ]
    points = [
        (name, row["rule"], number(row["threshold"]), number(row["sensitivity"]), number(row["specificity"]))
        for name, each in (("detection", detection), ("malignancy", malignancy))
        for row in [*each["operating_points"], {"rule": "probability 0.5", "threshold": 0.5, **each["at_half"]}]
    ]
    kinds = [
        (row["kind"], row["number"], number(row["auc"]), number(row["specificity_at_half"]))
        for row in detection["by_kind_of_no_nodule"]
    ]
    calibrations = [
        (name, number(each["calibration"]["ece"]), number(each["calibration"]["brier"]))
        for name, each in (("detection", detection), ("malignancy", malignancy))
        if each["calibration"]
    ]
    masks = [
        (name, with_interval(each), each["number"] if each else 0)
        for name, each in (("central slice", figures["dice"]["central_slice"]), ("volume", figures["dice"]["volume"]))
    ]
    concepts = [
        (
            row["concept"],
            row["number"],
            f"{number(row['r2'])} {between(row['r2_ci95'])}",
            number(row["mae"], 2),
            number(row["correlation"], 2),
            number(row["mean_rating"], 2),
            number(row["mean_predicted"], 2),
        )
        for row in figures["concepts"]
    ]
    signs = figures["signs"]
    weights = [
        (
            row["concept"],
            number(row["weight"]),
            f"{number(row['correlation'], 2)} {between(row['correlation_ci95'])}",
            "reported apart" if row["concept"] == signs["apart"] else number(row["agrees"]),
        )
        for row in signs["rows"]
    ]
    return (
        f"{_muted(figures['protocol'])}<p>{figures['patches']} patches: {figures['nodules']} of nodules "
        f"({figures['nodules_inserted']} inserted), {figures['no_nodules']} of none.</p>"
        f"<h3>Areas under the ROC curve</h3>{table(('', 'AUC', 'positive', 'negative', 'patients'), areas)}"
        f"{_pictures(images, 'stage2-roc')}"
        f"{table(('nodules against', 'number', 'AUC', 'specificity at 0.5'), kinds) if kinds else ''}"
        f"<h3>Operating points</h3>"
        f"{table(('', 'rule', 'threshold', 'sensitivity', 'specificity'), points)}"
        f"<h3>Calibration</h3>{_muted('Of the share of positives in this sample, which is no prevalence.')}"
        f"{table(('', 'ECE', 'Brier'), calibrations)}{_pictures(images, 'stage2-reliability')}"
        f"<h3>Masks (Dice)</h3>{table(('', 'Dice', 'nodules'), masks)}"
        f"<h3>Concepts</h3>"
        f"{table(('concept', 'nodules', 'R²', 'MAE', 'r', 'mean rating', 'mean predicted'), concepts)}"
        f"{_pictures(images, 'stage2-concepts')}"
        f"<h3>Signs: {signs['agreeing']} of {signs['judged']} agree</h3>"
        f"<p>Of the {signs['clear']} whose own correlation is clear of 0, {signs['clear_agreeing']} agree.</p>"
        f"{table(('concept', 'weight', 'correlation of the rating with malignancy', 'agrees'), weights)}"
        f"{_pictures(images, 'stage2-signs')}<h3>Failures</h3>"
        + "".join(
            _pictures(images, f"stage2-{kind}")
            for kind in ("nodules-missed", "no-nodules-called", "benign-called", "malignant-missed", "masks")
        )
    )


def _series(figures: Mapping[str, Any], images: Mapping[str, bytes]) -> str:
    parts = [_muted(figures["protocol"])]
    for row in figures["series"]:
        title = f"<h3>{escape(row['series'])}</h3>"
        if row.get("missing"):
            parts.append(f"{title}<p>Not in the data folder.</p>")
            continue
        if "rejected" in row:
            parts.append(f"{title}<p>Rejected: {escape(row['rejected'])}</p>")
            continue
        word = "false" if row["readers_marked_everything"] else "unmatched"
        parts.append(
            f"{title}<p>Role: {escape(row['role'])}. Candidates {row['candidates']}, findings {row['findings']}, "
            f"of them {word} {row['unmatched']}; {row['seconds']} s.</p>"
            f"{_known(row)}{_pictures(images, 'series-' + row['series'])}"
        )
    return "\n".join(parts)


def _known(row: Mapping[str, Any]) -> str:
    rows = [
        (
            each["nodule"],
            number(each["diameter_mm"], 1),
            "missed" if each["found_at_mm"] is None else f"found, {each['found_at_mm']:.1f} mm off",
            number(each["heat"], 2),
            number(each["detection_probability"], 2),
            number(each["malignancy_probability"], 2),
        )
        for each in row["known"]
    ]
    if not rows:
        return "<p>No nodule of it is known.</p>"
    return table(("nodule", "mm", "", "heat", "detection", "malignancy"), rows)


def _phantoms(figures: Mapping[str, Any], images: Mapping[str, bytes]) -> str:
    rows = []
    for row in figures["phantoms"]:
        known = row.get("known", [])
        missed = [f"{e['nodule']} {e['diameter_mm']:.0f} mm" for e in known if e["found_at_mm"] is None]
        found = f"{len(known) - len(missed)} of {len(known)}"
        rows.append((row["phantom"], found, ", ".join(missed), row.get("unmatched")))
    return _muted(figures["protocol"]) + table(("phantom", "found", "missed", "unmatched"), rows)


def _how(report: Mapping[str, Any]) -> str:
    weights = report["weights"]
    rows = [
        *((f"sha256 of {name}", digest) for name, digest in weights["files"].items()),
        ("sha256 of the set", weights["sha256"]),
        ("concept scale", weights["concept_scale"]),
        *((key.replace("_", " "), str(value)) for key, value in report["how"].items()),
        *((f"version of {name}", value) for name, value in report["versions"].items()),
    ]
    stores = "".join(
        f"<details><summary>Store {escape(store['file'])}</summary><pre>"
        f"{escape(json.dumps(store, indent=1, ensure_ascii=False))}</pre></details>"
        for store in report["stores"]
    )
    skipped = [(part, why) for part, why in report["skipped"].items()]
    not_done = f"<h3>Not measured</h3>{table(('part', 'reason'), skipped)}" if skipped else ""
    return f"<h2>How it was made</h2>{table(('', ''), rows)}{stores}{not_done}"


def _muted(text: str) -> str:
    return f'<p class="muted">{escape(text)}</p>' if text else ""


def _pictures(images: Mapping[str, bytes], prefix: str) -> str:
    """Every image whose name begins so."""
    return "".join(
        f'<figure><img alt="{escape(_caption(name))}" src="data:image/png;base64,{base64.b64encode(png).decode()}">'
        f"<figcaption>{escape(_caption(name))}</figcaption></figure>"
        for name, png in images.items()
        if name.startswith(prefix)
    )


def _caption(name: str) -> str:
    if name in CAPTIONS:
        return CAPTIONS[name]
    kind = name.rsplit("-", 1)[-1]
    return {
        "missed": "Known nodules that were not found.",
        "found": "Findings on known nodules.",
        "unmatched": "Findings that match nothing known (outline: the mask of the finding).",
    }.get(kind, name)
