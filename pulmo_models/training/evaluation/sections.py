"""The sections of the report's page, one a part of the evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from pulmo_models.training.evaluation.tables import between, muted, number, pictures, table, with_interval

MANY = 10  # series; more are left to report.json


def stage1(figures: Mapping[str, Any], images: Mapping[str, bytes]) -> str:
    """Whole scans and windows."""
    parts = []
    for name, title in (("inserted", "Whole series with inserted nodules (synthetic)"), ("luna16", "LUNA16 folder")):
        if name in figures:
            parts.append(f"<h3>{escape(title)}</h3>{_scans(figures[name])}{pictures(images, f'{name}-')}")
    if "windows" in figures:
        windows = figures["windows"]
        rows = [(f"{row['false_per_window']:g}", with_interval(row)) for row in windows["sensitivity"]]
        sizes = [
            (r["size"], r["nodules"], number(r["at_1_false_per_window"]), number(r["at_8_false_per_window"]))
            for r in windows["by_size"]
        ]
        parts.append(
            f"<h3>Windows of the patch store</h3>{muted(windows['protocol'])}"
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
            "false findings per scan with it"
        )
    by_series = [
        (r["series"], r["scans"], r["nodules"], number(r["cpm"]), number(r["from_6_mm_at_8_false_per_scan"]))
        for r in figures["by_series"]
    ]
    of_series = ("stage 1 by series", "scans", "nodules", "CPM", "at 8 per scan, 6 mm and more")
    by_scan = [(row["scan"], row["nodules"], row["found"], row["false"]) for row in figures["by_scan"]]
    return (
        f"{muted(first['protocol'])}{muted(figures.get('synthetic', ''))}"
        f"{muted(figures.get('undoubted', {}).get('protocol', ''))}"
        f"<p>{first['scans']} scans, {first['nodules']} nodules. Operating point from this curve: {escape(rule)}.</p>"
        f"{table(('false positives per scan', *(name for name, _ in named)), rows)}"
        f"{_sizes(first)}"
        f"{table(('at the default threshold', 'threshold', 'found', 'false per scan'), thresholds)}"
        f"{table(of_series, by_series) if len(by_series) <= MANY else ''}"
        f"<details><summary>By scan</summary>{table(('scan', 'nodules', 'found', 'false'), by_scan)}</details>"
    )


def _sizes(figures: Mapping[str, Any]) -> str:
    rows = [
        (
            row["size"],
            row["nodules"],
            number(row["at_1_false_per_scan"]),
            with_interval(row, "at_8_false_per_scan", "at_8_false_per_scan_ci95"),
        )
        for row in [*figures["by_size"], {"size": "6 mm and more", **figures["from_6_mm"]}]
    ]
    return table(("size", "nodules", "at 1 per scan", "at 8 per scan"), rows)


def stage2(figures: Mapping[str, Any], images: Mapping[str, bytes]) -> str:
    """Patches of a split."""
    failures = ("nodules-missed", "no-nodules-called", "benign-called", "malignant-missed", "masks")
    return (
        f"{muted(figures['protocol'])}<p>{figures['patches']} patches: {figures['nodules']} of nodules "
        f"({figures['nodules_inserted']} inserted), {figures['no_nodules']} of none.</p>"
        f"{_classes(figures['detection'], figures['malignancy'], images)}"
        f"{_masks(figures['dice'])}"
        f"{_concepts(figures['concepts'], images)}"
        f"{_signs(figures['signs'], images)}"
        f"<h3>Failures</h3>{''.join(pictures(images, f'stage2-{kind}') for kind in failures)}"
    )


def _classes(detection: Mapping[str, Any], malignancy: Mapping[str, Any], images: Mapping[str, bytes]) -> str:
    """ROC, operating points and calibration of both classifications."""
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
    kinds = [
        (row["kind"], row["number"], number(row["auc"]), number(row["specificity_at_half"]))
        for row in detection["by_kind_of_no_nodule"]
    ]
    points = [
        (name, row["rule"], number(row["threshold"]), number(row["sensitivity"]), number(row["specificity"]))
        for name, each in (("detection", detection), ("malignancy", malignancy))
        for row in [*each["operating_points"], {"rule": "probability 0.5", "threshold": 0.5, **each["at_half"]}]
    ]
    calibrations = [
        (name, number(each["calibration"]["ece"]), number(each["calibration"]["brier"]))
        for name, each in (("detection", detection), ("malignancy", malignancy))
        if each["calibration"]
    ]
    return (
        f"<h3>Areas under the ROC curve</h3>{table(('', 'AUC', 'positive', 'negative', 'patients'), areas)}"
        f"{pictures(images, 'stage2-roc')}"
        f"{table(('nodules against', 'number', 'AUC', 'specificity at 0.5'), kinds) if kinds else ''}"
        f"<h3>Operating points</h3>"
        f"{table(('', 'rule', 'threshold', 'sensitivity', 'specificity'), points)}"
        f"<h3>Calibration</h3>{muted('Of the share of positives in this sample, which is no prevalence.')}"
        f"{table(('', 'ECE', 'Brier'), calibrations)}{pictures(images, 'stage2-reliability')}"
    )


def _masks(dice: Mapping[str, Any]) -> str:
    rows = [
        (name, with_interval(each), each["number"] if each else 0)
        for name, each in (("central slice", dice["central_slice"]), ("volume", dice["volume"]))
    ]
    return f"<h3>Masks (Dice)</h3>{table(('', 'Dice', 'nodules'), rows)}"


def _concepts(concepts: Sequence[Mapping[str, Any]], images: Mapping[str, bytes]) -> str:
    rows = [
        (
            row["concept"],
            row["number"],
            f"{number(row['r2'])} {between(row['r2_ci95'])}",
            number(row["mae"], 2),
            number(row["correlation"], 2),
            number(row["mean_rating"], 2),
            number(row["mean_predicted"], 2),
        )
        for row in concepts
    ]
    head = ("concept", "nodules", "R²", "MAE", "r", "mean rating", "mean predicted")
    return f"<h3>Concepts</h3>{table(head, rows)}{pictures(images, 'stage2-concepts')}"


def _signs(signs: Mapping[str, Any], images: Mapping[str, bytes]) -> str:
    rows = [
        (
            row["concept"],
            number(row["weight"]),
            f"{number(row['correlation'], 2)} {between(row['correlation_ci95'])}",
            "reported apart" if row["concept"] == signs["apart"] else number(row["agrees"]),
        )
        for row in signs["rows"]
    ]
    return (
        f"<h3>Signs: {signs['agreeing']} of {signs['judged']} agree</h3>"
        f"<p>Of the {signs['clear']} whose own correlation is clear of 0, {signs['clear_agreeing']} agree.</p>"
        f"{table(('concept', 'weight', 'correlation of the rating with malignancy', 'agrees'), rows)}"
        f"{pictures(images, 'stage2-signs')}"
    )


def series(figures: Mapping[str, Any], images: Mapping[str, bytes]) -> str:
    """The real series, each with what was found."""
    parts = [muted(figures["protocol"])]
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
            f"{_known(row)}{pictures(images, 'series-' + row['series'])}"
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


def phantoms(figures: Mapping[str, Any], images: Mapping[str, bytes]) -> str:
    """Found and missed."""
    rows = []
    for row in figures["phantoms"]:
        known = row.get("known", [])
        missed = [f"{e['nodule']} {e['diameter_mm']:.0f} mm" for e in known if e["found_at_mm"] is None]
        found = f"{len(known) - len(missed)} of {len(known)}"
        rows.append((row["phantom"], found, ", ".join(missed), row.get("unmatched")))
    return muted(figures["protocol"]) + table(("phantom", "found", "missed", "unmatched"), rows)
