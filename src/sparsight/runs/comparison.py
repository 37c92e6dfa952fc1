"""What `compare` returns: one row per recipe, with per-image outcomes, as a table, JSON and CSV."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..data.demo_sets import photos_of
from ..errors import PruneError
from ..ops.schedule import show
from ..recipe import Recipe
from .intervals import Interval, Spread, paired, paired_means, read_intervals, share
from .store import UNPRUNED as UNPRUNED
from .store import read_result


@dataclass(frozen=True)
class Outcomes:
    """What happened to each image, in the order of `Comparison.images`; None where there is no classifier or no label.

    predicted: class with the highest logit; top1, top5, agree: 1 or 0; cosine of the pooled features with the unpruned ones.
    """

    predicted: list[int] | None = None
    top1: list[int] | None = None
    top5: list[int] | None = None
    agree: list[int] | None = None
    cosine: list[float] = field(default_factory=list)

    def __str__(self) -> str:
        return f"outcomes of {len(self.cosine)} images"


@dataclass(frozen=True)
class Row:
    """One recipe: accuracy, agreement and cosine as fractions; changes are against the unpruned model.

    not_finite: names of images whose answer is NaN or infinite; it counts as wrong, and its cosine as 0. beside: groups of other rows that
    a baseline was matched to (`evaluation.beside`).
    """

    recipe: str
    label: str
    budget: str
    layers: str
    definition: dict[str, Any] | None
    tokens: list[int]
    images: int
    top1: float | None
    top1_change: Interval | None
    top5: float | None
    top5_change: Interval | None
    agreement: Interval | None
    cosine: float
    macs: int
    images_per_second: float
    speedup: Spread
    peak_memory: int
    outcomes: Outcomes = field(repr=False)
    not_finite: list[str] = field(default_factory=list, repr=False)
    beside: list[tuple[str, str]] = field(default_factory=list, repr=False)

    @property
    def groups(self) -> list[tuple[str, str]]:
        """Rows of one group have the same budget at the same blocks, so they can be ranked; a baseline stands beside the rows it was matched to."""
        return self.beside or [(self.budget, self.layers)]

    @property
    def gmacs(self) -> float:
        return self.macs / 1e9

    def __str__(self) -> str:
        quality = [f"top-1 {100 * self.top1:.1f}%"] if self.top1 is not None else []
        quality += [f"agreement {100 * self.agreement.value:.1f}%"] if self.agreement else []
        return f"{self.recipe}: {', '.join([*quality, f'cosine {self.cosine:.3f}', f'{self.gmacs:.2f} GMACs', f'speed-up {self.speedup}'])}"

    def to_dict(self) -> dict[str, Any]:
        """The row as plain data; `from_dict` is the inverse."""
        return asdict(self)

    @staticmethod
    def from_dict(data: dict[str, Any]) -> Row:
        """Read what `to_dict` made."""
        beside = [tuple(group) for group in data.get("beside", ())]
        parts = {"speedup": Spread(**data["speedup"]), "outcomes": Outcomes(**data["outcomes"]), "beside": beside}
        return Row(**{**read_intervals(data, "top1_change", "top5_change", "agreement"), **parts})


@dataclass(frozen=True)
class Comparison:
    """Rows of one model on one folder of images; the first row is the unpruned model.

    images: names of the images that were read, relative to the folder; skipped: (name, reason) of the others; notes: what the
    reader of the numbers should know.
    """

    model: str
    data: str
    data_fingerprint: str
    image_size: tuple[int, int]
    device: str
    threads: int
    precision: str
    batch_size: int
    timed_batch: int
    seed: int
    date: str
    versions: dict[str, str]
    interval_method: str
    memory_method: str
    notes: list[str]
    skipped: list[tuple[str, str]]
    images: list[str] = field(repr=False)
    rows: list[Row] = field(repr=False)

    @property
    def labelled(self) -> bool:
        return self.rows[0].top1 is not None

    @property
    def groups(self) -> dict[tuple[str, str], list[Row]]:
        """Rows by budget and blocks, all but the unpruned one; baselines come last, in every group that they were matched to."""
        found: dict[tuple[str, str], list[Row]] = {}
        for row in sorted(self.rows[1:], key=lambda row: row.label if row.beside else ""):
            for group in row.groups:
                found.setdefault(group, []).append(row)
        return found

    def row(self, recipe: str) -> Row:
        """The row of a recipe, by its string."""
        for row in self.rows:
            if row.recipe == recipe:
                return row
        raise PruneError(f"no row {recipe!r}; there are {', '.join(row.recipe for row in self.rows)}")

    def interval(self, recipe: str) -> Interval | None:
        """Top-1 of a row with its 95% interval, or its agreement where there are no labels; None where there is no classifier."""
        row = self.row(recipe)
        hits = row.outcomes.top1
        return row.agreement if hits is None else share(hits, self.photos(hits))

    def photos(self, outcomes: Sequence[float]) -> list[str] | None:
        """What each image was made of, where one photo makes several; None also where not every image has an outcome."""
        return photos_of(self.images) if len(outcomes) == len(self.images) else None

    def difference(self, recipe: str, other: str = UNPRUNED, outcome: str = "top1") -> Interval:
        """Paired difference recipe minus other of one outcome (top1, top5 or agree) with its 95% interval."""
        if outcome not in ("top1", "top5", "agree"):
            raise PruneError(f"outcome={outcome!r} is not known; choose top1, top5 or agree")
        after, before = (getattr(self.row(name).outcomes, outcome) for name in (recipe, other))
        if after is None or before is None:
            raise PruneError(f"{outcome} was not measured: {self.data} has no labels for {self.model}")
        return paired(after, before, self.photos(after))

    def best(self, measure: str) -> set[str]:
        """Recipes that are better than all others of the same budget and blocks, beyond chance: their interval lies above the others'.

        measure: top1, top5, agreement (95% intervals), speedup (quartiles) or cosine (95% interval of the paired difference).
        """
        winners, photos = set[str](), photos_of(self.images)
        for rows in self.groups.values():
            first = max(rows, key=lambda row: middle(row, measure))
            others = [row for row in rows if row is not first]
            if others and all(apart(first, row, measure, photos) for row in others):
                winners.add(first.recipe)
        return winners

    def __str__(self) -> str:
        images = f"{len(self.images)} images" + (f" ({len(self.skipped)} skipped)" if self.skipped else "")
        return f"{self.model} on {self.data}: {len(self.rows) - 1} recipes, {images}, {self.device}, {self.precision}"

    def to_json(self) -> str:
        """All of it as JSON text; `from_json` is the inverse."""
        return json.dumps(asdict(self), indent=1) + "\n"

    @staticmethod
    def from_json(text: str) -> Comparison:
        """Read what `to_json` wrote."""
        data = json.loads(text)
        rows = [Row.from_dict(row) for row in data.pop("rows")]
        size, skipped = tuple(data.pop("image_size")), [tuple(pair) for pair in data.pop("skipped")]
        return Comparison(**data, image_size=size, skipped=skipped, rows=rows)

    @staticmethod
    def load(path: str | Path) -> Comparison:
        """Read results.json, or the folder that holds it."""
        return read_result(path, Comparison.from_json, "compare")

    def to_csv(self) -> str:
        """One line per row, without the per-image outcomes."""
        text = io.StringIO()
        lines = [flat(row) for row in self.rows]
        writer = csv.DictWriter(text, list(lines[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)
        return text.getvalue()


def group_of(recipe: Recipe) -> tuple[str, str]:
    """Budget and layers of a recipe as text."""
    word, values = recipe.schedule.word, dict(recipe.params)
    return f"{word}={show(values[word])}" if word else "", show(values.get("layers", ""))


SPANS = {"top1": "top1_change", "top5": "top5_change", "agreement": "agreement", "speedup": "speedup"}
"""Measures and their intervals."""


def middle(row: Row, measure: str) -> float:
    """What rows are ranked by."""
    if measure == "speedup":
        return row.speedup.median
    value = getattr(row, measure)
    return (value.value if isinstance(value, Interval) else value) or 0.0


def apart(first: Row, other: Row, measure: str, photos: list[str] | None) -> bool:
    """Whether the first row is better beyond chance."""
    if measure == "cosine":
        return len(first.outcomes.cosine) > 1 and paired_means(first.outcomes.cosine, other.outcomes.cosine, photos).low > 0
    mine, theirs = (getattr(row, SPANS[measure]) for row in (first, other))
    return mine is not None and theirs is not None and bool(mine.low > theirs.high)


def flat(row: Row) -> dict[str, Any]:
    """The row as columns: fractions as they are, empty where nothing was measured."""
    columns: dict[str, Any] = {}
    for name, value in asdict(row).items():
        if name in ("outcomes", "definition", "beside"):
            continue
        if name == "not_finite":
            value = len(value)
        if name in ("top1_change", "top5_change", "agreement"):
            for part in ("value", "low", "high"):
                columns[name if part == "value" else f"{name}_{part}"] = value[part] if value else None
        elif name == "speedup":
            columns |= {name: value["median"], "speedup_low": value["low"], "speedup_high": value["high"], "runs": value["runs"]}
        else:
            columns[name] = "/".join(map(str, value)) if name == "tokens" else value
    return columns
