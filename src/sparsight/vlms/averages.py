"""The averages that `agile` and `mix` compare an image with: those of known models, and a warning where a model is none of them.

A method's own defaults are LLaVA-1.5-7B's. For another known model they are replaced by that model's, unless the recipe says otherwise:
a model is known by its name here, or says so itself in its configuration (`sparsight_averages`, a mapping of the same words).
"""

from __future__ import annotations

import warnings
from functools import partial

from torch import nn

from .. import registry
from ..ops.rank import effective_rank
from ..recipe import Recipe
from .tiles import ImageSite, ImageTokens

WORDS = ("erank_avg", "erank_span", "entropy_avg", "entropy_span")
KNOWN: dict[str, dict[str, float]] = {
    "llava-1.5-7b": {"erank_avg": 94.87, "erank_span": 103.0, "entropy_avg": 4.8, "entropy_span": 1.4},
    "demo-vlm": {"erank_avg": 44.49, "erank_span": 49.94, "entropy_avg": 4.225, "entropy_span": 2.319},
}
"""By the last part of a model's name, without "-hf". LLaVA's are those that AgilePruner's table 4 gives for MME; demo-vlm's those of 240
pictures of `data.scenes` made from training photos with seed 5 (`sparsight calibrate`)."""
LOW, HIGH = 0.5, 1.6
"""Mean effective rank over the average; on MME single images lie between 0.47 and 1.55 of theirs."""


def averages_of(model: nn.Module) -> dict[str, float]:
    """What is known of a model; empty for one that is not known."""
    config = getattr(model, "config", None)
    own = getattr(config, "sparsight_averages", None)
    if isinstance(own, dict):
        return {word: float(own[word]) for word in WORDS if word in own}
    name = str(getattr(config, "_name_or_path", "") or "").rstrip("/").rpartition("/")[2].lower().removesuffix("-hf")
    return dict(KNOWN.get(name, {}))


def fitted(recipe: Recipe, model: nn.Module) -> Recipe:
    """The recipe with this model's averages where it is silent."""
    if recipe.name == "custom":
        return recipe
    usual = {p.name: p.default for p in registry.find(recipe.name).parameters}
    params = dict(recipe.params)
    found = {word: value for word, value in averages_of(model).items() if word in usual and params[word] == usual[word] != value}
    return registry.make(recipe.name, **{**params, **found}) if found else recipe


def watch(recipe: Recipe, model: nn.Module, site: ImageSite) -> None:
    """Let the site look at its first images where the averages are those of another model."""
    params = dict(recipe.params)
    if recipe.name == "custom" or params.get("by") != "erank" or "erank_avg" not in params or averages_of(model):
        return
    usual = {p.name: p.default for p in registry.find(recipe.name).parameters}
    if params["erank_avg"] == usual["erank_avg"]:
        site.once.append(partial(compare, recipe.name, float(params["erank_avg"])))  # type: ignore[arg-type]


def compare(name: str, average: float, images: list[ImageTokens]) -> None:
    """Warn, with the same words every time, so that Python says it once, if the images' effective rank is far from the average."""
    ranks = [float(effective_rank(image.tokens.detach())) for image in images]
    share = sum(ranks) / len(ranks) / average
    if LOW <= share <= HIGH:
        return
    what = "less than half of" if share < LOW else "far above"
    kind = "simple" if share < LOW else "complex"
    warnings.warn(
        f"{name}: the effective rank of these images is {what} erank_avg={average:g}, which is LLaVA-1.5-7B's average, so all of them count as "
        f"{kind}; measure this model's with `sparsight calibrate MODEL --data IMAGES --recipe {name}` (sparsight.calibrate)",
        stacklevel=1,
    )
