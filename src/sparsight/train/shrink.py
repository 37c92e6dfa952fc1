"""The keep rate that falls from 1 to the recipe's in the first epochs: the model is pruned anew whenever the counts change."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from torch import nn

from ..errors import PruneError
from ..handle import unprune
from ..ops.schedule import as_tuple
from ..prune import family_of, plan_sites, planned, prune, resolve
from ..recipe import Recipe
from .settings import TrainSettings


def check_shrink(settings: TrainSettings, recipe: Recipe | None) -> None:
    """Raise PruneError where the keep rate cannot fall."""
    if not settings.shrink_epochs:
        return
    if recipe is None or recipe.schedule.keep is None or recipe.weights is not None:
        name = "an unpruned model" if recipe is None else str(recipe)
        why = "its weights are made for its counts" if recipe is not None and recipe.weights is not None else "it has no keep="
        raise PruneError(f"shrink_epochs={settings.shrink_epochs}: the keep rate of {name} cannot fall, as {why}; leave it out")


def gone(settings: TrainSettings, epoch: float) -> float:
    """How much of the way from keep 1 to the recipe's is behind: 0 to 1, a half cosine. EViT, arXiv:2202.07800, section 4."""
    if not settings.shrink_epochs:
        return 1.0
    part = min(1.0, max(0.0, (epoch - settings.shrink_start) / settings.shrink_epochs))
    return (1 - math.cos(math.pi * part)) / 2


@dataclass(eq=False)
class Shrink:
    """Prunes the model as the epoch asks. recipe: the one at the end."""

    model: nn.Module
    recipe: Recipe | None
    settings: TrainSettings
    entered: int
    counts: list[int] = field(default_factory=list)

    @staticmethod
    def of(model: nn.Module, recipe: Recipe | None, settings: TrainSettings) -> Shrink:
        """For a model that is pruned by the recipe at present."""
        grid = family_of(model).grid
        made = Shrink(model, recipe, settings, grid[0] * grid[1])
        made.counts = [] if recipe is None else made.counted(recipe)
        return made

    def at(self, epoch: float) -> None:
        """Prune as at that time, which counts in epochs, fractions included."""
        if self.recipe is None or not self.settings.shrink_epochs:
            return
        self.use(shrunk(self.recipe, gone(self.settings, epoch)))

    def full(self) -> None:
        """Prune by the recipe itself."""
        if self.recipe is not None and self.settings.shrink_epochs:
            self.use(self.recipe)

    def use(self, recipe: Recipe) -> None:
        """Prune by the recipe, if that makes a difference."""
        counts = self.counted(recipe)
        if counts == self.counts:
            return
        unprune(self.model)
        if min(counts) < self.entered:  # under a rate of 1 all tokens stay, and none need be scored
            prune(self.model, recipe)
        self.counts = counts

    def counted(self, recipe: Recipe) -> list[int]:
        """Tokens after every site."""
        return planned(self.entered, plan_sites(family_of(self.model), recipe))


def shrunk(recipe: Recipe, share: float) -> Recipe:
    """The recipe with keep rates of which only a share of the way from 1 is gone."""
    rates = tuple(1 - (1 - keep) * share for keep in as_tuple(recipe.schedule.keep))
    return resolve(recipe, {"keep": rates if len(rates) > 1 else rates[0]})
