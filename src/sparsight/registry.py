"""Names of methods: `@method` registers one, `parse` turns "evit:keep=0.7" into a Recipe."""

from __future__ import annotations

import difflib
import importlib
import inspect
import pkgutil
import typing
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

from .errors import PruneError
from .ops.schedule import BUDGET, Amount, Layers, check_amount, show
from .recipe import IN_BLOCKS, Recipe, Value

Maker = Callable[..., Recipe]

SHARED: dict[str, Any] = {
    "keep": Amount,
    "tokens": Amount,
    "remove": Amount,
    "where": Literal["before", "attn", "block"],
    "per_tile": bool,
    "weights": str,
}
"""Parameters that methods accept without declaring them: the budget words, the place within a block for methods with layers,
whether the budget is each tile's (images cut into tiles by a vision-language model), and the file of a learned method's weights."""


@dataclass(frozen=True)
class Parameter:
    """One parameter of a method: its name, default and, where it is a choice, the choices."""

    name: str
    default: Value
    choices: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.name}={'|'.join(self.choices) if self.choices else show(self.default)}"


@dataclass(frozen=True)
class Method:
    """A registered method: what `sparsight.methods()` lists."""

    name: str
    summary: str
    source: str
    parameters: tuple[Parameter, ...]
    make: Maker

    def __str__(self) -> str:
        return f"{self.name}({', '.join(map(str, self.parameters))}): {self.summary}"


_methods: dict[str, Method] = {}


def method(function: Maker) -> Maker:
    """Register the function under its own name. Its parameters, with their defaults, are the method's parameters; the
    first line of the docstring of its module ("Name: what it does. Authors, venue, arXiv id.") describes it."""
    name = function.__name__
    text = function.__doc__ or importlib.import_module(function.__module__).__doc__ or ""
    summary, _, source = text.strip().partition("\n")[0].partition(". ")
    if name in _methods and _methods[name].make.__module__ != function.__module__:
        raise PruneError(f"method {name!r} is already registered by {_methods[name].make.__module__}")
    hints = typing.get_type_hints(function)
    parameters = []
    for key, parameter in inspect.signature(function).parameters.items():
        if parameter.default is inspect.Parameter.empty:
            raise PruneError(f"method {name!r}: parameter {key!r} needs a default")
        parameters.append(Parameter(key, parameter.default, choices(hints[key])))
    _methods[name] = Method(
        name, (summary.partition(": ")[2] or summary).rstrip("."), source.rstrip("."), tuple(parameters), function
    )
    return function


def methods() -> list[Method]:
    """All methods, by name: one-line description, source and parameters."""
    load()
    return [_methods[name] for name in sorted(_methods)]


