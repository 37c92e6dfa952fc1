"""The published tables and figures of four papers, one TOML file each in the package's folder `published`."""

from __future__ import annotations

import difflib
import sys
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import Any

from ..errors import PruneError
from ..recipe import Recipe
from ..registry import methods, parse

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

KINDS = ("accuracy", "cost", "metric", "figure", "settings")
COMMANDS = ("compare", "evaluate", "evaluate-vlm", "bench-vlm", "analyse", "rank", "show", "generate", "train", "none")
"""The verb that measures an entry. train: weights have to be fine-tuned first; generate: the model's own generate under `prune`;
none: nothing can be run."""

LOST, DASH, UNPRUNED = "lost", "-", "unpruned"
"""In a row: a number that the text has lost; no number in the paper (as recipe: no method of this library); the model as it is."""

WORDS = ("model", "data", "label", "recipe", "value")
RELATIVE = ("average of ratios", "ratio of averages")


@dataclass(frozen=True)
class Paper:
    """A paper and where it can be found."""

    key: str
    title: str
    source: str


@dataclass(frozen=True)
class Checkpoint:
    """A model of the papers. macs: the timm architecture whose multiply-accumulates are counted, "" if none."""

    key: str
    name: str
    library: str
    macs: str = ""


@dataclass(frozen=True)
class DataSet:
    """A data set and how to get it. images: how many it has, 0 where splits differ or nothing is counted in images.
    preset: its name in `evaluate`, for zero-shot."""

    key: str
    title: str
    get: str
    images: int = 0
    preset: str = ""


@dataclass(frozen=True)
class Measure:
    """A column of numbers. decimals as printed; data: what it is taken on, if not the entry's; scale: see `index.toml`."""

    key: str
    title: str
    decimals: int
    data: str = ""
    scale: float = 1.0


@dataclass(frozen=True)
class Oddity:
    """Published numbers that do not follow: those of `measure` in all rows with this model, label and recipe ("" = any)."""

    measure: str
    reason: str
    model: str = ""
    label: str = ""
    recipe: str = ""

    def concerns(self, row: Row, measure: str) -> bool:
        mine = (self.measure, self.model or row.model, self.label or row.label, self.recipe or row.recipe)
        return mine == (measure, row.model, row.label, row.recipe)


@dataclass(frozen=True)
class Row:
    """One row: numbers as published, by measure; `lost` names the measures whose number the text has lost."""

    label: str
    model: str = ""
    data: str = ""
    recipe: str = ""
    value: str = ""
    numbers: dict[str, float] = field(default_factory=dict)
    lost: tuple[str, ...] = ()

    @property
    def method(self) -> str:
        """The method's name, "" for rows without one."""
        return "" if self.recipe in ("", DASH, UNPRUNED) else self.recipe.partition(":")[0]

    @property
    def pending(self) -> bool:
        """Whether this version of the library lacks the method."""
        return bool(self.method) and self.method not in known_methods()

    def parsed(self) -> Recipe | None:
        """The recipe, None for the unpruned model and for rows without a recipe. Raises PruneError if it cannot be read."""
        return parse(self.recipe) if self.method else None

    def __str__(self) -> str:
        return " ".join(part for part in (self.model, self.label, f"({self.recipe})" if self.method else "") if part)


@dataclass(frozen=True)
class Entry:
    """One published table or figure: what it is, what it was made with, its numbers, and what the paper leaves open."""

    id: str
    paper: Paper
    number: str
    title: str
    kind: str
    command: str
    setting: str
    shows: str
    relative: str
    not_stated: tuple[str, ...]
    notes: tuple[str, ...]
    oddities: tuple[Oddity, ...]
    measures: tuple[Measure, ...]
    rows: tuple[Row, ...]

    def __str__(self) -> str:
        return f"{self.id}: {self.title} ({self.paper.source}, {self.number})"

    @property
    def models(self) -> list[str]:
        """Keys of the models, in the order of the rows."""
        return list(dict.fromkeys(row.model for row in self.rows if row.model))

    @property
    def data(self) -> list[str]:
        """Keys of the data sets, in the order of rows and columns."""
        return list(dict.fromkeys([*(row.data for row in self.rows if row.data), *(m.data for m in self.measures if m.data)]))

    def measure(self, key: str) -> Measure | None:
        return next((measure for measure in self.measures if measure.key == key), None)

    def oddity(self, row: Row, measure: str) -> str:
        """Why a published number does not follow, "" if nothing is known against it."""
        return next((odd.reason for odd in self.oddities if odd.concerns(row, measure)), "")

    def select(self, only: str | None) -> list[Row]:
        """The rows whose model, data, label or recipe contains the text; all without it."""
        if not only:
            return list(self.rows)
        found = [row for row in self.rows if only.casefold() in f"{row.model} {row.data} {row.label} {row.recipe}".casefold()]
        if not found:
            raise PruneError(f"no row of {self.id} contains {only!r}; rows are {', '.join(map(str, self.rows[:6]))}")
        return found


@cache
def known_methods() -> frozenset[str]:
    """Names of the methods that this version has."""
    return frozenset(found.name for found in methods())


@dataclass(frozen=True)
class Index:
    """Everything that entries refer to, by key."""

    papers: dict[str, Paper]
    models: dict[str, Checkpoint]
    data: dict[str, DataSet]
    measures: dict[str, Measure]


def entries() -> dict[str, Entry]:
    """All entries by id, paper by paper. Raises PruneError for a file with a fault."""
    found = [entry(name) for name in sorted(names())]
    order = list(index().papers)
    return {item.id: item for item in sorted(found, key=lambda item: order.index(item.paper.key))}


def names() -> list[str]:
    """The ids: names of the files."""
    folder = files(__package__.rpartition(".")[0]).joinpath("published")
    return [
        file.name.removesuffix(".toml") for file in folder.iterdir() if file.name.endswith(".toml") and file.name != "index.toml"
    ]


@cache
def entry(name: str) -> Entry:
    """The entry of that id; a PruneError with the nearest ids if there is none."""
    if name not in names():
        near = difflib.get_close_matches(name, names(), n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        raise PruneError(f"no published table or figure {name!r}; {hint}`sparsight reproduce` lists them")
    from .published_file import read_entry

    return read_entry(name, read(name), index())


@cache
def index() -> Index:
    """The index of papers, models, data sets and measures."""
    from .published_file import read_index

    return read_index(read("index"))


def read(name: str) -> dict[str, Any]:
    """A file of the folder as TOML."""
    text = files(__package__.rpartition(".")[0]).joinpath("published", f"{name}.toml").read_text(encoding="utf-8")
    return loads(name, text)


def loads(name: str, text: str) -> dict[str, Any]:
    """TOML text; a PruneError that names the file where it cannot be read."""
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise PruneError(f"published/{name}.toml cannot be read: {error}") from None
