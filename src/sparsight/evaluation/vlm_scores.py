"""What `evaluate_vlm` returns: scores of every recipe on every set, relative scores, as a table, JSON and CSV."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import asdict, dataclass, field
from typing import Any

from ..runs.intervals import Interval, read_intervals
from ..runs.store import UNPRUNED
from .vlm_sets import average, relative

RELATIVE = (
    "relative: mean over the sets of score / unpruned score, in percent (AgilePruner's Average and Rel.). average: mean of the scores in "
    "percent of the highest possible ones; relative_of_average: its ratio to the unpruned one's, in percent (Col-Ln's Average and Rel.)."
)
INTERVALS = "accuracy_change: paired difference of accuracy over the same questions to the unpruned model, with its 95% interval."


@dataclass(frozen=True)
class Score:
    """One set under one recipe.

    score     on the published scale.   full  the highest possible.   counts  whether it is part of the relative scores.
    metrics   further numbers.          questions  asked; `skipped` could not be.
    accuracy  share of right answers, None where single answers are not judged.   kept  mean visual tokens left of an image.
    """

    set: str
    title: str
    score: float
    full: float
    counts: bool
    metrics: dict[str, float]
    questions: int
    skipped: list[tuple[str, str]]
    accuracy: float | None
    accuracy_change: Interval | None
    kept: float | None
    answers: str
    hits: list[float | None] = field(repr=False)
    recipe: str = ""

    def __str__(self) -> str:
        return f"{self.recipe}, {self.set}: {self.score:.2f} ({self.questions} questions)"

    def to_dict(self) -> dict[str, Any]:
        """The score as plain data; `from_dict` is the inverse."""
        return asdict(self)

    @staticmethod
    def from_dict(data: dict[str, Any]) -> Score:
        """Read what `asdict` made."""
        return Score(**{**read_intervals(data, "accuracy_change"), "skipped": [tuple(pair) for pair in data["skipped"]]})


@dataclass(frozen=True)
class VlmRow:
    """One recipe on all sets."""

    recipe: str
    definition: dict[str, Any] | None
    scores: list[Score]
    relative: float | None
    average: float | None
    relative_of_average: float | None

    @staticmethod
    def make(recipe: str, definition: dict[str, Any] | None, scores: list[Score], reference: list[Score]) -> VlmRow:
        """The row with its relative scores."""
        mine, theirs = ([one for one in row if one.counts] for row in (scores, reference))
        full = [one.full for one in mine]
        own, whole = (average([one.score for one in row], full) for row in (mine, theirs))
        of_average = 100 * own / whole if own is not None and whole else None
        return VlmRow(
            recipe, definition, scores, relative([one.score for one in mine], [one.score for one in theirs]), own, of_average
        )

    @staticmethod
    def from_dict(data: dict[str, Any]) -> VlmRow:
        """Read what `asdict` made."""
        return VlmRow(**{**data, "scores": [Score.from_dict(one) for one in data["scores"]]})

    def __str__(self) -> str:
        found = ", ".join(f"{one.title} {one.score:.2f}" for one in self.scores)
        return f"{self.recipe}: {found}" + (f"; relative {self.relative:.2f}%" if self.relative is not None else "")


@dataclass(frozen=True)
class VlmEvaluation:
    """Rows of one model; the first is the unpruned model. `rules` says how relative scores and intervals are made."""

    model: str
    device: str
    precision: str
    batch_size: int
    limit: int | None
    prompt: str | None
    square: bool
    date: str
    versions: dict[str, str]
    notes: list[str]
    rows: list[VlmRow] = field(repr=False)
    rules: tuple[str, ...] = (RELATIVE, INTERVALS)

    def __str__(self) -> str:
        sets = ", ".join(one.set for one in self.rows[0].scores)
        return f"{self.model} on {sets}: {len(self.rows) - 1} recipes, {self.device}, {self.precision}"

    @property
    def skipped(self) -> list[tuple[str, str]]:
        """Questions that could not be asked or answered, each once, with the reason."""
        several = len(self.rows[0].scores) > 1
        found = (
            (f"{one.title} {key}" if several else key, why) for row in self.rows for one in row.scores for key, why in one.skipped
        )
        return list(dict.fromkeys(found))

    def row(self, recipe: str = UNPRUNED) -> VlmRow:
        """The row of a recipe, by its string."""
        return next(row for row in self.rows if row.recipe == recipe)

    def to_json(self) -> str:
        """All of it as JSON text; `from_json` is the inverse."""
        return json.dumps(asdict(self), indent=1) + "\n"

    @staticmethod
    def from_json(text: str) -> VlmEvaluation:
        """Read what `to_json` wrote."""
        data = json.loads(text)
        return VlmEvaluation(**{**data, "rules": tuple(data["rules"]), "rows": [VlmRow.from_dict(row) for row in data["rows"]]})

    def to_csv(self) -> str:
        """One line per recipe and set."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(
            ["recipe", "set", "score", "of_unpruned", "questions", "accuracy", "accuracy_change", "low", "high", "kept", "relative"]
        )
        for row in self.rows:
            for one, whole in zip(row.scores, self.rows[0].scores, strict=True):
                change = one.accuracy_change
                span = ["", "", ""] if change is None else [change.value, change.low, change.high]
                share = one.score / whole.score if whole.score else ""
                writer.writerow([row.recipe, one.set, one.score, share, one.questions, one.accuracy, *span, one.kept, row.relative])
        return text.getvalue()

    def table(self) -> list[list[str]]:
        """Head and one line per recipe: scores, mean visual tokens, relative scores."""
        head = ["recipe", *(one.title for one in self.rows[0].scores), "tokens", "relative %", "of average %"]
        lines = [head]
        for row in self.rows:
            kept = [one.kept for one in row.scores if one.kept is not None]
            tokens = f"{sum(kept) / len(kept):.1f}" if kept else "all"
            ends = ["-" if value is None else f"{value:.2f}" for value in (row.relative, row.relative_of_average)]
            lines.append([row.recipe, *(f"{one.score:.2f}" for one in row.scores), tokens, *ends])
        return lines

    def changes(self) -> list[str]:
        """Accuracy against the unpruned model in words, one line per recipe and set."""
        return [
            f"{row.recipe}, {one.title}: accuracy {100 * one.accuracy:.1f}%, {one.accuracy_change} points against unpruned"
            for row in self.rows
            for one in row.scores
            if one.accuracy is not None and one.accuracy_change is not None
        ]
