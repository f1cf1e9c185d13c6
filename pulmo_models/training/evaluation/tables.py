"""How a figure is written for a reader; tables and pictures in HTML."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

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


def number(value: Any, digits: int = 3) -> str:
    """A figure for the reader; a dash where there is none."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.{digits}f}".replace("-", "−") if isinstance(value, float) else str(value)


def between(ends: Sequence[float] | None) -> str:
    """A 95 % interval."""
    return "" if ends is None else f"[{number(ends[0])}, {number(ends[1])}]"


def with_interval(figure: Mapping[str, Any] | None, value: str = "value", ends: str = "ci95") -> str:
    """A figure with its interval."""
    return "–" if figure is None else f"{number(figure[value])} {between(figure[ends])}".strip()


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """An HTML table; texts are escaped, figures are set to the right."""
    lines = [list(row) for row in rows]
    numeric = [all(_is_figure(line[at]) for line in lines) for at in range(len(head))]

    def row(tag: str, line: Sequence[Any]) -> str:
        texts = [cell if isinstance(cell, str) else number(cell, 4) for cell in line]
        cells = (
            f"<{tag}{' class=n' if right else ''}>{escape(text)}</{tag}>"
            for text, right in zip(texts, numeric, strict=True)
        )
        return f"<tr>{''.join(cells)}</tr>"

    top = f"<thead>{row('th', head)}</thead>" if any(head) else ""
    return f"<table>{top}<tbody>{''.join(row('td', line) for line in lines)}</tbody></table>"


def _is_figure(cell: Any) -> bool:
    return not isinstance(cell, str) or cell.lstrip("−").replace(".", "", 1).isdigit() or cell == "–"


def muted(text: str) -> str:
    """A remark; nothing where there is none."""
    return f'<p class="muted">{escape(text)}</p>' if text else ""


def pictures(images: Mapping[str, bytes], prefix: str) -> str:
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
