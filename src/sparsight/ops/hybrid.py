"""Selections of two parts, one by importance and one by diversity. s [B, N] is the importance; kept tokens are ascending."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from ..plan import Plan
from . import cluster, diversity, score, select
from .attention_shared import Attended
from .portable import stable_order

Budget = Literal["kept", "removed"]


def rescue_slots(rescue: float, count: int, total: int, budget: Budget) -> int:
    """Number of the `count` slots that the second score fills: a share of the kept, or of the removed, tokens."""
    share = rescue * (count if budget == "kept" else total - count)
    return min(count, math.floor(share + 0.5))


def rescued_by_columns(
    s: Tensor,
    q: Tensor,
    k: Tensor,
    prefix: int,
    scale: float,
    count: int,
    rescue: float,
    budget: Budget,
    order: float,
    attended: Attended | None = None,
) -> Plan:
    """Select by class attention s [B, N], then fill round(rescue * (kept or removed)) slots by Col-Ln among the rest."""
    slots = rescue_slots(rescue, count, s.shape[1], budget)
    return select.rescued(s, score.column_norm(q, k, prefix, scale, order, attended=attended), count, slots)


def descending(s: Tensor, taken: Tensor) -> Tensor:
    """Indices of the tokens not in `taken` [B, T], by descending score: [B, N - T]."""
    ranked = stable_order(s.scatter(1, taken, float("inf")), descending=True)
    return ranked[:, taken.shape[1] :]


def top_and_thinned(s: Tensor, feats: Tensor, count: int, important: Tensor) -> Plan:
    """The tokens `important` [B, T], and those of the others that are left when redundant ones are thinned out to `count` in all.
    feats [B, N, D] are compared by cosine. VisPruner, arXiv:2412.01818."""
    rest = diversity.thin_out(diversity.cosine(feats), descending(s, important), count - important.shape[1])
    return Plan(torch.cat([important, rest], dim=1).sort(dim=1).values, s.shape[1])


def farthest_and_top(s: Tensor, order: Tensor, diverse: Tensor) -> Plan:
    """The first `diverse` [B] tokens of the greedy order [B, K], and by score as many others as K allows."""
    count = order.shape[1]
    place = torch.arange(count, device=s.device)
    level = torch.zeros_like(s).scatter(1, order, (place < diverse.unsqueeze(-1)).to(s.dtype))
    return select.topk(s.masked_fill(level > 0, float("inf")), count)


def top_and_clusters(s: Tensor, x: Tensor, count: int, top: int) -> Plan:
    """The `top` highest scores as they are; the others in count - top clusters around density peaks of x [B, N, D], each
    the mean of its tokens weighted by score. The plan's `mix` has the weights; a cluster stands at its centre's place."""
    n = s.shape[1]
    attentive = select.best(s, top)
    keep, owner = attentive, None
    if count > top:
        rest = select.others(attentive, n)
        found = cluster.density_peaks(select.rows(x, rest), count - top)
        keep = torch.cat([attentive, rest.gather(1, found.centres)], dim=1)
        owner = torch.arange(n, device=s.device).expand_as(s).scatter(1, rest, keep[:, top:].gather(1, found.member))
    keep = keep.sort(dim=1).values
    slot = torch.full_like(s, -1, dtype=torch.int64).scatter(1, keep, torch.arange(count, device=s.device).expand_as(keep))
    merged = slot if owner is None else slot.gather(1, owner)
    member = merged.unsqueeze(1) == torch.arange(count, device=s.device).unsqueeze(-1)
    weight = member * s.clamp(min=torch.finfo(s.dtype).tiny).unsqueeze(1)
    return Plan(keep, n, merged, mix=weight / weight.sum(dim=-1, keepdim=True))


def stacked(plans: list[Plan]) -> Plan:
    """Concatenate plans of single images with equal counts into a batch."""
    first = plans[0]
    merged = [plan.merged for plan in plans if plan.merged is not None]
    mix = [plan.mix for plan in plans if plan.mix is not None]
    keep = torch.cat([plan.keep for plan in plans])
    return Plan(keep, first.total, torch.cat(merged) if merged else None, mix=torch.cat(mix) if mix else None)
