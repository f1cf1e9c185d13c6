"""The blocks of a report in the terminal, by rich."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table as RichTable

from pulmo_node.reading.layout import Block, Table


def print_blocks(console: Console, blocks: Sequence[Block]) -> None:
    """Print a report; pictures are only named."""
    for number, block in enumerate(blocks):
        if number:
            console.print()
        console.print(f"[bold]{escape(block.heading)}[/]", highlight=False)
        if block.facts:
            facts = RichTable.grid(padding=(0, 2))
            facts.add_column(overflow="fold")
            facts.add_column(overflow="fold")  # a UID that is cut is none
            for name, value in block.facts:
                facts.add_row(f"[dim]{escape(name)}[/]", escape(value))
            console.print(facts, highlight=False)
        for table in block.tables:
            console.print(_table(table), highlight=False)
        for line in block.lines:
            console.print(escape(line), highlight=False)
        for picture in block.pictures:
            console.print(f"[dim]picture:[/] {escape(str(picture))}", highlight=False)


def _table(table: Table) -> RichTable:
    made = RichTable()
    numeric = {column for column in range(len(table.headings)) if all(_is_number(row[column]) for row in table.rows)}
    for column, heading in enumerate(table.headings):
        made.add_column(heading, justify="right" if column in numeric else "left", overflow="fold")
    for row in table.rows:
        made.add_row(*map(escape, row))
    return made


def _is_number(text: str) -> bool:
    try:
        float(text or "0")
    except ValueError:
        return False
    return True