def find(name: str) -> Method:
    """The method of that name; a PruneError with the nearest names if there is none."""
    load()
    if name not in _methods:
        near = difflib.get_close_matches(name, _methods, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
        raise PruneError(f"no method {name!r}; {hint}known: {', '.join(sorted(_methods))}")
    return _methods[name]


def parse(text: str) -> Recipe:
    """Recipe from "name" or "name:key=value,key=value"; lists are joined by '/', as in layers=3/6/9."""
    name, _, body = text.strip().partition(":")
    given: dict[str, str] = {}
    for part in filter(None, (p.strip() for p in body.split(","))):
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or not key or not value:
            raise PruneError(f"cannot read {part!r} in recipe {text!r}; write name:key=value,key=value with '/' in lists")
        if key in given:
            raise PruneError(f"recipe {text!r} gives {key!r} twice")
        given[key] = value
    return make(name.strip(), **given)


def make(name: str, /, **given: Any) -> Recipe:
    """Recipe of a registered method with the given parameters (values, or text as in a recipe string)."""
    entry = find(name)
    hints = accepted(entry)
    given = {key: value for key, value in given.items() if value is not None}
    for key in given:
        if key not in hints:
            near = difflib.get_close_matches(key, hints, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise PruneError(f"{name} has no parameter {key!r}; {hint}it takes {', '.join(hints)}")
    values = {key: coerce(name, key, hints[key], value) for key, value in given.items()}
    words = [word for word in BUDGET if word in values]
    if len(words) > 1:
        raise PruneError(f"{name}: budget words conflict, {' and '.join(words)} are both given; choose one of {', '.join(BUDGET)}")
    return build(entry, values, words)


def accepted(entry: Method) -> dict[str, Any]:
    """Parameter names of a method, its own first, with their types."""
    declared = {key: hint for key, hint in typing.get_type_hints(entry.make).items() if key != "return"}
    shared = {key: hint for key, hint in SHARED.items() if "layers" in declared or key != "where"}
    return {**declared, **shared}


def build(entry: Method, values: dict[str, Value], words: list[str]) -> Recipe:
    """Call the method's function, apply the shared words that it does not declare, and stamp name and parameters."""
    declared = {p.name: p.default for p in entry.parameters}
    recipe = entry.make(**{key: value for key, value in values.items() if key in declared})
    if words and recipe.adaptive and not recipe.schedule.word:
        raise PruneError(f"{entry.name}: {words[0]}= is given, but here every image finds its own count; leave out one of the two")
    if words and words[0] not in declared:
        recipe = replace(recipe, schedule=recipe.schedule.with_budget(words[0], typing.cast(Amount, values[words[0]])))
    place = recipe.where
    movable = "layers" in declared and recipe.where in IN_BLOCKS
    if "where" in values:
        if not movable:
            raise PruneError(f"{entry.name} has its place ({place}); where= is for methods inside vision blocks")
        recipe = replace(recipe, where=str(values["where"]))
    if "weights" in values and recipe.weights is None:
        raise PruneError(f"{entry.name} has no learned weights with these parameters; leave weights= out")
    recipe = replace(recipe, per_tile=bool(values.get("per_tile")), file=str(values.get("weights", "")))
    full = {key: value for key, value in {**declared, **values}.items() if key not in BUDGET}
    word = recipe.schedule.word
    if word:
        full = {word: getattr(recipe.schedule, word), **full}
    if movable:
        full["where"] = recipe.where
    plain = {**declared, "where": place, "per_tile": False}
    shown = [key for key in full if key in (word, "layers") or full[key] != plain.get(key)]
    return replace(recipe, name=entry.name, params=tuple(full.items()), shown=tuple(shown))


def load() -> None:
    """Import every file of the methods folder, once."""
    folder = importlib.import_module(f"{__package__}.methods")
    for module in pkgutil.iter_modules(folder.__path__):
        importlib.import_module(f"{folder.__name__}.{module.name}")


def choices(hint: Any) -> tuple[str, ...]:
    """The allowed values if the annotation is a Literal, else nothing."""
    return tuple(map(str, typing.get_args(hint))) if typing.get_origin(hint) is Literal else ()


def coerce(owner: str, key: str, hint: Any, value: Any) -> Value:
    """The value (maybe text) as the annotation asks; a PruneError that says what is possible otherwise."""
    try:
        if choices(hint):
            if str(value) not in choices(hint):
                raise ValueError(f"choose {' or '.join(choices(hint))}")
            return str(value)
        if hint == Layers:
            return layer_list(value)
        if hint == Amount:
            return amounts(key, value)
        if hint is bool:
            return boolean(value)
        if hint is int:
            return whole(value)
        return float(value) if hint is float else str(value)
    except (ValueError, TypeError) as error:
        if isinstance(error, PruneError):
            raise PruneError(f"{owner}: {error}") from None
        raise PruneError(f"{owner}: {key}={show(value)} cannot be used: {error}") from None


def layer_list(value: Any) -> Layers:
    """3/6/9, [3, 6, 9], 3 or a name such as early."""
    if isinstance(value, str) and not value.replace("/", "").replace("-", "").isdigit():
        return value
    items = value.split("/") if isinstance(value, str) else [value] if isinstance(value, int) else value
    return tuple(whole(item) for item in items)


def amounts(key: str, value: Any) -> Amount:
    """One number or several, checked for the budget word."""
    items = value.split("/") if isinstance(value, str) else value if isinstance(value, (list, tuple)) else [value]
    numbers: tuple[float, ...] = tuple(float(item) for item in items)
    for number in numbers:
        check_amount(key, number)
    if key != "keep":
        numbers = tuple(int(number) for number in numbers)
    return numbers if len(numbers) > 1 else numbers[0]


def boolean(value: Any) -> bool:
    """true or false."""
    if isinstance(value, bool):
        return value
    if str(value).lower() not in ("true", "false"):
        raise ValueError("choose true or false")
    return str(value).lower() == "true"


def whole(value: Any) -> int:
    """An integer, also from text or from a float without a fraction."""
    number = float(value)
    if number != int(number):
        raise ValueError("a whole number is needed")
    return int(number)
