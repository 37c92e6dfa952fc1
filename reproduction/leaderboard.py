"""One page of all measured results: every method on the demo ViT and the demo vision-language model, published numbers beside them."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sparsight.errors import PruneError
from sparsight.ops.schedule import as_tuple
from sparsight.pages.page import render
from sparsight.registry import parse
from sparsight.runs.intervals import Interval

from .published import UNPRUNED, Entry, Row, entries

ROOT = Path(__file__).parent.parent
VISION = (ROOT / "benchmarks" / "results" / "caltech101_demo.csv", ROOT / "benchmarks" / "results" / "caltech101_demo_more.csv")
LANGUAGE = ROOT / "docs" / "results-vlm.md"
CAPACITY = {"LLaVA-1.5-7B": 576, "LLaVA-1.5-13B": 576}
"""Image tokens of the models whose published numbers stand beside the demo model's."""
NEAR = 1.5
"""A published number stands beside a measured one if its share of work, or of tokens, is within this factor."""


@dataclass(frozen=True)
class Published:
    """A number of a paper. share: of the unpruned model's GFLOPs or image tokens, if the paper says it; change: to unpruned, in points."""

    method: str
    entry: Entry
    row: Row
    measure: str
    value: float
    unpruned: float | None
    share: float | None

    @property
    def where(self) -> str:
        """Model and table, and the recipe's budget."""
        after = ", after fine-tuning" if self.tuned else ""
        return f"{self.row.model}, {self.entry.paper.key} {self.entry.number}{after}"

    @property
    def tuned(self) -> bool:
        """Whether the weights were fine-tuned under the recipe."""
        return self.entry.command == "train"

    @property
    def change(self) -> float | None:
        return None if self.unpruned is None else self.value - self.unpruned


@dataclass(frozen=True)
class Measured:
    """A recipe on the demo ViT: fractions, work as a share of the unpruned model's, and the published number next to it."""

    recipe: str
    top1: float
    change: Interval | None
    gmacs: float
    share: float
    beside: Published | None


@dataclass(frozen=True)
class Sheet:
    """A table of the page on the vision-language model: heads, rows of text, and the published number of each row."""

    title: str
    heads: list[str]
    rows: list[tuple[list[str], Published | None]]


@dataclass(frozen=True)
class Leaderboard:
    """The page's content."""

    unpruned: Measured
    groups: list[tuple[str, list[Measured]]]
    sheets: list[Sheet]
    published: list[Published]
    images: int
    notes: list[str] = field(default_factory=list)


def page() -> str:
    """The page as HTML. Raises PruneError where the measured results are not at hand."""
    known = published(entries().values())
    unpruned, groups, images = vision(known)
    done = Leaderboard(unpruned, groups, sheets(known), known, images)
    methods = {row.recipe.partition(":")[0] for _, rows in groups for row in rows}
    facts = (f"{len(methods)} methods on the demo ViT", f"{images} test photos of Caltech-101", f"{len(known)} published numbers")
    return render("leaderboard.html", done=done, title="Sparsight: measured and published", facts=facts)


def published(found: Iterable[Entry]) -> list[Published]:
    """Top-1 and relative scores of all methods in all papers."""
    made: list[Published] = []
    for entry in found:
        whole = {row.model: row for row in entry.rows if row.recipe == UNPRUNED}
        for row in entry.rows:
            key = next((key for key in ("top1", "relative") if key in row.numbers), None)
            if key is None or not row.method:
                continue
            base = whole.get(row.model)
            start = base.numbers.get(key, 100.0 if key == "relative" else None) if base else 100.0 if key == "relative" else None
            made.append(Published(row.method, entry, row, key, row.numbers[key], start, share_of(row, base)))
    return made


def share_of(row: Row, base: Row | None) -> float | None:
    """Share of the work, or of the image tokens, that a row leaves."""
    if base is not None and "gmacs" in row.numbers and base.numbers.get("gmacs"):
        return row.numbers["gmacs"] / base.numbers["gmacs"]
    if row.model in CAPACITY and not row.pending:
        tokens = max(as_tuple(parse(row.recipe).schedule.tokens), default=0)
        return tokens / CAPACITY[row.model] if tokens else None
    return None


def nearest(method: str, share: float, known: Sequence[Published], measure: str) -> Published | None:
    """The published number of a method at the nearest share, one without fine-tuning first; None if none is near."""
    near = [
        (one.tuned, abs(one.share - share), number, one)
        for number, one in enumerate(known)
        if (one.method, one.measure) == (method, measure)
        and one.change is not None
        and one.share
        and 1 / NEAR <= one.share / share <= NEAR
    ]
    return min(near)[-1] if near else None


def vision(known: Sequence[Published]) -> tuple[Measured, list[tuple[str, list[Measured]]], int]:
    """Rows of the demo ViT: the unpruned one, then groups of one budget at the same blocks, best first; number of images."""
    lines: dict[str, dict[str, str]] = {}
    for file in VISION:
        try:
            with file.open(encoding="utf-8", newline="") as text:
                lines |= {line["recipe"]: line for line in csv.DictReader(text) if line["recipe"] not in lines}
        except OSError as error:
            raise PruneError(f"the measured results {file} are not there ({error.strerror}); run this in a checkout") from None
    whole = lines.pop(UNPRUNED)
    work = float(whole["macs"])

    def measured(line: dict[str, str]) -> Measured:
        name, share = line["recipe"], float(line["macs"]) / work
        move = Interval(*(float(line[f"top1_change{part}"]) for part in ("", "_low", "_high"))) if line["top1_change"] else None
        beside = nearest(name.partition(":")[0], share, known, "top1")
        return Measured(name, float(line["top1"]), move, float(line["macs"]) / 1e9, share, beside)

    groups: dict[str, list[Measured]] = {}
    for line in lines.values():
        title = (
            ", ".join(part for part in (line["budget"], f"blocks {line['layers']}" if line["layers"] else "") if part) or "others"
        )
        groups.setdefault(title, []).append(measured(line))
    ranked = [(title, sorted(rows, key=lambda row: -row.top1)) for title, rows in groups.items()]
    large = [(title, rows) for title, rows in ranked if len(rows) > 1]
    rest = [row for _, rows in ranked if len(rows) == 1 for row in rows]
    return measured(whole), [*large, *([("budgets of their own", rest)] if rest else [])], int(whole["images"])


def sheets(known: Sequence[Published]) -> list[Sheet]:
    """The tables of the page on the demo vision-language model."""
    try:
        text = LANGUAGE.read_text(encoding="utf-8")
    except OSError as error:
        raise PruneError(f"the measured results {LANGUAGE} are not there ({error.strerror}); run this in a checkout") from None
    capacity = re.search(r"(\d+) visual tokens a picture", text)
    found: list[Sheet] = []
    for title, table in re.findall(r"^(?:#+ |\*\*)([^\n*]+?)(?:\*\*)?\n+((?:\|[^\n]*\n)+)", text, re.MULTILINE):
        lines = [[cell.strip().strip("*`") for cell in line.strip("|").split("|")] for line in table.splitlines()]
        heads, rows = lines[0], lines[2:]
        budget = re.match(r"(\d+) tokens", title)
        share = int(budget[1]) / int(capacity[1]) if budget and capacity else None
        made = []
        for cells in rows:
            method = re.split("[: ]", cells[0])[0]
            made.append((cells, None if share is None else nearest(method, share, known, "relative")))
        found.append(Sheet(title, heads, made))
    return found
