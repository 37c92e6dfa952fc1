"""DivPrune: keep the image tokens that are farthest apart by cosine. Alvar et al., CVPR 2025, arXiv:2503.02175.

Reference: vbdi/divprune. Greedy max-min on the embeddings the language model gets; the first token is the one whose nearest
neighbour is farthest. keep= rounds to the nearest count, as the authors' int(round(ratio * N)); their default is 0.098.
Deviations: a chosen token is never chosen again (with duplicates the authors' code returns fewer tokens than asked); every image
of a batch is pruned by its own tokens; ties go to the lower index.
"""

from torch import Tensor

from ..ops import diversity, reduce, schedule
from ..plan import Plan
from ..recipe import Recipe
from ..registry import method


def spread_out(x: Tensor, count: int) -> Plan:
    """Greedy max-min distance by cosine. x [B, N, C]."""
    similarity = diversity.cosine(x)
    chosen = diversity.farthest_first(similarity, diversity.loneliest(similarity), count)
    return Plan(chosen.sort(dim=1).values, x.shape[1])


@method
def divprune(keep: float = 0.098) -> Recipe:
    return Recipe(None, spread_out, reduce.drop, schedule.once(keep=keep, rounding="nearest"), where="projector")
