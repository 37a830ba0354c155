"""Tables: drawn on a terminal, plain aligned columns when piped (so that grep, awk and a reader's eye can use them)."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Cell:
    """A cell that is worth a look. `style` is rich's: "red", "bold green", …"""

    text: str
    style: str = ""


Row = Sequence[str | Cell]


def print_table(columns: Sequence[str], rows: Sequence[Row], *, title: str = "") -> None:
    """Writes the table to stdout. Columns of numbers are aligned to the right."""
    cells = [[cell if isinstance(cell, Cell) else Cell(cell) for cell in row] for row in rows]
    if sys.stdout.isatty():
        _print_drawn(columns, cells, title)
    else:
        sys.stdout.write(plain_table(columns, cells))


def plain_table(columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> str:
    """Header and rows, two spaces between columns, nothing cut."""
    texts = [list(columns), *([" ".join(cell.text.split()) for cell in row] for row in rows)]
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
        table.add_row(*(Text(cell.text, style=cell.style) for cell in row))
    Console().print(table)


def _is_number_column(rows: Sequence[Sequence[Cell]], index: int) -> bool:
    return bool(rows) and all(row[index].text.lstrip("+-")[:1].isdigit() or row[index].text in ("", "-") for row in rows)
