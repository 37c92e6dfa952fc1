"""Site: one place of one model where tokens leave. It holds what was installed; what happened there is in a forward's state."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import PruneError
from ..ops.schedule import Schedule
from ..signals import heads_of

IMAGE = -2
"""The layer of a site that makes the image smaller. Sites in blocks know nothing of it: theirs is the smaller image."""

Outcome = tuple[Tensor | None, Any, Tensor | None, Tensor | None]
"""Tokens (None: those the plan keeps, as they are), plan, sizes (None: one patch each), score."""

Run = Callable[[int | Callable[[int], int], dict[str, Any]], Outcome]
"""How many tokens to keep (or a function of how many there are), signals -> outcome."""


@dataclass(eq=False)
class Site:
    """One place of one model where tokens leave. Lives as long as its Handle.

    layer: its block, -1 before the first, `IMAGE` for the image. where: the "image", "input" of the block, between "attn" and MLP, behind the whole "block". needs: signals of
    the recipe. run: the recipe. schedule: its budget, of which this is site `number` of `sites`; None where nothing is counted. early: its
    choice needs nothing of what its block's attention makes. shares: its score may make that attention's output.
    shallow: the earlier block whose q and k it asks for.
    """

    layer: int
    where: str
    needs: tuple[str, ...]
    run: Run
    schedule: Schedule | None = None
    number: int = 0
    sites: int = 1
    proportional: bool = False
    learned: nn.Module | None = None
    adaptive: bool = False
    hides: bool = False
    early: bool = False
    shares: bool = False
    shallow: int | None = None

    def count(self, n: int, entered: int) -> int:
        """Tokens to keep of n; entered: how many there were before the first site, 0 if these."""
        return n if self.schedule is None else self.schedule.count(n, self.number, self.sites, entered)

    def follows(self, layer: int) -> bool:
        """Whether the site needs the attention of all blocks up to its own, and the block is one of them, or that of this earlier one."""
        return ("attns" in self.needs and 0 <= layer <= self.layer) or layer == self.shallow

    def class_cache(self, x: Tensor) -> Tensor | None:
        """Of the class tokens in the site's cache, the one most like each image's: x [B, P+N, C] -> [B, 1, C]; None without a cache."""
        cache = None if self.learned is None else dict(self.learned.named_parameters()).get("cache")
        if cache is None:
            return None
        alike = torch.nn.functional.cosine_similarity(cache.to(x).unsqueeze(0), x[:, :1], dim=2)
        return cache.to(x).index_select(0, alike.argmax(dim=1)).unsqueeze(1)


def asked(sites: list[Site], layer: int) -> list[str]:
    """Which of q, k, v the sites need of a block's attention, their own or one that they look back at."""
    names = heads_of(name for site in sites if site.layer == layer >= 0 for name in site.needs)
    if any(site.follows(layer) for site in sites):
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
    for site in sites:
        between = [other.layer for other in sites if site.shallow is not None and site.shallow <= other.layer < site.layer]
        if between:
            raise PruneError(
                f"the site at block {site.layer} looks back at block {site.shallow}, but tokens leave at block {between[0]} in between; "
                "prune once behind the block that it looks back at"
            )
