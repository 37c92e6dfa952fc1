"""ToMe: merge the most similar pairs of tokens at every block. Bolya et al., ICLR 2023, arXiv:2210.09461.

Reference: facebookresearch/ToMe. `inflect` falls (-1) or rises (1) the amount over the blocks; `proportional` adds log(size) to
later attention. One site merges at most half of its tokens, whatever the budget asks.
Deviations: all prefix tokens are protected, registers too; keys are taken after k-normalisation. Slots are in the authors' order.
"""

from ..ops import reduce, select
from ..ops.schedule import Layers, Schedule
from ..recipe import Recipe
from ..registry import method


@method
def tome(remove: int = 16, layers: Layers = "all", inflect: float = 0.0, proportional: bool = True) -> Recipe:
    plan = Schedule(layers, remove=remove, inflect=inflect)
    return Recipe(None, select.bipartite, reduce.merge_sized, plan, proportional=proportional)
