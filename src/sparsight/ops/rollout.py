"""Attention rollout: how much of each patch the class token has taken in over all blocks so far. Abnar and Zuidema, arXiv:2005.00928."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..errors import PruneError
from ..plan import Plan
from .attention_torch import exact
from .portable import diagonal
from .score import register_score

Heads = Literal["mean", "max", "min"]
Normalise = Literal["rows", "columns"]


@dataclass(frozen=True, eq=False)
class LazyAttention(Sequence[Tensor]):
    """Attention matrices [B, H, P+N, P+N] of several blocks, computed from queries and keys on access."""

    queries: tuple[Tensor, ...]
    keys: tuple[Tensor, ...]
    scale: float

    def __len__(self) -> int:
        return len(self.queries)

    def __getitem__(self, block):  # type: ignore[no-untyped-def]
        q, k = self.queries[block], self.keys[block]
        return (exact(q) * self.scale @ exact(k).transpose(-2, -1)).softmax(dim=-1)


@register_score("rollout")
def accumulated(
    attns: Sequence[Tensor], moves: Sequence[Plan | None] | None, x: Tensor,
    fuse: Heads = "mean", discard: float = 0.0, residual: bool = True, parity: bool = False,
) -> Tensor:  # fmt: skip
    """Rollout of the class token over the tokens x [B, N, C]: [B, N]. attns: [B, H, P+N, P+N] of each block, moves: see `class_row`,
    None if no token left. The other numbers are those of `mixing`; parity divides columns."""
    if len(attns) == 0:
        raise PruneError("attns holds no attention matrix; give one for each block up to the site")
    passed = [None] * (len(attns) - 1) if moves is None else moves
    normalise: Normalise = "columns" if parity else "rows"
    last_first = (mixing(attns[block], fuse, discard, residual, normalise) for block in range(len(attns) - 1, -1, -1))
    return class_row(last_first, passed, attns[len(attns) - 1].shape[-1] - x.shape[1])


def mixing(attn: Tensor, heads: Heads, discard: float, residual: bool, normalise: Normalise) -> Tensor:
    """Fuse heads, discard small entries and add the residual: attn [B, H, L, L] -> [B, L, L].

    Heads are fused by mean, max or min; the share `discard` of the smallest entries of each image becomes 0, the first entry excepted; then
    the identity is added and rows are brought to sum 1. "columns" divides column j by the sum of row j instead, as vit-explain's
    code does for want of a kept dimension: the same where all rows have equal sums.
    """
    attn = exact(attn)
    fused = attn.mean(dim=1) if heads == "mean" else attn.amax(dim=1) if heads == "max" else attn.amin(dim=1)
    length = fused.shape[-1]
    gone = int(length * length * discard)
    if gone:
        flat = fused.flatten(1)
        smallest = flat.topk(gone, dim=1, largest=False).indices
        fused = torch.cat([flat[:, :1], flat.scatter(1, smallest, 0)[:, 1:]], dim=1).view_as(fused)
    if residual:
        fused = fused + diagonal(length, fused.device).to(fused.dtype)
    total = fused.sum(dim=-1)
    return fused / (total.unsqueeze(-1) if normalise == "rows" else total.unsqueeze(1))


def class_row(mixings: Iterator[Tensor], moves: Sequence[Plan | None], prefix: int) -> Tensor:
    """Class token's row of the product of all mixing matrices, over the tokens that the LAST block sees: -> [B, N].

    Where tokens left between two blocks, a survivor's row goes on as its own, that of a merged token as the mean of its tokens'. The row
    times the product is computed from the left, so no product of two matrices is needed. mixings: last block first; moves: the plan of
    the tokens that left behind each block but the last, first block first.
    """
    row: Tensor | None = None
    for block, mixing in zip(range(len(moves), -1, -1), mixings, strict=True):
        if row is None:
            row = mixing[:, :1]
            continue
        plan = moves[block]
        row = (row if plan is None else before(row, plan, prefix)) @ mixing
    assert row is not None
    patches = row[:, 0, prefix:].unsqueeze(-1)
    for plan in moves:
        if plan is not None:
            patches = plan.fold(patches) / members(plan, patches)
    return patches.squeeze(-1)


def before(row: Tensor, plan: Plan, prefix: int) -> Tensor:
    """Spread a row over the tokens after a site to the tokens before it: [B, 1, P+K] -> [B, 1, P+N]."""
    patches = row[:, 0, prefix:].unsqueeze(-1)
    spread = plan.spread(patches / members(plan, patches))
    return torch.cat([row[:, :, :prefix], spread.transpose(1, 2)], dim=2)


def members(plan: Plan, like: Tensor) -> Tensor:
    """Number of tokens merged into each slot, at least 1: [B, slots, 1]."""
    ones = torch.ones(like.shape[0], plan.total, 1, dtype=like.dtype, device=like.device)
    return plan.fold(ones).clamp(min=1)
