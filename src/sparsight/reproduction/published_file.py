"""Check one file of published numbers and turn it into an Entry: unknown keys, wrong types and recipes that do not parse are faults."""

from __future__ import annotations

from dataclasses import MISSING, fields, replace
from typing import Any, TypeVar

from ..errors import PruneError
from .published import COMMANDS, DASH, KINDS, LOST, RELATIVE, WORDS, Checkpoint, DataSet, Entry, Index, Measure, Oddity, Paper, Row

Item = TypeVar("Item", Paper, Checkpoint, DataSet, Measure, Oddity)

TEXTS = ("paper", "number", "title", "kind", "command")
OPTIONAL = ("model", "data", "setting", "shows", "relative")
LISTS = ("not_stated", "notes")
OTHERS = ("decimals", "exceptions", "columns", "rows")


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
            raise PruneError(f"published/{name}.toml: no row is meant by the exception {odd.reason!r}")
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
        raise PruneError(f"published/{name}.toml: columns must be different, label among them, and rows a list")
    for key, value in decimals.items():
        one_of(key, [column for column in columns if column not in WORDS], f"{name}: decimals")
        if not isinstance(value, int):
            raise PruneError(f"published/{name}.toml: decimals of {key} are {value!r}, no whole number")
    found = [index.measures[column] for column in columns if column not in WORDS]
    return tuple(replace(measure, decimals=decimals.get(measure.key, measure.decimals)) for measure in found)


def read_row(where: str, table: dict[str, Any], cells: Any, index: Index) -> Row:
    """One row: words, then numbers as printed, "lost" or "-"."""
    columns = table["columns"]
    if not isinstance(cells, list) or len(cells) != len(columns):
        raise PruneError(f"published/{where}: {len(columns)} columns ({', '.join(columns)}), but {cells!r}")
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
            raise PruneError(f"published/{where}: {key} is {cell!r}; write a number, {LOST!r} or {DASH!r}")
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
        raise PruneError(f"published/{where}: recipe {row.recipe!r}: {error}") from None


def item(kind: type[Item], table: dict[str, Any], where: str) -> Item:
    """A dataclass of words and numbers from a table; a PruneError for missing and unknown keys and wrong types."""
    known(table, [f.name for f in fields(kind)], where)
    missing = [f.name for f in fields(kind) if f.default is MISSING and f.name not in table]
    if missing:
        raise PruneError(f"published/{where}: {', '.join(missing)} is missing")
    types: dict[str, tuple[type, ...]] = {"str": (str,), "int": (int,), "float": (int, float)}
    for f in fields(kind):
        if f.name in table and not isinstance(table[f.name], types[str(f.type)]):
            raise PruneError(f"published/{where}: {f.name}={table[f.name]!r} is no {f.type}")
    return kind(**table)


def text(table: dict[str, Any], key: str, where: str, default: str | None = None) -> str:
    """A text, which must not be empty unless there is a default."""
    value = table.get(key, default)
    if not isinstance(value, str) or (not value and default is None):
        raise PruneError(f"published/{where}: {key} is {value!r}; a text is needed")
    return value


def known(table: dict[str, Any], names: Any, where: str) -> None:
    """No key but these."""
    for key in table:
        one_of(key, names, f"{where}: key")


def one_of(value: str, choices: Any, what: str) -> None:
    """A PruneError unless the value is one of the choices."""
    if value not in choices:
        raise PruneError(f"published/{what} {value!r} is not known; it is one of {', '.join(choices)}")
