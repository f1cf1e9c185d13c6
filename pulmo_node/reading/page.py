"""The blocks of a report as one HTML file that needs nothing beside it: no network, no script, pictures inside."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from html import escape
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from pulmo_node.assemble.files import READ_ERRORS
from pulmo_node.errors import Permanent
from pulmo_node.reading.layout import Block, Table
from pulmo_node.reading.report import read_dataset

_STYLE = """
body{font:16px/1.4 sans-serif;margin:2rem auto;max-width:70rem;padding:0 1rem;color:#222;background:#fff}
h1{font-size:1.5rem} h2{font-size:1.2rem;margin-top:2rem;border-bottom:1px solid #ccc}
table{border-collapse:collapse;margin:.8rem 0} th,td{text-align:left;padding:.2rem .8rem .2rem 0;vertical-align:top}
th{border-bottom:1px solid #999;font-weight:600} td.n{text-align:right;font-variant-numeric:tabular-nums}
dl{display:grid;grid-template-columns:max-content 1fr;gap:.15rem 1rem;margin:.8rem 0}
dt{color:#666} dd{margin:0;overflow-wrap:anywhere;white-space:pre-line} img{max-width:100%}
svg{display:block} .up{fill:#b2182b} .down{fill:#2166ac} .axis{stroke:#999}
"""
_BAR_WIDTH, _BAR_HEIGHT = 160, 12  # px


def page(blocks: Sequence[Block]) -> str:
    """A report, or several one after the other; the first block gives the page its title.

    Raises:
        Permanent: a picture cannot be decoded.
    """
    title = escape(blocks[0].heading) if blocks else "Report"
    parts = [
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>{_STYLE}</style>',
        "</head><body>",
    ]
    for number, block in enumerate(blocks):
        level = "h1" if number == 0 else "h2"
        parts.append(f"<{level}>{escape(block.heading)}</{level}>")
        parts += _body(block)
    return "\n".join([*parts, "</body></html>"]) + "\n"


def _body(block: Block) -> Iterator[str]:
    if block.facts:
        yield "<dl>"
        for name, value in block.facts:
            yield f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>"
        yield "</dl>"
    for picture in block.pictures:
        yield f'<img src="{_data_url(picture)}" alt="{escape(block.heading)}">'
    for line in block.lines:
        yield f"<p>{escape(line)}</p>"
    for table in block.tables:
        yield from _table(table)


def _table(table: Table) -> Iterator[str]:
    headings = "".join(f"<th>{escape(heading)}</th>" for heading in table.headings)
    yield f"<table><tr>{headings}{'<th></th>' if table.bars is not None else ''}</tr>"
    numbers = [] if table.bars is None else [_number(row[table.bars]) for row in table.rows]
    largest = max(map(abs, numbers), default=0.0) or 1.0
    for place, row in enumerate(table.rows):
        cells = "".join(f"<td{_numeric(cell)}>{escape(cell)}</td>" for cell in row)
        bar = f"<td>{_bar(numbers[place] / largest)}</td>" if numbers else ""
        yield f"<tr>{cells}{bar}</tr>"
    yield "</table>"


def _bar(share: float) -> str:
    """A bar from the middle of its field, -1..1 of half the field, to the right where it raises."""
    half = _BAR_WIDTH / 2
    left, width = (half, share * half) if share >= 0 else (half + share * half, -share * half)
    return (
        f'<svg width="{_BAR_WIDTH}" height="{_BAR_HEIGHT}" role="img" aria-label="{share:+.2f} of the largest">'
        f'<rect class="{"up" if share >= 0 else "down"}" x="{left:.1f}" y="1" width="{width:.1f}" height="10"/>'
        f'<line class="axis" x1="{half}" y1="0" x2="{half}" y2="{_BAR_HEIGHT}"/></svg>'
    )


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0


def _numeric(cell: str) -> str:
    return ' class="n"' if cell and cell.lstrip("-+").replace(".", "", 1).isdigit() else ""


def _data_url(path: Path) -> str:
    """A colour or grey image as a PNG in the page; of more than eight bits, from its smallest to its largest value."""
    dataset = read_dataset(path)
    try:
        pixels = np.asarray(dataset.pixel_array)
        if pixels.dtype != np.uint8:
            low, high = int(pixels.min()), int(pixels.max())
            pixels = np.rint((pixels.astype(np.float64) - low) * 255 / max(high - low, 1)).astype(np.uint8)
        image = Image.fromarray(pixels)
    except READ_ERRORS as exc:
        raise Permanent(f"{path} holds a picture that cannot be decoded ({type(exc).__name__})") from exc
    buffer = BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
