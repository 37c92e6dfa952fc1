"""VScan: half the tokens by a late layer's attention, half by an early one's in windows of the image, the rest merged into them. TMLR 2026, arXiv:2505.22654.

Reference: Tencent/SelfEvolvingAgent (a82450e), the first of its two stages. Of tokens // 2 every window of 6 x 6 patches gets an even share,
by the class token's attention in block `layer` (5 of LLaVA's 24, scaled to the encoder's depth where layer=-1); the layer that makes the
features gives the others. Every dropped token joins the kept one most alike by cosine behind the projector, which becomes their mean;
`merge=false` drops them. The second stage is PyramidDrop in the middle of the language model: prune once more, with pyramiddrop:layers=16.
`count=exact` gives what does not come out even to the windows' next best, one each, by attention; `count=authors` loses it (98 of 100). The last
row and column of windows take the rest of the grid. `score=column_mean` is for encoders without class token. keep= rounds up.
"""

from typing import Literal

import torch
from torch import Tensor

from ..errors import PruneError
from ..ops import reduce, schedule, select
from ..ops.portable import stable_order
from ..ops.score import class_attention, received
from ..plan import Plan
from ..recipe import Recipe, Step
from ..registry import method

Count = Literal["exact", "authors"]


def window_of(position: Tensor, grid: tuple[int, int], side: int) -> tuple[Tensor, int]:
    """Window of side x side patches that each token is in, position [B, N] -> [B, N], and how many there are."""
    down, across = (max(1, length // side) for length in grid)
    row, column = position.div(grid[1], rounding_mode="floor") // side, position % grid[1] // side
    return row.clamp(max=down - 1) * across + column.clamp(max=across - 1), down * across


def rank_in_window(s: Tensor, window: Tensor) -> Tensor:
    """Rank of every token by s [B, N] among those of its window [B, N], from 0."""
    n, rank = s.shape[1], select.ranks(s)
    ordered = stable_order(window * n + rank)
    place = torch.arange(n, device=s.device).expand_as(ordered)
    begins = torch.full_like(place, n).scatter_reduce(1, window.gather(1, ordered), place, "amin")
    own = torch.zeros_like(place).scatter(1, ordered, place)
    return own - begins.gather(1, window)


def windows_first(s: Tensor, early: Tensor, window: Tensor, windows: int, count: int, counting: Count) -> Plan:
    """Keep the best of every window by early [B, N], and of the others the highest s [B, N]."""
    n = s.shape[1]
    each, more = divmod(count // 2, windows)
    rank = rank_in_window(early, window)
    local = rank < each
    if counting == "authors":
        chosen = select.ranks(s.masked_fill(local, float("-inf"))) < count - count // 2
        return select.chosen(local | chosen)
    next_best = select.ranks(early.masked_fill(rank != each, float("-inf")))
    local = local | ((rank == each) & (next_best < more))
    return Plan(select.best(s.masked_fill(local, float("inf")), count), n)


def split(
    s: Tensor,
    shallow_class_attn: Tensor | None,
    shallow_token_weight: Tensor | None,
    x: Tensor,
    position: Tensor,
    grid: tuple[int, int],
    count: int,
    side: int,
    merge: bool,
    counting: Count,
) -> Plan:
    """Keep by windows, with one of the two early scores [B, H, N] or [B, N], and by s [B, N]; the others join, by tokens x [B, N, C]."""
    if count >= s.shape[1]:
        return select.everything(s)
    early = shallow_token_weight if shallow_class_attn is None else shallow_class_attn.mean(dim=1)
    assert early is not None
    window, windows = window_of(position, grid, side)
    plan = windows_first(s, early, window, windows, count, counting)
    return select.with_nearest(plan, x) if merge else plan


@method
def vscan(
    tokens: int = 64,
    layer: int = -1,
    window: int = 6,
    merge: bool = True,
    count: Count = "exact",
    score: Literal["class", "column_mean"] = "class",
) -> Recipe:
    if window < 1:
        raise PruneError(f"window={window} must be 1 patch or more")
    unread = "shallow_token_weight" if score == "class" else "shallow_class_attn"
    choose = Step(split, side=window, merge=merge, counting=count, **{unread: None})
    late = class_attention if score == "class" else received
    reducer = reduce.merge_sized if merge else reduce.drop
    earlier = (5, 24) if layer < 0 else (layer, 0)
    return Recipe(late, choose, reducer, schedule.once(tokens), where="projector", shallow=earlier)
