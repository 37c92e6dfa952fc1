"""What `tune` returns: the recipes that no other one beats, measured on images that the search has not seen, and the one to take."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..errors import PruneError
from ..recipe import Recipe
from ..runs.intervals import Interval, read_intervals
from ..runs.store import UNPRUNED, read_result, write_text
from .search import Found, recipes_of

RECIPE, EVIDENCE, RESULTS = "recipe.json", "evidence.json", "results.json"


@dataclass(frozen=True)
class TunedRow:
    """A stack of recipes. search: quality on the images that were searched, and its change against the unpruned model; report: on the
    others, with 95% intervals. Qualities are fractions; trial: None for recipes that were given, not found."""

    recipes: list[str]
    definitions: list[dict[str, Any]]
    trial: int | None
    cost: float
    speedup: float
    tokens: list[float]
    search: float | None
    search_change: float | None
    report: Interval
    report_change: Interval | None
    chosen: bool = False

    @property
    def name(self) -> str:
        return " + ".join(self.recipes) or UNPRUNED

    def __str__(self) -> str:
        move = f", {self.report_change} points" if self.report_change else ""
        return f"{self.name}: {100 * self.report.value:.1f}%{move}, speed-up {self.speedup:.2f}"

    @staticmethod
    def from_dict(data: dict[str, Any]) -> TunedRow:
        """Read what `asdict` made."""
        return TunedRow(**read_intervals(data, "report", "report_change"))


@dataclass(frozen=True)
class Contest:
    """A recipe that was given against the best found one that costs no more: difference found minus given on the report images, paired;
    None where none costs so little."""

    given: str
    found: str | None
    difference: Interval | None

    def __str__(self) -> str:
        if self.difference is None:
            return f"{self.given}: nothing that was found costs as little"
        verdict = "better" if self.difference.low > 0 else "worse" if self.difference.high < 0 else "not to be told apart"
        return f"{self.found} against {self.given}: {self.difference} points, {verdict}"

    @staticmethod
    def from_dict(data: dict[str, Any]) -> Contest:
        """Read what `asdict` made."""
        return Contest(**read_intervals(data, "difference"))


@dataclass(frozen=True)
class Tuning:
    """A finished search. rows: the unpruned model, then the front from cheap to dear; given: recipes of one's own, measured alike.

    target: in words; met: whether a recipe meets it on the images that were searched. data, images, fingerprints: of the searched part
    ("search") and of the other ("report"). trials: all that are finished. space: what was searched.
    """

    model: str
    data: dict[str, str]
    images: dict[str, int]
    fingerprints: dict[str, str]
    metric: str
    engine: str
    unit: str
    target: str
    met: bool
    space: str
    device: str
    precision: str
    batch_size: int
    seed: int
    date: str
    versions: dict[str, str]
    interval_method: str
    notes: list[str]
    skipped: list[tuple[str, str]]
    rows: list[TunedRow]
    given: list[TunedRow]
    contests: list[Contest]
    trials: list[Found] = field(repr=False)

    @property
    def chosen(self) -> TunedRow:
        """The recipe to take, or what comes nearest to the target."""
        return next(row for row in self.rows if row.chosen)

    @property
    def recipes(self) -> tuple[Recipe, ...]:
        """The chosen recipes, in the order in which `prune` takes them."""
        return recipes_of(self.chosen.definitions)

    @property
    def noun(self) -> str:
        """What quality is measured on."""
        return "images" if self.metric in ("accuracy", "agreement") else "items"

    @property
    def heading(self) -> str:
        """What quality is called in a table."""
        return {"accuracy": "top-1 %", "agreement": "agree %"}.get(self.metric, f"{self.metric} %")

    @property
    def verdict(self) -> str:
        """What was found, in a sentence."""
        found, loss = self.chosen, self.chosen.report_change
        move = f"{loss} points on {self.images['report']} {self.noun} that were not searched" if loss else ""
        ahead = "" if self.met else f"no recipe of {len(self.trials)} has {self.target}; the nearest is "
        return f"{ahead}{found.name}: speed-up {found.speedup:.2f} ({found.cost:.3g} {self.unit}), {move}"

    def __str__(self) -> str:
        ended = sum(bool(one.stopped) for one in self.trials)
        return (
            f"{self.model} on {self.data['search']}: {len(self.trials)} trials ({ended} stopped early), {len(self.rows) - 1} that no other "
            f"beats, {self.metric} by {self.engine}, {self.device}, {self.precision}"
        )

    def to_json(self) -> str:
        """All of it as JSON text; `from_json` is the inverse."""
        return json.dumps({**asdict(self), "trials": [one.to_dict() for one in self.trials]}, indent=1) + "\n"

    @staticmethod
    def from_json(text: str) -> Tuning:
        """Read what `to_json` wrote."""
        data = json.loads(text)
        return Tuning(
            **{
                **data,
                "skipped": [tuple(pair) for pair in data["skipped"]],
                "rows": [TunedRow.from_dict(row) for row in data["rows"]],
                "given": [TunedRow.from_dict(row) for row in data["given"]],
                "contests": [Contest.from_dict(one) for one in data["contests"]],
                "trials": [Found.from_dict(one) for one in data["trials"]],
            }
        )

    @staticmethod
    def load(path: str | Path) -> Tuning:
        """Read results.json, or the folder that holds it."""
        return read_result(path, Tuning.from_json, "tune")

    def save(self, out: Path) -> None:
        """Write results.json, report.html, the chosen recipe and the evidence for it. Where the target is not met there is no recipe."""
        from ..pages.tuning_page import tuning_page

        write_text(out / RESULTS, self.to_json())
        write_text(out / "report.html", tuning_page(self))
        write_text(out / EVIDENCE, json.dumps(self.evidence(), indent=1) + "\n")
        if self.met:
            write_text(out / RECIPE, written(self.recipes))
        else:
            (out / RECIPE).unlink(missing_ok=True)

    def evidence(self) -> dict[str, Any]:
        """Why this recipe: the numbers, and what they depend on."""
        names = (
            "model", "target", "met", "metric", "engine", "unit", "data", "images", "fingerprints", "seed", "device", "precision", "batch_size",
            "date", "versions", "interval_method", "space",
        )  # fmt: skip
        facts = {name: getattr(self, name) for name in names}
        rows = {"chosen": asdict(self.chosen), "unpruned": asdict(self.rows[0])}
        return {"recipe": self.chosen.name, **facts, "trials": len(self.trials), **rows}


def written(recipes: tuple[Recipe, ...]) -> str:
    """The recipe as `Recipe.from_json` reads it; of several a list, which `load_recipes` reads."""
    texts = [recipe.to_json() for recipe in recipes]
    return (texts[0] if len(texts) == 1 else f"[{', '.join(texts)}]") + "\n"


def load_recipes(path: str | Path) -> tuple[Recipe, ...]:
    """The recipes of recipe.json (or of the folder that holds it), in the order in which `prune` takes them. Raises PruneError."""
    file = Path(path).expanduser()
    file = file / RECIPE if file.is_dir() else file
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PruneError(f"{file} is no recipe of tune: {error}") from None
    return recipes_of(found if isinstance(found, list) else [found])
