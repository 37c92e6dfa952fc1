"""A batch of token sequences that loses visual tokens: rows, masks, positions. Pure tensor work of the decoder family."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..plan import Plan


@dataclass(frozen=True, eq=False)
class Sequence:
    """The tokens of one forward at one depth of the decoder.

    index   [B, n] place of each token among the tokens given to this forward, -1 for padding made here.
    valid   [B, n] bool, or None where all tokens are real.
    visual  [B, n] bool: visual tokens, merged ones too.
    place   [B, n] whose position each token has, among the tokens given to this forward; None: its own.
    shift   [B] how far positions move back, because of what earlier forwards left out; None: not at all.
    keys    [B, L] which keys of the layers from here on are real, cached ones in front; None: all.
    own     the layers' own arguments still fit.      plain  so they do but for a mask: one query that sees every key.
    masks   what those layers take as mask, by kind.  ropes  and as RoPE, beside what they are given by the id of that.
    """

    index: Tensor
    valid: Tensor | None
    visual: Tensor | None
    place: Tensor | None = None
    shift: Tensor | None = None
    keys: Tensor | None = None
    own: bool = False
    plain: bool = False
    masks: dict[str, Any] = field(default_factory=dict, init=False)
    ropes: dict[tuple[int, bool], tuple[Any, Any]] = field(default_factory=dict, init=False)

    @property
    def places(self) -> Tensor:
        """Whose position each token has."""
        return (self.index if self.place is None else self.place).clamp(min=0)


@dataclass(frozen=True, eq=False)
class Row:
    """One sample after a site: hidden [n, C], source [n] places in the sequence before, rank [n] of renumbered ids, visual [n]."""

    hidden: Tensor
    source: Tensor
    rank: Tensor
    visual: Tensor


def rebuild(hidden: Tensor, real: Tensor, places: Tensor, plan: Plan, tokens: Tensor | None) -> Row:
    """Put a sample together again: text where it was, surviving visual tokens among it, merged ones after the last survivor.

    hidden [n, C], real [n] places of real tokens, places [N] of the visual ones among them, plan and tokens [K, C] of the site
    (None: survivors are as they were).
    """
    visual = torch.zeros(hidden.shape[0], dtype=torch.bool, device=hidden.device)
    visual[places] = True
    survivors = places[plan.keep[0]]
    text = real[~visual[real]]
    slots = torch.cat([text, survivors])
    key = slots * 2
    if plan.tail:
        # a cluster's slot is named by its centre, but its place is after all survivors
        key[-plan.tail :] = places[-1] * 2 + 1
    order = key.argsort(stable=True)
    rows = hidden[slots] if tokens is None else torch.cat([hidden[text], tokens])
    fresh = torch.arange(slots.shape[0], device=hidden.device) >= text.shape[0]
    return Row(rows[order], slots[order], real[: slots.shape[0]], fresh[order])


def stack(rows: list[Row], right: bool, before: Sequence, renumber: bool) -> tuple[Tensor, Sequence]:
    """Samples of different lengths as one batch again, padded on the left or on the right: hidden [B, n, C] and its sequence."""
    longest = max(row.source.shape[0] for row in rows)

    def pad(values: list[Tensor], fill: int | bool) -> Tensor:
        out = []
        for value in values:
            short = value.new_full((longest - value.shape[0], *value.shape[1:]), fill)
            out.append(value if not short.shape[0] else torch.cat([value, short] if right else [short, value]))
        return torch.stack(out)

    uneven = any(row.source.shape[0] != longest for row in rows)
    valid = pad([torch.ones_like(row.visual) for row in rows], False) if uneven else None
    source = pad([row.source for row in rows], -1)
    index = before.index.gather(1, source.clamp(min=0)).masked_fill(source < 0, -1)
    place = before.places.gather(1, pad([row.rank for row in rows], 0) if renumber else source.clamp(min=0))
    return pad([row.hidden for row in rows], 0), Sequence(
        index, valid, pad([row.visual for row in rows], False), place, before.shift
    )


def take(values: Tensor, place: Tensor) -> Tensor:
    """Entries of values [B or 1, n, ...] at place [B, m]."""
    values = values.expand(place.shape[0], *values.shape[1:])
    place = place.view(*place.shape, *[1] * (values.dim() - 2)).expand(*place.shape, *values.shape[2:])
    return values.gather(1, place)


def lengthened(hidden: Tensor, index: Tensor, visual: Tensor | None, length: int) -> Tensor:
    """Hidden states at the length before pruning, for losses: each place that lost its token repeats the state that comes before the
    next token that is left, so that every next-token prediction is made by the state that makes it.

    hidden [B, n, C]; index [B, n]: the place of each token before pruning, -1 for padding; visual [B, n] -> [B, length, C].
    """
    batch, n = index.shape
    slot = torch.arange(n, device=hidden.device).expand(batch, n)
    index = index.to(hidden.device)
    there = index >= 0
    text = there if visual is None else there & ~visual.to(hidden.device)
    spare = torch.full((batch, length + 1), -1, device=hidden.device)
    every, at = (spare.scatter(1, index.where(some, length), slot)[:, :length] for some in (there, text))
    before_next = torch.nn.functional.pad(at[:, 1:], (0, 1), value=-1) - 1
    chosen = at.where(at >= 0, before_next.where(before_next >= 0, every))
    return take(hidden, chosen.cummax(dim=1).values.clamp(min=0))


def add_features(hidden: Tensor, index: Tensor, marked: Tensor, features: Tensor) -> Tensor:
    """Add features [M, C] of the M places that are marked [B, length], in their order, to the tokens hidden [B, n, C] that are left of
    them; index [B, n]: the place of each, -1 for padding."""
    number = (marked.flatten().long().cumsum(0) - 1).view(marked.shape).where(marked, -1)
    own = number.gather(1, index.clamp(min=0)).where(index >= 0, -1)
    return hidden + features[own.clamp(min=0)].masked_fill((own < 0).unsqueeze(-1), 0)


def join(plans: list[Plan]) -> Plan:
    """Plans of single samples as one of the batch; where numbers differ, padding comes last, with -1."""
    if len(plans) == 1:
        return plans[0]
    total, slots = max(p.total for p in plans), max(p.slots for p in plans)

    def pad(values: Tensor, size: int) -> Tensor:
        return torch.nn.functional.pad(values, (0, size - values.shape[1]), value=-1)

    keep = torch.cat([pad(p.keep, slots) for p in plans])
    merged = torch.cat([pad(p.owner, total) for p in plans]) if any(p.merged is not None for p in plans) else None
    even = all(p.slots == slots for p in plans)
    tail = plans[0].tail if all(p.tail == plans[0].tail for p in plans) else 0
    return Plan(keep, total, merged, valid=None if even else keep >= 0, tail=tail)


def everything(n: int, device: torch.device) -> Plan:
    """A plan for one sample of which nothing leaves."""
    return Plan(torch.arange(n, device=device).unsqueeze(0), n)
