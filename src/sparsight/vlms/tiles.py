"""Images on their way from vision encoder to language model: cut into tiles or frames, reduced by a recipe, put together again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ..errors import PruneError
from ..models.site import Site
from ..plan import Plan
from .prompt import settle

ATTENTION = ("q", "k", "v", "class_attn", "prefix", "scale", "attn", "position", "grid", "class_token")
"""Signals that belong to one tile or frame; recipes without them see the whole image at once."""


@dataclass(eq=False)
class ImageSite(Site):
    """The place between vision encoder and language model.

    budget     tokens of an image -> tokens to keep, 0 if the method finds the count itself; a PruneError if there are too few.
    least      the smallest count that the method can give for one tile.
    consuming  attention of the layer that consumes the selected features, instead of the one that makes them.
    per_tile   the budget is each tile's own; a tile with fewer patches keeps them all.
    """

    budget: Callable[[int], int] = field(default=lambda n: n)
    least: int = 1
    consuming: bool = False
    per_tile: bool = False

    @property
    def whole(self) -> bool:
        """Whether the recipe looks at an image as one set of tokens, whatever its tiles."""
        return not self.per_tile and not any(name in ATTENTION for name in self.needs)


@dataclass(frozen=True, eq=False)
class Unit:
    """A tile or frame: columns [n] of the image's tokens that are its patches, and its signals without a batch dimension."""

    columns: Tensor
    signals: dict[str, Any]


@dataclass(frozen=True, eq=False)
class Picture:
    """One image (or video): tokens [n, D] as the language model would get them, newline vectors included, and its units.

    extras  further tensors [n, ...] that follow the tokens (DeepStack features).
    """

    tokens: Tensor
    units: list[Unit]
    extras: tuple[Tensor, ...] = ()

    def merged(self) -> Picture:
        """The same image with all patches in one unit, in the order of the tokens."""
        if len(self.units) == 1:
            return self
        columns = torch.cat([unit.columns for unit in self.units])
        order = columns.argsort()
        signals = {
            name: torch.cat([unit.signals[name] for unit in self.units])[order] for name in self.units[0].signals if name == "feats"
        }
        return replace(self, units=[Unit(columns[order], signals)])


@dataclass(frozen=True, eq=False)
class Kept:
    """What is left of one image: tokens [K, D], the column that each one stands at [K], the plan, the score."""

    tokens: Tensor
    anchors: Tensor
    plan: Plan
    extras: tuple[Tensor, ...] = ()
    score: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Part:
    """Outcome of one unit: slots' patches [K], -1 for none; tokens [K, D], None if patches only leave; its plan and score."""

    anchors: Tensor
    tokens: Tensor | None
    plan: Plan
    score: Tensor | None


def reduced(site: ImageSite, pictures: list[Picture], project: Callable[[Tensor], Tensor] | None) -> list[Kept]:
    """Run the site's recipe on every image. project: the projector, if the recipe reduces encoder features (signal `feats`)."""
    if site.whole:
        pictures = [picture.merged() for picture in pictures]
    parts: dict[tuple[int, int], Part] = {}
    groups: dict[Any, list[tuple[int, int]]] = {}
    counts: dict[tuple[int, int], int] = {}
    for i, picture in enumerate(pictures):
        sizes = [unit.columns.shape[0] for unit in picture.units]
        shares = [site.budget(size) for size in sizes] if site.per_tile else shared_out(site.budget(sum(sizes)), sizes, site.least)
        for u, share in enumerate(shares):
            if share is not None:
                counts[i, u] = share
                groups.setdefault((share, shape(picture.units[u])), []).append((i, u))
    for (count, _), members in groups.items():
        for member, part in zip(members, run(site, pictures, members, count, project), strict=True):
            parts[member] = part
    return [
        assemble(picture, [(unit, parts[i, u]) for u, unit in enumerate(picture.units) if (i, u) in parts])
        for i, picture in enumerate(pictures)
    ]


