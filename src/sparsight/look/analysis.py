"""What `analyse` returns: per block entropies, distances, agreement and ranks, as a few lines, as JSON and as tables."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from ..ops.schedule import show
from ..runs.store import read_result
from .rank import pearson, table


@dataclass(frozen=True)
class Histogram:
    """Row entropies (nats, mean over heads) of all patches of all images in one block, in bins of equal width from 0 to ln N.

    kept: of the patches with the lowest entropy of their image, as many as the first recipe keeps; pruned: of the others.
    """

    block: int
    order: float
    kept: list[int]
    pruned: list[int]

    def mean(self, top: float) -> float:
        """Mean entropy, to half a bin."""
        width, total = top / len(self.kept), [a + b for a, b in zip(self.kept, self.pruned, strict=True)]
        return sum((index + 0.5) * width * count for index, count in enumerate(total)) / sum(total)


@dataclass(frozen=True)
class Head:
    """One head: mean attention distance in pixels, mean row entropy of each order, and the correlation of the two (of the analysis'
    `order`) over the patches of all images; None where one of them does not vary."""

    block: int
    head: int
    distance: float
    entropies: list[float]
    correlation: float | None


@dataclass(frozen=True)
class Agreement:
    """Two recipes in one block, means over images: shared tokens over the smaller kept set, over the union, and what the first would be
    for two random sets of these sizes."""

    block: int
    first: str
    second: str
    overlap: float
    iou: float
    chance: float


@dataclass(frozen=True)
class Left:
    """What a recipe leaves in one block, means over images: tokens, their effective rank, that of as many tokens drawn at random, and
    that of all tokens."""

    block: int
    recipe: str
    tokens: float
    rank: float
    random: float
    unpruned: float


@dataclass(frozen=True)
class Analysis:
    """Everything about one model on one folder. The model is not pruned: each block sees all tokens.

    grid, patch: patches of the image and the pixels of one, (h, w); order: the one whose entropy goes with the distance; uniform:
    distance in pixels of attention spread evenly; kept: patches that count as kept in the histograms; maps: images with heat maps.
    """

    model: str
    data: str
    images: int
    grid: tuple[int, int]
    patch: tuple[float, float]
    layers: list[int]
    recipes: list[str]
    orders: list[float]
    order: float
    kept: int
    uniform: float
    device: str
    seed: int
    date: str
    versions: dict[str, str]
    notes: list[str]
    skipped: list[tuple[str, str]]
    maps: list[str]
    histograms: list[Histogram] = field(repr=False)
    heads: list[Head] = field(repr=False)
    agreements: list[Agreement] = field(repr=False)
    left: list[Left] = field(repr=False)

    @property
    def top(self) -> float:
        """The highest entropy that there is."""
        return math.log(self.grid[0] * self.grid[1])

    @property
    def blocks(self) -> str:
        first, last = self.layers[0], self.layers[-1]
        if len(self.layers) > 2 and self.layers == list(range(first, last + 1)):
            return f"blocks {first} to {last}"
        return f"block{'s' * (len(self.layers) > 1)} {show(tuple(self.layers))}"

    @property
    def order_name(self) -> str:
        return named(self.order)

    def pairs_of_heads(self, block: int | None = None) -> tuple[list[float], list[float]]:
        """Entropy and distance of every head, of one block or of all."""
        at = self.orders.index(self.order)
        chosen = [head for head in self.heads if block in (None, head.block)]
        return [head.entropies[at] for head in chosen], [head.distance for head in chosen]

    @property
    def correlation(self) -> float | None:
        """Of entropy and distance over the heads of all blocks."""
        return pearson(*self.pairs_of_heads())

    @property
    def correlation_of_blocks(self) -> float | None:
        """Of the blocks' mean entropy and mean distance."""
        means = [tuple(map(fmean, self.pairs_of_heads(block))) for block in self.layers]
        return pearson([entropy for entropy, _ in means], [distance for _, distance in means])

    def within(self, block: int) -> float | None:
        """Of entropy and distance over the heads of one block."""
        return pearson(*self.pairs_of_heads(block))

    def means(self, recipe: str) -> tuple[float, ...]:
        """Means over the blocks of what a recipe leaves: tokens, their effective rank, that of as many random ones and of all."""
        rows = [row for row in self.left if row.recipe == recipe]
        return tuple(fmean(getattr(row, name) for row in rows) for name in ("tokens", "rank", "random", "unpruned"))

    def shared(self, first: str, second: str) -> tuple[float, ...]:
        """Means over the blocks of the tokens that two recipes share, and of what two random sets would."""
        return tuple(fmean(getattr(a, name) for a in self.agreed(first, second)) for name in ("overlap", "chance"))

    def agreed(self, first: str, second: str) -> list[Agreement]:
        """Two recipes, block by block, whichever comes first."""
        return [a for a in self.agreements if {a.first, a.second} == {first, second}]

    def __str__(self) -> str:
        h, w = self.patch
        lines = [
            f"{self.model} on {self.data}: {self.images} images, {self.blocks}, {self.grid[0]} x {self.grid[1]} patches of {h:g} x {w:g} pixels"
        ]
        for order in self.orders:
            means = [item.mean(self.top) for item in self.histograms if item.order == order]
            lines.append(
                f"row entropy, {named(order)}: {fmean(means):.2f} nats ({min(means):.2f} to {max(means):.2f} by block, at most {self.top:.2f})"
            )
        distances = self.pairs_of_heads()[1]
        lines.append(
            f"attention distance: {fmean(distances):.1f} pixels ({min(distances):.1f} to {max(distances):.1f} by head, {self.uniform:.1f} if even); "
            f"correlation with {self.order_name} entropy {signed(self.correlation)} over heads, {signed(self.correlation_of_blocks)} over blocks"
        )
        lines += self.agreement_lines()
        for recipe in self.recipes:
            _, rank, random, full = self.means(recipe)
            lines.append(f"effective rank left by {recipe}: {rank:.1f}, as many random tokens {random:.1f}, all tokens {full:.1f}")
        return "\n".join(
            [*lines, *(f"note: {note}" for note in self.notes), *(f"skipped {name}: {why}" for name, why in self.skipped)]
        )

    def different(self) -> list[tuple[str, str]]:
        """Pairs of recipes whose kept sets were compared."""
        return list(dict.fromkeys((a.first, a.second) for a in self.agreements if a.first != a.second))

    def agreement_lines(self) -> list[str]:
        """Shared tokens, mean over the blocks: of up to three pairs of recipes, of more the two that agree least and most."""
        found = []
        for first, second in self.different():
            shared, chance = self.shared(first, second)
            text = f"kept by both {first} and {second}: {100 * shared:.0f}%, by chance {100 * chance:.0f}%"
            found.append((shared - chance, text))
        ranked = sorted(found)
        return [text for _, text in (found if len(found) <= 3 else (ranked[0], ranked[-1]))]

    def to_json(self) -> str:
        """All of it as JSON text, with the correlations; `from_json` is the inverse."""
        plain = asdict(self)
        for item in plain["histograms"]:
            item["order"] = show(item["order"])
        plain |= {"orders": list(map(show, self.orders)), "order": show(self.order)}
        within = {str(block): self.within(block) for block in self.layers}
        plain["correlations"] = {"heads": self.correlation, "blocks": self.correlation_of_blocks, "within": within}
        return json.dumps(plain, indent=1) + "\n"

    @staticmethod
    def from_json(text: str) -> Analysis:
        """Read what `to_json` wrote."""
        data: dict[str, Any] = json.loads(text)
        del data["correlations"]
        data |= {"orders": list(map(float, data["orders"])), "order": float(data["order"])}
        data |= {name: tuple(data[name]) for name in ("grid", "patch")}
        data["skipped"] = [tuple(pair) for pair in data["skipped"]]
        data["histograms"] = [Histogram(**{**item, "order": float(item["order"])}) for item in data["histograms"]]
        for name, kind in (("heads", Head), ("agreements", Agreement), ("left", Left)):
            data[name] = [kind(**item) for item in data[name]]
        return Analysis(**data)

    @staticmethod
    def load(path: str | Path) -> Analysis:
        """Read analysis.json, or the folder that holds it."""
        return read_result(path, Analysis.from_json, "analyse", "analysis.json")

    def tables(self) -> dict[str, str]:
        """The numbers behind the figures as CSV texts, by the name of the file."""
        bins = len(self.histograms[0].kept)
        width = self.top / bins
        entropy = [
            (show(item.order), item.block, repr(index * width), repr((index + 1) * width), item.kept[index], item.pruned[index])
            for item in self.histograms
            for index in range(bins)
        ]
        orders = [f"entropy_{show(order)}" for order in self.orders]
        heads = [(h.block, h.head, repr(h.distance), *map(repr, h.entropies), maybe(h.correlation)) for h in self.heads]
        return {
            "entropy.csv": table(["order", "block", "from", "to", "kept", "pruned"], entropy),
            "heads.csv": table(["block", "head", "distance", *orders, "correlation"], heads),
            "agreement.csv": table(["block", "first", "second", "overlap", "iou", "chance"], map(cells, self.agreements)),
            "rank.csv": table(["block", "recipe", "tokens", "rank", "random", "unpruned"], map(cells, self.left)),
        }


def cells(row: Agreement | Left) -> list[object]:
    """A row's numbers, none of their digits lost."""
    return [repr(value) if isinstance(value, float) else value for value in asdict(row).values()]


def maybe(value: float | None) -> str:
    return "" if value is None else repr(value)


def signed(value: float | None) -> str:
    return "-" if value is None else f"{value:+.2f}"


def named(order: float) -> str:
    """An order of the entropy in words."""
    return "Shannon" if order == 1 else f"Renyi {show(order)}"
