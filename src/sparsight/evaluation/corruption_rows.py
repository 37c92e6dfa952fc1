"""What `robustness` returns: one row per corruption, severity and recipe, as a table, as JSON and as a picture."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any

from ..pages.plots import COLOURS
from ..pages.robustness_page import MEASURES
from ..runs.intervals import Interval, read_intervals
from ..runs.store import read_result
from .result import SHOWN, columns


@dataclass(frozen=True)
class CorruptionRow:
    """One corruption at one severity under one recipe; the clean images have severity 0.

    top1_change: against the same recipe on the clean images; rank: mean effective rank; rank_change: mean absolute difference per
    image to the clean one; rank_relative: the mean of these over the clean rank; kept: share of the clean image's kept patches that
    are kept again.
    """

    corruption: str
    severity: int
    recipe: str
    images: int
    top1: Interval | None
    top1_change: Interval | None
    rank: float
    rank_change: float
    rank_relative: float
    kept: float | None

    def __str__(self) -> str:
        return "  ".join(filter(None, self.cells()))

    def cells(self) -> list[str]:
        """The row as text."""
        top1 = f"{100 * self.top1.value:.1f}" if self.top1 else "-"
        change = (f"{self.rank_change:.2f}", f"{100 * self.rank_relative:.2f}") if self.severity else ("", "")
        kept = f"{100 * self.kept:.1f}" if self.kept is not None and self.severity else ""
        move = str(self.top1_change) if self.top1_change else ""
        return [self.corruption, str(self.severity or ""), self.recipe, top1, move, f"{self.rank:.2f}", *change, kept]

    @staticmethod
    def from_dict(data: dict[str, Any]) -> CorruptionRow:
        """Read what `asdict` made."""
        return CorruptionRow(**read_intervals(data, "top1", "top1_change"))


HEADS = ["corruption", "severity", "recipe", "top-1 %", "change", "rank", "rank diff.", "rel. %", "kept again %"]


@dataclass(frozen=True)
class Robustness:
    """Rows of one model on one data set, the clean images first."""

    model: str
    data: str
    images: int
    device: str
    precision: str
    seed: int
    date: str
    versions: dict[str, str]
    interval_method: str
    notes: list[str]
    skipped: list[tuple[str, str]]
    rows: list[CorruptionRow]

    @property
    def recipes(self) -> list[str]:
        return list(dict.fromkeys(row.recipe for row in self.rows))

    @property
    def severities(self) -> list[int]:
        return sorted({row.severity for row in self.rows if row.severity})

    def averages(self) -> list[list[str]]:
        """Mean over the corruptions, per severity and recipe, as lines of the table."""
        lines = []
        for severity in self.severities:
            for recipe in self.recipes:
                rows = [row for row in self.rows if row.severity == severity and row.recipe == recipe]
                top1, kept = [row.top1.value for row in rows if row.top1], [row.kept for row in rows if row.kept is not None]
                line = ["average", str(severity), recipe, f"{100 * fmean(top1):.1f}" if top1 else "-", ""]
                line += [f"{fmean(row.rank for row in rows):.2f}", f"{fmean(row.rank_change for row in rows):.2f}"]
                lines.append(
                    [*line, f"{100 * fmean(row.rank_relative for row in rows):.2f}", f"{100 * fmean(kept):.1f}" if kept else ""]
                )
        return lines

    def __str__(self) -> str:
        title = f"{self.model} on {self.data}: {self.images} images, {self.device}, {self.precision}"
        lines = [title, "", *columns([HEADS, *(row.cells() for row in self.rows), *self.averages()])]
        lines += [f"note: {note}" for note in self.notes]
        return "\n".join(lines + [f"skipped {name}: {why}" for name, why in self.skipped[:SHOWN]])

    def to_json(self) -> str:
        """All of it as JSON text; `from_json` is the inverse."""
        return json.dumps(asdict(self), indent=1) + "\n"

    @staticmethod
    def from_json(text: str) -> Robustness:
        """Read what `to_json` wrote."""
        data = json.loads(text)
        rows, skipped = [CorruptionRow.from_dict(row) for row in data.pop("rows")], [tuple(pair) for pair in data.pop("skipped")]
        return Robustness(**data, skipped=skipped, rows=rows)

    @staticmethod
    def load(path: str | Path) -> Robustness:
        """Read results.json, or the folder that holds it."""
        return read_result(path, Robustness.from_json, "robustness")


def draw(done: Robustness, path: Path) -> None:
    """A PNG: accuracy, change of effective rank and share of patches kept again, corruption by corruption; the clean accuracy dashed."""
    figure_of(done).savefig(path, dpi=110, format="png")


def figure_of(done: Robustness) -> Any:
    """The figure as matplotlib has it: a column for each severity, a row for each measure; bars stand around their ticks."""
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(row.corruption for row in done.rows if row.severity))
    size = (max(6.0, 0.75 * len(names)) * len(done.severities), 2.4 * len(MEASURES) + 1.2 + 0.2 * len(done.recipes))
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(len(MEASURES), len(done.severities), sharex=True, sharey="row", squeeze=False)
    for (line, measure), (column, severity) in product(enumerate(MEASURES), enumerate(done.severities)):
        draw_bars(panels[line][column], done, severity, measure, names)
    for column, severity in enumerate(done.severities):
        panels[0][column].set_title(f"severity {severity}")
        panels[-1][column].set_xticks(range(len(names)), names, rotation=60, ha="right", rotation_mode="anchor")
    for line, title in enumerate(MEASURES.values()):
        panels[line][0].set_ylabel(title)
    figure.legend(*panels[0][0].get_legend_handles_labels(), loc="outside upper left", fontsize=8, frameon=False)
    return figure


def draw_bars(panel: Any, done: Robustness, severity: int, measure: str, names: list[str]) -> None:
    """The bars of one panel: those of a corruption side by side, their middle at its place. Recipes without the measure take no room."""
    rows = {(row.recipe, row.corruption): value_of(row, measure) for row in done.rows if row.severity == severity}
    there = [recipe for recipe in done.recipes if any(rows.get((recipe, name)) is not None for name in names)]
    width = 0.8 / max(1, len(there))
    for index, recipe in enumerate(there):
        colour = COLOURS[done.recipes.index(recipe) % (len(COLOURS) - 1)]
        bars = [(spot, 100 * value) for spot, name in enumerate(names) if (value := rows.get((recipe, name))) is not None]
        places = [spot + width * (index - (len(there) - 1) / 2) for spot, _ in bars]
        panel.bar(places, [value for _, value in bars], width, color=colour, label=recipe)
        clean = next((row.top1 for row in done.rows if not row.severity and row.recipe == recipe), None)
        if measure == "top1" and clean:
            panel.axhline(100 * clean.value, color=colour, linewidth=0.8, linestyle="--")
    panel.spines[["top", "right"]].set_visible(False)


def value_of(row: CorruptionRow, measure: str) -> float | None:
    """A number of the row; None where it was not measured."""
    value = getattr(row, measure)
    return value.value if isinstance(value, Interval) else value
