"""A batch of token sequences that loses visual tokens: rows, masks, positions. Pure tensor work of the decoder family."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..plan import Plan

Rope = tuple[Tensor, Tensor]


@dataclass(frozen=True, eq=False)
class Sequence:
    """The tokens of one forward at one depth of the decoder.

    index      [B, n] place of each token among the tokens given to this forward, -1 for padding made here.
    valid      [B, n] bool, or None where all tokens are real.
    visual     [B, n] bool: visual tokens, merged ones too.
    rope       cos, sin [B, n, D].    position [B, n] position ids, None if the layers were given none.
    attention  what the layers from here on take as attention_mask; `own` False: the model's own mask, positions and RoPE still fit.
    """

    index: Tensor
    valid: Tensor | None
    visual: Tensor | None
    rope: Rope
    position: Tensor | None
    attention: object = None
    own: bool = False


@dataclass(frozen=True, eq=False)
class Row:
    """One sample after a site: hidden [n, C], source [n] places in the sequence before, rank [n] of renumbered ids, visual [n]."""

    hidden: Tensor
    source: Tensor
    rank: Tensor
    visual: Tensor


def rebuild(hidden: Tensor, real: Tensor, places: Tensor, plan: Plan | None, tokens: Tensor | None) -> Row:
    """Put a sample together again: text where it was, surviving visual tokens among it, merged ones after the last survivor.

    hidden [n, C], real [n] places of real tokens, places [N] of the visual ones among them, plan and tokens [K, C] of the site
    (None: nothing leaves; tokens None: survivors are as they were).
    """
    visual = torch.zeros(hidden.shape[0], dtype=torch.bool, device=hidden.device)
    visual[places] = True
    if plan is None:
        return Row(hidden[real], real, real, visual[real])
    survivors = places[plan.keep[0]]
    text = real[~visual[real]]
    slots = torch.cat([text, survivors])
    key = slots * 2
    if plan.merged is not None:
        # a cluster's slot is named by its centre, but its place is after all survivors
        key[text.shape[0] + appended(plan) :] = places[-1] * 2 + 1
    order = key.argsort(stable=True)
    rows = hidden[slots] if tokens is None else torch.cat([hidden[text], tokens])
    fresh = torch.arange(slots.shape[0], device=hidden.device) >= text.shape[0]
    return Row(rows[order], slots[order], real[: slots.shape[0]], fresh[order])


def appended(plan: Plan) -> int:
    """First slot that holds a cluster: survivors come first, in ascending order, and no cluster has a survivor's token as centre."""
    assert plan.merged is not None
    keep = plan.keep[0]
    alone = torch.bincount(plan.merged[0][plan.merged[0] >= 0], minlength=keep.shape[0])
    clusters = clusters_of(plan.total, keep.shape[0])
    assert int((alone[: keep.shape[0] - clusters] == 1).all())
    return int(keep.shape[0]) - clusters


def clusters_of(total: int, slots: int) -> int:
    raise NotImplementedError
