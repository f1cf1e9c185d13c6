"""Several sets of weights on the same data, side by side, for a model card."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pulmo_models.training.evaluation.report import Plan, evaluate, write
from pulmo_models.training.evaluation.tables import between, number, with_interval
from pulmo_models.training.fitting.networks import load_networks
from pulmo_models.types import CONCEPT_NAMES

Report = Mapping[str, Any]


def compare_sets(weights: Sequence[str], plan: Plan, out: Path) -> str:
    """Measure each set by one plan; write ``comparison.md``, ``comparison.json`` and each report; returns the table.

    Raises:
        WeightsMissing, WeightsCorrupt: of a set, before anything is measured. Else as `evaluate`.
    """
    sets = [load_networks(name) for name in weights]
    reports = []
    for number_of_set, networks in enumerate(sets, start=1):
        done = evaluate(networks, plan)
        write(done, out / f"{number_of_set}-{networks.name}")
        reports.append(done.report)
    compared = comparison(reports)
    table = markdown(compared)
    (out / "comparison.json").write_text(json.dumps(compared, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    (out / "comparison.md").write_text(table, encoding="utf-8")
    return table


def comparison(reports: Sequence[Report]) -> dict[str, Any]:
    """The figures of each set, ready for JSON; a row that no set has is left out.

    Raises:
        ValueError: the reports are not on the same data.
    """
    common = [{"how": report["how"], "stores": report["stores"]} for report in reports]
    if any(each != common[0] for each in common):
        raise ValueError("the sets were not measured on the same data in the same way")
    rows = []
    for name, read in _ROWS:
        values = [read(report) for report in reports]
        if any(value is not None for value in values):
            rows.append({"figure": name, "values": values})
    return {
        "format": "pulmo comparison 1",
        "sets": [report["weights"] for report in reports],
        **common[0],
        "synthetic": "rows that begin with 'inserted' are on real nodules placed into other patients' lungs",
        "rows": rows,
    }


def markdown(compared: Mapping[str, Any]) -> str:
    """The comparison as a table in Markdown."""
    names = [weights["name"] for weights in compared["sets"]]
    lines = [f"| | {' | '.join(names)} |", f"|---|{'---|' * len(names)}"]
    for row in compared["rows"]:
        lines.append(f"| {row['figure']} | {' | '.join('–' if value is None else value for value in row['values'])} |")
    how = compared["how"]
    stores = ", ".join(store["file"] for store in compared["stores"]) or "none"
    lines += ["", f"Split {how['split']}, seed {how['seed']}, stores: {stores}; 95 % intervals in brackets. {_NOTE}"]
    return "\n".join(lines) + "\n"


_NOTE = 'Rows that begin with "inserted" are on synthetic data. Research use only.'


def _at(report: Report, *path: str) -> Any:
    found: Any = report
    for key in path:
        if not isinstance(found, Mapping) or found.get(key) is None:
            return None
        found = found[key]
    return found


def _figure(*path: str) -> Callable[[Report], str | None]:
    """A figure with its interval."""

    def read(report: Report) -> str | None:
        found = _at(report, *path)
        return None if found is None or found["value"] is None else with_interval(found)

    return read


def _scan_row(name: str, value: str, ends: str, *path: str) -> tuple[str, Callable[[Report], str | None]]:
    def read(report: Report) -> str | None:
        found = _at(report, *path)
        return None if found is None or found[value] is None else with_interval(found, value, ends)

    return name, read


def _plain(*path: str) -> Callable[[Report], str | None]:
    def read(report: Report) -> str | None:
        found = _at(report, *path)
        return None if found is None else number(found)

    return read


def _signs(report: Report) -> str | None:
    found = _at(report, "stage2", "signs")
    return None if found is None else f"{found['agreeing']} of {found['judged']}"


def _window(report: Report) -> str | None:
    rows = _at(report, "stage1", "windows", "sensitivity")
    return None if rows is None else with_interval(next(row for row in rows if row["false_per_window"] == 1.0))


def _concept(name: str) -> tuple[str, Callable[[Report], str | None]]:
    def read(report: Report) -> str | None:
        rows = _at(report, "stage2", "concepts")
        if rows is None:
            return None
        row = next(row for row in rows if row["concept"] == name)
        return None if row["r2"] is None else f"{number(row['r2'])} {between(row['r2_ci95'])}".strip()

    return f"concept R², {name}", read


_INSERTED = ("stage1", "inserted", "stage1")
_SIZE = ("at_8_false_per_scan", "at_8_false_per_scan_ci95")
_ROWS: tuple[tuple[str, Callable[[Report], str | None]], ...] = (
    _scan_row("inserted nodules: CPM, stage 1", "cpm", "cpm_ci95", *_INSERTED),
    _scan_row("inserted nodules: sensitivity at 8 FP/scan, ≥ 6 mm", *_SIZE, *_INSERTED, "from_6_mm"),
    _scan_row("inserted nodules: CPM, both stages", "cpm", "cpm_ci95", "stage1", "inserted", "both_stages"),
    _scan_row("LUNA16: CPM, stage 1", "cpm", "cpm_ci95", "stage1", "luna16", "stage1"),
    _scan_row("LUNA16: sensitivity at 8 FP/scan, ≥ 6 mm", *_SIZE, "stage1", "luna16", "stage1", "from_6_mm"),
    ("windows: sensitivity at 1 false positive per window", _window),
    ("detection AUC, stage 2", _figure("stage2", "detection", "auc")),
    ("malignancy AUC", _figure("stage2", "malignancy", "auc")),
    ("the diameter alone", _figure("stage2", "malignancy", "auc_of_the_diameter_alone")),
    ("malignancy AUC, 8-15 mm", _figure("stage2", "malignancy", "from_8_to_15_mm", "auc")),
    ("the diameter alone, 8-15 mm", _figure("stage2", "malignancy", "from_8_to_15_mm", "auc_of_the_diameter_alone")),
    ("malignancy ECE", _plain("stage2", "malignancy", "calibration", "ece")),
    ("Dice, central slice", _figure("stage2", "dice", "central_slice")),
    ("Dice, volume", _figure("stage2", "dice", "volume")),
    *(_concept(name) for name in CONCEPT_NAMES),
    ("concept signs that agree", _signs),
)
