"""The published tables and figures of four papers, one TOML file each in the folder `tables`.

A file is checked before it becomes an Entry: unknown keys, wrong types and recipes that do not parse are faults.
"""

from __future__ import annotations

import difflib
import sys
from dataclasses import MISSING, dataclass, field, fields, replace
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from sparsight.errors import PruneError
from sparsight.recipe import Recipe
from sparsight.registry import methods, parse

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

TABLES = Path(__file__).parent / "tables"

KINDS = ("accuracy", "cost", "metric", "figure", "settings")
COMMANDS = ("compare", "evaluate", "evaluate-vlm", "bench-vlm", "analyse", "rank", "show", "generate", "train", "none")
"""The verb that measures an entry. train: weights have to be fine-tuned first; generate: the model's own generate under `prune`;
none: nothing can be run."""

LOST, DASH, UNPRUNED = "lost", "-", "unpruned"
"""In a row: a number that the text has lost; no number in the paper (as recipe: no method of this library); the model as it is."""

WORDS = ("model", "data", "label", "recipe", "value")
RELATIVE = ("average of ratios", "ratio of averages")


TEXTS = ("paper", "number", "title", "kind", "command")
OPTIONAL = ("model", "data", "setting", "shows", "relative")
LISTS = ("not_stated", "notes")
OTHERS = ("decimals", "exceptions", "columns", "rows")


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
    return [file.stem for file in TABLES.glob("*.toml") if file.name != "index.toml"]


