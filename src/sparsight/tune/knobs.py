"""What of a method a search may turn: its own parameters, with ranges made of their types and defaults."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Protocol

from ..errors import PruneError
from ..ops.schedule import BUDGET
from ..recipe import Recipe, Value
from ..registry import SHARED, Method, Parameter, make

SHARES = ("share", "ratio", "rescue")
"""Parameters that are a share of something, also where their default is 0."""

LEFT_OUT = ("seed", "stride", "cache", "layer", "layers", *SHARED)
"""Parameters that are no question of accuracy, or that the place and the budget of a search set."""

MEASURED = ("_avg", "_span")
"""Ends of names of numbers that `calibrate` measures."""

MOST_CASES = 2000
"""Combinations of choices that are tried out one by one; of a method with more of them each value alone."""

Check = Callable[[Recipe], object]
"""Raises PruneError for a recipe that the model cannot carry out."""


class Trial(Protocol):
    """The part of Optuna's trial that a search space needs."""

    def suggest_categorical(self, name: str, choices: Any) -> Any: ...

    def suggest_float(self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False) -> float: ...

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> int: ...


@dataclass(frozen=True)
class Knob:
    """One parameter of a method: its choices, or the ends of its range. log: of a number that counts by factors."""

    name: str
    choices: tuple[str, ...] = ()
    low: float = 0.0
    high: float = 1.0
    whole: bool = False
    log: bool = False

    def turn(self, trial: Trial, owner: str) -> Value:
        """The trial's value, in as few digits as say it."""
        name = f"{owner}.{self.name}"
        if self.choices:
            value: str = trial.suggest_categorical(name, self.choices)
            return value
        if self.whole:
            return trial.suggest_int(name, int(self.low), int(self.high))
        if self.log:
            return float(f"{trial.suggest_float(name, self.low, self.high, log=True):.2g}")
        return round(trial.suggest_float(name, self.low, self.high, step=0.05), 2)

    def __str__(self) -> str:
        return f"{self.name} {'|'.join(self.choices) if self.choices else f'{self.low:g} to {self.high:g}'}"


@dataclass(frozen=True)
class Searched:
    """A method of a search: its registration, a recipe of it that the model can carry out, and its knobs."""

    method: Method
    example: Recipe
    knobs: tuple[Knob, ...]

    @property
    def name(self) -> str:
        return self.method.name

    @property
    def parameters(self) -> dict[str, Parameter]:
        return {parameter.name: parameter for parameter in self.method.parameters}

    def given(self, trial: Trial) -> dict[str, Value]:
        """The method's own parameters in this trial."""
        return {knob.name: knob.turn(trial, self.name) for knob in self.knobs}

    def __str__(self) -> str:
        return f"{self.name} ({', '.join(map(str, self.knobs))})" if self.knobs else self.name


def searched(method: Method, check: Check, **fixed: Value) -> Searched | None:
    """The method as a search can use it; None if there is no way in which the model can carry it out.

    fixed: budget and place with which it is tried. Choices that the model can never carry out are left out, and so are those that
    need learned weights.
    """
    choices = {p.name: p.choices or ("false", "true") for p in method.parameters if is_choice(p)}
    good: dict[str, set[str]] = {name: set() for name in choices}
    example = None
    for case in cases(method, choices):
        try:
            recipe = make(method.name, **fixed, **case)
            if recipe.weights is not None and not recipe.file:
                continue
            check(recipe)
        except PruneError:
            continue
        example = example or recipe
        for name, value in case.items():
            good[name].add(value)
    if example is None:
        return None
    knobs = []
    for parameter in method.parameters:
        if parameter.name in choices:
            left = tuple(value for value in choices[parameter.name] if value in good[parameter.name])
            knobs += [Knob(parameter.name, left)] if len(left) > 1 else []
        elif (knob := ranged(parameter)) is not None:
            knobs.append(knob)
    return Searched(method, example, tuple(knobs))


def is_choice(parameter: Parameter) -> bool:
    return parameter.name not in LEFT_OUT and (bool(parameter.choices) or isinstance(parameter.default, bool))


def cases(method: Method, choices: dict[str, tuple[str, ...]]) -> Iterator[dict[str, str]]:
    """All combinations of choices, the defaults first; of too many each choice beside the others' defaults."""
    usual = {p.name: str(p.default).lower() if isinstance(p.default, bool) else str(p.default) for p in method.parameters}
    first = {name: usual[name] for name in choices}
    yield first
    count = 1
    for values in choices.values():
        count *= len(values)
    if count > MOST_CASES:
        yield from ({**first, name: value} for name, values in choices.items() for value in values)
    else:
        yield from (dict(zip(choices, values, strict=True)) for values in itertools.product(*choices.values()))


def ranged(parameter: Parameter) -> Knob | None:
    """The range of a number: from 0 to 1 for shares, else from a quarter to four times the default (whole numbers: half to twice it).
    None for what is no number, and for a default of 0, which switches something off."""
    name, default = parameter.name, parameter.default
    if (
        name in LEFT_OUT
        or name.endswith(MEASURED)
        or parameter.choices
        or isinstance(default, bool)
        or not isinstance(default, int | float)
    ):
        return None
    if name in SHARES:
        return Knob(name)
    if default <= 0:
        return None
    if isinstance(default, int):
        return Knob(name, low=max(1, default // 2), high=2 * default, whole=True) if default > 1 else None
    return Knob(name) if default < 1 else Knob(name, low=default / 4, high=4 * default, log=True)


def plain(recipe: Recipe) -> Recipe:
    """The recipe without parameters that change nothing: each goes back to its default where the steps stay the same."""
    values = {name: value for name, value in recipe.params if name in recipe.shown}
    for name in recipe.shown:
        if name in (*BUDGET, "layers", "layer"):
            continue
        fewer = {key: value for key, value in values.items() if key != name}
        try:
            other = make(recipe.name, **fewer)
        except PruneError:
            continue
        if other == replace(recipe, params=other.params, shown=other.shown):
            values = fewer
    return make(recipe.name, **values)
