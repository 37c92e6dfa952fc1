"""What `sparsight reproduce` prints."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict

import typer

from sparsight.cli.table import Column, print_table, say

from .published import Entry, Measure, entries, entry
from .published_macs import Count, count
from .reproduce import Line, Reproduction

LISTING = (
    Column("id", name=True),
    Column("what", name=True),
    Column("where", 1, name=True),
    Column("measured by", 3, name=True),
    Column("rows", 2),
)


def listing(as_json: bool) -> None:
    """All tables and figures, one line each."""
    found = entries().values()
    if as_json:
        typer.echo(json.dumps([asdict(item) for item in found], indent=1, ensure_ascii=False))
        return
    rows = [(item.id, item.title, f"{item.paper.source}, {item.number}", item.command, str(len(item.rows))) for item in found]
    print_table("Published tables and figures", LISTING, rows, "docs/reference/reproduce.md")
    typer.echo("`sparsight reproduce ID` runs one or says what is missing; `--macs` counts the GFLOPs of all")


def counts(name: str | None, only: str | None, as_json: bool) -> None:
    """Published and counted GFLOPs, each row as soon as it is counted."""
    wanted = [entry(name)] if name else list(entries().values())
    if as_json:
        typer.echo(
            json.dumps([{**asdict(item), "verdict": item.verdict} for item in count(wanted, only)], indent=1, ensure_ascii=False)
        )
        return
    verdicts: dict[str, int] = {}
    for item in count(wanted, only):
        verdicts[item.verdict] = verdicts.get(item.verdict, 0) + 1
        typer.echo(count_line(item))
    if not verdicts:
        typer.echo(f"{name} has no GFLOPs")
    else:
        typer.echo(", ".join(f"{verdict}: {number}" for verdict, number in verdicts.items()))


def count_line(item: Count) -> str:
    decimals = next(measure.decimals for measure in entry(item.entry).measures if measure.key == "gmacs")
    counted = "      -" if item.counted is None else f"{item.counted:7.3f}"
    what = f"{item.row.model:17s} {item.row.recipe or item.row.label}"
    return f"{item.entry:20s} {what:75s} {item.published:6.{decimals}f} {counted}  {item.verdict}" + (
        f": {item.reason}" if item.reason else ""
    )


def result(done: Reproduction, as_json: bool) -> None:
    """The entry, its rows with published and measured numbers, and what is missing."""
    if as_json:
        typer.echo(done.to_json(), nl=False)
        return
    found, many = done.entry, len(done.entry.models) > 1
    rows = [
        [f"{item.row.model if many else ''} {item.row.label}".strip(), item.row.value or (item.row.recipe if item.row.method else ""),
         *cells(found, item)]
        for item in done.lines
    ]  # fmt: skip
    title = f"{found.title}\n{found.paper.title}, {found.paper.source}, {found.number}"
    measures = (Column(head, place) for place, head in enumerate(heads(found)))
    if rows:
        print_table(title, (Column("row", name=True), Column("recipe", name=True), *measures), rows, "docs/reference/reproduce.md")
    for text in [*notes(done), *remarks(done)]:
        say(text)


def reasons(found: Entry) -> list[str]:
    """Why numbers of the entry do not follow; a cell names its reason by its place here, from 1."""
    return list(dict.fromkeys(odd.reason for odd in found.oddities))


def notes(done: Reproduction) -> Iterator[str]:
    """The reasons that cells of the shown rows name."""
    shown = {done.entry.oddity(line.row, measure.key) for line in done.lines for measure in done.entry.measures}
    yield from (f"[{number}] known to differ: {reason}" for number, reason in enumerate(reasons(done.entry), 1) if reason in shown)


def heads(found: Entry) -> tuple[str, ...]:
    return tuple(measure.title for measure in found.measures)


def cells(found: Entry, item: Line) -> list[str]:
    """Published, then measured and the difference where there is something."""
    return [cell(found, measure, item) for measure in found.measures]


def cell(found: Entry, measure: Measure, item: Line) -> str:
    lost = "lost" if measure.key in item.row.lost else "-"
    text = f"{item.row.numbers[measure.key]:.{measure.decimals}f}" if measure.key in item.row.numbers else lost
    if measure.key in item.measured:
        text += f" / {item.measured[measure.key]:.{measure.decimals}f}"
        difference = item.difference(measure.key)
        text += "" if difference is None else f" ({difference:+.{measure.decimals}f})"
    reason = found.oddity(item.row, measure.key) if measure.key in item.row.numbers else ""
    return f"{text} [{reasons(found).index(reason) + 1}]" if reason else text


def remarks(done: Reproduction) -> Iterator[str]:
    """Everything that a reader of the numbers has to know."""
    if done.measured and any(line.measured for line in done.lines):
        yield "cells: published / measured (difference)"
    found = done.entry
    for head, items in (
        ("setting", [found.setting]), ("shows", [found.shows]), ("not stated in the paper", found.not_stated), ("note", found.notes),
        ("not run", [f"{line.row}: {line.note}" for line in done.lines if line.note and not line.row.pending]),
        ("differs from the paper", done.differs), ("missing", done.missing), ("wrote", done.files),
    ):  # fmt: skip
        yield from (f"{head}: {text}" for text in dict.fromkeys(items) if text)
