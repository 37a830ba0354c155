"""What results look like on stdout. Tables are drawn on a terminal, plain aligned columns when piped (for grep, awk and a reader's eye)."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import click


@dataclass(frozen=True)
class Cell:
    """A cell that is worth a look. `style` is rich's: "red", "bold green", …"""

    text: str
    style: str = ""


Row = Sequence[str | Cell]


def visible(text: str) -> str:
    """Text that came from elsewhere, with control characters escaped: they could move a terminal's cursor or hide what is said."""
    return "".join(char if char.isprintable() or char in "\n\t" else ascii(char)[1:-1] for char in text)


def write_json(text: str) -> None:
    """One JSON value on stdout, escaped where stdout's encoding is not UTF-8, so that it stays JSON."""
    if "utf" not in (sys.stdout.encoding or "").lower():
        text = json.dumps(json.loads(text), sort_keys=True, indent=1)
    click.echo(text.rstrip("\n"))  # which flushes: a full disk is told here


def print_json(value: object) -> None:
    """One JSON value on stdout, keys sorted."""
    write_json(json.dumps(value, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False))


def print_table(columns: Sequence[str], rows: Sequence[Row], *, title: str = "") -> None:
    """Writes the table to stdout. Columns of numbers are aligned to the right."""
    cells = [[cell if isinstance(cell, Cell) else Cell(cell) for cell in row] for row in rows]
    if sys.stdout.isatty():
        _print_drawn(columns, cells, title)
    else:
        click.echo(plain_table(columns, cells), nl=False)


def plain_table(columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> str:
    """Header and rows, two spaces between columns, nothing cut."""
    texts = [list(columns), *([visible(" ".join(cell.text.split())) for cell in row] for row in rows)]
    widths = [max(len(row[index]) for row in texts) for index in range(len(columns))]
    right = [_is_number_column(rows, index) for index in range(len(columns))]
    lines = []
    for row in texts:
        parts = [text.rjust(width) if is_right else text.ljust(width) for text, width, is_right in zip(row, widths, right, strict=True)]
        lines.append("  ".join(parts).rstrip() + "\n")
    return "".join(lines)


def _print_drawn(columns: Sequence[str], rows: Sequence[Sequence[Cell]], title: str) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title or None, title_justify="left")
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if _is_number_column(rows, index) else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(visible(cell.text), style=cell.style) for cell in row))
    Console().print(table)


def _is_number_column(rows: Sequence[Sequence[Cell]], index: int) -> bool:
    return bool(rows) and all(row[index].text.lstrip("+-")[:1].isdigit() or row[index].text in ("", "-") for row in rows)
