"""VisPruner: keep tokens of high class attention, and of the rest those that are left when similar ones are thinned out. Zhang et al., ICCV 2025, arXiv:2412.01818.

Reference: Theia-4869/VisPruner. int(tokens * ratio) important tokens, then rounds that remove up to 8 redundant ones by cosine of
the encoder's features; pruned after the projector, in spatial order. `score=column_mean` is the authors' form for encoders without
class token (mean over rows and heads), `col_ln` with `order` that of the Renyi entropy paper. `rescue` is that paper's correction,
0.8 there: of the important slots a share goes to Col-Ln among the tokens that class attention leaves; its algorithm is not public
in full, this reading is not stated in the paper. keep= rounds up.
Deviations: odd numbers of candidates work (the even places are then one more than the odd ones; the authors' code fails); every
image of a batch is pruned by itself; ties go to the lower index.
"""

from torch import Tensor

from ..ops import hybrid, reduce, schedule, select
from ..ops.score import Importance, check_rescue
from ..plan import Plan
from ..recipe import Recipe, Step, attention_score
from ..registry import method


def split(s: Tensor, feats: Tensor, count: int, ratio: float) -> Plan:
    """Keep int(count * ratio) tokens by score s [B, N] and the others by diversity of feats [B, N, D]."""
    return hybrid.top_and_thinned(s, feats, count, select.best(s, int(count * ratio)))


def split_rescued(
    s: Tensor, q: Tensor, k: Tensor, prefix: int, scale: float, feats: Tensor, count: int, ratio: float, rescue: float, order: float
) -> Plan:
    """As `split`, but of the important slots a share `rescue` goes to Col-Ln among the tokens not chosen by s."""
    chosen = hybrid.rescued_by_columns(s, q, k, prefix, scale, int(count * ratio), rescue, "kept", order)
    return hybrid.top_and_thinned(s, feats, count, chosen.keep)


@method
def vispruner(tokens: int = 64, ratio: float = 0.5, score: Importance = "class", rescue: float = 0.0, order: float = 2.0) -> Recipe:
    schedule.check_share("ratio", ratio)
    choose = Step(split, ratio=ratio)
    if check_rescue(rescue, score):
        choose = Step(split_rescued, ratio=ratio, rescue=rescue, order=order)
    return Recipe(attention_score(score, order), choose, reduce.drop, schedule.once(tokens), where="projector")
