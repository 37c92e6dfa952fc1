"""FPS: keep the image tokens that farthest point sampling visits. AgilePruner, ICLR 2026, arXiv:2603.01236, appendix C.

Euclidean distance on vectors that are not normalised. No code is public. Not stated in the paper: the start (`start`: the first
token, the one with the most class attention, or the one farthest from the mean; default first), the space (`space`: tokens that
the language model gets, or features of the vision encoder; default tokens), and ties (lower index).
"""

from typing import Literal

from torch import Tensor

from ..ops import diversity, reduce, schedule, score
from ..plan import Plan
from ..recipe import Recipe, Step
from ..registry import method

Space = Literal["tokens", "features"]
Start = Literal["first", "attention", "mean"]


def sample(x: Tensor, feats: Tensor, count: int, space: Space, start: Start) -> Plan:
    """Run farthest point sampling from the first token, or from the one farthest from the mean."""
    points = x if space == "tokens" else feats
    away = (points - points.mean(dim=1, keepdim=True)).norm(dim=-1)
    return visit(points, away if start == "mean" else away[:, :1], count)


def sample_from_attention(s: Tensor, x: Tensor, feats: Tensor, count: int, space: Space) -> Plan:
    """Run farthest point sampling from the token with the highest score s [B, N]."""
    return visit(x if space == "tokens" else feats, s, count)


def visit(points: Tensor, s: Tensor, count: int) -> Plan:
    """Run farthest point sampling of points [B, N, D] from the one with the highest s."""
    closeness = -diversity.squared_distance(points)
    chosen = diversity.farthest_first(closeness, s.argmax(dim=1, keepdim=True), count)
    return Plan(chosen.sort(dim=1).values, points.shape[1])


@method
def fps(tokens: int = 64, start: Start = "first", space: Space = "tokens") -> Recipe:
    if start == "attention":
        select, first = Step(sample_from_attention, space=space), Step(score.class_attention)
        return Recipe(first, select, reduce.drop, schedule.once(tokens), where="projector")
    return Recipe(None, Step(sample, space=space, start=start), reduce.drop, schedule.once(tokens), where="projector")
