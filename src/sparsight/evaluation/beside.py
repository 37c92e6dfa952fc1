"""Baselines beside the recipes that are measured: random places, a smaller picture, pooled patches, at equal work or with as many tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache, partial

from torch import nn

from ..errors import PruneError, shown
from ..models.family import Family
from ..ops.select import smaller
from ..prune import family_of, plan_sites, planned
from ..recipe import IN_BLOCKS, Recipe
from ..registry import make
from ..runs.comparison import group_of
from ..speed.macs import Forward, as_model, macs

USUAL = ("random", "resize")
"""Baselines that `compare` shows unless it is told otherwise."""
SIZED = ("resize", "pool")
BASELINES = ("random", *SIZED)
EQUAL = ("macs", "tokens")
FAR = 0.15
"""A baseline whose multiply-accumulates are further from the group's than this share of them is left out."""


@dataclass(frozen=True)
class Beside:
    """Recipes to add, the groups (budget, layers) that each one stands in, and what could not be had."""

    recipes: list[Recipe]
    groups: dict[str, list[tuple[str, str]]]
    notes: list[str]


def check_beside(names: Iterable[str], equal: Iterable[str]) -> tuple[list[str], list[str]]:
    """The words, each once. Raises PruneError for another one."""
    found = []
    for given, known, what in ((names, BASELINES, "beside"), (equal, EQUAL, "equal")):
        words = list(dict.fromkeys(given))
        if bad := [word for word in words if word not in known]:
            raise PruneError(f"{what}={shown(bad[0])} is not known; choose {', '.join(known)}")
        found.append(words)
    if found[0] and not found[1]:
        raise PruneError(f"equal is empty: say what the baselines share with the recipes, {' or '.join(EQUAL)}")
    return found[0], found[1]


def beside(
    model: nn.Module,
    recipes: Sequence[Recipe],
    names: Sequence[str] = USUAL,
    equal: Sequence[str] = ("macs",),
    image_size: tuple[int, int] = (224, 224),
    forward: Forward = as_model,
) -> Beside:
    """Baselines for every group of recipes of one budget at the same blocks.

    random: the same budget at the same blocks. resize, pool: whole grids of about the picture's shape. equal "macs": the grid whose
    multiply-accumulates, counted by `macs`, are nearest to those of the group's first recipe; "tokens": the largest grid with at most as many
    tokens as that recipe leaves. pool stands behind the group's first block. Of adaptive recipes nothing is known before a run: they get none.
    """
    family, cost = family_of(model), cache(partial(work, model, image_size, forward))
    wanted = [(name, word) for name in names for word in (equal if name in SIZED else ("tokens",))]
    found, notes = Beside([], {}, []), []
    for group, members in grouped(recipes).items():
        like = next((recipe for recipe in members if not recipe.adaptive and recipe.name not in SIZED), None)
        if like is None or like.where not in IN_BLOCKS:
            continue
        for name, word in wanted:
            if name == "random" and any(recipe.name == "random" for recipe in members):
                continue
            try:
                recipe = random_like(like) if name == "random" else sized(name, word, like, family, cost)
                plan_sites(family, recipe)
            except PruneError as error:
                notes.append(f"no {name} beside {like}: {error}")
                continue
            if str(recipe) not in map(str, (*recipes, *found.recipes)):
                found.recipes.append(recipe)
            places = found.groups.setdefault(str(recipe), [])
            if group not in places:
                places.append(group)
    found.notes.extend(dict.fromkeys(notes))
    return found


def grouped(recipes: Iterable[Recipe]) -> dict[tuple[str, str], list[Recipe]]:
    """Recipes by budget and layers."""
    found: dict[tuple[str, str], list[Recipe]] = {}
    for recipe in recipes:
        found.setdefault(group_of(recipe), []).append(recipe)
    return found


def work(model: nn.Module, image_size: tuple[int, int], forward: Forward, recipe: Recipe) -> int:
    """Multiply-accumulates of a recipe per image."""
    return macs(model, recipe, image_size, forward=forward)


def random_like(recipe: Recipe) -> Recipe:
    """Random places under the budget of a recipe."""
    word = recipe.schedule.word
    if not word:
        raise PruneError(f"{recipe} has no budget of its own")
    return make("random", **{word: getattr(recipe.schedule, word), "layers": recipe.schedule.layers})


def sized(name: str, word: str, like: Recipe, family: Family, cost: Callable[[Recipe], int]) -> Recipe:
    """resize or pool on the grid that fits a recipe."""
    grid = family.grid
    patches = grid[0] * grid[1]
    sizes = sorted({rows * columns for rows, columns in (smaller(grid, count) for count in range(1, patches))} - {patches})
    if not sizes:
        raise PruneError(f"a grid of {patches} patches has no smaller one")
    sites = plan_sites(family, like)
    more = {"layer": max(0, sites[0].layer)} if name == "pool" else {}

    def at(size: int) -> Recipe:
        return make(name, tokens=size, **more)

    if word == "tokens":
        left = planned(patches, sites)[-1]
        return at(max((size for size in sizes if size <= left), default=sizes[0]))
    goal = cost(like)
    low, high = 0, len(sizes) - 1
    while low < high:  # the first grid that costs as much as the recipe, or the largest
        middle = (low + high) // 2
        low, high = (low, middle) if cost(at(sizes[middle])) >= goal else (middle + 1, high)
    best = min((at(size) for size in sizes[max(0, low - 1) : low + 1]), key=lambda recipe: abs(cost(recipe) - goal))
    if abs(cost(best) - goal) > FAR * goal:
        raise PruneError(f"no {name} comes near its {goal / 1e9:.2f} GMACs; the nearest is {best} with {cost(best) / 1e9:.2f}")
    return best
