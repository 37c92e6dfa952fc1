"""Look into every block of an unpruned model: what each recipe would do with all tokens there, and how its attention is spread.

Sums per block are added up while images pass, never the attention or the tokens of more than one block.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..apply import apply, needs
from ..errors import PruneError
from ..ops.attention import head_entropy
from ..ops.distance import attention_distance
from ..ops.rank import effective_rank
from ..ops.schedule import as_tuple
from ..ops.select import rows
from ..plan import Plan
from ..prune import family_of, plan_sites
from ..recipe import Recipe
from .watch import watch

BINS = 60
"""Bins of an entropy histogram, from 0 to the logarithm of the number of patches, which no entropy exceeds."""

Sums = NDArray[np.float64]

HEADS = ("q", "k", "prefix", "scale", "grid")
"""What entropy and distance are made of."""
MIDDLE = "attn"
"""Where most methods prune, and where entropy and distance are taken: between a block's attention and its MLP."""


def moments(x: Tensor, y: Tensor) -> Sums:
    """Count and sums of x, y, x^2, y^2 and x y over the last dimension of x, y [..., M]: [6, ...]."""
    x, y = x.double().cpu(), y.double().cpu()
    parts = [part.sum(-1).numpy() for part in (torch.ones_like(x), x, y, x * x, y * y, x * y)]
    return np.stack(parts)


def correlations(moments: Sums) -> list[float | None]:
    """Pearson correlation of each place from sums [6, places]; None where one of the two does not vary."""
    n, x, y, xx, yy, xy = moments
    across, spread_x, spread_y = n * xy - x * y, n * xx - x * x, n * yy - y * y
    # a spread of a millionth is rounding: the values come in float32
    flat = (spread_x <= 1e-12 * n * xx) | (spread_y <= 1e-12 * n * yy)
    found = across / np.sqrt(np.where(flat, 1.0, spread_x * spread_y))
    return [None if still else float(value) for still, value in zip(flat, found, strict=True)]


def shared(a: Tensor, b: Tensor) -> Sums:
    """How much kept sets, masks [B, N], have in common: number of images, and sums over them of the shared tokens over the smaller set,
    over the union, and what the first would be for two random sets of these sizes."""
    sizes = torch.stack([a.sum(dim=1), b.sum(dim=1)]).double()
    both = (a & b).sum(dim=1).double()
    low, high = sizes.amin(dim=0).clamp(min=1), sizes.amax(dim=0)
    # two random sets share a * b / N tokens on average
    parts = both / low, both / (sizes.sum(dim=0) - both).clamp(min=1), high / a.shape[1]
    return np.array([a.shape[0], *(float(part.sum()) for part in parts)])


ARRAYS, KEYED = ("kept", "pruned", "entropies", "distances"), ("pairs", "ranks", "maps")
"""What a tally adds up: arrays, and arrays by recipes or images."""


@dataclass(eq=False)
class Tally:
    """What one block has shown, as sums over images and patches.

    kept, pruned [orders, BINS]: histograms of the row entropies; entropies [orders, H]; distances [6, H]: `moments` of distance and
    entropy; pairs: what `shared` gives, by pairs of recipes; ranks: number of images, tokens left, effective rank of these, of as many
    random ones and of all, by recipe; maps: scores [h, w] of the images that are drawn, by (place in the folder, recipe).
    """

    orders: int
    kept: Sums = field(init=False)
    pruned: Sums = field(init=False)
    entropies: Sums | float = 0.0
    distances: Sums | float = 0.0
    pairs: dict[tuple[int, int], Sums] = field(default_factory=dict)
    ranks: dict[int, Sums] = field(default_factory=dict)
    maps: dict[tuple[int, int], Sums] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.kept, self.pruned = np.zeros((self.orders, BINS)), np.zeros((self.orders, BINS))

    def histogram(self, order: int, entropy: Tensor, count: int) -> None:
        """Entropies [B, N] of one order; the `count` lowest of each image are its kept ones."""
        n = entropy.shape[1]
        values = entropy.double().sort(dim=1, stable=True).values.cpu().numpy()
        edges = np.linspace(0, math.log(n), BINS + 1)
        # rounding may put an even row a little above the logarithm
        values = values.clip(edges[0], edges[-1])
        self.kept[order] += np.histogram(values[:, :count], edges)[0]
        self.pruned[order] += np.histogram(values[:, count:], edges)[0]

    def compare(self, kept: dict[int, Tensor]) -> None:
        """Kept sets of the recipes, masks [B, N] by the recipe's number."""
        for a, first in kept.items():
            for b, second in kept.items():
                if a <= b:
                    self.pairs[a, b] = self.pairs.get((a, b), 0.0) + shared(first, second)

    def to_dict(self) -> dict[str, Any]:
        """Everything that was added up, as JSON can hold it; `from_dict` is the inverse, to the last bit."""
        arrays = {name: np.asarray(getattr(self, name)).tolist() for name in ARRAYS}
        return arrays | {name: [(key, sums.tolist()) for key, sums in getattr(self, name).items()] for name in KEYED}

    @staticmethod
    def from_dict(data: dict[str, Any]) -> Tally:
        """Read what `to_dict` made."""
        made = Tally(len(data["kept"]))
        for name in ARRAYS:
            setattr(made, name, np.array(data[name]))
        for name in KEYED:
            setattr(made, name, {tuple(key) if isinstance(key, list) else key: np.array(sums) for key, sums in data[name]})
        return made


