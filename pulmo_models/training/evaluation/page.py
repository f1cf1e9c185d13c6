"""The report as one HTML page that needs nothing else: tables, and plots embedded as PNG."""

from __future__ import annotations

import json
from collections.abc import Mapping
from html import escape
from typing import Any

from pulmo_models.training.evaluation import sections
from pulmo_models.training.evaluation.tables import table, with_interval

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


def page(report: Mapping[str, Any], images: Mapping[str, bytes]) -> str:
    """The whole page. `images` are PNG by the names of `tables.CAPTIONS`, or ``series-NAME-KIND``."""
    weights = report["weights"]
    parts = [
        f"<h1>Evaluation of {escape(weights['name'])}</h1>",
        f'<p class="muted">version {escape(weights["version"])}, made {escape(report["created"])}, split '
        f"{escape(report['how']['split'])}</p>",
        f'<p class="notice"><b>{escape(report["notice"])}</b> {escape(_on_synthetic_data(report))}</p>',
        _summary(report),
        _section(report, "stage2", "Characterisation (stage 2)", sections.stage2, images),
        _section(report, "stage1", "Detection (stage 1)", sections.stage1, images),
        _section(report, "series", "Real series at the default operating point", sections.series, images),
        _section(report, "phantoms", "Phantoms (synthetic)", sections.phantoms, images),
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
    made = any(store["provenance"].get("command") == "data inserted" for store in report["stores"])
    if made and "windows" in report.get("stage1", {}):
        said.append("the windows of stage 1 (real nodules, placed into other patients' lungs)")
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
