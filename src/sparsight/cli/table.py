"""Print tables without cutting a digit or a name: where the terminal is too narrow whole columns go, and are named below the table."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from textwrap import fill

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..errors import shown

GAP = 2
"""Spaces between columns."""
PART = (28, 14)
"""Characters that a folded name has at least: while there are columns to drop, and when none is left."""
ENDLESS = 10_000
"""Width of a pipe: every row is one line there, whatever reads it."""


@dataclass(frozen=True)
class Column:
    """A head and how its cells behave.

    drop: the column with the highest number goes first, 0 never goes. name: to the left, and folded after commas where it is long.
    """

    head: str
    drop: int = 0
    name: bool = False


Cell = str | Text


def console(stderr: bool = False) -> Console:
    """The terminal; a pipe has no end to its lines unless COLUMNS says so."""
    made = Console(highlight=False, stderr=stderr)
    if not made.is_terminal and not os.environ.get("COLUMNS", "").isdigit():
        made.width = ENDLESS
    return made


def print_table(title: str, columns: Sequence[Column], rows: Iterable[Sequence[Cell] | None], rest: object = "") -> None:
    """Print title and table; a row of None is an empty line. rest: the file that has the columns which did not fit."""
    out = console()
    lines = [None if row is None else [clean(cell) for cell, _ in zip(row, columns, strict=True)] for row in rows]
    if title:
        say(title)
    widths = fit(columns, [line for line in lines if line is not None], out.width)
    sheet = Table(box=None, pad_edge=False, header_style="dim", padding=(0, GAP, 0, 0), collapse_padding=True)
    for place, width in widths.items():
        column = columns[place]
        sheet.add_column(Text(column.head), justify="left" if column.name else "right", width=width, no_wrap=True)
    for line in lines:
        sheet.add_row(*(folded(line[place], width) for place, width in widths.items()) if line is not None else ())
    out.print(sheet, width=sum(widths.values()) + GAP * len(widths), crop=False)
    if lost := [column.head for place, column in enumerate(columns) if place not in widths]:
        say(f"no room for {', '.join(lost)} in {out.width} columns" + (f"; {rest} has all" if rest else ""))


def clean(cell: Cell) -> Text:
    """The cell as text that is no markup and has no control characters."""
    return cell if isinstance(cell, Text) else Text(shown(cell, ENDLESS))


def fit(columns: Sequence[Column], lines: Sequence[Sequence[Text]], room: int) -> dict[int, int]:
    """Widths of the columns that are shown, by their places."""
    natural = [
        max(cell_len(column.head), *(cell_len(line[place].plain) for line in lines)) if lines else cell_len(column.head)
        for place, column in enumerate(columns)
    ]
    kept = dict(enumerate(natural))
    while True:
        last = not any(columns[place].drop for place in kept)
        least = PART[last]
        widths = {place: min(width, least) if columns[place].name else width for place, width in kept.items()}
        spare = room - sum(widths.values()) - GAP * (len(widths) - 1)
        if spare >= 0 or last:
            break
        del kept[max(kept, key=lambda place: (columns[place].drop, place))]
    for place in widths:
        more = min(natural[place] - widths[place], max(spare, 0))
        widths[place], spare = widths[place] + more, spare - more
    return widths


def folded(text: Text, width: int) -> Text:
    """The cell in lines of at most `width`, broken after commas, slashes and spaces where there are any."""
    return text if cell_len(text.plain) <= width else Text("\n".join(pieces(text.plain, width)), text.style)


def pieces(text: str, width: int) -> list[str]:
    """Lines of at most `width`, broken after commas and spaces, inside a longer part after slashes and colons, else anywhere."""
    lines = [""]
    for part in re.findall(r"[^, ]*[, ]|[^, ]+", text):
        whole = cell_len(part) <= width
        for bit in [part] if whole else re.findall(r"[^/:]*[/:]|[^/:]+", part):
            if cell_len(lines[-1] + bit.rstrip()) > width:
                lines.append("")
            while cell_len(bit) > width:
                lines[-1:] = [bit[:width], ""]
                bit = bit[width:]
            lines[-1] += bit
    return [line.rstrip() for line in lines if line]


def say(text: str, style: str = "") -> None:
    """Print text that is no markup, on a terminal wrapped between words; what has no spaces, such as a path, stays whole."""
    out = console()
    wrapped = "\n".join(
        line if cell_len(line) <= out.width else fill(line, out.width, break_long_words=False, break_on_hyphens=False)
        for line in (shown(line, ENDLESS) for line in text.split("\n"))
    )
    out.print(Text(wrapped, style), soft_wrap=True)
