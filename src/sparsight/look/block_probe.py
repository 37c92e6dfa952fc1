"""Look into every block of an unpruned model: what each recipe would do with all tokens there, and how its attention is spread."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..apply import needs, settle
from ..errors import PruneError
from ..ops.attention import head_entropy
from ..ops.distance import attention_distance
from ..ops.rank import effective_rank
from ..ops.schedule import as_tuple
from ..prune import family_of, plan_sites
from ..recipe import Recipe
from .block_tally import Ranks, Tally, mask_of, random_rank
from .watch import watch

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


def ask(model: nn.Module, number: int, recipe: Recipe, layers: tuple[int, ...]) -> Asked:
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
    plan_sites(family_of(model), at)
    return Asked(number, at, layers)


@dataclass(eq=False)
class Batch:
    """The images that are passing: their places in the folder, and size (h, w); shown: items that are drawn, with their places."""

    places: list[int]
    size: tuple[int, int]
    shown: dict[int, int]


@dataclass(eq=False)
class Probe:
    """Watches the blocks. order: which of the orders goes with the distance; grid: that of the images; kept: patches that count as
    kept in the histograms; chosen: kept sets of this batch, masks [B, N] by block and recipe."""

    model: nn.Module
    asked: list[Asked]
    layers: tuple[int, ...]
    orders: tuple[float, ...]
    order: int
    seed: int
    tallies: dict[int, Tally]
    batch: Batch = field(default_factory=lambda: Batch([], (0, 0), {}))
    grid: tuple[int, int] = (0, 0)
    kept: int = 0
    chosen: dict[int, dict[int, Tensor]] = field(default_factory=dict)

    def run(self, images: Tensor, batch: Batch) -> None:
        """One batch, once for each place in a block where a recipe works."""
        self.batch, self.chosen = batch, {layer: {} for layer in self.layers}
        for where in sorted({MIDDLE, *(asked.recipe.where for asked in self.asked)}):
            here = [asked for asked in self.asked if asked.recipe.where == where]
            layers = [layer for layer in self.layers if where == MIDDLE or any(layer in asked.layers for asked in here)]
            names = [*(HEADS if where == MIDDLE else ("grid",)), *(name for asked in here for name in needs(asked.recipe))]
            with watch(self.model, where, layers, names, partial(self.see, where, here)):
                self.model(images)
        for layer, kept in self.chosen.items():
            self.tallies[layer].compare(kept)

    def see(self, where: str, here: list[Asked], layer: int, given: dict[str, Any]) -> None:
        """One place in one block."""
        if where == MIDDLE:
            self.spread(self.tallies[layer], given)
        if here:
            self.choose(layer, here, given)

    def spread(self, tally: Tally, given: dict[str, Any]) -> None:
        """Entropy of the attention rows, and how far they reach."""
        q, k, prefix, scale, grid = (given[name] for name in HEADS)
        patches = grid[0] * grid[1]
        # half of them where the recipe has no fixed count
        self.grid, self.kept = grid, self.asked[0].count(patches) or -(-patches // 2)
        patch = (self.batch.size[0] / grid[0], self.batch.size[1] / grid[1])
        for index, order in enumerate(self.orders):
            entropy = head_entropy(q, k, prefix, scale, order)
            tally.histogram(index, entropy.mean(dim=1), self.kept)
            tally.entropies[index] = tally.entropies[index] + entropy.double().sum(dim=(0, 2)).cpu()
            if index == self.order:
                distance = attention_distance(q, k, prefix, scale, grid, patch)
                tally.heads.add(distance.transpose(0, 1).flatten(1), entropy.transpose(0, 1).flatten(1))

    def choose(self, layer: int, here: list[Asked], given: dict[str, Any]) -> None:
        """What each recipe keeps of these tokens, and how much that is worth."""
        x: Tensor = given["x"]
        full, draws = effective_rank(x), self.draws(x.shape[1])
        random: dict[tuple[int, ...], Tensor] = {}
        for asked in here:
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
