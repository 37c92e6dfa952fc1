"""DPC-KNN: merge tokens into clusters around density peaks. Zeng et al., TCFormer, CVPR 2022, arXiv:2204.08680.

Reference: the Token Reduction benchmark (JoakimHaurum/TokenReduction), whose counts are int(patches * keep^(site + 1)), before the
block. Density among the `neighbours` nearest tokens (5). A cluster is the mean of its tokens: `weigh=equal`; `attention`, by the attention
that they received in the block before; `learned`, by exp of a linear score with the learned weights `score.weight` [1, C] and
`score.bias` [1], the authors' default, which has to be trained. As in their code, 1e-6 is added to the sum of a cluster's weights.
Deviations: slots stand in the order of their centres; ties go to the lower index instead of noise (pass `noise` to repeat a run).
"""

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import linear

from ..errors import PruneError
from ..ops import cluster, reduce, select
from ..ops.schedule import Layers, Schedule
from ..plan import Plan
from ..recipe import Recipe, Step, Weight
from ..registry import method

Weigh = Literal["equal", "attention", "learned"]

FLOOR = 1e-6


def declared(width: int, count: int) -> dict[str, Weight]:
    return {"score.weight": Weight((1, width)), "score.bias": Weight((1,), 0.0)}


def peaks(x: Tensor, noise: Tensor, count: int, neighbours: int, weight: Tensor | None = None) -> Plan:
    """Cluster the tokens x [B, N, C]; the plan's mix holds the averaging weights. weight [B, N] or None."""
    if count >= x.shape[1]:
        return select.everything(x)
    with torch.no_grad():
        found = cluster.density_peaks(x, count, noise, neighbours)
    keep, member = cluster.in_order(found.centres, found.member)
    weight = torch.ones_like(x[..., 0]) if weight is None else weight
    return Plan(keep, x.shape[1], member, mix=cluster.shares(member, count, weight, FLOOR))


def peaks_by_attention(x: Tensor, noise: Tensor, token_weight: Tensor, count: int, neighbours: int) -> Plan:
    return peaks(x, noise, count, neighbours, token_weight)


def peaks_by_score(x: Tensor, noise: Tensor, weights: dict[str, Tensor], count: int, neighbours: int) -> Plan:
    score = linear(x, weights["score.weight"], weights["score.bias"])
    return peaks(x, noise, count, neighbours, score.squeeze(-1).exp())


@method
def dpc_knn(keep: float = 0.7, layers: Layers = (3, 6, 9), weigh: Weigh = "equal", neighbours: int = 5) -> Recipe:
    if neighbours < 1:
        raise PruneError(f"neighbours={neighbours}: the density needs at least 1")
    if weigh == "equal":
        choose = Step(peaks, neighbours=neighbours, weight=None)
    else:
        choose = Step(peaks_by_score if weigh == "learned" else peaks_by_attention, neighbours=neighbours)
    plan, weights = Schedule(layers, keep=keep, compound=True), declared if weigh == "learned" else None
    return Recipe(None, choose, reduce.mixture, plan, where="before", weights=weights)
