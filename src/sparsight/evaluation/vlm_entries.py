"""Which rows a comparison of a vision-language model has: methods at budgets, seeds where a method draws, and the baselines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image
from torch import nn

from ..errors import PruneError
from ..ops.schedule import BUDGET, as_tuple, show
from ..ops.text import DecoderSchedule
from ..prune import prune, resolve
from ..recipe import Recipe
from ..registry import methods as all_methods
from ..runs.store import UNPRUNED

BASELINES = ("random", "resize", "pool")
"""Rows that are always there unless they are switched off."""
PLACES = ("encoder", "projector", "decoder")
PUBLISHED = 32
"""Layers of the language models that the papers' layer numbers are for."""


Grid = tuple[int, int]


@dataclass(frozen=True)
class Entry:
    """One row. recipes: that of every seed, none for the unpruned model."""

    recipes: tuple[Recipe, ...] = ()

    @property
    def name(self) -> str:
        return self.names[0]

    @property
    def names(self) -> list[str]:
        """Of every seed."""
        return [spelled(recipe) for recipe in self.recipes] or [UNPRUNED]

    def installed(self, place: int) -> Recipe | None:
        """What the model is pruned by under a seed."""
        return self.recipes[place] if self.recipes else None


def entries_of(
    shell: nn.Module, depth: int, grid: Grid | None, methods: Sequence[str] | None, tokens: Sequence[int], recipes: Sequence[str | Recipe], seeds: int,
    baselines: bool,
) -> tuple[list[Entry], list[str]]:  # fmt: skip
    """The unpruned model, methods x budgets, further recipes; and notes about what is left out. shell: the model, with or without data;
    depth: layers of its language model; grid: see `grid_made`. Raises PruneError for what was asked for by name and cannot be."""
    if seeds < 1:
        raise PruneError(f"seeds={seeds} must be 1 or more")
    names = usual() if methods is None else list(methods)
    first = [name.partition(":")[0].strip() for name in names]
    names = [name for name in BASELINES if baselines and name not in first] + names
    further = [resolve(recipe, {}) for recipe in recipes]
    strict = {recipe.name for recipe in further} | (set(first) if methods is not None else set())
    found, notes, known = [Entry()], [], set()
    for text, amount in [(text, amount) for amount in tokens or (None,) for text in names] + [(recipe, None) for recipe in further]:
        try:
            recipe = complete(text, amount, depth) if isinstance(text, str) else text
            if str(recipe) not in known:
                known.add(str(recipe))
                found.append(entry_of(shell, grid, recipe, seeds))
        except PruneError as error:
            name = text.partition(":")[0].strip() if isinstance(text, str) else text.name
            if name in strict:
                raise
            notes.append(f"{text}{f' at {amount} tokens' if amount else ''} is left out: {error}")
    if len(found) == 1:
        raise PruneError("nothing to compare: give at least one method, and a budget such as tokens 64" if not notes else notes[0])
    return found, notes


def usual() -> list[str]:
    """All methods that choose a language model's image tokens, and Col-Ln, which does so as well. Those for videos need frames."""
    recipes = [resolve(entry.name, {}) for entry in all_methods()]
    return [recipe.name for recipe in recipes if recipe.where in PLACES and "frames" not in recipe.needs] + ["col_ln"]


def complete(text: str, tokens: int | None, depth: int) -> Recipe:
    """The recipe of a string, with the budget filled in where it is silent, and layers that the language model has.

    A method's own layers are the papers', for 32 layers: where the model has fewer they are scaled. PyramidDrop's three stages keep 4, 2
    and 1 times the budget, as its fractions are to each other.
    """
    body = text.partition(":")[2]
    words = {part.partition("=")[0].strip() for part in body.split(",")}
    recipe = resolve(text, {})
    options: dict[str, Any] = {}
    if isinstance(recipe.schedule, DecoderSchedule):
        word = "layer" if "layer" in dict(recipe.params) else "layers"
        layers = as_tuple(recipe.schedule.layers) if not isinstance(recipe.schedule.layers, str) else ()
        if word not in words and not fits(recipe.schedule, depth):
            placed = scaled([int(layer) for layer in layers], depth, recipe.schedule.after)
            options[word] = placed[0] if word == "layer" else placed
    if tokens is not None and not words & set(BUDGET):
        stages = (
            len(as_tuple(recipe.schedule.keep))
            if isinstance(recipe.schedule, DecoderSchedule) and recipe.schedule.keep is not None
            else 1
        )
        options["tokens"] = tokens if stages == 1 else tuple(tokens * 2**step for step in reversed(range(stages)))
    return resolve(recipe, options) if options else recipe


def fits(schedule: DecoderSchedule, depth: int) -> bool:
    """Whether the language model has the layers."""
    try:
        schedule.resolve(depth)
    except PruneError:
        return False
    return True


def scaled(layers: list[int], depth: int, after: bool) -> tuple[int, ...]:
    """Layer numbers for 32 layers as those of a model of `depth` layers, each a later one than the one before."""
    low, high = (0, depth - 2) if after else (1, depth - 1)
    found: list[int] = []
    for place, layer in enumerate(layers):
        least, most = (found[-1] + 1 if found else low), high - (len(layers) - 1 - place)
        found.append(max(least, min(most, int(layer * depth / PUBLISHED + 0.5))))
    if not found or found[-1] > high:
        raise PruneError(f"{len(layers)} stages need more layers than the {depth} of this language model")
    return tuple(found)


def entry_of(shell: nn.Module, grid: Grid | None, recipe: Recipe, seeds: int) -> Entry:
    """A checked row."""
    least = min if recipe.where == "decoder" else max  # a language model's first stages may let everything through
    asked = least(as_tuple(recipe.schedule.tokens), default=0)
    if grid is not None and asked > grid[0] * grid[1]:
        raise PruneError(f"{recipe.name}: tokens={int(asked)} is more than the {grid[0] * grid[1]} tokens of a picture")
    with prune(shell, recipe):
        pass
    return Entry(tuple(seeded(recipe, place) for place in range(seeds)) if draws(recipe) else (recipe,))


def seeded(recipe: Recipe, further: int) -> Recipe:
    """The recipe under a later seed."""
    first = dict(recipe.params)["seed"]
    assert isinstance(first, int)
    return resolve(recipe, {"seed": first + further})


def spelled(recipe: Recipe) -> str:
    """The recipe's string without the layers of a vision model, which say nothing here."""
    if recipe.where == "decoder":
        return str(recipe)
    values = dict(recipe.params)
    body = ",".join(f"{name}={show(values[name])}" for name in recipe.shown if name not in ("layer", "layers"))
    return f"{recipe.name}:{body}" if body else str(recipe)


def draws(recipe: Recipe) -> bool:
    """Whether a recipe draws at random, so that it has to be run under several seeds."""
    return recipe.name != "custom" and any(name == "seed" for step in recipe.steps for name, _ in step.numbers)


def grid_made(family: Any, processor: Any) -> Grid | None:
    """Patch grid (h, w) of the pictures that the processor makes; None for families that cut pictures into tiles."""
    if not family.one_row:
        return None
    pixels = processor.image_processor(images=Image.new("RGB", (320, 320), "gray"), return_tensors="pt")["pixel_values"]
    grid: Grid = family.grid_of({"pixel_values": pixels})
    return grid
