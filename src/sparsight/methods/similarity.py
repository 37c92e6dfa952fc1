"""Similarity: drop the patches that resemble the others most, before the first block or at given ones. Similarity-based patch pruning, section 3.

Redundancy of a patch is its mean similarity to all others. One shot (layers=input, the default) compares the patch projection before
position embedding; the progressive form (layers=3/6/9, with where=block after the block as in section 3.6) compares the tokens that
are there. A budget keeps a fixed number. threshold=0.5 keeps what has a redundancy of at most 0.5 (for metric=l2 minus the mean
distance); threshold=adaptive puts it at mean + kappa * standard deviation of the image's own redundancies (kappa=0.5 keeps 69 % where
they are normal). Then every image keeps its own number, at least one.
The paper's equations and numbers are not public. Reconstructions: what keeps survivors apart, both off by default (diversity: weights
by a Gaussian of the distance on the grid, of that many patches; cells: at least one survivor in every cell of that many patches
squared, as far as a budget allows), the threshold's form and kappa.
"""

import math

import torch
from torch import Tensor

from ..errors import PruneError
from ..ops import reduce, schedule, score, select
from ..ops.schedule import Layers, Schedule
from ..plan import Plan
from ..recipe import Recipe, Step
from ..registry import method

ROUNDING = 16
"""Units in the last place by which equal redundancies may differ."""


def cell_best(s: Tensor, position: Tensor, grid: tuple[int, int], cells: int) -> Tensor:
    """Mask of the highest score in every cell of cells x cells patches; tokens without a place (-1) are in none. s, position [B, N]."""
    h, w = grid
    across = -(-w // cells)
    cell = position.div(w * cells, rounding_mode="floor") * across + position % w // cells
    nowhere = -(-h // cells) * across
    cell = cell.masked_fill(position < 0, nowhere)
    rank = select.ranks(s)
    first = rank.new_full((s.shape[0], nowhere + 1), s.shape[1]).scatter_reduce(1, cell, rank, "amin")
    return (first.gather(1, cell) == rank) & (position >= 0)


def topk_in_cells(s: Tensor, position: Tensor, grid: tuple[int, int], count: int, cells: int) -> Plan:
    """Keep the best token of every cell, best cells first, then the highest scores of the rest. s [B, N]."""
    best = cell_best(s, position, grid, cells)
    return select.topk((best * s.shape[1] - select.ranks(s)).to(torch.float32), count)


def distinct(s: Tensor, valid: Tensor | None, threshold: float, kappa: float) -> Plan:
    """Keep the tokens whose redundancy -s is at most the threshold, or mean + kappa * std if that is nan. s, valid [B, N]."""
    return select.chosen(below(s, valid, threshold, kappa))


def distinct_or_in_cells(
    s: Tensor,
    valid: Tensor | None,
    position: Tensor,
    grid: tuple[int, int],
    threshold: float,
    kappa: float,
    cells: int,
) -> Plan:
    """`distinct`, and the best of every cell besides. s, valid, position [B, N]."""
    s = s if valid is None else s.masked_fill(~valid, float("-inf"))
    return select.chosen(below(s, valid, threshold, kappa) | cell_best(s, position, grid, cells))


def below(s: Tensor, valid: Tensor | None, threshold: float, kappa: float) -> Tensor:
    """Mask of the tokens under the threshold; the least redundant one is always among them. Scores as near to the threshold, or to
    the highest, as rounding can bring them count as equal: two tokens alone have the same redundancy."""
    valid = torch.ones_like(s, dtype=torch.bool) if valid is None else valid
    known = s.masked_fill(~valid, 0)
    limit = torch.full_like(s[:, :1], -threshold)
    if math.isnan(threshold):
        n = valid.sum(dim=1, keepdim=True)
        mean = known.sum(dim=1, keepdim=True) / n
        spread = (s - mean).masked_fill(~valid, 0).square().sum(dim=1, keepdim=True) / n
        limit = mean - kappa * spread.sqrt()
    slack = ROUNDING * torch.finfo(s.dtype).eps * known.abs().amax(dim=1, keepdim=True)
    s = s.masked_fill(~valid, float("-inf"))
    best = (s >= s.amax(dim=1, keepdim=True) - slack).to(torch.uint8).argmax(dim=1, keepdim=True)
    return (s >= limit - slack).scatter(1, best, True)


def read(threshold: str) -> float:
    """Parse the threshold; nan for `adaptive`."""
    try:
        value = math.nan if threshold == "adaptive" else float(threshold)
    except ValueError:
        value = math.inf
    if math.isinf(value) or (math.isnan(value) and threshold != "adaptive"):
        raise PruneError(f"threshold={threshold} is not known; give the largest mean similarity to keep, such as 0.5, or adaptive")
    return value


@method
def similarity(
    keep: float = 0.7,
    layers: Layers = "input",
    metric: score.Metric = "cosine",
    threshold: str = "none",
    kappa: float = 0.5,
    diversity: float = 0.0,
    cells: int = 0,
) -> Recipe:
    if not diversity >= 0 or cells < 0:
        raise PruneError(
            f"diversity={diversity:g}, cells={cells}: none may be negative; they are lengths in patches, 0 switches them off"
        )
    apart = Step(score.distinctness, metric=metric)
    if diversity:
        apart = Step(score.local_distinctness, metric=metric, diversity=diversity)
    if threshold == "none":
        pick = Step(topk_in_cells, cells=cells) if cells else Step(select.topk)
        return Recipe(apart, pick, reduce.drop, schedule.staged(keep, layers))
    if not math.isfinite(kappa):
        raise PruneError(f"kappa={kappa:g} must be a finite number of standard deviations")
    limit = {"threshold": read(threshold), "kappa": kappa}
    pick = Step(distinct_or_in_cells, **limit, cells=cells) if cells else Step(distinct, **limit)
    return Recipe(apart, pick, reduce.drop, Schedule(layers), adaptive=True)
