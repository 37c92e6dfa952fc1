"""PruMerge: keep the patches whose class attention is an outlier, merge each one's nearest into it. Shang et al., ICCV 2025, arXiv:2403.15388.

Reference: 42Shawn/LLaVA-PruMerge. Attention of all heads joined into one; centres are the tokens above Q3 + 1.5 IQR, so that every
image finds its own count. A centre becomes its feature plus its 32 nearest (cosine of joined keys) weighted by raw attention, which
is not normalised; one more token, the weighted sum of all that are no centres, comes last. Centres are in order of score, not of
place. No outlier: that one token alone. A budget fixes the number of centres; the last token comes on top (tokens=72 leaves 73,
keep= rounds down), and handle.counts says what was left. PruMerge+ adds every s-th token, s a third of N / centres.
`shared=true` gives all images of a batch the mean count, as the authors' code does. `score=col_ln` with `order` (p-norm) and
`rescue` (a share of the centres goes to Col-Ln among what class attention leaves; 0.8 in the Renyi entropy paper) choose
centres; weights stay class attention. That paper does not state either detail. `score=column_mean` is for encoders without class
token, where the column mean also weights.
With a budget prumerge_plus keeps as many outliers as fit and spaces the others evenly over what is left: the rule of EffiVLM-Bench,
whose cut at the image's end is avoided; later papers' recipe is not public. So an image with as many outliers as the budget, or more, gets
what prumerge gives it. `spacing=training` is the authors' training path, with its
doubled and lost tokens (keep=0.125 leaves 145 of 576).
Deviations: any number of tokens works (the authors' 575 is N - 1, 32 is at most N - 1), no outliers too; float32, ties to the lower index.
"""

from typing import Literal

import torch
from torch import Tensor

from ..errors import PruneError
from ..ops import diversity, reduce, schedule, select
from ..ops.attention_torch import exact
from ..ops.portable import stable_order
from ..ops.score import Importance, check_order, joined, single_head
from ..plan import Plan
from ..recipe import Recipe, Step
from ..registry import method

NEAREST = 32
Spacing = Literal["inference", "training"]


def centres(
    s: Tensor,
    q: Tensor,
    k: Tensor,
    prefix: int,
    count: int,
    score: Importance,
    spread: bool,
    shared: bool,
    rescue: float,
    order: float,
) -> Plan:
    """Select centres by score s [B, N] and the merging weights. q, k [B, H, P+N, D]; count 0: as many as there are outliers."""
    n = s.shape[1]
    if count >= n:
        return select.everything(s)
    found = outliers(s, shared)
    top = found if not count else found.clamp(1, count) if spread else torch.full_like(found, count)
    rank = select.ranks(s)
    if rescue:
        rank = rescue_ranks(s, rank, top, single_head(q, k, prefix, "col_ln", order), rescue)
    chosen = rank < top.unsqueeze(-1)
    if spread:
        more = evenly(chosen, count - top) if count else every(found, n)
        chosen = chosen | more
        rank = torch.where(rank < top.unsqueeze(-1), rank, n + torch.arange(n, device=s.device))
    sizes = chosen.sum(dim=1)
    kept = [count] if count else sizes.tolist()
    idx = stable_order(rank.masked_fill(~chosen, 2 * n))[:, : max(kept)]
    if min(kept) < max(kept):
        idx = idx.masked_fill(torch.arange(max(kept), device=s.device) >= sizes.unsqueeze(-1), -1)
    mix = weights(idx, None, ~chosen, attention(s, q, k, prefix, score), k[:, :, prefix:])
    slot = torch.arange(max(kept) + 1, device=s.device)
    valid = slot <= sizes.unsqueeze(-1) if min(kept) < max(kept) else None
    return Plan(idx, n, fused=True, mix=mix, valid=valid)


