"""TCA: keep the patches the class token attends to, condense the next ones into a few centres, fuse the rest. Wang et al., Is Less More?, ICCV 2025, arXiv:2410.14729.

Reference: Jo-wang/TCA, whose bookkeeping this is. With N tokens, class token included, K = ceil(keep * (N - 1)) and m = N - K: the best K - 2m
patches stay, the next 2m become `centres` tokens around greedily spread centres (inverse-distance means), the rest one token weighted
by class attention. The first centre is the best-scored of the 2m; the authors draw it at random (signal `first`). keep must leave K > 2m.
Their average rank over heads is computed but not used in their code, so it is left out.
`cache` is the number of class tokens that each site remembers, as weights `cache` [cache, C]: of other images, one per class, as they
arrive at the block; the one most like the image's own joins the block's attention, and is then forgotten. Filling it at test time
(the authors' reservoir, and its correction of the logits) is the caller's: `handle.learned[site].cache`. The Renyi entropy paper puts Col-Ln in: `score=col_ln` with its `order`, or `rescue`, a share of the
patches that stay alone; what weighs the fused token then is not stated: class attention by default, `fuse=score` the other score.
Deviation: patches that stay are in ascending order instead of descending score.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..errors import PruneError
from ..ops import cluster, hybrid, reduce, schedule, select
from ..ops import score as scores
from ..ops.schedule import Layers
from ..ops.score import Importance, check_rescue
from ..plan import Plan
from ..recipe import Recipe, Step, Weight, attention_score
from ..registry import method


def condensed(
    s: Tensor, weight: Tensor, x: Tensor, first: Tensor, count: int, centres: int, rescue: Tensor | None, share: float
) -> Plan:
    """Build the plan by score s [B, N]: kept patches, coreset centres, and the fused rest with its weights [B, N]. x [B, N, C], first [B]."""
    n = s.shape[1]
    if count >= n:
        return select.everything(s)
    group = 2 * (n + 1 - count)
    alone = count - group
    if alone < 1 or centres > group:
        raise PruneError(
            f"tca: keeping {count} of {n} tokens condenses {group} of them into {centres}, which leaves {alone} to stay as they are; "
            "keep more of them (more than about two thirds)"
        )
    slots = hybrid.rescue_slots(share, alone, n, "kept")
    stay = select.best(s, alone) if rescue is None else select.rescued(s, rescue, alone, slots).keep
    ranked = hybrid.descending(s, stay)
    near, rest = ranked[:, :group], ranked[:, group:]
    chosen, member, share_of = cluster.coreset(select.rows(x, near), first, centres)
    keep = torch.cat([stay, near.gather(1, chosen)], dim=1)
    owner = torch.full_like(near[:, :1], alone + centres).expand(-1, n)
    owner = owner.scatter(1, stay, torch.arange(alone, device=s.device).expand_as(stay)).scatter(1, near, alone + member)
    mass = torch.ones_like(s).scatter(1, near, share_of.to(s.dtype)).scatter(1, rest, weight.gather(1, rest))
    own = owner.unsqueeze(1) == torch.arange(alone + centres + 1, device=s.device).unsqueeze(-1)
    return Plan(keep, n, owner, fused=True, mix=mass.unsqueeze(1).where(own, 0), tail=centres)


@dataclass(frozen=True)
class Remembered:
    """Weights of a site with a class-token cache."""

    classes: int

    def __call__(self, width: int, count: int) -> dict[str, Weight]:
        return {"cache": Weight((self.classes, width))}


def by_score(s: Tensor, x: Tensor, first: Tensor, count: int, centres: int) -> Plan:
    return condensed(s, s, x, first, count, centres, None, 0.0)


def by_other_score(s: Tensor, class_attn: Tensor, x: Tensor, first: Tensor, count: int, centres: int) -> Plan:
    return condensed(s, class_attn.mean(dim=1), x, first, count, centres, None, 0.0)


def by_rescue(
    s: Tensor, q: Tensor, k: Tensor, prefix: int, scale: float, x: Tensor, first: Tensor, count: int, centres: int,
    rescue: float, order: float,
) -> Plan:  # fmt: skip
    columns = scores.column_norm(q, k, prefix, scale, order=order)
    return condensed(s, s, x, first, count, centres, columns, rescue)


@method
def tca(
    keep: float = 0.9,
    layers: Layers = (3, 6, 9),
    centres: int = 4,
    score: Importance = "class",
    rescue: float = 0.0,
    fuse: Literal["class", "score"] = "class",
    order: float = 2.0,
    cache: int = 0,
) -> Recipe:
    if cache < 0:
        raise PruneError(f"cache={cache}: the number of class tokens to remember is 0 or more")
    if centres < 1:
        raise PruneError(f"centres={centres}: at least 1 is needed")
    choose = Step(by_score if score == "class" or fuse == "score" else by_other_score, centres=centres)
    if check_rescue(rescue, score):
        choose = Step(by_rescue, centres=centres, rescue=rescue, order=order)
    remembered = Remembered(cache) if cache else None
    plan = schedule.staged(keep, layers)
    return Recipe(attention_score(score, order), choose, reduce.mixture, plan, remembers=cache > 0, weights=remembered)
