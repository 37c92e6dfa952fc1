"""Recipes that a vLLM server can run on one model: which are refused and why, and how many tokens each leaves of an image.

vLLM lays out a prompt before it encodes its images, and keeps an image's tokens for every prompt that it comes with again. So a count has
to follow from the image's size, and a choice from the image alone. This file knows nothing of vLLM.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from math import isqrt
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from .. import registry
from ..apply import apply, needs
from ..errors import PruneError, shown
from ..load.shapes import cut, skeleton
from ..prune import family_of
from ..recipe import Recipe
from ..signals import heads_of
from ..vlms.before_llm import asked_for, checked, make_site, random_signals
from ..vlms.family import LVLM
from ..vlms.tiles import ImageSite, ImageTokens, shares_of

KEY = "sparsight"
"""Name of the recipe in a model's configuration (--hf-overrides) and among a request's mm_processor_kwargs."""
OFF = "none"
"""Stands for a recipe where images are left whole."""
LONGEST = 500
"""Characters of a recipe."""
LARGEST_TRIAL = 2048
"""Tokens of the largest image that a recipe is tried on."""
INSTEAD = {"prumerge": "visionzip", "prumerge_plus": "visionzip", "similarity": "divprune", "ats": "fastervlm"}
"""Of methods that cannot be served, the nearest that can, where it is not fastervlm."""
INSIDE = ("class_token", "feats")
"""Signals besides attention that are from inside the vision encoder; those of the other recipes are in what comes out of it."""


class EncoderOutput(SimpleNamespace):
    """As much of transformers' output of a vision encoder as families read."""

    def __getitem__(self, name: str) -> Any:
        return getattr(self, name)


@dataclass(frozen=True, eq=False)
class ServedRecipe:
    """A recipe, checked for one model, and its site between the model's vision encoder and language model.

    extra: tokens that it leaves of a tile besides the budget (EViT's one made of the rest).
    """

    recipe: Recipe
    site: ImageSite
    family: LVLM
    extra: int = 0

    def layout(self, call: dict[str, Any], total: int) -> ImageTokens:
        """One image of so many tokens without content: which of them are patches of which tile. call: what its size is read from."""
        output = EncoderOutput(pooler_output=[torch.empty(total, 1)])
        return self.family.images("image", output, call, {}, replace(self.site, needs=()))[0]

    def count(self, call: dict[str, Any], total: int) -> int:
        """Tokens that are left of an image of so many. Raises PruneError where the image is too small for the recipe."""
        return self.left(self.layout(call, total))

    def left(self, image: ImageTokens) -> int:
        """Tokens that are left of an image: all of them where nothing leaves."""
        total = image.tokens.shape[0]
        tiles = image.merged().tiles if self.site.whole else image.tiles
        sizes = [tile.columns.shape[0] for tile in tiles]
        shares = [0 if share is None else share[0] for share in shares_of(self.site, replace(image, tiles=tiles))]
        if shares == sizes:
            return total
        left = sum(share + self.extra if 0 < share < size else share for share, size in zip(shares, sizes, strict=True))
        if not 0 < left < total:
            raise PruneError(f"{self.recipe} would leave {left} of an image's {total} tokens; ask for fewer, or for all")
        return left


class ServedRecipes:
    """Recipes by their text for one model of transformers' configuration.

    deaf: why nobody can listen to the vision encoder's attention here, "" if one can; recipes that read it are then refused.
    """

    def __init__(self, config: Any, deaf: str = "") -> None:
        self.family, self.deaf = family_shell(config), deaf
        self.find: Callable[[str], ServedRecipe] = lru_cache(maxsize=256)(self.make)

    def make(self, text: str) -> ServedRecipe:
        """The recipe of that text. Raises PruneError for one that cannot be served."""
        recipe = registry.parse(text)
        refuse_place(recipe, self.family)
        recipe = checked(self.family, recipe)
        if self.deaf and (heads_of(needs(recipe)) or set(INSIDE) & set(needs(recipe))):
            raise PruneError(
                f"{recipe.name} reads attention or features inside the vision encoder, and {self.deaf}; "
                "take divprune, fps, random or cdpruner:text=none, which need the image's tokens alone"
            )
        return ServedRecipe(recipe, make_site(self.family, recipe), self.family, extra_tokens(recipe, self.family))


