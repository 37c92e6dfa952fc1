"""Reducers: tokens, their sizes and a Plan in, fewer tokens and their sizes out. x [B, N, C], size [B, N, 1]."""

from __future__ import annotations

import torch
from torch import Tensor

from ..plan import Plan

Tokens = tuple[Tensor, Tensor | None]


def drop(x: Tensor, plan: Plan, size: Tensor | None) -> Tokens:
    """Keep the selected tokens unchanged and drop the others. -> [B, K, C], [B, K, 1]; size None (every token one patch) stays None."""
    return plan.gather(x), None if size is None else plan.gather(size)


def fuse_rest(x: Tensor, plan: Plan, size: Tensor | None, s: Tensor) -> Tokens:
    """Keep the selected tokens and append the score-weighted (not normalised) sum of the others. s [B, N].
    EViT eq. 4, arXiv:2202.07800. -> [B, K+1, C], [B, K+1, 1]."""
    kept, kept_size = plan.gather(x), plan.gather(sizes(x, size))
    if not plan.fused:
        return kept, kept_size
    # survivors get weight 0 instead of being left out: cheaper than finding and moving the others
    weight = s.scatter(1, plan.keep, 0).unsqueeze(1).to(x.dtype)
    return torch.cat([kept, weight @ x], dim=1), torch.cat([kept_size, rest_size(plan, size, kept_size)], dim=1)


def rest_size(plan: Plan, size: Tensor | None, kept_size: Tensor) -> Tensor:
    """Total size of the fused tokens. kept_size: sizes of the kept ones, [B, K, 1] -> [B, 1, 1]."""
    if size is None:
        return kept_size.new_full((kept_size.shape[0], 1, 1), plan.total - kept_size.shape[1])
    return size.sum(dim=1, keepdim=True) - kept_size.sum(dim=1, keepdim=True)


def fuse_rest_evenly(x: Tensor, plan: Plan, size: Tensor | None) -> Tokens:
    """Keep the selected tokens and append the size-weighted mean of the others. -> [B, K+1, C], [B, K+1, 1]."""
    known = sizes(x, size)
    rest = rest_size(plan, size, plan.gather(known)) if plan.fused else known.sum(dim=1, keepdim=True)
    return fuse_rest(x, plan, size, (known / rest).squeeze(-1))


def fuse_rest_by_class(x: Tensor, plan: Plan, size: Tensor | None, class_attn: Tensor) -> Tokens:
    """`fuse_rest` with the class token's attention as weights, whatever chose the survivors. class_attn [B, H, N]."""
    return fuse_rest(x, plan, size, class_attn.mean(dim=1))


def merge_sized(x: Tensor, plan: Plan, size: Tensor | None) -> Tokens:
    """Average the tokens of every slot, weighted by size. -> [B, K, C], [B, K, 1]."""
    rows, weighed = plan.rows(), x if size is None else x * size.to(x.dtype)
    total = plan.fold(sizes(x, size), rows)
    return plan.fold(weighed, rows).div_(total.to(x.dtype)), total


def representatives(x: Tensor, plan: Plan, size: Tensor | None) -> Tokens:
    """Keep the selected tokens unchanged; each one's size is that of its whole cluster. -> [B, K, C], [B, K, 1]."""
    return plan.gather(x), plan.fold(sizes(x, size))


def sizes(x: Tensor, size: Tensor | None) -> Tensor:
    """Token sizes, ones if nothing has been merged yet. x [B, N, C] -> [B, N, 1]."""
    if size is not None:
        return size
    dtype = x.dtype if x.dtype == torch.float64 else torch.float32
    return torch.ones(x.shape[0], x.shape[1], 1, dtype=dtype, device=x.device)


def mixture(x: Tensor, plan: Plan, size: Tensor | None) -> Tokens:
    """Mix tokens by the weights in plan.mix; keep the selected tokens unchanged without weights.
    -> [B, slots, C], [B, slots, 1]."""
    if plan.mix is None:
        return drop(x, plan, size)
    exact = torch.promote_types(plan.mix.dtype, x.dtype)
    return (plan.mix.to(exact) @ x.to(exact)).to(x.dtype), plan.fold(sizes(x, size))


def with_class_token(x: Tensor, plan: Plan, size: Tensor | None, class_token: Tensor) -> Tokens:
    """Put the class token in front of the tokens of a plan that is `led` by it. class_token [B, 1, C] -> [B, K, C]; its size is 0."""
    tokens, known = mixture(x, plan, size)
    if not plan.led:
        return tokens, known
    counts = sizes(tokens, known)
    if plan.mix is None:
        counts = torch.nn.functional.pad(counts, (0, 0, 1, 0))
    else:
        tokens = tokens[:, 1:]
    return torch.cat([class_token.to(x.dtype), tokens], dim=1), counts
