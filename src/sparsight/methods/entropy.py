"""Row entropy: keep the patches whose own attention is most focused (Shannon and Renyi)."""

from ..ops import reduce, schedule, score, select
from ..ops.schedule import Layers
from ..recipe import Recipe, Step
from ..registry import method


@method
def shannon(keep: float = 0.7, layers: Layers = (3, 6, 9)) -> Recipe:
    """Shannon: keep the patches whose attention row has the lowest Shannon entropy. Renyi Attention Entropy for Patch Pruning, definition 1."""
    return Recipe(Step(score.low_entropy, order=1.0), select.topk, reduce.drop, schedule.staged(keep, layers))


@method
def renyi(keep: float = 0.7, layers: Layers = (3, 6, 9), order: float = 2.0) -> Recipe:
    """Renyi: keep the patches whose attention row has the lowest Renyi entropy. Renyi Attention Entropy for Patch Pruning, section 3."""
    focus = Step(score.low_entropy, order=score.check_order(order))
    return Recipe(focus, select.topk, reduce.drop, schedule.staged(keep, layers))