def shared_out(count: int, sizes: list[int], least: int) -> list[int | None]:
    """An image's count spread over its tiles in proportion to their patches; None for a tile that gets nothing. Count 0: every tile
    finds its own."""
    if not count:
        return [0 if size else None for size in sizes]
    total = sum(sizes)
    shares = [count * size // total for size in sizes]
    # the rest goes to the largest fractions, earlier tiles first
    order = sorted(range(len(sizes)), key=lambda u: (-(count * sizes[u] % total), u))
    for u in order[: count - sum(shares)]:
        shares[u] += 1
    small = [share for share, size in zip(shares, sizes, strict=True) if 0 < share < min(least, size)]
    if small:
        raise PruneError(
            f"{count} tokens over {len(sizes)} tiles leave {min(small)} for one, but this recipe needs {least} or more"
        )
    return [share or None for share in shares]


def shape(unit: Unit) -> tuple[Any, ...]:
    """What has to agree for two units to be reduced in one batch."""
    described = [(name, tuple(v.shape) if isinstance(v, Tensor) else str(v)) for name, v in unit.signals.items()]
    return (unit.columns.shape[0], *described)


def run(
    site: ImageSite, pictures: list[Picture], members: list[tuple[int, int]], count: int, project: Callable[[Tensor], Tensor] | None
) -> list[Part]:
    """Reduce units of one shape as a batch."""
    units = [pictures[i].units[u] for i, u in members]
    given: dict[str, Any] = {name: stacked([unit.signals[name] for unit in units]) for name in units[0].signals}
    encoder = project is not None and "feats" in given
    given["x"] = given["feats"] if encoder else stacked([pictures[i].tokens[pictures[i].units[u].columns] for i, u in members])
    n = given["x"].shape[1]
    tokens, plan, _, score = site.step({**given, "count": count})
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
    """One signal of several units as a batch."""
    if isinstance(values[0], Tensor):
        return values[0].unsqueeze(0) if len(values) == 1 else torch.stack(values)
    if isinstance(values[0], dict):
        return {name: stacked([value[name] for value in values]) for name in values[0]}
    return values[0]


def part_of(row: int, plan: Plan, tokens: Tensor | None, score: Tensor | None) -> Part:
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
    return Part(anchors, tokens, own, None if score is None else score[only])


def assemble(picture: Picture, parts: list[tuple[Unit, Part]]) -> Kept:
    """One image from its units. Patches that stay as they are keep the image's order; slots of merging methods follow unit by unit.
    Newline vectors stay only where nothing is pruned."""
    total = picture.tokens.shape[0]
    patches = sum(unit.columns.shape[0] for unit in picture.units)
    drops = all(part.tokens is None for _, part in parts)
    score = parts[0][1].score if len(parts) == 1 else None
    if drops:
        columns = torch.cat([unit.columns[part.anchors] for unit, part in parts])
        columns = columns.sort().values if len(parts) > 1 else columns
        if columns.shape[0] == patches:
            columns = torch.arange(total, device=columns.device)
        extras = tuple(extra[columns] for extra in picture.extras)
        return Kept(picture.tokens[columns], columns, Plan(columns.unsqueeze(0), total), extras, score)
    anchors = [unit.columns[part.anchors.clamp(min=0)].where(part.anchors >= 0, -1) for unit, part in parts]
    tokens = torch.cat(
        [picture.tokens[at] if part.tokens is None else part.tokens for at, (_, part) in zip(anchors, parts, strict=True)]
    )
    columns = settle(torch.cat(anchors), total)
    single = len(parts) == 1 and patches == total
    plan = parts[0][1].plan if single else Plan(columns.unsqueeze(0), total, owners(total, parts))
    return Kept(tokens, columns, plan, tuple(extra[columns] for extra in picture.extras), score)


def owners(total: int, parts: list[tuple[Unit, Part]]) -> Tensor:
    """Slot of the whole image that every token ends in, [1, n]."""
    owner = parts[0][0].columns.new_full((1, total), -1)
    first = 0
    for unit, part in parts:
        own = part.plan.owner
        owner[:, unit.columns] = torch.where(own < 0, -1, own + first)
        first += part.anchors.shape[0]
    return owner
