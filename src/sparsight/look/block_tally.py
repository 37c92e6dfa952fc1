"""What `analyse` adds up while images pass: sums per block, never the attention or the tokens of more than one block."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..ops.rank import effective_rank
from ..plan import Plan

BINS = 60
"""Bins of an entropy histogram, from 0 to the logarithm of the number of patches, which no entropy exceeds."""

Map = NDArray[np.float64]


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
