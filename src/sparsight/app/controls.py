"""Cards of methods: what the page lets its user choose, read from the registry, so that a new method appears by itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import PruneError
from ..ops.schedule import BUDGET, Layers, as_tuple, show
from ..prune import family_of, plan_sites
from ..recipe import IN_BLOCKS, Recipe
from ..registry import SHARED, Method, accepted, choices, make, methods, parse

KINDS = {Layers: "layers", bool: "flag", int: "whole", float: "number"}
"""What a parameter's type looks like on the page; choices are lists, and all else is text."""
IN_VISION = ("image", *IN_BLOCKS)
"""Where the methods of a vision model take tokens away."""
USUAL_DEPTH = 12
"""Blocks of the models for which methods give their layers."""
LARGEST = 4096
"""Largest whole number in a recipe of the page: none needs more, and a thousand million rounds would never end."""

Refuse = Callable[[Recipe], str]
"""Why a recipe cannot run in a model, empty if it can."""


@dataclass(frozen=True)
class Control:
    """One parameter. kind: layers, choice, flag, whole, number or text; value: what to begin with, usual: its default, which a recipe
    need not say; both spelled as in a recipe string. They differ where a model is not as deep as the default layers."""

    name: str
    kind: str
    value: str
    usual: str
    choices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Card:
    """A method: its controls, its budget (word and default, empty where it finds its own), and why it cannot be taken here, if so."""

    name: str
    summary: str
    source: str
    group: str
    word: str
    budget: str
    controls: tuple[Control, ...]
    unfit: str


def card(entry: Method, recipe: Recipe, group: str, unfit: str, without: Sequence[str] = ()) -> Card:
    """What the page shows of a method. recipe: its own, with layers that the model has; without: parameters that say nothing there."""
    values = dict(recipe.params)
    types = accepted(entry)
    own = {parameter.name: parameter.default for parameter in entry.parameters}
    names = [name for name in own if name not in (*BUDGET, *SHARED, *without)] + ["where"] * ("where" in values)
    usual = {"where": recipe.where, **own}
    controls = tuple(control(name, types[name], values.get(name, usual[name]), usual[name]) for name in names)
    word = recipe.schedule.word
    budget = show(getattr(recipe.schedule, word)) if word else ""
    return Card(entry.name, entry.summary, entry.source, group, word, budget, controls, unfit)


def control(name: str, hint: Any, value: Any, usual: Any) -> Control:
    found = choices(hint)
    return Control(name, "choice" if found else KINDS.get(hint, "text"), show(value), show(usual), found)


def vision_cards(model: Any) -> list[Card]:
    """Cards of all methods that work inside a vision model, by name; those that cannot in this one say why."""
    family = family_of(model)
    depth = len(family.blocks)

    def refuse(recipe: Recipe) -> str:
        if recipe.weights is not None:
            return "needs learned weights; train some first"
        try:
            plan_sites(family, recipe)
        except PruneError as error:
            return str(error)
        return ""

    found = []
    for entry in methods():
        recipe = make(entry.name)
        if recipe.where in IN_VISION:
            recipe = within(recipe, depth)
            found.append(card(entry, recipe, "", refuse(recipe)))
    return found


def within(recipe: Recipe, depth: int) -> Recipe:
    """The recipe with its default layers moved into a model that is not as deep as they are."""
    for name in ("layers", "layer"):
        layers = dict(recipe.params).get(name)
        blocks = [] if isinstance(layers, str) else [int(layer) for layer in as_tuple(layers)]
        if max(blocks, default=0) >= depth:
            low = min(int(recipe.where == "before"), depth - 1)  # there is nothing to score before block 0
            placed = sorted({max(low, min(depth - 1, block * depth // USUAL_DEPTH)) for block in blocks})
            values = {key: value for key, value in recipe.params if key != name}
            return make(recipe.name, **values, **{name: placed if name == "layers" else placed[0]})
    return recipe


def read_recipe(text: str) -> Recipe:
    """The recipe that the page sends. Raises PruneError for one that a page must not run: it would read a file, or take for ever."""
    recipe = parse(text)
    if recipe.file:
        raise PruneError(f"weights= of {recipe.name} is not for the page; in Python give it to sparsight.prune")
    for name, value in recipe.params:
        for each in as_tuple(value) if not isinstance(value, str) else ():
            if isinstance(each, int) and abs(each) > LARGEST:
                raise PruneError(f"{recipe.name}: {name}={each} is more than the {LARGEST} that this page takes")
    return recipe
