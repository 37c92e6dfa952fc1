"""Methods between vision encoder and language model: recipes meet vision-language models."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .. import registry
from ..apply import apply, full_precision, needs
from ..errors import PruneError
from ..models.site import IMAGE
from ..ops.schedule import as_tuple, show
from ..plan import Plan
from ..recipe import Recipe, Step
from ..signals import FROM_HEADS, SHALLOW, derive
from . import averages
from .family import LVLM
from .prompt_handle import PromptHandle
from .request import KeptImage
from .tiles import ImageSite, Outcome
from .words import Words

ELSEWHERE = "score=column_mean or score=col_ln where the method takes it, or col_ln, divprune, fps, random"
LEAST_TRIAL = 64
MADE = "contextual"
"""The number of a selection that says how many tokens of the budget it makes of others."""


@dataclass(eq=False, repr=False)
class ImageHandle(PromptHandle):
    """Handle of a method before the language model.

    counts   visual tokens that were left of each image (or video), in the order of the call; images before videos.
    plans    one Plan of one row per image, over all its tokens in the prompt, newline vectors included. Where the recipe makes images
             smaller: which of these tokens each one of the smaller image stands for; `grid` is that of the image as it was given.
    """

    @property
    def images(self) -> tuple[KeptImage, ...]:
        return () if self.last is None or not self.engine.sites else self.last.images

    @property
    def plans(self) -> list[Plan]:
        return [image.plan for image in self.images]

    @property
    def counts(self) -> list[int]:
        return [image.count for image in self.images]

    def kept_per_image(self) -> list[int]:
        """Visual tokens left of each image."""
        return self.counts

    @property
    def scores(self) -> list[Tensor | None]:
        """The score [1, n] of every image; None for methods without one, and for images in tiles."""
        return [image.score for image in self.images]

    @property
    def grid(self) -> tuple[int, int]:
        """Patch grid (h, w) of the last image, or of every tile."""
        images = self.images
        return images[-1].grid if images and images[-1].grid is not None else self.engine.grid

    def sources(self) -> list[Plan]:
        return self.plans


def prune_images(family: LVLM, recipe: Recipe, processor: Any = None, text_embeds: Any = None) -> ImageHandle:
    """Put the recipe between the model's vision encoder and its language model, everything checked. processor, text_embeds: see `Words`."""
    recipe = checked(family, recipe)
    capacity = family.capacity()
    if capacity is not None and asked_for(recipe) == capacity:
        warnings.warn(f"{recipe}: an image of {type(family.model).__name__} has {capacity} tokens, so all are kept", stacklevel=4)
    try_out(family, recipe, capacity or max(LEAST_TRIAL, 2 * asked_for(recipe)))
    words = Words(family, recipe.text or "llm", processor, text_embeds) if "text" in needs(recipe) else None
    sites = [make_site(family, recipe, words)]
    averages.watch(recipe, family.model, sites[0])
    family.add(sites)
    return ImageHandle(recipe, family, sites)


def checked(family: LVLM, recipe: Recipe) -> Recipe:
    """The recipe with this model's averages, if it can work in front of the language model; else a PruneError."""
    recipe = averages.fitted(recipe, family.model)
    check_place(recipe)
    check_signals(family, recipe)
    capacity = family.capacity()
    if capacity is not None and asked_for(recipe) > capacity:
        raise PruneError(
            f"{recipe.name}: tokens={asked_for(recipe)} is more than the {capacity} tokens of an image in {type(family.model).__name__}"
        )
    return recipe


def asked_for(recipe: Recipe) -> int:
    """Tokens of an image that the recipe asks for; 0 if it does not say."""
    return int(max(as_tuple(recipe.schedule.tokens), default=0))


def check_place(recipe: Recipe) -> None:
    """Raise PruneError if the recipe asks for blocks, several sites, or attention that knows sizes."""
    schedule = recipe.schedule
    word = "layer" if "layer" in dict(recipe.params) else "layers"
    given = dict(recipe.params).get(word, schedule.layers)
    usual = {p.name: p.default for p in registry.find(recipe.name).parameters}.get(word) if recipe.name != "custom" else ()
    if given != usual and given != () and recipe.where not in ("encoder", "projector"):
        raise PruneError(
            f"{word}={show(given)}: in a vision-language model tokens leave once, behind the vision encoder; leave {word} out"
        )
    if schedule.word and len(as_tuple(getattr(schedule, schedule.word))) > 1:
        raise PruneError(
            f"{schedule.word}={show(getattr(schedule, schedule.word))}: there is one place to prune at; give one value"
        )
    if recipe.proportional:
        raise PruneError(
            f"{recipe.name} weighs later attention by token size, which a language model cannot; set proportional=false"
        )


