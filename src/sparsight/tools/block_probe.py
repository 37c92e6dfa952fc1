"""Look into every block of an unpruned model: what each recipe would do with all tokens there, and how its attention is spread."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..apply import needs, settle
from ..errors import PruneError
from ..models._family import Family
from ..models._site import Outcome, Site
from ..ops.attention import head_entropy
from ..ops.distance import attention_distance
from ..ops.rank import effective_rank
from ..ops.schedule import as_tuple
from ..ops.select import everything
from ..prune import plan_sites
from ..recipe import Recipe
from .block_tally import Ranks, Tally, mask_of, random_rank

HEADS = ("q", "k", "prefix", "scale", "grid")
"""What entropy and distance are made of."""
MIDDLE = "attn"
"""Where most methods prune, and where entropy and distance are taken: between a block's attention and its MLP."""


@dataclass(frozen=True, eq=False)
class Asked:
    """A recipe as one site on all tokens, in the blocks where it can be."""

    number: int
    recipe: Recipe
    layers: tuple[int, ...]

    def count(self, n: int) -> int:
        """Tokens that it keeps of n; 0 if it finds that out itself."""
        return self.recipe.schedule.count(n, 0, 1)


def ask(family: Family, number: int, recipe: Recipe, layers: tuple[int, ...]) -> Asked:
    """The recipe for these blocks instead of its own; a PruneError if it cannot be asked alone, on all tokens, in this model."""
    if recipe.weights is not None:
        raise PruneError(
            f"{recipe.name} has learned weights, which analyse does not take; choose a method without (sparsight methods)"
        )
    word = recipe.schedule.word
    schedule = recipe.schedule
    if word:
        # of several budgets, one for each site, the first: that of the site where all tokens are still there
        schedule = schedule.with_budget(word, as_tuple(getattr(schedule, word))[0])
    if recipe.where == "before":
        layers = tuple(layer for layer in layers if layer > 0)
        if not layers:
            raise PruneError(
                f"{recipe.name} works before a block, from what the block in front of it has seen; give blocks above 0"
            )
    at = replace(recipe, schedule=replace(schedule, layers=layers))
    plan_sites(family, at)
    return Asked(number, at, layers)


@dataclass(eq=False)
class Batch:
    """The images that are passing. shown: items that are drawn, with their place in the folder; draws [B, N]: random orders."""

    places: list[int]
    size: tuple[int, int]
    shown: dict[int, int]


@dataclass(eq=False)
class Probe:
    """Watches the blocks. order: which of the orders goes with the distance; kept: patches that count as kept in the histograms."""

    family: Family
    asked: list[Asked]
    layers: tuple[int, ...]
    orders: tuple[float, ...]
    order: int
    kept: int
    seed: int
    tallies: dict[int, Tally]
    batch: Batch = field(default_factory=lambda: Batch([], (0, 0), {}))
    chosen: dict[int, dict[int, Tensor]] = field(default_factory=dict)
    """Kept sets of this batch, masks [B, N] by block and recipe."""

    def run(self, images: Tensor, batch: Batch) -> None:
        """One batch, once for each place in a block where a recipe works."""
        self.batch, self.chosen = batch, {layer: {} for layer in self.layers}
        for where in sorted({MIDDLE, *(asked.recipe.where for asked in self.asked)}):
            here = [asked for asked in self.asked if asked.recipe.where == where]
            sites = self.sites(where, here)
            self.family.add(sites)
            try:
                self.family.model(images)
            finally:
                self.family.take_out(sites)
        for layer, kept in self.chosen.items():
            self.tallies[layer].compare(kept)

    def sites(self, where: str, here: list[Asked]) -> list[Site]:
        """Sites that keep everything and take notes."""
        base = HEADS if where == MIDDLE else ("grid",)
        wanted = tuple(dict.fromkeys(("x", *base, *(name for asked in here for name in needs(asked.recipe)))))
        found = []
        for layer in self.layers:
            able = [asked for asked in here if layer in asked.layers]
            if able or where == MIDDLE:
                # the place before a block is the one after the block in front of it
                at, place = (layer - 1, "block") if where == "before" else (layer, where)
                found.append(Site(at, place, wanted, partial(self.note, layer, where, able), False))
        return found

    def note(self, layer: int, where: str, able: list[Asked], given: dict[str, Any]) -> Outcome:
        """The step of a site: look, and let everything pass."""
        del given["entered"]
        x: Tensor = given["x"]
        if where == MIDDLE:
            self.spread(self.tallies[layer], given)
        if able:
            self.choose(layer, able, given)
        return None, everything(x), None, None

    def spread(self, tally: Tally, given: dict[str, Any]) -> None:
        """Entropy of the attention rows, and how far they reach."""
        q, k, prefix, scale, grid = (given[name] for name in HEADS)
        patch = (self.batch.size[0] / grid[0], self.batch.size[1] / grid[1])
        for index, order in enumerate(self.orders):
            entropy = head_entropy(q, k, prefix, scale, order)
            tally.histogram(index, entropy.mean(dim=1), self.kept)
            tally.entropies[index] = tally.entropies[index] + entropy.double().sum(dim=(0, 2)).cpu()
            if index == self.order:
                distance = attention_distance(q, k, prefix, scale, grid, patch)
                tally.heads.add(distance.transpose(0, 1).flatten(1), entropy.transpose(0, 1).flatten(1))

    def choose(self, layer: int, able: list[Asked], given: dict[str, Any]) -> None:
        """What each recipe keeps of these tokens, and how much that is worth."""
        x: Tensor = given["x"]
        full, draws = effective_rank(x), self.draws(x.shape[1])
        random: dict[tuple[int, ...], Tensor] = {}
        for asked in able:
            left, plan, _, score = settle(asked.recipe, asked.count, dict(given))
            left = plan.gather(x) if left is None else left
            self.chosen[layer][asked.number] = mask_of(plan)
            counts = tuple(plan.counts)
            if counts not in random:
                random[counts] = random_rank(x, counts, draws)
            rank = effective_rank(left if plan.valid is None else left * plan.valid.unsqueeze(-1))
            self.tallies[layer].ranks.setdefault(asked.number, Ranks()).add(counts, rank, random[counts], full)
            if score is not None:
                self.draw(layer, asked.number, score, given["grid"])

    def draw(self, layer: int, number: int, score: Tensor, grid: tuple[int, int]) -> None:
        """Keep the scores of the images that are shown. score [B, N]."""
        for item, place in self.batch.shown.items():
            self.tallies[layer].maps[place, number] = score[item].double().reshape(grid).cpu().numpy()

    def draws(self, n: int) -> Tensor:
        """A random order of the patches for every image, the same whatever its batch: [B, N]."""
        orders = []
        for place in self.batch.places:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + place)
            orders.append(torch.randperm(n, generator=generator))
        return torch.stack(orders)