def training_centres(s: Tensor, q: Tensor, k: Tensor, prefix: int, count: int, score: Importance) -> Plan:
    """Centres of the authors' training path: the `count` highest scores, then about as many at equal distances, whether they are
    centres already or not; the rest then lacks its first tokens, one for every doubled centre. Doubled centres share a slot in `owner`."""
    batch, n = s.shape
    if not count:
        raise PruneError("spacing=training has no adaptive count; give a budget, such as keep=0.125")
    if count >= n:
        return select.everything(s)
    place = torch.arange(n, device=s.device)
    stride = n // count
    grid = torch.arange(stride // 2, n - 1, stride, device=s.device).expand(batch, -1)
    idx = torch.cat([select.ranks(s).argsort(dim=1)[:, :count], grid], dim=1)
    slots = idx.shape[1]
    free = torch.ones_like(s, dtype=torch.bool).scatter(1, idx, False)
    rest = stable_order(free.to(torch.uint8))[:, slots:]
    lost = torch.ones_like(free).scatter(1, rest, False) & free
    own = place[:slots].expand_as(idx)
    mix = weights(idx, torch.cat([idx, rest], dim=1), free & ~lost, attention(s, q, k, prefix, score), k[:, :, prefix:])
    owner = torch.full_like(s, slots, dtype=torch.int64).masked_fill(lost, -1).scatter_reduce(1, idx, own, "amin")
    return Plan(idx, n, owner, fused=True, mix=mix)


def outliers(s: Tensor, shared: bool) -> Tensor:
    """Count the scores above Q3 + 1.5 IQR of each image [B]; shared: the batch's mean, rounded down."""
    pool = s.reshape(1, -1) if shared else s
    low, high = torch.quantile(pool, torch.tensor([0.25, 0.75], dtype=s.dtype, device=s.device), dim=1, keepdim=True)
    found: Tensor = (pool > high + 1.5 * (high - low)).sum(dim=1)
    return (found // s.shape[0]).expand(s.shape[0]) if shared else found


def rescue_ranks(s: Tensor, rank: Tensor, top: Tensor, other: Tensor, rescue: float) -> Tensor:
    """Ranks of which the first `top` are (1 - rescue) of them by s, then the others by another score."""
    first = top - (top * rescue + 0.5).floor().long()
    rest = rank >= first.unsqueeze(-1)
    return torch.where(rest, first.unsqueeze(-1) + select.ranks(other.masked_fill(~rest, float("-inf"))), rank)


def every(found: Tensor, n: int) -> Tensor:
    """Mask [B, N] of the tokens 0, s, 2s, ... below N - 1, with s a third of N over the number of outliers (at least one)."""
    stride = torch.div(n // found.clamp(min=1), 3, rounding_mode="floor").clamp(min=1)
    place = torch.arange(n, device=found.device)
    return (place % stride.unsqueeze(-1) == 0) & (place < n - 1)


def evenly(taken: Tensor, count: Tensor) -> Tensor:
    """Mask [B, N] of `count` [B] tokens at equal distances in the list of those not taken [B, N]."""
    batch, n = taken.shape
    free = n - taken.sum(dim=1, keepdim=True)
    step = torch.arange(n, device=taken.device).expand(batch, -1)
    place = torch.div((2 * step + 1) * free, (2 * count.unsqueeze(-1)).clamp(min=1), rounding_mode="floor")
    place = place.masked_fill(step >= count.unsqueeze(-1), n)
    hit = torch.zeros(batch, n + 1, dtype=torch.bool, device=taken.device).scatter(1, place, True)
    return hit.gather(1, ((~taken).cumsum(dim=1) - 1).clamp(min=0)) & ~taken


def attention(s: Tensor, q: Tensor, k: Tensor, prefix: int, score: Importance) -> Tensor:
    """Weights of merging [B, N]: class attention, or the column mean where there is no class token; mostly the score itself."""
    wanted: Importance = "class" if prefix else "column_mean"
    return s if score == wanted else single_head(q, k, prefix, wanted)


def weights(idx: Tensor, pool: Tensor | None, rest: Tensor, a: Tensor, k: Tensor) -> Tensor:
    """What every token gives to every slot [B, K+1, N]: a centre idx [B, K] (-1: none) is itself plus its nearest of the candidates,
    which are all tokens or the list `pool` [B, M] that begins with the centres; after an image's centres comes the sum of `rest` [B, N].
    Shares are by a [B, N], nearness by keys k [B, H, N, D]."""
    keys = exact(joined(k)[:, 0])
    length = keys.norm(dim=-1).clamp(min=torch.finfo(keys.dtype).tiny).unsqueeze(1)
    batch, n, width = keys.shape
    rows = idx.clamp(min=0).unsqueeze(-1)
    likeness = keys.gather(1, rows.expand(-1, -1, width)) @ keys.transpose(-2, -1)
    parts = []
    piece = max(8, diversity.PIECE // (batch * n)) if keys.device.type == "cpu" else n
    for start in range(0, idx.shape[1], piece):
        here = slice(start, start + piece)
        near = a.unsqueeze(1) * nearest(likeness[:, here] / length, rows[:, here], pool, start)
        near = near.scatter_add(2, rows[:, here], torch.ones_like(near[..., :1]))
        parts.append(near.masked_fill((idx[:, here] < 0).unsqueeze(-1), 0))
    mix = torch.cat([*parts, torch.zeros_like(a).unsqueeze(1)], dim=1)
    last = (idx >= 0).sum(dim=1).view(-1, 1, 1).expand(-1, 1, n)
    return mix.scatter_(1, last, (a * rest).unsqueeze(1))


def nearest(likeness: Tensor, row: Tensor, pool: Tensor | None, start: int) -> Tensor:
    """How often each token [.., N] is among the nearest candidates of centres row [B, K, 1], the centre's own place excepted."""
    count = min(NEAREST, likeness.shape[-1] - 1)
    if pool is None:
        return highest(likeness.scatter(2, row, float("-inf")), count).to(likeness.dtype)
    candidate = pool.unsqueeze(1).expand(-1, row.shape[1], -1)
    own = start + torch.arange(row.shape[1], device=row.device).view(1, -1, 1).expand_as(row)
    near = highest(likeness.gather(2, candidate).scatter(2, own, float("-inf")), count)
    return torch.zeros_like(likeness).scatter_add(2, candidate, near.to(likeness.dtype))


def highest(values: Tensor, count: int) -> Tensor:
    """Mask of the `count` highest values of each row, ties to the lower index. [..., M] -> [..., M]"""
    least = values.topk(count, dim=-1).values[..., -1:]
    above, equal = values > least, values == least
    return above | (equal & (equal.cumsum(dim=-1) <= count - above.sum(dim=-1, keepdim=True)))


def recipe_of(score: Importance, rescue: float, order: float, spread: bool, shared: bool, spacing: Spacing) -> Recipe:
    if schedule.check_share("rescue", rescue) and (score != "class" or spacing == "training"):
        raise PruneError(f"rescue={rescue:g} corrects class attention; leave out score={score}, spacing={spacing} or rescue")
    first = Step(single_head, kind=score, order=check_order(order))
    choose = Step(centres, score=score, spread=spread, shared=shared, rescue=rescue, order=order)
    if spacing == "training":
        choose = Step(training_centres, score=score)
    return Recipe(first, choose, reduce.mixture, schedule.once(rounding="down"), where="encoder", attention="consuming")


@method
def prumerge(score: Importance = "class", rescue: float = 0.0, order: float = 2.0, shared: bool = False) -> Recipe:
    return recipe_of(score, rescue, order, False, shared, "inference")


@method
def prumerge_plus(score: Importance = "class", rescue: float = 0.0, order: float = 2.0, spacing: Spacing = "inference") -> Recipe:
    """PruMerge+: PruMerge with evenly spaced centres added to the outliers. Shang et al., ICCV 2025, arXiv:2403.15388."""
    return recipe_of(score, rescue, order, True, False, spacing)