def check_signals(family: LVLM, recipe: Recipe) -> None:
    """Raise PruneError if the model does not offer what the recipe needs."""
    wanted, kind = needs(recipe), type(family.model).__name__
    if {"class_attn", "shallow_class_attn", "class_token"} & set(wanted) and not family.class_token:
        raise PruneError(
            f"{recipe.name} scores by class attention, but the vision encoder of {kind} has no class token; try {ELSEWHERE}"
        )
    missing = [name for name in wanted if name not in family.offers()]
    if "class_token" in missing and not family.lacks:
        raise PruneError(
            f"{recipe.name} keeps the class token, which {kind} does not project; set score=column_mean or score=col_ln, or take fastervlm or "
            "vispruner, which read the class token's attention"
        )
    if missing and family.lacks:
        raise PruneError(f"{recipe.name} needs {', '.join(missing)} of {kind}, but {family.lacks}; try divprune, fps, random")
    if missing:
        raise PruneError(f"{recipe.name} needs {', '.join(missing)}; {family.name} offers {', '.join(family.offers())}")


def try_out(family: LVLM, recipe: Recipe, n: int) -> None:
    """Run the recipe once on small random signals, so that what it refuses is known now and not in the first forward."""
    apply(recipe, recipe.schedule.count(n, 0, 1), random_signals(family, (1, n)))


def random_signals(family: LVLM, grid: tuple[int, int]) -> dict[str, Any]:
    """Signals of one image of that grid, of one head and four channels."""
    rng, prefix, n = torch.Generator().manual_seed(0), family.prefix, grid[0] * grid[1]
    given: dict[str, Any] = {"prefix": prefix, "scale": 0.5, "grid": grid}
    given.update({name: torch.randn(1, 1, prefix + n, 4, generator=rng) for name in ("q", "k", "v", "shallow_q", "shallow_k")})
    given.update(
        {name: torch.randn(1, rows, 4, generator=rng) for name, rows in (("x", n), ("feats", n), ("class_token", 1), ("text", 2))}
    )
    return given


def make_site(family: LVLM, recipe: Recipe, words: Words | None = None) -> ImageSite:
    """The one site, which runs the recipe on tiles or whole images."""
    made = max(0, int(recipe.steps[-2].bound.get(MADE, 0)))  # type: ignore[arg-type]
    return ImageSite(
        where=recipe.where if recipe.where in ("image", "encoder", "projector") else "projector",
        needs=() if recipe.where == "image" else needs(recipe),
        step=partial(run_site, recipe),
        budget=partial(budget, recipe),
        least=recipe.schedule.least - made,
        made=made,
        shallow=recipe.shallow,
        words=words,
        consuming=recipe.attention == "consuming",
        per_tile=recipe.per_tile,
        separators=recipe.separators == "keep",
        asked=asked_for(recipe),
        layer=IMAGE if recipe.where == "image" else -1,
    )


def budget(recipe: Recipe, n: int) -> int:
    """Tokens to keep of an image's (or tile's) n tokens: all of them where there are fewer than asked for."""
    asked = asked_for(recipe)
    if asked > n and not recipe.per_tile and recipe.fewer == "error":
        raise PruneError(f"{recipe.name}: tokens={asked} is more than the {n} tokens of an image; ask for fewer, or use keep=")
    return recipe.schedule.count(n, 0, 1)


def run_site(recipe: Recipe, given: dict[str, Any]) -> Outcome:
    """The recipe on the signals of one or several tiles of one shape."""
    count, made, patches = given.pop("count"), given.pop("made"), given.pop("patches", None)
    used, given = recipe, {**given, "depth": 1.0}
    if patches is not None:
        used, given = with_patch_score(recipe, given, patches), {**given, **received(recipe, given, patches)}
    select = recipe.steps[-2]
    if int(select.bound.get(MADE, 0)) > 0:  # type: ignore[arg-type]
        used = replace(used, select=Step(select.function, **{**select.bound, MADE: made}))
    tokens, plan, _, score = apply(used, count, given)
    return tokens, plan, score


def received(recipe: Recipe, given: dict[str, Any], patches: dict[str, Any]) -> dict[str, Any]:
    """Attention that the finer patches received, of all or of the class token, summed over the patches of each token."""
    names = [ahead + name for ahead in ("", SHALLOW) for name in FROM_HEADS if ahead + name in recipe.needs]
    with full_precision(given["x"].device.type), torch.no_grad():
        fine = {name: derive(name, {**patches, "x": given["x"]}) for name in names}
    return {name: value.view(*value.shape[:-1], given["x"].shape[1], -1).sum(dim=-1) for name, value in fine.items()}


def with_patch_score(recipe: Recipe, given: dict[str, Any], patches: dict[str, Any]) -> Recipe:
    """The recipe with its score taken from finer patches and summed over the patches of each token."""
    first = recipe.steps[0]
    if recipe.score is None or not {"q", "k"} & set(first.needs):
        return recipe
    sources = {**patches, "x": given["x"]}
    with full_precision(given["x"].device.type), torch.no_grad():
        fine: Tensor = first.run({name: derive(name, sources) for name in first.needs})
    score = fine.view(*given["x"].shape[:2], -1).sum(dim=-1)
    return replace(recipe, score=Step(lambda: score))
