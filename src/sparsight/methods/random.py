"""Random: keep patches at random, the baseline that a score has to beat.

Deviation: one draw for all images of a given token count, so that results do not depend on batches; average over seeds.
"""

from ..ops import reduce, schedule, score, select
from ..ops.schedule import Layers
from ..recipe import Recipe, Step
from ..registry import method


@method
def random(keep: float = 0.7, layers: Layers = (3, 6, 9), seed: int = 0) -> Recipe:
    return Recipe(Step(score.noise, seed=seed), select.topk, reduce.drop, schedule.staged(keep, layers))
