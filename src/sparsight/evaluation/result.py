"""What `evaluate` returns: accuracy of the unpruned model and of every recipe, with paired intervals, as a table and as JSON."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..errors import PruneError
from ..runs.comparison import UNPRUNED
from ..runs.intervals import Interval
from ..runs.stored import read_result

SPANS = ("top1", "top1_change", "top5", "top5_change", "agreement")


@dataclass(frozen=True)
class Score:
    """One recipe. Accuracies and agreement (same first class as unpruned) are fractions; changes are against the unpruned model.

    tokens: mean number of visual tokens after each site; labelled: images that have a label; macs: multiply-accumulates per image.
    """

    recipe: str
    definition: dict[str, Any] | None
    tokens: list[float]
    images: int
    labelled: int
    top1: Interval | None
    top1_change: Interval | None
    top5: Interval | None
    top5_change: Interval | None
    agreement: Interval | None
    macs: int

    def __str__(self) -> str:
        return "  ".join(filter(None, (self.recipe, *self.cells()[1:])))

    def cells(self) -> list[str]:
        """The score as a line of the table."""
        top1, top5, agreement = (f"{100 * part.value:.2f}" if part else "-" for part in (self.top1, self.top5, self.agreement))
        move = str(self.top1_change) if self.top1_change else ""
        tokens = " > ".join(f"{count:.0f}" for count in self.tokens[-3:])
        return [self.recipe, top1, move, top5, agreement, tokens, f"{self.macs / 1e9:.2f}"]

    @staticmethod
    def from_dict(data: dict[str, Any]) -> Score:
        """Read what `asdict` made."""
        return Score(**{**data, **{name: Interval(**data[name]) if data[name] else None for name in SPANS}})


HEADS = ["recipe", "top-1 %", "change", "top-5 %", "agree %", "tokens", "GMACs"]


@dataclass(frozen=True)
class Evaluation:
    """Scores of one model on one data set; the first one is the unpruned model.

    skipped: (name, reason) of images that could not be read, all of them; notes: what the reader of the numbers should know.
    """

    model: str
    mode: str
    data: str
    data_fingerprint: str
    preset: str | None
    images: int
    classes: int
    image_size: tuple[int, int]
    device: str
    processes: int
    precision: str
    batch_size: int
    seed: int
    date: str
    versions: dict[str, str]
    interval_method: str
    notes: list[str]
    skipped: list[tuple[str, str]]
    scores: list[Score]

    def score(self, recipe: str = UNPRUNED) -> Score:
        """The score of a recipe, by its string."""
        for score in self.scores:
            if score.recipe == recipe:
                return score
        raise PruneError(f"no recipe {recipe!r}; there are {', '.join(score.recipe for score in self.scores)}")

    def __str__(self) -> str:
        title = f"{self.model} on {self.data}: {self.images} images, {self.mode}, {self.device}, {self.precision}"
        lines = [title, "", *columns([HEADS, *(score.cells() for score in self.scores)])]
        lines += [f"note: {note}" for note in self.notes]
        lines += [f"skipped {name}: {reason}" for name, reason in self.skipped[:SHOWN]]
        if self.skipped:
            rest = f"; {len(self.skipped) - SHOWN} more in results.json" if len(self.skipped) > SHOWN else ""
            lines.append(f"{len(self.skipped)} images could not be read and were skipped{rest}")
        return "\n".join(lines)

    def to_json(self) -> str:
        """All of it as JSON text; `from_json` is the inverse."""
        return json.dumps(asdict(self), indent=1) + "\n"

    @staticmethod
    def from_json(text: str) -> Evaluation:
        """Read what `to_json` wrote."""
        data = json.loads(text)
        scores = [Score.from_dict(score) for score in data.pop("scores")]
        size, skipped = tuple(data.pop("image_size")), [tuple(pair) for pair in data.pop("skipped")]
        return Evaluation(**data, image_size=size, skipped=skipped, scores=scores)

    @staticmethod
    def load(path: str | Path) -> Evaluation:
        """Read results.json, or the folder that holds it."""
        return read_result(path, Evaluation.from_json, "evaluate")


SHOWN = 10
"""Skipped images that are printed; results.json has them all."""


def columns(rows: list[list[str]]) -> list[str]:
    """Rows of text in columns, the first one to the left, the others to the right."""
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    return [
        "  ".join(cell.ljust(width) if place == 0 else cell.rjust(width) for place, (cell, width) in enumerate(zip(row, widths)))
        for row in rows
    ]
