"""K-Medoids: keep the medoids of clusters of tokens. Marin et al., Token Pooling in Vision Transformers, 2021, arXiv:2110.03860.

Reference: the Token Reduction benchmark (JoakimHaurum/TokenReduction), whose counts are int(patches * keep^(site + 1)), before the
block. A token's weight is the attention that it received in the block before, summed over heads and all queries (`weigh=attention`);
the heaviest tokens are the first medoids. In the authors' code, as here, a large weight makes a token a costlier medoid, and the cost
counts the distances to all tokens, not only to the cluster's. `weigh=equal` starts from one token (signal `first`; the authors draw it
at random) and adds the token with the largest distance to any medoid so far. Medoids stay as they are, without averaging.
Deviation: slots stand in the order of their medoids. A cluster without members gets token 0, as theirs, which may then be there twice.
"""

from typing import Literal

import torch
from torch import Tensor

from ..errors import PruneError
from ..ops import cluster, reduce, select
from ..ops.portable import stable_order
from ..ops.schedule import Layers, Schedule
from ..plan import Plan
from ..recipe import Recipe, Step
from ..registry import method

Weigh = Literal["attention", "equal"]


def weighted(x: Tensor, token_weight: Tensor, count: int, rounds: int) -> Plan:
    """Run k-medoids on x [B, N, C] from the tokens of largest weight. token_weight [B, N]."""
    if count >= x.shape[1]:
        return select.everything(x)
    heaviest = stable_order(token_weight, descending=True)[:, :count]
    return fitted(x, heaviest, token_weight, rounds)


def equal(x: Tensor, first: Tensor, count: int, rounds: int) -> Plan:
    """Run k-medoids on x [B, N, C] from farthest-point seeds; first [B]."""
    if count >= x.shape[1]:
        return select.everything(x)
    chosen = first.unsqueeze(-1)
    farthest = torch.zeros_like(x[..., 0])
    for _ in range(1, count):
        farthest = torch.maximum(farthest, cluster.apart(x, chosen[:, -1:]))
        # a chosen token has no distance to itself, whatever it has to the others
        chosen = torch.cat([chosen, farthest.scatter(1, chosen, 0).argmax(dim=1, keepdim=True)], dim=1)
    return fitted(x, chosen, torch.ones_like(farthest), rounds)


def fitted(x: Tensor, start: Tensor, weight: Tensor, rounds: int) -> Plan:
    keep, member = cluster.in_order(*cluster.medoids(x, start, weight, rounds))
    return Plan(keep, x.shape[1], member)


@method
def k_medoids(keep: float = 0.7, layers: Layers = (3, 6, 9), weigh: Weigh = "attention", rounds: int = 3) -> Recipe:
    if rounds < 1:
        raise PruneError(f"rounds={rounds}: k-medoids needs at least 1")
    choose = Step(weighted if weigh == "attention" else equal, rounds=rounds)
    return Recipe(None, choose, reduce.representatives, Schedule(layers, keep=keep, compound=True), where="before")
