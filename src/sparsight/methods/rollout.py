"""Rollout: keep the patches that the class token has taken in over all blocks so far. Abnar and Zuidema, Quantifying Attention Flow in Transformers, ACL 2020, arXiv:2005.00928.

The score at a site is the class token's row of the product of all blocks' attention up to it, each with the identity added for the
residual and rows brought to sum 1. Where tokens have left before, the rows of the survivors go on. `fuse` joins the heads (mean in the
paper); `discard` sets that share of the smallest entries of each matrix to 0 (vit-explain, 0.9 there); `parity=true` divides columns
instead of rows, as vit-explain's code does by mistake; `residual=false` leaves the identity out. This is the one method that makes
whole attention matrices, one block at a time.
References: samiraabnar/attention_flow, jacobgil/vit-explain.
"""

from ..errors import PruneError
from ..ops import reduce, schedule, select
from ..ops import rollout as flow
from ..ops.schedule import Layers
from ..recipe import Recipe, Step
from ..registry import method


@method
def rollout(
    keep: float = 0.7,
    layers: Layers = (3, 6, 9),
    fuse: flow.Heads = "mean",
    discard: float = 0.0,
    residual: bool = True,
    parity: bool = False,
) -> Recipe:
    if not 0 <= discard < 1:
        raise PruneError(f"discard={discard:g} is outside [0, 1): it is the share of attention entries set to 0")
    score = Step(flow.accumulated, fuse=fuse, discard=discard, residual=residual, parity=parity)
    return Recipe(score, select.topk, reduce.drop, schedule.staged(keep, layers))
