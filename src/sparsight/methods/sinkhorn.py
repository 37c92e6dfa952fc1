"""Sinkhorn: pool all tokens into a few by optimal transport to learned centres. Haurum et al., Which Tokens to Use?, ICCV Workshops 2023, arXiv:2308.04657.

Reference: JoakimHaurum/TokenReduction, whose counts are int(patches * keep^(site + 1)), before the block. Tokens and centres are
normalised to length 1; `eps` smooths the transport, `rounds` is the number of Sinkhorn iterations. Slots are weighted sums of the
UNIT tokens, as in the authors' code. Learned weights per site: `v` [K, C]. Deviation: the authors normalise the centres in place
before each use; here they are normalised on use, and the gradient goes through that.
"""

from torch import Tensor
from torch.nn.functional import normalize

from ..errors import PruneError
from ..ops import pool, select
from ..ops.reduce import Tokens
from ..ops.schedule import Layers, Schedule
from ..plan import Plan
from ..recipe import Recipe, Step, Weight
from ..registry import method


def declared(width: int, count: int) -> dict[str, Weight]:
    return {"v": Weight((count, width), 1.0)}


def transport(x: Tensor, weights: dict[str, Tensor], count: int, eps: float, rounds: int) -> Plan:
    """Assign tokens x [B, N, C] to centres by optimal transport."""
    if count >= x.shape[1]:
        return select.everything(x)
    likeness = normalize(weights["v"], dim=-1) @ normalize(x, dim=-1).transpose(-2, -1)
    return pool.soft_plan(pool.transported(likeness, eps, rounds))


def pool_units(x: Tensor, plan: Plan, size: Tensor | None) -> Tokens:
    """Pool L2-normalised tokens; leave them unchanged if none is to go."""
    if plan.mix is None:
        return pool.pooled(x, plan, size)
    tokens, sizes = pool.pooled(normalize(x.to(plan.mix.dtype), dim=-1), plan, size)
    return tokens.to(x.dtype), sizes


@method
def sinkhorn(keep: float = 0.7, layers: Layers = (3, 6, 9), eps: float = 1.0, rounds: int = 3) -> Recipe:
    if eps <= 0 or rounds < 1:
        raise PruneError(f"sinkhorn: eps={eps:g}, rounds={rounds}: eps must be above 0, rounds 1 or more")
    choose = Step(transport, eps=eps, rounds=rounds)
    return Recipe(None, choose, pool_units, Schedule(layers, keep=keep, compound=True), where="before", weights=declared)