def mask_of(plan: Plan) -> Tensor:
    """Tokens that keep a slot, centres of clusters among them: [B, N] bool."""
    spare = torch.zeros(plan.keep.shape[0], plan.total + 1, dtype=torch.bool, device=plan.keep.device)
    return spare.scatter(1, plan.keep.where(plan.keep >= 0, plan.total), True)[:, : plan.total]


def random_rank(x: Tensor, counts: Sequence[int], draws: Tensor) -> Tensor:
    """Effective rank of as many tokens, drawn at random. x [B, N, C], draws [B, N] a permutation for every image -> [B]."""
    index = draws[:, : max(counts)].to(x.device)
    left = rows(x, index)
    real = torch.arange(index.shape[1], device=x.device) < torch.tensor(counts, device=x.device).unsqueeze(1)
    return effective_rank(left * real.unsqueeze(-1))  # rows of zeros do not count


def count(recipe: Recipe, n: int) -> int:
    """Tokens that it keeps of n; 0 if it finds that out itself."""
    return recipe.schedule.count(n, 0, 1)


def ask(model: nn.Module, recipe: Recipe, layers: tuple[int, ...]) -> Recipe:
    """The recipe for these blocks instead of its own; a PruneError if it cannot be asked alone, on all tokens, in this model."""
    if recipe.weights is not None:
        raise PruneError(
            f"{recipe.name} has learned weights, which analyse does not take; choose a method without (sparsight methods)"
        )
    schedule, word = recipe.schedule, recipe.schedule.word
    if word:
        # of several budgets, one for each site, the first: that of the site where all tokens are still there
        schedule = schedule.with_budget(word, as_tuple(getattr(schedule, word))[0])
    if recipe.where == "before":
        layers = tuple(layer for layer in layers if layer > 0)
        if not layers:
            raise PruneError(
                f"{recipe.name} works before a block, from what the block in front of it has seen; give blocks above 0"
            )
    found = replace(recipe, schedule=replace(schedule, layers=layers))
    plan_sites(family_of(model), found)
    return found


