"""What `compare` returns for a vision-language model: one row per method and budget, counts picture by picture, as JSON and CSV."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..errors import PruneError
from .intervals import Interval, Spread
from .store import UNPRUNED, read_result
from .vlm_counts import MEASURES, METHOD, Tally, apart, difference, score

SPLITS = {"simple": "simple pictures", "complex": "complex pictures", "": "all pictures"}
"""Sets of pictures and their titles; the last one where the questions do not say which are which."""


@dataclass(frozen=True)
class Cost:
    """Of one prompt: multiply-accumulates of the vision encoder, of choosing tokens, of reading the prompt; bytes and lengths of the
    cache after it; seconds until it is read (choosing included), and how many times faster than unpruned, both as medians with quartiles."""

    vision: int
    selection: int
    prefill: int
    cache: int
    lengths: list[int]
    seconds: Spread
    speedup: Spread
    encoding: Spread

    @property
    def macs(self) -> int:
        """All of them."""
        return self.vision + self.selection + self.prefill

    @staticmethod
    def from_dict(data: dict[str, Any]) -> Cost:
        """Read what `asdict` made."""
        return Cost(**{**data, **{name: Spread(**data[name]) for name in ("seconds", "speedup", "encoding")}})

    def __str__(self) -> str:
        return (
            f"{self.macs / 1e9:.2f} GMACs, KV cache {self.cache / 1e3:.0f} kB, prefill {1e3 * self.seconds.median:.1f} ms "
            f"({self.speedup.median:.2f} times as fast)"
        )


@dataclass(frozen=True)
class VlmRow:
    """One method at one budget.

    recipe: its string, that of the first seed; seeds: the strings of all. label, budget: method and budget in words. kept: mean visual tokens left of a picture, None if
    all. counts: one Tally per seed. lost: questions without an answer, because logits were not finite.
    """

    recipe: str
    label: str
    budget: str
    definition: dict[str, Any] | None
    seeds: list[str]
    kept: float | None
    cost: Cost
    lost: int = 0
    counts: list[Tally] = field(default_factory=list, repr=False)

    def to_dict(self) -> dict[str, Any]:
        """The row as plain data; `from_dict` is the inverse."""
        return asdict(self)

    @staticmethod
    def from_dict(data: dict[str, Any]) -> VlmRow:
        """Read what `to_dict` made."""
        return VlmRow(**{**data, "cost": Cost.from_dict(data["cost"]), "counts": [Tally.from_dict(one) for one in data["counts"]]})

    def __str__(self) -> str:
        found = score(self.counts, "accuracy")
        right = "" if found is None else f"{100 * found:.1f}% right, "
        return f"{self.recipe}: {right}{self.tokens} visual tokens, {self.cost}"

    @property
    def group(self) -> str:
        """Rows of one group keep as many tokens in the end: the budget, of several stages that of the last one."""
        word, _, amount = self.budget.partition("=")
        return f"{word} {amount.rpartition('/')[2]}" if amount else ""

    @property
    def tokens(self) -> str:
        """Visual tokens left of a picture, in words."""
        return "all" if self.kept is None else f"{self.kept:.0f}"


@dataclass(frozen=True)
class VlmComparison:
    """Rows of one model on one set of questions; the first row is the unpruned model.

    pictures: names of the pictures, and scenes: simple, complex or nothing for each; capacity: visual tokens of a picture unpruned.
    skipped: (question, reason) of pictures that cannot be read.
    """

    model: str
    data: str
    data_fingerprint: str
    questions: int
    capacity: int
    device: str
    threads: int
    precision: str
    batch_size: int
    rounds: int
    date: str
    versions: dict[str, str]
    notes: list[str]
    skipped: list[tuple[str, str]]
    pictures: list[str] = field(repr=False)
    scenes: list[str] = field(repr=False)
    rows: list[VlmRow] = field(repr=False)
    interval_method: str = METHOD

    @property
    def splits(self) -> list[str]:
        """The sets of pictures that there are: simple and complex, or all."""
        found = [split for split in SPLITS if split and split in self.scenes]
        return found or [""]

    @property
    def measures(self) -> list[str]:
        """Names of the scores that were measured."""
        return self.rows[0].counts[0].measures

    def size(self, split: str) -> int:
        """Pictures of a split."""
        return sum(self.chosen(split))

    def chosen(self, split: str) -> list[bool]:
        """Which pictures belong to a split."""
        return [split in ("", scene) for scene in self.scenes]

    def row(self, recipe: str = UNPRUNED) -> VlmRow:
        """The row of a recipe, by its string."""
        for row in self.rows:
            if row.recipe == recipe:
                return row
        raise PruneError(f"no row {recipe!r}; there are {', '.join(row.recipe for row in self.rows)}")

    def value(self, row: VlmRow, measure: str, split: str = "") -> float | None:
        """A score, as a fraction (length: words); None where nothing was asked."""
        return score(row.counts, measure, self.chosen(split))

    def change(self, row: VlmRow, measure: str, split: str = "") -> Interval | None:
        """Its paired difference to the unpruned model."""
        return None if row.recipe == UNPRUNED else difference(row.counts, self.rows[0].counts, measure, self.chosen(split))

    def difference(self, recipes: Sequence[str], others: Sequence[str], measure: str, split: str = "") -> Interval | None:
        """Paired difference of a score between two groups of recipes, each pooled."""
        after, before = ([tally for name in group for tally in self.row(name).counts] for group in (recipes, others))
        return difference(after, before, measure, self.chosen(split))

    def moved(self, measure: str, span: Interval | None) -> int:
        """What a change of a score says beyond chance: 1 better than unpruned, -1 worse, 0 neither."""
        known = MEASURES.get(measure)
        if span is None or not apart(span) or (known is not None and not known.better):
            return 0
        return (1 if span.value > 0 else -1) * (-1 if known is not None and known.better == "down" else 1)

    def __str__(self) -> str:
        return (
            f"{self.model} on {self.data}: {self.questions} questions about {len(self.pictures)} pictures, {len(self.rows) - 1} recipes, "
            f"{self.device}, {self.precision}"
        )

    def to_json(self) -> str:
        """All of it as JSON text, with the scores for readers of the file; `from_json` is the inverse."""
        data = asdict(self)
        for entry, row in zip(data["rows"], self.rows, strict=True):
            entry["scores"] = {split or "all": self.scores_of(row, split) for split in self.splits}
        return json.dumps(data, indent=1) + "\n"

    def scores_of(self, row: VlmRow, split: str) -> dict[str, Any]:
        """All scores of a row on a split with their changes."""
        found: dict[str, Any] = {}
        for name in self.measures:
            value, span = self.value(row, name, split), self.change(row, name, split)
            if value is not None:
                found[name] = {
                    "value": value,
                    **({} if span is None else {"change": span.value, "low": span.low, "high": span.high}),
                }
        return found

    @staticmethod
    def from_json(text: str) -> VlmComparison:
        """Read what `to_json` wrote."""
        data = json.loads(text)
        rows = [VlmRow.from_dict({name: value for name, value in row.items() if name != "scores"}) for row in data.pop("rows")]
        return VlmComparison(**{**data, "skipped": [tuple(pair) for pair in data["skipped"]]}, rows=rows)

    @staticmethod
    def load(path: str | Path) -> VlmComparison:
        """Read results.json, or the folder that holds it."""
        return read_result(path, VlmComparison.from_json, "compare on a vision-language model")

    def to_csv(self) -> str:
        """One line per row and split."""
        text = io.StringIO()
        heads = [f"{name}{end}" for name in self.measures for end in ("", "_change", "_low", "_high")]
        costs = ["prefill_ms", "prefill_speedup", "cache_bytes", "macs", "vision_macs"]
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["recipe", "method", "budget", "seeds", "pictures", "of", "kept", *costs, *heads])
        for row in self.rows:
            cost = row.cost
            numbers = [1e3 * cost.seconds.median, cost.speedup.median, cost.cache, cost.macs, cost.vision]
            for split in self.splits:
                cells: list[Any] = []
                for name in self.measures:
                    span = self.change(row, name, split)
                    cells += [self.value(row, name, split), *((span.value, span.low, span.high) if span else ("", "", ""))]
                about = [row.recipe, row.label, row.budget, len(row.seeds), split or "all", self.size(split), row.kept]
                writer.writerow([*about, *numbers, *cells])
        return text.getvalue()
