"""HiPrune: anchors of an earlier layer with their neighbours, and the most attended tokens of a late one. arXiv:2508.00553.

Reference: the authors' repository (6e83a12). Attention that a token receives is the mean over heads and all queries, so no class token is
needed. The anchors are the round(alpha * tokens / 5) most attended tokens of block `layer` (8 of LLaVA's 24, scaled to the encoder's depth
where layer=-1); they and their four neighbours are kept, and the rest of the budget goes to the most attended tokens of the layer that makes
the features. `neighbours=grid` stays on the image; `neighbours=authors` counts along the raster as their code does: neighbours wrap round
row ends, and those above the first row and below the last become the first and the last token. keep= rounds up.
Deviation: exactly `tokens` also where anchors and neighbours are more: then anchors come first, then neighbours by the earlier layer.
"""

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..ops import reduce, schedule, score, select
from ..ops.portable import stable_order
from ..plan import Plan
from ..recipe import Recipe, Step
from ..registry import method

Neighbours = Literal["grid", "authors"]


def on_grid(centre: Tensor, position: Tensor, grid: tuple[int, int]) -> Tensor:
    """Mask [B, N] of the centres [B, N] and the tokens beside, above and below them; position [B, N] is their place on the grid."""
    h, w = grid
    cells = torch.zeros(len(centre), h * w, dtype=torch.bool, device=centre.device).scatter(1, position, centre).view(-1, h, w)
    wide = pad(cells, (1, 1, 1, 1))
    near = cells | wide[:, :-2, 1:-1] | wide[:, 2:, 1:-1] | wide[:, 1:-1, :-2] | wide[:, 1:-1, 2:]
    return near.flatten(1).gather(1, position)


def along_raster(centre: Tensor, grid: tuple[int, int]) -> Tensor:
    """As `on_grid`, one and a row's length before and behind in the list of tokens, clipped to its ends."""
    n = centre.shape[1]
    near, place = centre, torch.arange(n, device=centre.device)
    for step in (-1, 1, -grid[1], grid[1]):
        at = (place + step).clamp(0, n - 1).expand_as(near)
        near = near | torch.zeros_like(near).long().scatter_add(1, at, centre.long()).bool()
    return near


def by_anchors(
    s: Tensor,
    shallow_token_weight: Tensor,
    position: Tensor,
    grid: tuple[int, int],
    count: int,
    alpha: float,
    neighbours: Neighbours,
) -> Plan:
    """Keep anchors by shallow_token_weight [B, N], their neighbours, and the highest s [B, N] of the others."""
    n = s.shape[1]
    if count >= n:
        return select.everything(s)
    ahead, rank = select.ranks(shallow_token_weight), select.ranks(s)
    centre = ahead < round(alpha * count / 5)
    near = on_grid(centre, position, grid) if neighbours == "grid" else along_raster(centre, grid)
    key = torch.where(centre, ahead - 2 * n, torch.where(near, ahead - n, rank))
    return Plan(stable_order(key)[:, :count].sort(dim=1).values, n)


@method
def hiprune(tokens: int = 64, alpha: float = 0.1, layer: int = -1, neighbours: Neighbours = "grid") -> Recipe:
    schedule.check_share("alpha", alpha)
    choose = Step(by_anchors, alpha=alpha, neighbours=neighbours)
    earlier = (8, 24) if layer < 0 else (layer, 0)
    return Recipe(score.received, choose, reduce.drop, schedule.once(tokens), where="projector", shallow=earlier)
