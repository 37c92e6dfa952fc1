"""Selectors: a score (or the tokens themselves) and a count in, a Plan out. Ties go to the lower index."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from ..errors import PruneError
from ..plan import Plan
from . import diversity
from .portable import stable_order


def rows(x: Tensor, index: Tensor) -> Tensor:
    """Rows of x [B, N, C] at index [B, K] -> [B, K, C]."""
    return x.gather(1, index.unsqueeze(-1).expand(-1, -1, x.shape[2]))


def others(index: Tensor, n: int) -> Tensor:
    """The indices below n that are not among index [B, K], all of them different, ascending: [B, N - K]."""
    taken = torch.zeros(index.shape[0], n, dtype=torch.uint8, device=index.device).scatter(1, index, 1)
    return stable_order(taken)[:, : n - index.shape[1]]


def slots(keep: Tensor, n: int) -> Tensor:
    """Position of each token in keep [B, K], 0 for tokens that are not there: [B, N]."""
    place = torch.arange(keep.shape[1], device=keep.device).expand_as(keep)
    return keep.new_zeros(keep.shape[0], n).scatter(1, keep, place)


def best(s: Tensor, count: int) -> Tensor:
    """Indices of the `count` highest scores, ascending. s [B, N] -> [B, K]."""
    order = stable_order(s, descending=True)
    return order[:, :count].sort(dim=1).values


def ranks(s: Tensor) -> Tensor:
    """Rank of each token in descending order of score, from 0; ties to the lower index. s [B, N] -> [B, N]."""
    return slots(stable_order(s, descending=True), s.shape[1])


def everything(x: Tensor) -> Plan:
    """Plan that keeps all tokens unchanged. x [B, N, ...]."""
    n = x.shape[1]
    return Plan(torch.arange(n, device=x.device).expand(x.shape[0], n), n)


def topk(s: Tensor, count: int) -> Plan:
    """Keep the highest scores. s [B, N]."""
    return Plan(best(s, count), s.shape[1])


def chosen(mask: Tensor) -> Plan:
    """Keep the masked tokens, a different number per image (at least one). mask [B, N] bool.

    Waits for the device: the number of slots is the largest count of the batch.
    """
    counts = mask.sum(dim=1)
    least, most = (int(count) for count in torch.stack(torch.aminmax(counts)).tolist())
    keep = stable_order(mask.to(torch.uint8), descending=True)[:, :most]
    if least == most:
        return Plan(keep, mask.shape[1])
    valid = torch.arange(most, device=mask.device) < counts.unsqueeze(1)
    return Plan(keep.masked_fill(~valid, -1), mask.shape[1], valid=valid)


def topk_fused(s: Tensor, count: int) -> Plan:
    """Keep the highest scores and fuse the rest into one slot (none if nothing is left). s [B, N]."""
    return Plan(best(s, count), s.shape[1], fused=count < s.shape[1])


def rescued(s: Tensor, other: Tensor, count: int, slots: int) -> Plan:
    """Keep the `count - slots` highest by `s`, then the `slots` highest by `other` among the rest. s, other [B, N]."""
    first = stable_order(s, descending=True)[:, : count - slots]
    return topk(other.scatter(1, first, float("inf")), count)


def with_nearest(plan: Plan, x: Tensor) -> Plan:
    """The plan, with every token that lost its slot in that of the kept token most alike by cosine. x [B, N, C]."""
    alike = rows(diversity.cosine(x), plan.keep)
    own = torch.arange(plan.keep.shape[1], device=x.device).expand_as(plan.keep)
    return replace(plan, merged=alike.argmax(dim=1).scatter(1, plan.keep, own))


def smaller(grid: tuple[int, int], count: int) -> tuple[int, int]:
    """Rows and columns of the largest grid of about the same shape with at most `count` cells."""
    h, w = grid
    rows = max(1, min(h, count, math.isqrt(count * h // w)))
    return rows, max(1, min(w, math.isqrt(count * w // h), count // rows))


def cells(x: Tensor, grid: tuple[int, int], count: int) -> Plan:
    """Cut the patch grid into a coarser one of at most `count` cells, in rows; each keeps the token in its middle, and the others join it.
    x [B, N, C], grid (h, w) with h * w = N."""
    h, w = grid
    if x.shape[1] != h * w:
        raise PruneError(
            f"cells need the whole grid of {h} x {w} patches, but {x.shape[1]} tokens are left; pool before other methods prune"
        )
    rows, columns = smaller(grid, count)
    (row, top), (column, left) = (segments(n, parts, x.device) for n, parts in ((h, rows), (w, columns)))
    owner = (row[:, None] * columns + column).flatten()
    keep = (top[:, None] * w + left).flatten()
    return Plan(keep.expand(len(x), -1), h * w, owner.expand(len(x), -1))


def segments(n: int, parts: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cut 0..n-1 into parts of nearly equal length: the part of each number [n], and the middle of each part [parts]."""
    edge = -(-torch.arange(parts + 1, device=device) * n // parts)
    return torch.arange(n, device=device) * parts // n, (edge[:-1] + edge[1:] - 1) // 2


def bipartite_by_score(s: Tensor, k: Tensor, prefix: int, count: int) -> Plan:
    """As `bipartite`, but the lower half of the tokens by score s [B, N] are the sources and the upper half the destinations, and slots
    stand in ascending order."""
    n = s.shape[1]
    removed = min(n - count, n // 2)
    ranked = stable_order(s, descending=True)
    target, source = ranked[:, : n - n // 2], ranked[:, n - n // 2 :]
    metric = directions(k, prefix)
    value, partner = (rows(metric, source) @ rows(metric, target).transpose(-2, -1)).max(dim=-1)
    going = stable_order(value, descending=True)[:, :removed]
    gone = source.gather(1, going)
    keep = others(gone, n)
    slot = slots(keep, n)
    host = target.gather(1, partner.gather(1, going))
    return Plan(keep, n, slot.scatter(1, gone, slot.gather(1, host)))


def bipartite(k: Tensor, prefix: int, count: int) -> Plan:
    """Merge similar pairs of tokens until `count` are left (at most half can go). k [B, H, P+N, D].

    Tokens at even positions of the whole sequence are sources, those at odd positions destinations; each source names the
    destination whose key (mean over heads) is most similar by cosine, and the most similar sources are merged.
    Prefix tokens take part in the numbering only. The next site pairs by position again, so slots are in the authors' order: the
    sources left over (ascending; by similarity where there is no prefix), then the destinations. ToMe section 3, arXiv:2210.09461.
    """
    n, first = k.shape[2] - prefix, prefix % 2
    index = torch.arange(n, device=k.device)
    removed = min(n - count, n // 2)
    if removed <= 0:
        return Plan(index.expand(k.shape[0], n), n, index.expand(k.shape[0], n))
    metric = directions(k, prefix)
    value, partner = (metric[:, first::2] @ metric[:, 1 - first :: 2].transpose(-2, -1)).max(dim=-1)
    ranked = stable_order(value, descending=True)
    # at batch 1 the number of operations is what a site costs: arithmetic instead of lookups, scatters in place
    place = torch.add(index[first], ranked, alpha=2)
    left = place[:, removed:].sort(dim=1).values if prefix else place[:, removed:]
    keep = torch.cat([left, index[1 - first :: 2].expand(left.shape[0], -1)], dim=1)
    slot = torch.empty(left.shape[0], n, dtype=torch.int64, device=k.device).scatter_(1, keep, index[: n - removed].expand_as(keep))
    host = partner.gather(1, ranked[:, :removed]) + left.shape[1]
    return Plan(keep, n, slot.scatter_(1, place[:, :removed], host))


def directions(k: Tensor, prefix: int) -> Tensor:
    """Average the patches' keys over heads and L2-normalise them, in float32 or better. k [B, H, P+N, D] -> [B, N, D]."""
    mean = k.mean(dim=1, dtype=torch.promote_types(k.dtype, torch.float32))[:, prefix:]
    length: Tensor = torch.linalg.vector_norm(mean, dim=-1, keepdim=True)
    return mean / length.clamp_min(1e-12)
