"""Look into every block of an unpruned model: what each recipe would do with all tokens there, and how its attention is spread.

Sums per block are added up while images pass, never the attention or the tokens of more than one block.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
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
from ..plan import Plan
from ..prune import family_of, plan_sites
from ..recipe import Recipe
from .watch import watch

BINS = 60
"""Bins of an entropy histogram, from 0 to the logarithm of the number of patches, which no entropy exceeds."""

Map = NDArray[np.float64]

HEADS = ("q", "k", "prefix", "scale", "grid")
"""What entropy and distance are made of."""
MIDDLE = "attn"
"""Where most methods prune, and where entropy and distance are taken: between a block's attention and its MLP."""


@dataclass
class Sums:
    """Running sums of numbers that belong together, x and y of one shape [...]: means, and their correlation over everything added."""

    n: int = 0
    x: Tensor | float = 0.0
    y: Tensor | float = 0.0
    xx: Tensor | float = 0.0
    yy: Tensor | float = 0.0
    xy: Tensor | float = 0.0

    def add(self, x: Tensor, y: Tensor) -> None:
        """x, y [..., M]: M more pairs for each place."""
        x, y = x.double().cpu(), y.double().cpu()
        self.n += x.shape[-1]
        self.x, self.y = self.x + x.sum(-1), self.y + y.sum(-1)
        self.xx, self.yy, self.xy = self.xx + (x * x).sum(-1), self.yy + (y * y).sum(-1), self.xy + (x * y).sum(-1)

    def correlations(self) -> list[float | None]:
        """Pearson correlation of each place; None where one of the two does not vary."""
        x, y, xx, yy, xy = (np.asarray(part) for part in (self.x, self.y, self.xx, self.yy, self.xy))
        across = self.n * xy - x * y
        spread = (self.n * xx - x * x, self.n * yy - y * y)
        # a spread of a millionth is rounding: the values come in float32
        flat = (spread[0] <= 1e-12 * self.n * xx) | (spread[1] <= 1e-12 * self.n * yy)
        found = across / np.sqrt(np.where(flat, 1.0, spread[0] * spread[1]))
        return [None if still else float(value) for still, value in zip(flat, found, strict=True)]


@dataclass
class Pair:
    """Sums over images of how much two kept sets have in common."""

    images: int = 0
    overlap: float = 0.0
    iou: float = 0.0
    chance: float = 0.0

    def add(self, a: Tensor, b: Tensor) -> None:
        """Kept sets of some images as masks [B, N]."""
        sizes = torch.stack([a.sum(dim=1), b.sum(dim=1)]).double()
        both = (a & b).sum(dim=1).double()
        low, high = sizes.amin(dim=0).clamp(min=1), sizes.amax(dim=0)
        self.images += a.shape[0]
        self.overlap += float((both / low).sum())
        self.iou += float((both / (sizes.sum(dim=0) - both).clamp(min=1)).sum())
        # two random sets of these sizes share a * b / N tokens on average
        self.chance += float((high / a.shape[1]).sum())


@dataclass
class Ranks:
    """Sums over images of what a recipe leaves: tokens and effective rank, and that of as many random tokens and of all tokens."""

    images: int = 0
    tokens: float = 0.0
    rank: float = 0.0
    random: float = 0.0
    full: float = 0.0

    def add(self, counts: Sequence[int], rank: Tensor, random: Tensor, full: Tensor) -> None:
        """Some images: tokens left, and ranks [B]."""
        self.images += len(counts)
        self.tokens += sum(counts)
        self.rank += float(rank.sum())
        self.random += float(random.sum())
        self.full += float(full.sum())