@dataclass(eq=False)
class Probe:
    """Watches the blocks. recipes: as one site on all tokens, in the blocks where they can be; order: which of the orders goes with the
    distance; size, grid: of the images, (h, w); kept: patches that count as kept in the histograms.

    Of the batch that is passing: places in the folder; shown: items that are drawn, with their places; chosen: kept sets, masks [B, N]
    by block and recipe."""

    model: nn.Module
    recipes: list[Recipe]
    layers: tuple[int, ...]
    orders: tuple[float, ...]
    order: int
    seed: int
    tallies: dict[int, Tally]
    size: tuple[int, int] = (0, 0)
    grid: tuple[int, int] = (0, 0)
    kept: int = 0
    places: list[int] = field(default_factory=list)
    shown: dict[int, int] = field(default_factory=dict)
    chosen: dict[int, dict[int, Tensor]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """What was seen so far, as JSON can hold it."""
        tallies = {str(layer): tally.to_dict() for layer, tally in self.tallies.items()}
        return {"size": self.size, "grid": self.grid, "kept": self.kept, "tallies": tallies}

    def restore(self, data: dict[str, Any]) -> None:
        self.tallies = {layer: Tally.from_dict(data["tallies"][str(layer)]) for layer in self.layers}
        (h, w), (rows, columns), self.kept = data["size"], data["grid"], int(data["kept"])
        self.size, self.grid = (h, w), (rows, columns)

    def run(self, images: Tensor, places: list[int], shown: dict[int, int]) -> None:
        """One batch, once for each place in a block where a recipe works."""
        self.size, self.places, self.shown = (int(images.shape[2]), int(images.shape[3])), places, shown
        self.chosen = {layer: {} for layer in self.layers}
        for where in sorted({MIDDLE, *(recipe.where for recipe in self.recipes)}):
            here = {number: recipe for number, recipe in enumerate(self.recipes) if recipe.where == where}
            layers = [at for at in self.layers if where == MIDDLE or any(at in recipe.schedule.layers for recipe in here.values())]
            names = [*(HEADS if where == MIDDLE else ("grid",)), *(name for recipe in here.values() for name in needs(recipe))]
            with watch(self.model, where, layers, names, partial(self.see, where, here)):
                self.model(images)
        for layer, kept in self.chosen.items():
            self.tallies[layer].compare(kept)

    def see(self, where: str, here: dict[int, Recipe], layer: int, given: dict[str, Any]) -> None:
        if where == MIDDLE:
            self.spread(self.tallies[layer], given)
        if here:
            self.choose(layer, here, given)

    def spread(self, tally: Tally, given: dict[str, Any]) -> None:
        """Entropy of the attention rows, and how far they reach."""
        q, k, prefix, scale, grid = (given[name] for name in HEADS)
        patches = grid[0] * grid[1]
        # half of them where the recipe has no fixed count
        self.grid, self.kept = grid, count(self.recipes[0], patches) or -(-patches // 2)
        patch = (self.size[0] / grid[0], self.size[1] / grid[1])
        found = [head_entropy(q, k, prefix, scale, order) for order in self.orders]
        for index, entropy in enumerate(found):
            tally.histogram(index, entropy.mean(dim=1), self.kept)
        tally.entropies = tally.entropies + np.stack([entropy.double().sum(dim=(0, 2)).cpu().numpy() for entropy in found])
        distance = attention_distance(q, k, prefix, scale, grid, patch)
        tally.distances += moments(*(x.transpose(0, 1).flatten(1) for x in (distance, found[self.order])))

    def choose(self, layer: int, here: dict[int, Recipe], given: dict[str, Any]) -> None:
        """What each recipe keeps of these tokens, and how much that is worth."""
        x: Tensor = given["x"]
        tally = self.tallies[layer]
        full, draws = effective_rank(x), self.draws(x.shape[1])
        random: dict[tuple[int, ...], Tensor] = {}
        for number, recipe in here.items():
            left, plan, _, score = apply(recipe, partial(count, recipe), dict(given))
            left = plan.gather(x) if left is None else left
            self.chosen[layer][number] = mask_of(plan)
            counts = tuple(plan.counts)
            if counts not in random:
                random[counts] = random_rank(x, counts, draws)
            rank = effective_rank(left if plan.valid is None else left * plan.valid.unsqueeze(-1))
            sums = np.array([len(counts), sum(counts), *(float(ranks.sum()) for ranks in (rank, random[counts], full))])
            tally.ranks[number] = tally.ranks.get(number, 0.0) + sums
            if score is not None:
                maps = score.double().reshape(-1, *given["grid"]).cpu().numpy()
                tally.maps |= {(place, number): maps[item] for item, place in self.shown.items()}

    def draws(self, n: int) -> Tensor:
        """A random order of the patches for every image, the same whatever its batch: [B, N]."""
        seeds = (self.seed * 1_000_003 + place for place in self.places)
        return torch.stack([torch.randperm(n, generator=torch.Generator().manual_seed(seed)) for seed in seeds])
