"""AgilePruner: adapt the choice of image tokens to how complex the image is. ICLR 2026, arXiv:2603.01236, equation 6 and section 4.3.

No code is public. Complexity is the effective rank (`by=erank`) or the attention entropy (`by=entropy`) over its average. `agile` takes
tokens by descending class attention; each one rules out the tokens within a cosine distance of rank * complexity * 0.01. `mix`
(table 6) shares the slots between attention and diversity, more attention for simple images.
Not stated in the paper, therefore parameters: `erank_avg`, `entropy_avg` (averages on MME instead of on LLaVA's training images;
`sparsight.calibrate` measures them for a model), `tau_max` 0.5, `place` (the token's rank in the whole order of attention, or
among the chosen), `space` of the distances (encoder features) and `rank_space` of the effective rank (tokens the language model gets, whose
width 4096 the paper's cost analysis names). If all tokens are ruled out early, ruled-out ones follow by attention. Output in
spatial order. `count=adaptive`: tokens * complexity within 0.8 (stated) and `upper` 1.2 (not stated). In `mix`: a line through
`ratio` at the average, from `low` to `high` over the range of the measure on MME; `inverse` turns it, `by=fixed` is `ratio` alone.
In `mix`, attention=fastervlm, vispruner and bat all mean the class token's attention; diversity says how the other slots are
filled: farthest by cosine (divprune) or distance (fps) first, with attention filling up; or as VisPruner or BAT with its own ratio.
`score` in `agile` and attention=col_ln or column_mean in `mix` are for encoders without class token. keep= rounds up.
"""

from typing import Literal

import torch
from torch import Tensor

from ..errors import PruneError
from ..ops import diversity, hybrid, rank, reduce, schedule, select
from ..ops.score import Importance
from ..plan import Plan
from ..recipe import Recipe, Step, attention_score
from ..registry import method

By = Literal["erank", "entropy"]
Share = Literal["erank", "entropy", "fixed"]
Space = Literal["tokens", "features"]
Attention = Literal["fastervlm", "vispruner", "bat", "col_ln", "column_mean"]
Diversity = Literal["divprune", "fps", "vispruner", "bat"]

LEAST_SHARE = 0.8
STEP = 0.01


def measure(by: str, x: Tensor, s: Tensor) -> Tensor:
    """Compute the effective rank of x [B, N, D] or the entropy of the attention s [B, N]. -> [B]"""
    return rank.effective_rank(x) if by == "erank" else rank.attention_entropy(s)


def thresholds(
    s: Tensor, x: Tensor, feats: Tensor, count: int, by: By, average: float, adaptive: bool, upper: float,
    tau_max: float, running: bool, space: Space, rank_space: Space,
) -> Plan:  # fmt: skip
    """Select tokens by descending s [B, N], suppressing those within a threshold in x or feats, up to `count` (times complexity)."""
    n = s.shape[1]
    complexity = measure(by, x if rank_space == "tokens" else feats, s) / average
    most = min(n, int(count * upper + 0.5)) if adaptive else count
    similarity = diversity.cosine(x if space == "tokens" else feats)
    order, _ = diversity.by_threshold(similarity, s, most, complexity * STEP, tau_max, running)
    if not adaptive:
        return Plan(order.sort(dim=1).values, n)
    counts = (count * complexity.clamp(LEAST_SHARE, upper) + 0.5).long().clamp(1, n)
    kept = max(counts.tolist())
    valid = torch.arange(kept, device=s.device) < counts.unsqueeze(-1)
    keep = order[:, :kept].masked_fill(~valid, n).sort(dim=1).values
    return Plan(keep.masked_fill(~valid, -1), n, valid=valid)