@dataclass
class Tally:
    """Everything about one block. kept, pruned [orders, BINS]; heads: distance and entropy of each head, patch by patch."""

    orders: int
    kept: Map = field(init=False)
    pruned: Map = field(init=False)
    entropies: list[Tensor | float] = field(init=False)
    heads: Sums = field(default_factory=Sums)
    pairs: dict[tuple[int, int], Pair] = field(default_factory=dict)
    ranks: dict[int, Ranks] = field(default_factory=dict)
    maps: dict[tuple[int, int], Map] = field(default_factory=dict)
    """Scores [h, w] of the images that are drawn, by (place in the folder, recipe)."""

    def __post_init__(self) -> None:
        self.kept, self.pruned = np.zeros((self.orders, BINS)), np.zeros((self.orders, BINS))
        self.entropies = [0.0] * self.orders

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
                    self.pairs.setdefault((a, b), Pair()).add(first, second)

    def to_dict(self) -> dict[str, Any]:
        """Everything that was added up, as JSON can hold it; `from_dict` is the inverse, to the last bit."""
        return {
            "kept": self.kept.tolist(),
            "pruned": self.pruned.tolist(),
            "entropies": [plain(total) for total in self.entropies],
            "heads": {name: plain(value) for name, value in vars(self.heads).items()},
            "pairs": [[*key, asdict(pair)] for key, pair in self.pairs.items()],
            "ranks": [[number, asdict(ranks)] for number, ranks in self.ranks.items()],
            "maps": [[*key, scores.tolist()] for key, scores in self.maps.items()],
        }

    @staticmethod
    def from_dict(data: dict[str, Any]) -> Tally:
        """Read what `to_dict` made."""
        made = Tally(len(data["kept"]))
        made.kept, made.pruned = np.array(data["kept"]), np.array(data["pruned"])
        made.entropies = [tensor(total) for total in data["entropies"]]
        heads = dict(data["heads"])
        made.heads = Sums(int(heads.pop("n")), **{name: tensor(value) for name, value in heads.items()})
        made.pairs = {(a, b): Pair(**pair) for a, b, pair in data["pairs"]}
        made.ranks = {number: Ranks(**ranks) for number, ranks in data["ranks"]}
        made.maps = {(place, number): np.array(scores) for place, number, scores in data["maps"]}
        return made


def plain(value: Tensor | float) -> Any:
    """A sum as numbers."""
    return value.tolist() if isinstance(value, Tensor) else value


def tensor(value: Any) -> Tensor | float:
    """A sum of several numbers as the tensor that it was."""
    return torch.tensor(value, dtype=torch.float64) if isinstance(value, list) else float(value)


def mask_of(plan: Plan) -> Tensor:
    """Tokens that keep a slot, centres of clusters among them: [B, N] bool."""
    spare = torch.zeros(plan.keep.shape[0], plan.total + 1, dtype=torch.bool, device=plan.keep.device)
    return spare.scatter(1, plan.keep.where(plan.keep >= 0, plan.total), True)[:, : plan.total]


def random_rank(x: Tensor, counts: Sequence[int], draws: Tensor) -> Tensor:
    """Effective rank of as many tokens, drawn at random. x [B, N, C], draws [B, N] a permutation for every image -> [B]."""
    index = draws[:, : max(counts)].to(x.device)
    left = x.gather(1, index.unsqueeze(-1).expand(-1, -1, x.shape[2]))
    real = torch.arange(index.shape[1], device=x.device) < torch.tensor(counts, device=x.device).unsqueeze(1)
    return effective_rank(left * real.unsqueeze(-1))  # rows of zeros do not count


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

    def to_dict(self) -> dict[str, Any]:
        """What was seen so far, as JSON can hold it."""
        tallies = {str(layer): tally.to_dict() for layer, tally in self.tallies.items()}
        return {"size": self.batch.size, "grid": self.grid, "kept": self.kept, "tallies": tallies}

    def restore(self, data: dict[str, Any]) -> None:
        """Go on from what `to_dict` made."""
        tallies = {layer: Tally.from_dict(data["tallies"][str(layer)]) for layer in self.layers}
        (h, w), (rows, columns) = data["size"], data["grid"]
        self.tallies, self.batch, self.grid, self.kept = tallies, Batch([], (h, w), {}), (rows, columns), int(data["kept"])

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
            left, plan, _, score = apply(asked.recipe, asked.count, dict(given))
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
