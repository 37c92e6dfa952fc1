"""Col-Ln rescue: keep by class attention, but give a share of the slots to Col-Ln. Rényi Entropy: A New Token Pruning Metric for ViTs, algorithm 2.

The algorithm's text is not public in full and reads in two ways, both offered: a share of the kept slots (budget=kept), or as
many slots as a share of the removed tokens (budget=removed). Either way the count kept is that of the budget.
"""

from ..ops import hybrid, reduce, schedule, score
from ..ops.schedule import Layers
from ..recipe import Recipe, Step
from ..registry import method


@method
def col_ln_rescue(
    keep: float = 0.7, layers: Layers = (3, 6, 9), rescue: float = 0.8, budget: hybrid.Budget = "kept", order: float = 2.0
) -> Recipe:
    schedule.check_share("rescue", rescue)
    split = Step(hybrid.rescued_by_columns, rescue=rescue, budget=budget, order=score.check_order(order))
    return Recipe(score.class_attention, split, reduce.drop, schedule.staged(keep, layers))
