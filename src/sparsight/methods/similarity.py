"""Similarity: drop the patches that resemble the others most, before the first block or at given ones. Similarity-based patch pruning, section 3.

Redundancy of a patch is its mean similarity to all others, on the patch projection before position embedding (layers=input) or on
the tokens of a block. The weighting by distance on the grid (diversity, a radius in patches) is a reconstruction: its equation is not public.
"""

from ..errors import PruneError
from ..ops import reduce, schedule, score, select
from ..ops.schedule import Layers
from ..recipe import Recipe, Step
from ..registry import method


@method
def similarity(keep: float = 0.7, layers: Layers = "input", metric: score.Metric = "cosine", diversity: float = 0.0) -> Recipe:
    if diversity < 0:
        raise PruneError(f"diversity={diversity:g} is negative: it is a radius in patches, 0 switches it off")
    if diversity:
        apart = Step(score.local_distinctness, metric=metric, diversity=diversity)
    else:
        apart = Step(score.distinctness, metric=metric)
    return Recipe(apart, select.topk, reduce.drop, schedule.staged(keep, layers))
