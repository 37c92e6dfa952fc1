"""What was measured of a recipe, as one table that travels with it: from a result of compare, evaluate, evaluate-vlm, bench, tune or train."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import PruneError, shown
from ..recipe import Recipe
from ..registry import parse
from ..runs.intervals import Interval
from ..runs.store import UNPRUNED
from ..runs.vlm_counts import Tally, score

RESULTS = "results.json"
KINDS = "a result of compare, evaluate, evaluate-vlm, bench, tune or train, its folder, or a list of rows with 'recipe'"
MOST = 60
"""Rows of a table."""

FACTS = ("model", "data", "images", "questions", "device", "precision", "batch_size", "seed", "date", "versions", "interval_method")
"""What of a result stays beside its table."""

Row = dict[str, Any]
Cells = dict[str, str]
"""A row by the heads of its columns."""


def percent(value: Any) -> str:
    """A share or its interval."""
    if isinstance(value, dict):
        return f"{100 * value['value']:.1f}" + (f" [{100 * value['low']:.1f}, {100 * value['high']:.1f}]" if "low" in value else "")
    return f"{100 * value:.1f}"


def points(value: Any) -> str:
    """A difference of shares with its interval."""
    return str(Interval(**value))


def spread(value: Any) -> str:
    """A number, or its median with quartiles."""
    if isinstance(value, dict):
        return f"{value['median']:.2f} ({value['low']:.2f}-{value['high']:.2f})"
    return f"{value:.2f}"


def tokens(value: Any) -> str:
    """Tokens after the last sites."""
    return " > ".join(f"{count:.0f}" for count in value[-3:]) if value else "all"


def timings(value: Any) -> str:
    """Milliseconds at the smallest batch."""
    return f"{1e3 * statistics.median(value[0]['runs']):.1f}"


def right(value: Any) -> str:
    """Share of questions answered right."""
    found = score([Tally.from_dict(one) for one in value], "accuracy")
    return "" if found is None else percent(found)


MEASURES: dict[str, tuple[str, Callable[[Any], str]]] = {
    "top1": ("top-1 %", percent),
    "top1_change": ("change", points),
    "top5": ("top-5 %", percent),
    "agreement": ("agree %", percent),
    "report": ("quality %", percent),
    "report_change": ("change", points),
    "counts": ("right %", right),
    "relative": ("relative %", lambda value: f"{value:.1f}"),
    "before": ("before %", percent),
    "after": ("top-1 %", percent),
    "change": ("change", points),
    "kept": ("visual tokens", lambda value: f"{value:.0f}"),
    "tokens": ("tokens", tokens),
    "macs": ("GMACs", lambda value: f"{value / 1e9:.2f}"),
    "timings": ("ms", timings),
    "mac_ratio": ("MACs x", spread),
    "speedup": ("speed-up", spread),
}
"""Fields of the rows of all results that make a column, in their order: head and how a value is written."""


def read_evidence(given: Any, recipes: Sequence[Recipe]) -> dict[str, Any] | None:
    """A table and what it depends on, as plain data. given: `KINDS`, or None. Raises PruneError for anything else, and for a table in
    which these recipes have no row."""
    if given is None:
        return None
    data = result_data(given)
    rows = given if isinstance(given, list) else rows_of(data)
    table = [by_hand(row) if isinstance(given, list) else written(row, data) for row in rows]
    if not table:
        raise PruneError(f"the evidence has no rows; give {KINDS}")
    name = " + ".join(map(str, recipes))
    mine = [number for number, cells in enumerate(table) if same(cells["recipe"], recipes)]
    if not mine:
        others = ", ".join(cells["recipe"] for cells in table[:4])
        raise PruneError(
            f"the evidence has no row of {name}, but of {shown(others, 200)}; measure this recipe, or leave evidence= out"
        )
    kept = sorted({*range(min(len(table), MOST)), mine[0]})
    heads = list(dict.fromkeys(head for number in kept for head in table[number]))
    facts = {key: data[key] for key in FACTS if data.get(key) not in (None, "", [])}
    lines = [[table[number].get(head, "") for head in heads] for number in kept]
    return {**facts, "columns": heads, "rows": lines, "row": kept.index(mine[0])}


def result_data(given: Any) -> dict[str, Any]:
    """A result as its JSON says it."""
    if isinstance(given, list):
        return {}
    if isinstance(given, (str, Path)):
        file = Path(given).expanduser()
        file = file / RESULTS if file.is_dir() else file
        try:
            data = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise PruneError(f"evidence {file} cannot be read ({shown(str(error))}); give {KINDS}") from None
    elif callable(getattr(given, "to_json", None)):
        data = json.loads(given.to_json())
    else:
        raise PruneError(f"evidence must be {KINDS}, got {type(given).__name__}")
    if not isinstance(data, dict):
        raise PruneError(f"evidence must be {KINDS}, and this is a {type(data).__name__}")
    return data


def rows_of(data: Mapping[str, Any]) -> list[Any]:
    """The rows of a result, recipes of one's own included."""
    if isinstance(data.get("recipe"), str) and "after" in data:  # a training has one
        return [data]
    rows = data.get("rows") or data.get("scores") or []
    given = data.get("given") or []
    if not (isinstance(rows, list) and isinstance(given, list) and all(isinstance(row, dict) for row in [*rows, *given])):
        raise PruneError(f"the evidence has no rows; give {KINDS}")
    return [*rows, *given]


def written(row: Mapping[str, Any], data: Mapping[str, Any]) -> Cells:
    """A row of a result as text. Raises PruneError if it is none."""
    names = row.get("recipes", row.get("recipe"))
    if not isinstance(names, (str, list)):
        raise PruneError(f"a row of the evidence has no recipe; give {KINDS}")
    cells = {"recipe": names if isinstance(names, str) else " + ".join(names) or UNPRUNED}
    try:
        for key, (head, write) in MEASURES.items():
            if row.get(key) is not None:
                cells[head] = write(row[key])
        if "unit" in data and "cost" in row:  # a search says what it counts
            cells[str(data["unit"])] = f"{row['cost']:.3g}"
        if isinstance(row.get("cost"), dict):
            cells |= {"prefill ms": f"{1e3 * row['cost']['seconds']['median']:.1f}", "speed-up": spread(row["cost"]["speedup"])}
        for one in row.get("scores") or ():
            cells[one["title"]] = f"{one['score']:.2f}"
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise PruneError(
            f"the evidence's row of {shown(cells['recipe'])} cannot be read ({shown(str(error))}); give {KINDS}"
        ) from None
    return cells


def by_hand(row: object) -> Cells:
    """A row that somebody wrote."""
    if not isinstance(row, Mapping) or not isinstance(row.get("recipe"), str):
        raise PruneError(f"a row of the evidence must be a mapping with 'recipe' and what was measured, got {shown(row)}")
    return {str(head): f"{value:.4g}" if isinstance(value, float) else str(value) for head, value in row.items()}


def same(text: str, recipes: Sequence[Recipe]) -> bool:
    """Whether a name in a table is that of the recipes, however it is spelled."""
    if text == " + ".join(map(str, recipes)) or (text == UNPRUNED and not recipes):
        return True
    try:
        found = [parse(part) for part in text.split(" + ")]
    except PruneError:
        return False
    return [(one.name, dict(one.params)) for one in found] == [(one.name, dict(one.params)) for one in recipes]
