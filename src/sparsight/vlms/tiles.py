"""Images on their way from vision encoder to language model: cut into tiles or frames, reduced by a recipe, put together again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ..errors import PruneError
from ..plan import Plan
from .prompt import settle

ATTENTION = (
    "q", "k", "v", "class_attn", "token_weight", "shallow_q", "shallow_k", "shallow_class_attn", "shallow_token_weight", "prefix", "scale",
    "attn", "position", "grid", "class_token",
)  # fmt: skip
"""Signals that belong to one tile or frame; recipes without them see the whole image at once."""


Outcome = tuple[Tensor | None, Plan, Tensor | None]
"""Tokens (None: those the plan keeps, as they are), plan, score."""


@dataclass(frozen=True, eq=False)
class ImageSite:
    """The place between vision encoder and language model, or in front of both.

    where      "encoder": features leave before the projector; "projector": tokens leave behind it; "image": the image is made smaller.
    needs      signals that the recipe asks for.     step  runs the recipe on them.
    budget     tokens of an image -> tokens to keep, 0 if the method finds the count itself; a PruneError if there are too few.
    least      the smallest count that the method can give for one tile, besides `made`.
    made       how many tokens of the count the method makes (VisionZip's contextual ones); shared out over tiles as the count is.
    shallow    which earlier block the shallow signals are of, see `Recipe`.
    consuming  attention of the layer that consumes the selected features, instead of the one that makes them.
    per_tile   the budget is each tile's own; a tile with fewer patches keeps them all.
    separators  whether text between an image's tokens stays where some of them leave.
    asked      tokens per image that the recipe asks for; 0 if it does not say.
    words      what makes the signal `text` (see `words`), None where no recipe asks.
    once       what looks at the images of the first call, and then goes.
    layer      as vision models count it: -1 before the first block, -2 for the image.
    """

    where: str
    needs: tuple[str, ...]
    step: Callable[[dict[str, Any]], Outcome]
    budget: Callable[[int], int]
    least: int = 1
    made: int = 0
    shallow: tuple[int, int] | None = None
    consuming: bool = False
    per_tile: bool = False
    separators: bool = True
    asked: int = 0
    words: Any = None
    once: list[Callable[[list[ImageTokens]], None]] = field(default_factory=list)
    layer: int = -1
    learned: None = None

    @property
    def whole(self) -> bool:
        """Whether the recipe looks at an image as one set of tokens, whatever its tiles."""
        return not self.per_tile and not any(name in ATTENTION for name in self.needs)


@dataclass(frozen=True, eq=False)
class Tile:
    """A tile or frame: columns [n] of the image's tokens that are its patches, and its signals without a batch dimension."""

    columns: Tensor
    signals: dict[str, Any]


@dataclass(frozen=True, eq=False)
class ImageTokens:
    """One image (or video): tokens [n, D] as the language model would get them, newline vectors included, and its tiles.

    extras     further tensors [n, ...] that follow the tokens (DeepStack features).    grid  patches (h, w) of the image, if it has one grid.
    survivors  where the vision tower is pruned itself: which of the image's patches the tokens are, a plan of one row.
    frames     temporal slices of a video.
    text       what its prompt says about it, [T, C], where the recipe asks.
    """

    tokens: Tensor
    tiles: list[Tile]
    extras: tuple[Tensor, ...] = ()
    grid: tuple[int, int] | None = None
    survivors: Plan | None = None
    text: Tensor | None = None
    frames: int = 1

    @property
    def total(self) -> int:
        """Tokens that the image has in the prompt."""
        return self.tokens.shape[0] if self.survivors is None else self.survivors.total

    def merged(self) -> ImageTokens:
        """The same image with all patches in one tile, in the order of the tokens."""
        if len(self.tiles) == 1:
            return self
        columns = torch.cat([tile.columns for tile in self.tiles])
        order = columns.argsort()
        signals = {
            name: torch.cat([tile.signals[name] for tile in self.tiles])[order] for name in self.tiles[0].signals if name == "feats"
        }
        return replace(self, tiles=[Tile(columns[order], signals)])


@dataclass(frozen=True, eq=False)
class KeptTokens:
    """What is left of one image: tokens [K, D], the column that each one stands at [K], the plan, the score."""

    tokens: Tensor
    anchors: Tensor
    plan: Plan
    extras: tuple[Tensor, ...] = ()
    score: Tensor | None = None
    grid: tuple[int, int] | None = None

    def of(self, survivors: Plan | None) -> KeptTokens:
        """The same, seen from all patches of the image, where only some of them came out of the vision tower."""
        if survivors is None:
            return self
        return replace(self, anchors=survivors.keep[0][self.anchors], plan=survivors.then(self.plan))


@dataclass(frozen=True, eq=False)
class TileOutcome:
    """Outcome of one tile: slots' patches [K], -1 for none; tokens [K, D], None if patches only leave; its plan and score."""

    anchors: Tensor
    tokens: Tensor | None
    plan: Plan
    score: Tensor | None


def reduced(site: ImageSite, images: list[ImageTokens], project: Callable[[Tensor], Tensor] | None) -> list[KeptTokens]:
    """Run the site's recipe on every image. project: the projector, if the recipe reduces encoder features (signal `feats`)."""
    if site.whole:
        images = [image.merged() for image in images]
    parts: dict[tuple[int, int], TileOutcome] = {}
    groups: dict[Any, list[tuple[int, int]]] = {}
    for i, image in enumerate(images):
        for u, share in enumerate(shares_of(site, image)):
            if share is not None:
                text = None if image.text is None else image.text.shape
                groups.setdefault((*share, (text, image.frames, shape(image.tiles[u]))), []).append((i, u))
    for (count, made, _), members in groups.items():
        for member, part in zip(members, run(site, images, members, count, made, project), strict=True):
            parts[member] = part
    return [
        assemble(image, [(tile, parts[i, u]) for u, tile in enumerate(image.tiles) if (i, u) in parts])
        for i, image in enumerate(images)
    ]


def shares_of(site: ImageSite, image: ImageTokens) -> list[tuple[int, int] | None]:
    """For each tile the count that stays and how many of them are made; None for a tile that gets nothing."""
    sizes = [tile.columns.shape[0] for tile in image.tiles]
    if site.per_tile:
        return [(site.budget(size), site.made) for size in sizes]
    count = site.budget(sum(sizes))
    made = spread(site.made, sizes)
    shares = shared_out(count, sizes, [site.least + one for one in made])
    return [None if share is None else (share, one) for share, one in zip(shares, made, strict=True)]


def shared_out(count: int, sizes: list[int], least: list[int]) -> list[int | None]:
    """An image's count spread over its tiles in proportion to their patches; None for a tile that gets nothing. Count 0: every tile
    finds its own. least: the smallest count that the method can give for each tile."""
    if not count:
        return [0 if size else None for size in sizes]
    shares = spread(count, sizes)
    small = [share for share, size, need in zip(shares, sizes, least, strict=True) if 0 < share < min(need, size)]
    if small:
        raise PruneError(
            f"{count} tokens over {len(sizes)} tiles leave {min(small)} for one, but this recipe needs {max(least)} or more"
        )
    return [share or None for share in shares]


def spread(count: int, weights: list[int]) -> list[int]:
    """A count in proportion to weights: what rounding down leaves goes to the largest remainders, among equal ones evenly spaced from the first."""
    total = sum(weights)
    shares = [count * weight // total for weight in weights]
    rest = count - sum(shares)
    remainders = [count * weight % total for weight in weights]
    for value in sorted(set(remainders), reverse=True):
        equal = [u for u, remainder in enumerate(remainders) if remainder == value]
        more = min(rest, len(equal))
        for i in range(more):
            shares[equal[i * len(equal) // more]] += 1
        rest -= more
    return shares


def shape(tile: Tile) -> tuple[Any, ...]:
    """What has to agree for two tiles to be reduced in one batch."""
    described = [(name, tuple(v.shape) if isinstance(v, Tensor) else str(v)) for name, v in tile.signals.items()]
    return (tile.columns.shape[0], *described)


def run(
    site: ImageSite,
    images: list[ImageTokens],
    members: list[tuple[int, int]],
    count: int,
    made: int,
    project: Callable[[Tensor], Tensor] | None,
) -> list[TileOutcome]:
    """Reduce tiles of one shape as a batch."""
    tiles = [images[i].tiles[u] for i, u in members]
    given: dict[str, Any] = {name: stacked([tile.signals[name] for tile in tiles]) for name in tiles[0].signals}
    given["frames"] = images[members[0][0]].frames
    text = [images[i].text for i, _ in members]
    if text[0] is not None:
        given["text"] = stacked(text)
    encoder = project is not None and "feats" in given
    given["x"] = given["feats"] if encoder else stacked([images[i].tokens[images[i].tiles[u].columns] for i, u in members])
    n = given["x"].shape[1]
    tokens, plan, score = site.step({**given, "count": count, "made": made})
    if tokens is None and encoder:
        tokens = plan.gather(given["x"])
    if leaves_all(plan, n):
        tokens = None
    elif tokens is not None and encoder and project is not None:
        tokens = project(tokens)
    return [part_of(row, plan, None if tokens is None else tokens[row], score) for row in range(len(members))]


def leaves_all(plan: Plan, n: int) -> bool:
    """Whether every token keeps a slot of its own and nothing is added, so that nothing has happened."""
    if plan.fused or plan.led or plan.valid is not None or plan.keep.shape[1] != n:
        return False
    return bool((plan.keep.sort(dim=1).values == torch.arange(n, device=plan.keep.device)).all())


def stacked(values: list[Any]) -> Any:
    """One signal of several tiles as a batch."""
    if isinstance(values[0], Tensor):
        return values[0].unsqueeze(0) if len(values) == 1 else torch.stack(values)
    if isinstance(values[0], dict):
        return {name: stacked([value[name] for value in values]) for name in values[0]}
    return values[0]


def part_of(row: int, plan: Plan, tokens: Tensor | None, score: Tensor | None) -> TileOutcome:
    """One image's row of a batch."""
    only = slice(row, row + 1)
    keep, mix = plan.keep[only], None if plan.mix is None else plan.mix[only]
    if plan.valid is not None:
        real = plan.valid[row]
        keep = keep[keep >= 0].unsqueeze(0)
        mix, tokens = None if mix is None else mix[:, real], None if tokens is None else tokens[real]
    merged = None if plan.merged is None else plan.merged[only]
    own = Plan(keep, plan.total, merged, plan.fused, mix, None, plan.led, plan.tail)
    none = keep.new_full((1,), -1)
    anchors = torch.cat([none] * plan.led + [keep[0]] + [none] * plan.fused)
    return TileOutcome(anchors, tokens, own, None if score is None else score[only])


def assemble(image: ImageTokens, parts: list[tuple[Tile, TileOutcome]]) -> KeptTokens:
    """One image from its tiles. Patches that stay as they are keep the image's order; slots of merging methods follow tile by tile.
    Newline vectors stay only where nothing is pruned."""
    total = image.tokens.shape[0]
    patches = sum(tile.columns.shape[0] for tile in image.tiles)
    drops = all(part.tokens is None for _, part in parts)
    score = parts[0][1].score if len(parts) == 1 else None
    if drops:
        columns = torch.cat([tile.columns[part.anchors] for tile, part in parts])
        columns = columns.sort().values if len(parts) > 1 else columns
        if columns.shape[0] == patches:
            columns = torch.arange(total, device=columns.device)
        extras = tuple(extra[columns] for extra in image.extras)
        return KeptTokens(image.tokens[columns], columns, Plan(columns.unsqueeze(0), total), extras, score, image.grid)
    anchors = [tile.columns[part.anchors.clamp(min=0)].where(part.anchors >= 0, -1) for tile, part in parts]
    tokens = torch.cat(
        [image.tokens[at] if part.tokens is None else part.tokens for at, (_, part) in zip(anchors, parts, strict=True)]
    )
    columns = settle(torch.cat(anchors), total)
    single = len(parts) == 1 and patches == total
    plan = parts[0][1].plan if single else Plan(columns.unsqueeze(0), total, owners(total, parts))
    return KeptTokens(tokens, columns, plan, tuple(extra[columns] for extra in image.extras), score, image.grid)


def owners(total: int, parts: list[tuple[Tile, TileOutcome]]) -> Tensor:
    """Slot of the whole image that every token ends in, [1, n]."""
    owner = parts[0][0].columns.new_full((1, total), -1)
    first = 0
    for tile, part in parts:
        own = part.plan.owner
        owner[:, tile.columns] = torch.where(own < 0, -1, own + first)
        first += part.anchors.shape[0]
    return owner
