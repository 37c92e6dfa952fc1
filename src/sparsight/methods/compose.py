"""Compose: any score with any selector and any reducer. The parts are those of the other methods, whose papers they name.

score   any that `sparsight.register_score` knows: class_attention, col_ln (with `order`), column_mean, shannon, renyi (with `order`),
        similarity, rollout, random (with `seed`) ...; or none for the selectors that do without: diverse, bipartite.
select  topk; rescue (a share `share` of the slots by the score `other`, among those that the first leaves); diverse (greedy max-min by
        cosine of the tokens, from the best-scored on); thinned (a share `share` by score, of the others those left when similar
        ones are thinned out, as VisPruner); bipartite (ToMe's pairs by keys; with a score, those of the lower half are the ones
        that may be merged away; at most half can go).
reduce  drop; fuse_rest (one more token from the rest: EViT's sum for class attention, the mean for other scores, which have no such
        scale); merge (every token that lost its slot joins its partner, or the survivor that is most alike by cosine; means by size).
So score=class_attention,select=topk,reduce=fuse_rest is EViT, score=none,select=bipartite,reduce=merge ToMe without proportional
attention, score=none,select=diverse,reduce=drop DivPrune inside a vision model.
"""

from collections.abc import Callable
from dataclasses import dataclass
from inspect import Parameter, Signature, signature
from typing import Annotated, Any, Literal

from torch import Tensor

from ..errors import PruneError
from ..ops import diversity, hybrid, schedule
from ..ops import reduce as reducers
from ..ops import score as scores
from ..ops import select as selectors
from ..ops.portable import stable_order
from ..ops.schedule import Layers
from ..plan import Plan
from ..recipe import Recipe, Step
from ..registry import method
from ..signals import INTERNAL, SIGNALS

Other = Annotated[str, lambda: sorted(scores.SCORES)]
Score = Annotated[str, lambda: [*sorted(scores.SCORES), "none"]]
OFFERED = {*SIGNALS, *INTERNAL}
"""Parameters of a score that are handed over at the site, with a default or without."""

Select = Literal["topk", "rescue", "diverse", "thinned", "bipartite"]
Reduce = Literal["drop", "fuse_rest", "merge"]


def measure(name: str, given: dict[str, Any]) -> Step | None:
    """Build the named score's Step: numbers fixed by the name, then of the recipe, then the function's defaults. None for "none"."""
    if name == "none":
        return None
    found = scores.SCORES[name]
    own = {
        key: p.default for key, p in signature(found.function).parameters.items() if p.default is not p.empty and key not in OFFERED
    }
    return Step(found.function, **{key: {**given, **found.numbers}.get(key, value) for key, value in own.items()})


def by_score(s: Tensor, count: int, share: float) -> Plan:
    return selectors.topk(s, count)


def by_two_scores(s: Tensor, other: Tensor, count: int, share: float) -> Plan:
    return selectors.rescued(s, other, count, hybrid.rescue_slots(share, count, s.shape[1], "kept"))


def by_distance(x: Tensor, count: int, share: float, s: Tensor | None = None) -> Plan:
    """Greedy max-min from the best-scored token, or from the one that is farthest from its nearest. x [B, N, C]."""
    similarity = diversity.cosine(x)
    first = diversity.loneliest(similarity) if s is None else stable_order(s, descending=True)[:, :1]
    return Plan(diversity.farthest_first(similarity, first, count).sort(dim=1).values, x.shape[1])


def by_thinning(s: Tensor, x: Tensor, count: int, share: float) -> Plan:
    return hybrid.top_and_thinned(s, x, count, selectors.best(s, int(count * share)))


def by_pairs(k: Tensor, prefix: int, count: int, share: float, s: Tensor | None = None) -> Plan:
    return selectors.bipartite(k, prefix, count) if s is None else selectors.bipartite_by_score(s, k, prefix, count)


SELECTORS: dict[str, tuple[Callable[..., Plan], tuple[str, ...]]] = {
    "topk": (by_score, ("s",)),
    "rescue": (by_two_scores, ("s",)),
    "diverse": (by_distance, ("x",)),
    "thinned": (by_thinning, ("s", "x")),
    "bipartite": (by_pairs, ("k", "prefix")),
}
"""Function, and the signals that it cannot do without; s is handed over wherever there is a score."""


def dropped(plan: Plan, x: Tensor) -> Plan:
    return Plan(plan.keep, plan.total)


def fused(plan: Plan, x: Tensor) -> Plan:
    return Plan(plan.keep, plan.total, fused=plan.slots < plan.total)


def merged(plan: Plan, x: Tensor) -> Plan:
    """Merge every token into its partner, if the selector names one, or into the most similar kept token. x [B, N, C]."""
    if plan.merged is not None:
        return plan
    return selectors.with_nearest(plan, x)


REDUCERS: dict[str, tuple[Callable[[Plan, Tensor], Plan], Callable[..., reducers.Tokens], Callable[..., reducers.Tokens]]] = {
    "drop": (dropped, reducers.drop, reducers.drop),
    "fuse_rest": (fused, reducers.fuse_rest, reducers.fuse_rest_evenly),
    "merge": (merged, reducers.merge_sized, reducers.merge_sized),
}
"""What becomes of a selector's plan; and of the tokens, where the score is the class token's attention and where it is another."""


@dataclass(frozen=True)
class Chosen:
    """A selector and what its plan becomes, as one step. Asks for the selector's signals, and for those of a second score."""

    select: str
    reduce: str
    share: float
    scored: bool
    other: Step | None = None

    @property
    def __signature__(self) -> Signature:
        names = {
            *SELECTORS[self.select][1],
            "x",
            "count",
            *(["s"] if self.scored else []),
            *(self.other.needs if self.other else ()),
        }
        return Signature([Parameter(name, Parameter.KEYWORD_ONLY) for name in sorted(names)])

    def __call__(self, **signals: Any) -> Plan:
        if signals["count"] >= signals["x"].shape[1]:
            return selectors.everything(signals["x"])
        function, names = SELECTORS[self.select]
        given = {name: signals[name] for name in {*names, *(["s"] if self.scored else [])}}
        if self.other is not None:
            given["other"] = self.other.run(signals)
        plan = function(**given, count=signals["count"], share=self.share)
        return REDUCERS[self.reduce][0](plan, signals["x"])


@method
def compose(
    keep: float = 0.7,
    layers: Layers = (3, 6, 9),
    score: Score = "class_attention",
    select: Select = "topk",
    reduce: Reduce = "drop",
    other: Other = "col_ln",
    share: float = 0.5,
    order: float = 2.0,
    seed: int = 0,
) -> Recipe:
    """Compose: any score (score=) with any selector (select=) and any reducer (reduce=). Parts of the methods above."""
    schedule.check_share("share", share)
    numbers = {"order": scores.check_order(order), "seed": seed}
    first = measure(score, numbers)
    if first is None and "s" in SELECTORS[select][1]:
        free = ", ".join(name for name, (_, names) in SELECTORS.items() if "s" not in names)
        raise PruneError(
            f"select={select} needs a score; choose one of {', '.join(sorted(scores.SCORES))}, or with score=none one of {free}"
        )
    chosen = Chosen(select, reduce, share, first is not None, measure(other, numbers) if select == "rescue" else None)
    _, by_class, otherwise = REDUCERS[reduce]
    reducer = by_class if score == "class_attention" else otherwise
    return Recipe(first, Step(chosen), reducer, schedule.staged(keep, layers))
