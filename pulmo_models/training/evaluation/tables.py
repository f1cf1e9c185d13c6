"""How a figure is written for a reader, and tables in HTML."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any


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
