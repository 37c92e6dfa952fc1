"""Questions that need the full picture: right at full size and wrong about a smaller picture, beside those that are right at both.

Of the questions that most methods get right, many are as easy about a picture made smaller, so that a method shows little by them. The split
puts those apart: group A of VTC-Bench (ACL 2026, arXiv:2510.07143) holds the questions that the full picture answers and
the smaller one does not, group B those that both answer. Read from the answers that `sparsight compare` keeps, so any run that has a row
`resize` can be split, afterwards, without asking anything again.
Deviations: answers that could not be had are left out and counted, where the authors count them as wrong.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..errors import PruneError
from ..prune import resolve
from ..runs.intervals import Interval, share
from ..runs.store import UNPRUNED

GROUPS = {"A": "need the full picture", "B": "a smaller picture is enough"}
MANY = 10_000
"""Tokens of a picture that is cut, to tell which recipe leaves fewest."""
Hits = Mapping[str, bool]
"""Whether each question, by its id, was answered rightly."""


@dataclass(frozen=True)
class SplitRow:
    """One recipe: how many of each group's questions it answers rightly, as fractions with Wilson's 95% interval; None of an empty group."""

    recipe: str
    need: Interval | None
    enough: Interval | None


@dataclass(frozen=True)
class VtcSplit:
    """small: the recipe that made the pictures smaller; sizes: questions of each group; missing: questions without both answers."""

    small: str
    sizes: dict[str, int]
    missing: int
    rows: list[SplitRow]

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1) + "\n"

    def __str__(self) -> str:
        found = ", ".join(f"{self.sizes[name]} {said}" for name, said in GROUPS.items())
        return f"beside {self.small}: {found}"


def vtc_split(run: str | Path, small: str | None = None) -> VtcSplit:
    """Split the questions of a finished comparison, and score every recipe on both parts.

    run: a folder that `sparsight compare` wrote for a vision-language model, or its answers.jsonl. small: the recipe whose pictures are
    the smaller ones [default: the `resize` row with the fewest tokens that is there]. Raises PruneError for a run without such rows.
    """
    by_recipe = read_answers(Path(run).expanduser())
    if UNPRUNED not in by_recipe:
        raise PruneError(f"{run} has no answers of the unpruned model")
    chosen = small_of(by_recipe, small)
    full, less = by_recipe[UNPRUNED], by_recipe[chosen]
    both = full.keys() & less.keys()
    groups = {"A": {key for key in both if full[key] and not less[key]}, "B": {key for key in both if full[key] and less[key]}}
    rows = [
        SplitRow(name, *(part(hits, groups[group]) for group in GROUPS))
        for name, hits in by_recipe.items()
        if name not in (UNPRUNED, chosen)
    ]
    return VtcSplit(chosen, {name: len(keys) for name, keys in groups.items()}, len(full.keys() | less.keys()) - len(both), rows)


def part(hits: Hits, keys: Iterable[str]) -> Interval | None:
    """The share of a group's questions that were answered rightly."""
    known = [int(hits[key]) for key in keys if key in hits]
    return share(known) if known else None


def small_of(by_recipe: Mapping[str, Hits], small: str | None) -> str:
    """The recipe of the smaller pictures."""
    known = [name for name in by_recipe if name.partition(":")[0] == "resize"]
    if small is not None and small in by_recipe:
        return small
    if small is not None or not known:
        there = ", ".join(name for name in by_recipe if name != UNPRUNED)
        raise PruneError(
            f"no answers of {small or 'a smaller picture'} in this run; there are {there}; add resize to the methods of compare"
        )
    return min(known, key=lambda name: resolve(name, {}).schedule.count(MANY, 0, 1))


def read_answers(path: Path) -> dict[str, dict[str, bool]]:
    """Of every recipe, whether each question was answered rightly; questions whose answer is not judged or could not be had are left out."""
    file = path / "answers.jsonl" if path.is_dir() else path
    found: dict[str, dict[str, bool]] = {}
    try:
        with file.open(encoding="utf-8") as lines:
            for line in lines:
                one: dict[str, Any] = json.loads(line)
                answers = found.setdefault(one["recipe"], {})
                if one["right"] is not None:
                    answers[one["id"]] = bool(one["right"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PruneError(f"{file} has no answers of sparsight compare on a vision-language model: {error}") from None
    return found
