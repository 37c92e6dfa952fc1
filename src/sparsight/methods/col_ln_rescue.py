"""Col-Ln rescue: keep by class attention, but give a share of the slots to Col-Ln. Rényi Entropy: A New Token Pruning Metric for ViTs, algorithm 2.

The algorithm's text is not public in full and reads in two ways, both offered: a share of the kept slots (budget=kept), or as
many slots as a share of the removed tokens (budget=removed). Either way the count kept is that of the budget.
"""

import math
from typing import Literal

from torch import Tensor

from ..errors import PruneError
from ..ops import reduce, schedule, score, select
from ..ops.schedule import Layers
from ..plan import Plan
from ..recipe import Recipe, Step
from ..registry import method

Budget = Literal["kept", "removed"]


def split_by_rescue(
    s: Tensor, q: Tensor, k: Tensor, prefix: int, scale: float, count: int, rescue: float, budget: Budget, order: float
) -> Plan:
    """First by class attention s [B, N], then round(rescue * (kept or removed)) slots by Col-Ln among the rest."""
    share = rescue * (count if budget == "kept" else s.shape[1] - count)
    slots = min(count, math.floor(share + 0.5))
    return select.rescued(s, score.column_norm(q, k, prefix, scale, order=order), count, slots)


@method
def col_ln_rescue(
    keep: float = 0.7, layers: Layers = (3, 6, 9), rescue: float = 0.8, budget: Budget = "kept", order: float = 2.0
) -> Recipe:
    if not 0 <= rescue <= 1:
        raise PruneError(f"rescue={rescue:g} is outside [0, 1]: it is the share of slots given to Col-Ln")
    split = Step(split_by_rescue, rescue=rescue, budget=budget, order=score.check_order(order))
    return Recipe(score.class_attention, split, reduce.drop, schedule.staged(keep, layers))