def family_shell(config: Any) -> LVLM:
    """The family of the model that transformers would build of a configuration, without its weights."""
    config = copy.deepcopy(config)
    cut(config, 1)  # of the language model nothing is asked
    family: LVLM = family_of(skeleton(config).eval())
    return family


def check_text(value: object) -> str:
    """A recipe's text as it was given. Raises PruneError for anything but short text."""
    if not isinstance(value, str) or not value.strip():
        raise PruneError(f'{KEY} takes a recipe such as "visionzip:tokens=64" or "{OFF}", got {shown(value)}')
    if len(value) > LONGEST:
        raise PruneError(f"a recipe of {len(value)} characters is too long; {LONGEST} are enough")
    return value.strip()


def refuse_place(recipe: Recipe, family: LVLM) -> None:
    """Raise PruneError for recipes that work elsewhere, or need what vLLM has not got."""
    reason = ""
    if recipe.where == "decoder":
        reason = "drops tokens inside the language model, where vLLM's paged cache has one length for all layers"
    elif recipe.where == "image":
        reason = (
            "makes the picture smaller, which vLLM's own image processor does (Qwen: --mm-processor-kwargs '{\"max_pixels\": N}')"
        )
    elif recipe.adaptive or not recipe.schedule.word or dict(recipe.params).get("count") == "adaptive":
        reason = "finds each image's count itself, but vLLM lays out the prompt before images are encoded"
    elif recipe.attention == "consuming":
        reason = "reads the layer behind the one that makes the features, which vLLM does not build"
    elif {"text", "text_attn"} & set(recipe.needs):
        reason = "reads the prompt, but vLLM keeps an image's tokens for every prompt that it comes with"
    elif recipe.weights is not None:
        reason = "has learned weights, which a server cannot be given"
    if reason:
        raise PruneError(f"{recipe.name} {reason}; the nearest that can be served is {nearest(recipe, family)}")


def nearest(recipe: Recipe, family: LVLM) -> str:
    """A recipe that can be served in its place."""
    if {"text"} & set(recipe.needs):
        return "cdpruner:text=none,tokens=64"
    name = INSTEAD.get(recipe.name, "fastervlm")
    if name == "divprune":
        return f"{name}:tokens=64"
    return f"{name}:tokens=64" + ("" if family.class_token else ",score=col_ln")


def extra_tokens(recipe: Recipe, family: LVLM) -> int:
    """Tokens that the recipe leaves besides its budget, the same of images of several sizes, or of the one size that there is. Raises
    PruneError where that depends on the image."""
    found = []
    for grid in trial_grids(recipe, family):
        n = grid[0] * grid[1]
        count = recipe.schedule.count(n, 0, 1)
        plan = apply(recipe, count, random_signals(family, grid))[1]
        found.append((plan.counts[0], count, n))
    extra = {left - count for left, count, _ in found}
    if len(extra) > 1 or not extra <= {0, 1}:
        left, count, n = next(one for one in found if one[0] != one[1])
        raise PruneError(
            f"{recipe} leaves {left} of {n} tokens where its budget says {count}, but a prompt is laid out by the budget; "
            f"the nearest that can be served is {nearest(recipe, family)}"
        )
    return extra.pop()


def trial_grids(recipe: Recipe, family: LVLM) -> list[tuple[int, int]]:
    """Grids that a recipe is tried on: the only one that images have, or some that hold more than the budget."""
    capacity = family.capacity()
    if capacity is not None:
        return [family.grid]
    asked = max(asked_for(recipe), 16)
    return [near_square(min(n, LARGEST_TRIAL)) for n in (asked + 3, 2 * asked + 5, 6 * asked)]


def near_square(n: int) -> tuple[int, int]:
    """A grid of n tokens or a few more."""
    side = isqrt(n)
    return side, -(-n // side)


def recipe_row(text: str) -> Tensor:
    """A recipe's text as bytes, which travel with an image between processes."""
    return torch.tensor(list(text.encode()), dtype=torch.uint8)


def recipe_text(row: Tensor) -> str:
    """What `recipe_row` wrote."""
    return bytes(row.tolist()).decode()
