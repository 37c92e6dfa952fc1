"""Names of methods: `@method` registers one, `parse` turns "evit:keep=0.7" into a Recipe. Families of other packages register here too.

Packages add methods and scores by the entry point group `sparsight.methods`, model families by `sparsight.families`. An entry point
names a module, whose import registers what it has, or the function or class itself.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import math
import operator
import os
import pkgutil
import re
import typing
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from .errors import PruneError, shown
from .ops.schedule import BUDGET, IN_BLOCKS, Amount, Layers, check_amount, show

if TYPE_CHECKING:
    from .recipe import Recipe, Value

Maker = Callable[..., "Recipe"]
Kind = TypeVar("Kind", bound=type)

METHODS, FAMILIES = "sparsight.methods", "sparsight.families"
"""Entry point groups."""

SHARED: dict[str, Any] = {
    "keep": Amount,
    "tokens": Amount,
    "remove": Amount,
    "where": Literal["before", "attn", "block"],
    "per_tile": bool,
    "fewer": Literal["keep", "error"],
    "separators": Literal["keep", "drop"],
    "weights": str,
}
"""Parameters that methods accept without declaring them: the budget words, the place within a block for methods with layers,
whether the budget is each tile's (images cut into tiles by a vision-language model), whether an image with fewer tokens than tokens=
keeps them all or is an error there, whether text between an image's tokens stays, and the file of a learned method's weights."""

USUAL: dict[str, Value] = {"per_tile": False, "fewer": "keep", "separators": "keep"}
"""Values of those that say nothing."""

LARGEST = 2**63
"""Whole numbers are below it: they become indices and seeds."""

MOST_BLOCKS = 4096
"""Blocks that layers=0-4095 may name: far more than any model has, and few enough to write down."""


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
    make: Maker

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        """Parameters in the order of the signature. Choices that other packages can add to are those that are known now."""
        types = hints(self.make)
        return tuple(Parameter(p.name, p.default, choices(types[p.name])) for p in inspect.signature(self.make).parameters.values())

    def __str__(self) -> str:
        return f"{self.name}({', '.join(map(str, self.parameters))}): {self.summary}"


_methods: dict[str, Method] = {}
_families: list[type] = []
_installed: dict[str, dict[str, str]] = {}
"""Of each entry point group that has been loaded, the entry points that failed, with the reason."""


def method(function: Maker) -> Maker:
    """Register the function under its own name. Its parameters, with their defaults, are the method's parameters; the
    first line of the docstring of its module ("Name: what it does. Authors, venue, arXiv id.") describes it."""
    name = function.__name__
    text = function.__doc__ or importlib.import_module(function.__module__).__doc__ or ""
    summary, _, source = text.strip().partition("\n")[0].partition(". ")
    if name in _methods and _methods[name].make.__module__ != function.__module__:
        raise PruneError(f"method {name!r} is already registered by {_methods[name].make.__module__}")
    types = hints(function)
    for key, parameter in inspect.signature(function).parameters.items():
        if parameter.default is inspect.Parameter.empty or key not in types:
            raise PruneError(f"method {name!r}: parameter {key!r} needs a type and a default")
    _methods[name] = Method(name, (summary.partition(": ")[2] or summary).rstrip("."), source.rstrip("."), function)
    return function


def register_family(kind: Kind) -> Kind:
    """Register a model family of another package, a subclass of `sparsight.models.family.Family`; also usable as a decorator.

    `prune` asks such families before its own. Raises PruneError for anything that is no family.
    """
    if (
        not isinstance(kind, type)
        or not callable(getattr(kind, "serves", None))
        or not isinstance(getattr(kind, "name", None), str)
    ):
        raise PruneError(f"register_family takes a subclass of sparsight.models.family.Family with a name, got {shown(kind)}")
    if kind not in _families:
        _families.append(kind)
    return kind


def families() -> list[type]:
    """Model families that other packages have registered, in the order of registration."""
    load_installed(FAMILIES)
    return list(_families)


def methods() -> list[Method]:
    """All methods, by name: one-line description, source and parameters."""
    load()
    load_installed(METHODS)
    return [_methods[name] for name in sorted(_methods)]


def find(name: str) -> Method:
    """The method of that name; a PruneError with the nearest names if there is none."""
    load()
    if name in _methods:
        return _methods[name]
    failed = load_installed(METHODS)
    if name in _methods:
        return _methods[name]
    if name in failed:
        raise PruneError(f"method {name!r}: {failed[name]}")
    hint = f"did you mean {' or '.join(map(repr, near))}? " if (near := nearest(name, _methods)) else ""
    broken = f"; not loaded: {', '.join(failed)}" if failed else ""
    raise PruneError(f"no method '{shown(name)}'; {hint}known: {', '.join(sorted(_methods))}{broken}")


def nearest(name: str, known: typing.Iterable[str], n: int = 3) -> list[str]:
    """The known names most like a name; none for texts that are no names."""
    return difflib.get_close_matches(name, known, n=n, cutoff=0.5) if len(name) <= 100 else []


def parse(text: str) -> Recipe:
    """Recipe from "name" or "name:key=value,key=value"; lists are joined by '/', as in layers=3/6/9, and layers=3-6 is a range."""
    if not isinstance(text, str):
        raise PruneError(f"a recipe is text such as 'evit:keep=0.7', got {type(text).__name__}")
    name, _, body = text.strip().partition(":")
    given: dict[str, str] = {}
    for part in filter(None, (p.strip() for p in body.split(","))):
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or not key or not value:
            raise PruneError(
                f"cannot read '{shown(part)}' in recipe '{shown(text)}'; write name:key=value,key=value with '/' in lists"
            )
        if key in given:
            raise PruneError(f"recipe '{shown(text)}' gives '{shown(key)}' twice")
        given[key] = value
    return make(name.strip(), **given)


def make(name: str, /, **given: Any) -> Recipe:
    """Recipe of a registered method with the given parameters (values, or text as in a recipe string)."""
    entry = find(name)
    types = accepted(entry)
    given = {key: value for key, value in given.items() if value is not None}
    for key in given:
        if key not in types:
            near = nearest(key, types, 1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise PruneError(f"{name} has no parameter '{shown(key)}'; {hint}it takes {', '.join(types)}")
    values = {key: coerce(name, key, types[key], value) for key, value in given.items()}
    words = [word for word in BUDGET if word in values]
    if len(words) > 1:
        raise PruneError(f"{name}: budget words conflict, {' and '.join(words)} are both given; choose one of {', '.join(BUDGET)}")
    return build(entry, values, words)


def accepted(entry: Method) -> dict[str, Any]:
    """Parameter names of a method, its own first, with their types."""
    declared = {key: hint for key, hint in hints(entry.make).items() if key != "return"}
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
    usual = {**USUAL, **values}
    words_of_images = {name: typing.cast(Any, usual[name]) for name in USUAL}
    recipe = replace(recipe, **words_of_images, file=str(values.get("weights", "")))
    full = {
        key: value
        for key, value in {**declared, **values}.items()
        if key not in BUDGET and (key not in USUAL or value != USUAL[key])
    }
    word = recipe.schedule.word
    if word:
        full = {word: getattr(recipe.schedule, word), **full}
    if movable:
        full["where"] = recipe.where
    plain = {**declared, "where": place, **USUAL}
    shown_keys = [key for key in full if key in (word, "layers") or full[key] != plain.get(key)]
    return replace(recipe, name=entry.name, params=tuple(full.items()), shown=tuple(shown_keys))


def load() -> None:
    """Import every file of the methods folder, once."""
    folder = importlib.import_module(f"{__package__}.methods")
    for module in pkgutil.iter_modules(folder.__path__):
        importlib.import_module(f"{folder.__name__}.{module.name}")


def load_installed(group: str) -> dict[str, str]:
    """Import what other packages add to the library, once. One that fails warns and stays out: its name, and why. -> those that failed."""
    if group not in _installed:
        failed = _installed.setdefault(group, {})
        register: Callable[..., object] = method if group == METHODS else register_family
        for entry in entry_points(group=group):
            try:
                add(entry, register)
            except Exception as error:  # whatever a package of others meets
                kind = "" if isinstance(error, PruneError) else f"{type(error).__name__}: "
                failed[entry.name] = f"entry point {entry.value} of {origin(entry)} cannot be used: {kind}{shown(str(error), 300)}"
                warnings.warn(f"sparsight goes on without {entry.name!r}: {failed[entry.name]}", RuntimeWarning, stacklevel=2)
    return _installed[group]


def add(entry: EntryPoint, register: Callable[..., object]) -> None:
    """Load an entry point; what it names is registered unless importing it has done so."""
    found = entry.load()
    if inspect.ismodule(found):
        return
    if found not in [*(known.make for known in _methods.values()), *_families]:
        register(found)


def origin(entry: EntryPoint) -> str:
    """The package that an entry point comes from, as pip names it."""
    return f"{entry.dist.name} {entry.dist.version}" if entry.dist is not None else "an unknown package"


def hints(function: Callable[..., Any]) -> dict[str, Any]:
    """Types of the parameters, `Annotated` included."""
    return typing.get_type_hints(function, include_extras=True)


def choices(hint: Any) -> tuple[str, ...]:
    """The allowed values of a Literal, or of an Annotated text whose annotation gives them; else nothing."""
    if typing.get_origin(hint) is Literal:
        return tuple(map(str, typing.get_args(hint)))
    return tuple(hint.__metadata__[0]()) if open_choice(hint) else ()


def open_choice(hint: Any) -> bool:
    """Whether other packages can add to the choices: Annotated[str, function that lists them]."""
    return typing.get_origin(hint) is typing.Annotated and callable(hint.__metadata__[0])


def coerce(owner: str, key: str, hint: Any, value: Any) -> Value:
    """The value (maybe text) as the annotation asks; a PruneError that says what is possible otherwise."""
    try:
        if open_choice(hint):
            load_installed(METHODS)
        if choices(hint):
            if not isinstance(value, str) or value not in choices(hint):
                raise ValueError(f"choose {' or '.join(choices(hint))}")
            return value
        if hint == Amount:
            return amounts(key, value)
        read: Callable[[Any], Value] = {Layers: layer_list, bool: boolean, int: whole, float: number}.get(hint, plain_text)
        return read(value)
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        if isinstance(error, PruneError):
            raise PruneError(f"{owner}: {error}") from None
        raise PruneError(f"{owner}: {key}={shown(value)} cannot be used: {shown(str(error), 300)}") from None


def layer_list(value: Any) -> Layers:
    """3/6/9, 3-6 for 3/4/5/6, [3, 6, 9], 3 or a name such as early."""
    if isinstance(value, str):
        if not re.fullmatch(r"[\d/-]+", value):
            return value
        blocks = [block for part in value.split("/") for block in block_range(part)]
    elif hasattr(value, "__index__"):
        blocks = [whole(value)]
    else:
        blocks = [whole(item) for item in value]
    if not blocks:
        raise ValueError("give at least one block")
    return tuple(blocks)


def block_range(text: str) -> typing.Iterable[int]:
    """The block of "3", or the blocks of "3-6", both ends included."""
    low, dash, high = text.partition("-")
    if not low or not dash:
        return [whole(text)]
    first, last = whole(low), whole(high)
    if not first <= last < first + MOST_BLOCKS:
        raise ValueError(f"a range is first-last, such as 3-6, of at most {MOST_BLOCKS} blocks")
    return range(first, last + 1)


def amounts(key: str, value: Any) -> Amount:
    """One number or several, checked for the budget word."""
    items = value.split("/") if isinstance(value, str) else value if isinstance(value, (list, tuple)) else [value]
    numbers: tuple[float, ...] = tuple(real(item) for item in items)
    if not numbers:
        raise ValueError("give one number, or one for each site")
    for each in numbers:
        check_amount(key, each)
    if key != "keep":
        numbers = tuple(whole(each) for each in numbers)
    return numbers if len(numbers) > 1 else numbers[0]


def boolean(value: Any) -> bool:
    """true or false."""
    if isinstance(value, bool):
        return value
    if not isinstance(value, str) or value.lower() not in ("true", "false"):
        raise ValueError("choose true or false")
    return value.lower() == "true"


def number(value: Any) -> float:
    """A float, infinity included but not NaN."""
    found = real(value)
    if math.isnan(found):
        raise ValueError("a number is needed")
    return found


def real(value: Any) -> float:
    """Any float."""
    if isinstance(value, bool):
        raise ValueError("a number is needed")
    return float(value)


def whole(value: Any) -> int:
    """An integer, also from text or from a float without a fraction."""
    if isinstance(value, str) and re.fullmatch(r"[+-]?\d{1,30}", value, re.ASCII):
        found = int(value)
    elif hasattr(value, "__index__") and not isinstance(value, bool):
        found = operator.index(value)
    else:
        exact = number(value)
        if not exact.is_integer():
            raise ValueError("a whole number is needed")
        found = int(exact)
    if abs(found) >= LARGEST:
        raise ValueError("a whole number of at most 18 digits is needed")
    return found


def plain_text(value: Any) -> str:
    """Text that a recipe string can hold: without commas, line breaks and blanks around it."""
    numeric = isinstance(value, (int, float)) and not isinstance(value, bool)
    text = show(value) if numeric else os.fspath(value)
    if not isinstance(text, str) or not text or text != text.strip() or "," in text or not text.isprintable():
        raise ValueError("a text without commas and control characters is needed")
    return text