@method
def agile(
    tokens: int = 64,
    by: By = "erank",
    count: Literal["fixed", "adaptive"] = "fixed",
    erank_avg: float = 94.87,
    entropy_avg: float = 4.8,
    tau_max: float = 0.5,
    upper: float = 1.2,
    place: Literal["attention", "selection"] = "attention",
    space: Space = "features",
    rank_space: Space = "tokens",
    score: Importance = "class",
    order: float = 2.0,
) -> Recipe:
    """AgilePruner: take tokens by attention, each ruling out similar ones by a threshold that follows the image's complexity. ICLR 2026, arXiv:2603.01236."""
    if tau_max < 0 or upper < 1:
        raise PruneError(f"tau_max={tau_max:g}, upper={upper:g}: tau_max is a distance of 0 or more, upper a factor of 1 or more")
    average = averages(erank_avg, entropy_avg)[by]
    choose = Step(
        thresholds, by=by, average=average, adaptive=count == "adaptive", upper=upper,
        tau_max=tau_max, running=place == "selection", space=space, rank_space=rank_space,
    )  # fmt: skip
    return Recipe(attention_score(score, order), choose, reduce.drop, schedule.once(tokens), where="projector")


def averages(erank: float, entropy: float) -> dict[str, float]:
    if erank <= 0 or entropy <= 0:
        raise PruneError(
            f"erank_avg={erank:g}, entropy_avg={entropy:g}: averages are above 0; measure them with sparsight.calibrate(model, images)"
        )
    return {"erank": erank, "entropy": entropy, "fixed": 1.0}


def attention_share(value: Tensor, average: float, span: float, ratio: float, low: float, high: float, inverse: bool) -> Tensor:
    """Share of the slots that attention gets, a line through `ratio` at the average, falling over `span` from high to low. [B] -> [B]"""
    slope = (high - low) / span
    away = value - average if inverse else average - value
    return (ratio + slope * away).clamp(low, high)


def shared_out(
    s: Tensor, x: Tensor, feats: Tensor, count: int, diverse: Diversity, by: Share, average: float, span: float,
    ratio: float, low: float, high: float, inverse: bool, rank_space: Space,
) -> Plan:  # fmt: skip
    """Split the slots between attention s [B, N] and diversity, image by image."""
    if by == "fixed":
        share = torch.full_like(s[:, 0], ratio, dtype=torch.float32)
    else:
        value = measure(by, x if rank_space == "tokens" else feats, s)
        share = attention_share(value, average, span, ratio, low, high, inverse)
    if diverse in ("divprune", "fps"):
        similarity = diversity.cosine(x) if diverse == "divprune" else -diversity.squared_distance(x)
        first = diversity.loneliest(similarity) if diverse == "divprune" else torch.zeros_like(s[:, :1], dtype=torch.int64)
        greedy = diversity.farthest_first(similarity, first, count)
        return hybrid.farthest_and_top(s, greedy, count - (share * count + 0.5).long())
    plans = []
    for image, top in enumerate((share * count + (0.5 if diverse == "bat" else 0)).long().tolist()):
        one = slice(image, image + 1)
        if diverse == "bat":
            plans.append(hybrid.top_and_clusters(s[one], x[one], count, top))
        else:
            plans.append(hybrid.top_and_thinned(s[one], feats[one], count, select.best(s[one], top)))
    return hybrid.stacked(plans)


@method
def mix(
    tokens: int = 64,
    attention: Attention = "fastervlm",
    diversity: Diversity = "divprune",
    by: Share = "erank",
    inverse: bool = False,
    ratio: float = 0.5,
    low: float = 0.25,
    high: float = 0.75,
    erank_avg: float = 94.87,
    erank_span: float = 103.0,
    entropy_avg: float = 4.8,
    entropy_span: float = 1.4,
    rank_space: Space = "tokens",
    order: float = 2.0,
) -> Recipe:
    """AgilePruner mix: share the slots between attention and diversity by the image's complexity. ICLR 2026, arXiv:2603.01236."""
    for name, value in (("ratio", ratio), ("low", low), ("high", high)):
        schedule.check_share(name, value)
    spans = averages(erank_span, entropy_span)
    if low > high:
        raise PruneError(f"low={low:g} is above high={high:g}: they bound the share of attention")
    choose = Step(
        shared_out, diverse=diversity, by=by, average=averages(erank_avg, entropy_avg)[by], span=spans[by], ratio=ratio,
        low=low, high=high, inverse=inverse, rank_space=rank_space,
    )  # fmt: skip
    merging = diversity == "bat"
    reducer, where = (reduce.mixture, "encoder") if merging else (reduce.drop, "projector")
    score: Importance = attention if attention in ("col_ln", "column_mean") else "class"
    return Recipe(attention_score(score, order), choose, reducer, schedule.once(tokens), where=where)