@cache
def entry(name: str) -> Entry:
    """The entry of that id; a PruneError with the nearest ids if there is none."""
    if name not in names():
        near = difflib.get_close_matches(name, names(), n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        raise PruneError(f"no published table or figure {name!r}; {hint}`sparsight reproduce` lists them")
    return read_entry(name, read(name), index())


@cache
def index() -> Index:
    """The index of papers, models, data sets and measures."""
    return read_index(read("index"))


def read(name: str) -> dict[str, Any]:
    """A file of the folder as TOML."""
    return loads(name, (TABLES / f"{name}.toml").read_text(encoding="utf-8"))


def loads(name: str, text: str) -> dict[str, Any]:
    """TOML text; a PruneError that names the file where it cannot be read."""
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise PruneError(f"tables/{name}.toml cannot be read: {error}") from None


Item = TypeVar("Item", Paper, Checkpoint, DataSet, Measure, Oddity)


def read_index(table: dict[str, Any]) -> Index:
    """The index; raises PruneError for anything that it should not hold."""
    known(table, ("papers", "models", "data", "measures"), "index")

    def part(kind: type[Item], name: str) -> dict[str, Item]:
        return {key: item(kind, {"key": key, **value}, f"index, {name}.{key}") for key, value in table[name].items()}

    return Index(part(Paper, "papers"), part(Checkpoint, "models"), part(DataSet, "data"), part(Measure, "measures"))


def read_entry(name: str, table: dict[str, Any], index: Index) -> Entry:
    """The entry of a file; raises PruneError, with the file's name, for the first fault."""
    known(table, (*TEXTS, *OPTIONAL, *LISTS, *OTHERS), name)
    texts = {key: text(table, key, name) for key in TEXTS} | {key: text(table, key, name, "") for key in OPTIONAL}
    lists = {key: tuple(text({key: line}, key, name) for line in table.get(key, ())) for key in LISTS}
    one_of(texts["kind"], KINDS, f"{name}: kind")
    one_of(texts["command"], COMMANDS, f"{name}: command")
    one_of(texts["paper"], index.papers, f"{name}: paper")
    if texts["relative"]:
        one_of(texts["relative"], RELATIVE, f"{name}: relative")
    measures = columns_of(name, table, index)
    rows = tuple(read_row(f"{name}, row {n + 1}", table, cells, index) for n, cells in enumerate(table["rows"]))
    oddities = tuple(item(Oddity, given, f"{name}, exceptions") for given in table.get("exceptions", ()))
    for odd in oddities:
        if not any(odd.concerns(row, odd.measure) and odd.measure in row.numbers for row in rows):
            raise PruneError(f"tables/{name}.toml: no row is meant by the exception {odd.reason!r}")
    return Entry(
        name, index.papers[texts["paper"]], texts["number"], texts["title"], texts["kind"], texts["command"], texts["setting"],
        texts["shows"], texts["relative"], lists["not_stated"], lists["notes"], oddities, measures, rows,
    )  # fmt: skip


def columns_of(name: str, table: dict[str, Any], index: Index) -> tuple[Measure, ...]:
    """The measures among the columns, with the entry's own number of decimals."""
    columns, decimals = table.get("columns", []), table.get("decimals", {})
    for column in columns:
        if column not in WORDS:
            one_of(column, index.measures, f"{name}: column")
    if len(set(columns)) != len(columns) or "label" not in columns or not isinstance(table.get("rows"), list):
        raise PruneError(f"tables/{name}.toml: columns must be different, label among them, and rows a list")
    for key, value in decimals.items():
        one_of(key, [column for column in columns if column not in WORDS], f"{name}: decimals")
        if not isinstance(value, int):
            raise PruneError(f"tables/{name}.toml: decimals of {key} are {value!r}, no whole number")
    found = [index.measures[column] for column in columns if column not in WORDS]
    return tuple(replace(measure, decimals=decimals.get(measure.key, measure.decimals)) for measure in found)


def read_row(where: str, table: dict[str, Any], cells: Any, index: Index) -> Row:
    """One row: words, then numbers as printed, "lost" or "-"."""
    columns = table["columns"]
    if not isinstance(cells, list) or len(cells) != len(columns):
        raise PruneError(f"tables/{where}: {len(columns)} columns ({', '.join(columns)}), but {cells!r}")
    pairs = dict(zip(columns, cells, strict=True))
    words = {key: text(pairs, key, where) for key in WORDS if key in pairs}
    words = {"model": table.get("model", ""), "data": table.get("data", ""), **words}
    numbers, lost = {}, []
    for key, cell in pairs.items():
        if key in WORDS or cell == DASH:
            continue
        if cell == LOST:
            lost.append(key)
        elif isinstance(cell, (int, float)) and not isinstance(cell, bool):
            numbers[key] = float(cell)
        else:
            raise PruneError(f"tables/{where}: {key} is {cell!r}; write a number, {LOST!r} or {DASH!r}")
    for key, choices in (("model", index.models), ("data", index.data)):
        if words[key]:
            one_of(words[key], choices, f"{where}: {key}")
    row = Row(**words, numbers=numbers, lost=tuple(lost))
    check_recipe(row, where)
    return row


def check_recipe(row: Row, where: str) -> None:
    """A recipe of a known method must parse; methods that this version lacks are let through, as `Row.pending` says."""
    if not row.method or row.pending:
        return
    try:
        row.parsed()
    except PruneError as error:
        raise PruneError(f"tables/{where}: recipe {row.recipe!r}: {error}") from None


def item(kind: type[Item], table: dict[str, Any], where: str) -> Item:
    """A dataclass of words and numbers from a table; a PruneError for missing and unknown keys and wrong types."""
    known(table, [f.name for f in fields(kind)], where)
    missing = [f.name for f in fields(kind) if f.default is MISSING and f.name not in table]
    if missing:
        raise PruneError(f"tables/{where}: {', '.join(missing)} is missing")
    types: dict[str, tuple[type, ...]] = {"str": (str,), "int": (int,), "float": (int, float)}
    for f in fields(kind):
        if f.name in table and not isinstance(table[f.name], types[str(f.type)]):
            raise PruneError(f"tables/{where}: {f.name}={table[f.name]!r} is no {f.type}")
    return kind(**table)


def text(table: dict[str, Any], key: str, where: str, default: str | None = None) -> str:
    """A text, which must not be empty unless there is a default."""
    value = table.get(key, default)
    if not isinstance(value, str) or (not value and default is None):
        raise PruneError(f"tables/{where}: {key} is {value!r}; a text is needed")
    return value


def known(table: dict[str, Any], names: Any, where: str) -> None:
    """No key but these."""
    for key in table:
        one_of(key, names, f"{where}: key")


def one_of(value: str, choices: Any, what: str) -> None:
    """A PruneError unless the value is one of the choices."""
    if value not in choices:
        raise PruneError(f"tables/{what} {value!r} is not known; it is one of {', '.join(choices)}")
