"""VisionZip: keep the class token and the patches it attends to, merge the rest into a few contextual tokens. Yang et al., CVPR 2025, arXiv:2412.04467.

Reference: dvlab-research/VisionZip. `tokens` is everything that leaves the encoder: the class token, tokens - contextual - 1
dominant patches in spatial order, then `contextual` merged tokens (-1: the paper's 10 of every 64). Merge targets lie evenly
spaced among the remaining patches; each other one joins the target whose key, mean over heads, is most alike, and a target becomes
its own feature plus the mean of those that joined it. keep= rounds up.
`score=column_mean` or `col_ln` is for encoders without class token: no class token is put out, and tokens stay in spatial order,
a merged one at its target's place, as ports to such encoders do. Deviation: ties go to the lower index.
"""

import torch
from torch import Tensor

from ..errors import PruneError
from ..ops import reduce, schedule, select
from ..ops.score import Importance
from ..plan import Plan
from ..recipe import Recipe, Step, attention_score
from ..registry import method


def split(s: Tensor, k: Tensor, prefix: int, count: int, contextual: int, led: bool) -> Plan:
    """Select dominant patches by score s [B, N] and merge targets among the rest; assign the others to targets by keys k [B, H, P+N, D]."""
    n = s.shape[1]
    if count >= n:
        return select.everything(s)
    merged = share_of(count) if contextual < 0 else contextual
    dominant = select.best(s, count - merged - int(led))
    rest = select.others(dominant, n)
    targets = rest[:, :: max(1, rest.shape[1] // max(1, merged))][:, :merged]
    keep = torch.cat([dominant, targets], dim=1)
    if not led:
        keep = keep.sort(dim=1).values
    host = torch.full_like(s, -1, dtype=torch.int64)
    if merged:
        keys = select.directions(k, prefix)
        likeness = select.rows(keys, rest) @ select.rows(keys, targets).transpose(-2, -1)
        host = host.scatter(1, rest, targets.gather(1, likeness.argmax(dim=-1)))
    host = host.scatter(1, keep, keep)
    slot = select.slots(keep, n) + int(led)
    owner = torch.where(host < 0, -1, slot.gather(1, host.clamp(min=0)))
    return Plan(keep, n, owner, mix=own_plus_mean(keep, owner, led, s.dtype), led=led)


def share_of(count: int) -> int:
    """Number of contextual tokens, as in the paper's budgets: 10 of 64, 20 of 128, 30 of 192, 5 of 32."""
    return round(count * 10 / 64)


def own_plus_mean(keep: Tensor, owner: Tensor, led: bool, dtype: torch.dtype) -> Tensor:
    """Weights [B, slots, N] of a slot's own token (1) and of those that joined it (1 / their number)."""
    slots = keep.shape[1] + int(led)
    member = (owner.unsqueeze(1) == torch.arange(slots, device=keep.device).unsqueeze(-1)).to(dtype)
    weight = member / (member.sum(dim=-1, keepdim=True) - 1).clamp(min=1)
    itself = torch.nn.functional.pad(keep, (int(led), 0))
    own = torch.ones_like(itself, dtype=weight.dtype)
    if led:
        own[:, 0] = 0
    return weight.scatter(2, itself.unsqueeze(-1), own.unsqueeze(-1))


@method
def visionzip(tokens: int = 64, contextual: int = -1, score: Importance = "class", order: float = 2.0) -> Recipe:
    if contextual < -1:
        raise PruneError(f"contextual={contextual} is negative; give 0 or more, or -1 for the paper's 10 of every 64 tokens")
    led = score == "class"
    reducer = reduce.with_class_token if led else reduce.mixture
    plan = schedule.once(tokens, least=max(0, contextual) + 1)
    return Recipe(attention_score(score, order), Step(split, contextual=contextual, led=led), reducer, plan, where="encoder")
