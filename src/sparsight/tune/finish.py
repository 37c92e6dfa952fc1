"""From finished trials to a result: the front measured on images that were not searched, the choice, recipes of one's own beside it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from ..errors import PruneError
from ..prune import resolve
from ..runs.intervals import Interval, paired_means, share
from ..runs.store import UNPRUNED
from ..runs.sweep import Listener, Step
from .result import Contest, TunedRow
from .search import Cost, Exam, Found, definitions, difference, mean, recipes_of
from .space import Stack
from .targets import Target, front

Report = Callable[[Stack], list[float]]
"""Outcomes of a stack on the items that are reported."""


@dataclass(frozen=True)
class Finished:
    """The rows of a result; see `Tuning`."""

    rows: list[TunedRow]
    given: list[TunedRow]
    contests: list[Contest]
    met: bool


def choose(found: Sequence[Found], target: Target) -> tuple[list[Found], Found]:
    """The front from cheap to dear, and the trial to take, which is one of it or the nearest to the target. By the searched items alone,
    so that the reported numbers are no part of it. Raises PruneError if no trial was measured to the end."""
    whole = [one for one in found if not one.stopped]
    chosen = target.choose(whole)
    if chosen is None:
        raise PruneError(f"none of {len(found)} trials was measured to the end; give more trials, or other methods")
    best = front(whole)
    return best if chosen in best else sorted([*best, chosen], key=lambda one: one.cost), chosen


def finish(
    found: Sequence[Found], target: Target, exam: Exam, report: Report, given: Sequence[Stack], base: list[float], worker: str,
    listen: Listener,
) -> Finished:  # fmt: skip
    """Measure the front and recipes of one's own on the report's items, and choose. base: the unpruned model's outcomes on the searched
    items. Each worker begins with another recipe, so that several share the work; what one has measured the others find in the store."""
    best, chosen = choose(found, target)
    work = [recipes_of(one.definitions) for one in best]
    todo = [(), *work, *given]
    Random(worker).shuffle(todo)
    outcomes: dict[Stack, list[float]] = {}
    for number, stack in enumerate(todo):
        listen(Step(number, len(todo), f"reporting {' + '.join(map(str, stack)) or UNPRUNED}", unit="recipes"))
        outcomes[stack] = report(stack)
    reference = outcomes[()]
    if not reference:
        raise PruneError("none of the images of the report can be read and judged; give others with --report")
    unpruned = exam.cost(())
    assert unpruned is not None
    rows = [row((), None, unpruned, [], mean(base), 0.0, reference, reference)]
    for stack, one in zip(work, best, strict=True):
        cost = Cost(one.cost, one.speedup)
        rows.append(row(stack, one.trial, cost, one.tokens, one.quality, one.change, outcomes[stack], reference, one is chosen))
    own, contests = [], []
    for stack in given:
        cost, tokens = price(exam, stack)
        own.append(row(stack, None, cost, tokens, None, None, outcomes[stack], reference))
        rival = best_within(best, cost.cost)
        gain = None if rival is None else difference(outcomes[recipes_of(rival.definitions)], outcomes[stack])
        contests.append(Contest(own[-1].name, None if rival is None else rival.name, gain))
    return Finished(rows, own, contests, target.shortfall(chosen) == 0)


def row(
    stack: Stack, trial: int | None, cost: Cost, tokens: list[float], quality: float | None, change: float | None, after: list[float],
    before: list[float], chosen: bool = False,
) -> TunedRow:  # fmt: skip
    """One row of the result; after, before: outcomes of the recipe and of the unpruned model on the report's items."""
    names = [str(recipe) for recipe in stack]
    move = difference(after, before) if stack else None
    return TunedRow(names, definitions(stack), trial, cost.cost, cost.speedup, tokens, quality, change, level(after), move, chosen)


def level(outcomes: Sequence[float]) -> Interval:
    """Their mean with its interval: Wilson's where they are right or wrong, else the normal one."""
    if all(value in (0, 1) for value in outcomes):
        return share([int(value) for value in outcomes])
    return paired_means(outcomes, [0.0] * len(outcomes))


def price(exam: Exam, stack: Stack) -> tuple[Cost, list[float]]:
    """What a stack costs, with the tokens that were left if the cost depends on them."""
    found, tokens = exam.cost(stack), []
    if found is None:
        for reading in exam.read(stack, lambda _: None):
            tokens = reading.tokens
        found = exam.cost(stack, tokens)
    assert found is not None
    return found, tokens


def best_within(best: Sequence[Found], cost: float) -> Found | None:
    """The best of the front that costs no more, by the searched items."""
    return max((one for one in best if one.cost <= cost * (1 + 1e-9)), key=lambda one: one.quality, default=None)


def stacks(given: Sequence[Any], check: Callable[[Stack], object]) -> list[Stack]:
    """Recipes of one's own: each a recipe, its text, or several texts joined by +. Raises PruneError for what cannot be."""
    found: list[Stack] = []
    for one in given:
        parts = [part.strip() for part in one.split("+")] if isinstance(one, str) else [one]
        stack = tuple(resolve(part, {}) for part in parts)
        definitions(stack)  # refuses what has no name to be kept under
        check(stack)
        found += [] if stack in found else [stack]
    return found
