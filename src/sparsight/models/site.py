"""Site: one place of one model where tokens leave, and what happened there in the last forward."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import PruneError
from ..ops.dense import restore
from ..ops.rollout import Maps
from ..plan import Plan

Outcome = tuple[Tensor | None, Plan, Tensor | None, Tensor | None]
"""Tokens (None: those the plan keeps, as they are), plan, sizes (None: one patch each), score."""

Step = Callable[[dict[str, Any]], Outcome]
"""What a site does with its signals."""


@dataclass(eq=False)
class Site:
    """One place of one model where tokens leave. Lives as long as its Handle; holds the last forward's outcome.

    early: its choice needs nothing of what its block's attention makes. shares: its score may make that attention's output.
    packs: layers may keep packed weights. doubts: gets what a recorded statistic would ask about its own result.
    """

    layer: int
    where: str
    needs: tuple[str, ...]
    step: Step
    proportional: bool
    previous: Site | None = None
    plan: Plan | None = None
    size: Tensor | None = None
    score: Tensor | None = None
    place: Tensor | None = None
    learned: nn.Module | None = None
    adaptive: bool = False
    hides: bool = False
    hiding: bool = False
    early: bool = False
    shares: bool = False
    packs: bool = True
    doubts: list[Tensor] | None = None
    trail: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def memory(self, x: Tensor) -> Tensor | None:
        """Of the class tokens that the site remembers, the one most like each image's: x [B, P+N, C] -> [B, 1, C]; None without any."""
        cache = None if self.learned is None else dict(self.learned.named_parameters()).get("cache")
        if cache is None:
            return None
        alike = torch.nn.functional.cosine_similarity(cache.to(x).unsqueeze(0), x[:, :1], dim=2)
        return cache.to(x).index_select(0, alike.argmax(dim=1)).unsqueeze(1)

    def follows(self, layer: int) -> bool:
        """Whether the site needs the attention of all blocks up to its own, and the block is one of them."""
        return "attns" in self.needs and 0 <= layer <= self.layer

    def followed(self, sites: list[Site], scale: float) -> dict[str, Any]:
        """The attention of all blocks up to here, and what left between them. Queries and keys are kept for checkpointing, which
        runs a block again, only while gradients are."""
        blocks = [self.trail[layer] for layer in range(self.layer + 1)]
        if not torch.is_grad_enabled():
            self.trail.clear()
        plans = {site.layer: site.plan for site in sites}
        maps = Maps(tuple(q for q, _ in blocks), tuple(k for _, k in blocks), scale)
        return {"attns": maps, "moves": tuple(plans.get(layer) for layer in range(self.layer))}

    @property
    def valid(self) -> Tensor | None:
        """[B, slots]: which tokens that leave here are real; None where all are."""
        return None if self.plan is None else self.plan.valid

    def weight(self, sized: bool = True) -> Tensor | None:
        """How many patches each token stands for that leaves here, or one, and 0 for padding: [B, slots, 1]; None if one for all."""
        size = self.size if sized else None
        if self.valid is None:
            return size
        real = self.valid.unsqueeze(-1).to(torch.float32)
        return real if size is None else size * real

    @property
    def ragged(self) -> bool:
        """Whether images have different numbers of tokens when they arrive."""
        return self.previous is not None and self.previous.valid is not None

    @property
    def entered(self) -> int:
        """How many tokens there were before the first site, 0 if this is the first."""
        if self.previous is None or self.previous.plan is None:
            return 0
        return self.previous.entered or self.previous.plan.total

    def source(self) -> Plan:
        """The plan from the image's patches to the tokens after this site, all earlier sites included."""
        assert self.plan is not None
        return self.plan if self.previous is None else self.previous.source().then(self.plan)

    def restore(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        """Tokens that leave here, back on the image's patches: x [B, slots, C] -> [B, N, C]."""
        assert self.plan is not None
        if self.previous is None:
            return restore(self.plan, x, grid)
        if self.plan.mix is not None:
            return self.previous.restore(restore(self.plan, x, grid), grid)
        return restore(self.source(), x, grid)

    def position(self, x: Tensor) -> Tensor:
        """Patch index of every token that arrives here, -1 for fused ones: [B, N]."""
        if self.previous is None:
            return torch.arange(x.shape[1], device=x.device).expand(x.shape[0], -1)
        return self.previous.places()

    def places(self) -> Tensor:
        """Patch index of every token that leaves here, -1 for fused ones: [B, slots]."""
        after = self.source()
        return torch.cat([after.keep, torch.full_like(after.keep[:, :1], -1)], 1) if after.fused else after.keep


def asked(sites: list[Site], layer: int) -> list[str]:
    """Which of q, k, v the sites need of a block's attention (class_attn, token_weight and attns come from q and k)."""
    names = {name for site in sites if site.layer == layer >= 0 for name in site.needs}
    if {"class_attn", "token_weight"} & names or any(site.follows(layer) for site in sites):
        names |= {"q", "k"}
    return [name for name in ("q", "k", "v") if name in names]


def check_order(sites: list[Site]) -> None:
    """Raise PruneError where a site follows the attention of blocks whose images have different numbers of tokens."""
    adaptive = [site.layer for site in sites if site.adaptive]
    if adaptive and any("attns" in site.needs and site.layer > adaptive[0] for site in sites):
        raise PruneError(
            f"attention cannot be followed through block {adaptive[0]}, which leaves a different number of tokens in each image; "
            "put rollout before it, or use class_attention"
        )
