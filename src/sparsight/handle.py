"""Handle: what `prune` returns. It shows the last forward, and takes the pruning off again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from torch import Tensor, nn

from .dense import restore
from .errors import PruneError
from .learned import ratio_loss
from .plan import Plan
from .recipe import Recipe

MARKS = ("_sparsight", "_sparsight_decoder")
"""Attributes under which a model knows the engine that prunes it."""


class Engine(Protocol):
    """What has sites installed in a model."""

    handles: list[Any]

    @property
    def model(self) -> nn.Module: ...

    def take_out(self, sites: list[Any]) -> None: ...


class Given:
    """The model that `prune` was given, which may hold the one whose tokens leave. A copy of the whole knows the copy; a copy of a part
    alone, or a handle that was pickled, knows none."""

    def __init__(self, model: nn.Module | None = None) -> None:
        self.model = model

    def __deepcopy__(self, memo: dict[int, Any]) -> Given:
        return Given(memo.get(id(self.model)))

    def __reduce__(self) -> tuple[type[Given], tuple[()]]:
        return Given, ()


@dataclass(eq=False, repr=False)
class Handle:
    """What `prune` returns: the outcome of the last forward, and the way back. Also a context manager.

    The last forward is the last one that finished in the caller's own thread or asyncio task; before there was one, everything is empty.

    plans   one Plan per site, in the order of the blocks.
    counts  visual tokens after each site: an int, or a list with one for each image where they differ.
    grid    patch grid (h, w) of the last forward; of the images as they were given, where the recipe makes them smaller.
    learned the weights of a learned method, one module per site; None for the other methods. They belong to the handle and not
            to the model: train `handle.learned.parameters()`, save `handle.learned.state_dict()`.
    """

    recipe: Recipe
    engine: Any
    sites: list[Any]
    given: Given = field(default_factory=Given)

    def __post_init__(self) -> None:
        self.engine.handles.append(self)

    def __repr__(self) -> str:
        left = f"{self.counts} tokens left" if self.plans else "no forward yet"
        return f"<{type(self).__name__} of {self.recipe}: {left}>"

    @property
    def model(self) -> nn.Module:
        """The model whose tokens are pruned."""
        found: nn.Module = self.engine.model
        return found

    @property
    def family(self) -> Any:
        """What is known of the model's architecture."""
        return self.engine.family

    @property
    def learned(self) -> nn.ModuleList | None:
        found = [site.learned for site in self.sites if site.learned is not None]
        return nn.ModuleList(found) if found else None

    @property
    def outcomes(self) -> list[Any]:
        """What happened at each site in the last forward: plan, size [B, K, 1], score [B, N]."""
        state = self.engine.states.last()
        if state is None:
            return []
        found = (state.outcomes.get(site.layer) for site in self.sites)
        return [outcome for outcome, site in zip(found, self.sites, strict=True) if outcome is not None and outcome.site is site]

    @property
    def plans(self) -> list[Plan]:
        return [outcome.plan for outcome in self.outcomes]

    @property
    def counts(self) -> list[Any]:
        return [plan.slots if plan.valid is None else plan.counts for plan in self.plans]

    @property
    def scores(self) -> list[Tensor | None]:
        """The score s [B, N] at each site, None for methods without one."""
        return [outcome.score for outcome in self.outcomes]

    @property
    def layers(self) -> list[int]:
        """Block of each site, as the recipe counts them; -1 is the place before the first block, -2 the image."""
        return [site.layer + (self.recipe.where == "before") for site in self.sites]

    @property
    def grid(self) -> tuple[int, int]:
        state = self.engine.states.last()
        if state is not None and self.recipe.where == "image":
            state = replace(state, image=state.given)
        found: tuple[int, int] = self.engine.family.grid_of(state)
        return found

    def kept_per_image(self) -> list[int]:
        """Visual tokens left of every image after the last site of the last forward."""
        plans = self.plans
        return plans[-1].counts if plans else []

    def sources(self) -> list[Plan]:
        """For each site one Plan over the image's patches, all earlier sites included."""
        return [outcome.source() for outcome in self.outcomes]

    def restore(self, tokens: Tensor, after: int | None = None, *, as_map: bool = False) -> Tensor:
        """Tokens of the last forward, back on the full grid, for segmentation, depth or feature maps.

        tokens [B, P+K, C] or [B, K, C] as they leave the model, or block `after`; the answer is [B, P+N, C] or [B, N, C], the P
        prefix tokens unchanged, or with as_map=True [B, C, h, w] without them. A merged or fused token gives its value to all that it
        stands for; a dropped one takes its nearest survivor's (ties to the lower index). All handles of the model count.
        """
        return restore(self.engine, tokens, after, as_map)

    def ratio_loss(self) -> Tensor:
        """For training a method that draws its tokens (DynamicViT): how far the shares kept in the last forward are from the budget,
        a scalar with a gradient. Add it to the task's loss (the authors' weight is 2)."""
        return ratio_loss(self.recipe, self.outcomes, len(self.sites))

    def save(self, folder: str | Path, evidence: Any = None, **options: Any) -> Path:
        """Write the model, pruned as it is now by all its handles, as a folder that `sparsight.load` or `load_vlm` gives back. See
        `sparsight.save_pretrained` for evidence and options. Raises PruneError."""
        from . import save_pretrained

        if self.given.model is None:
            raise PruneError("this handle does not know the whole model; call sparsight.save_pretrained(model, folder)")
        return save_pretrained(self.given.model, folder, evidence, **options)

    def remove(self) -> None:
        """Give the model back as it was before this handle; other handles stay. Doing it twice does no harm."""
        self.engine.handles = [handle for handle in self.engine.handles if handle is not self]
        self.engine.take_out(self.sites)

    def __enter__(self) -> Handle:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.remove()


def engines(model: nn.Module) -> Iterator[Engine]:
    """The engines at work in a model or in parts of it."""
    if not isinstance(model, nn.Module):
        raise PruneError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    seen: list[Engine] = []
    for module in model.modules():
        for mark in MARKS:
            engine = module.__dict__.get(mark)
            if engine is not None and hasattr(engine, "take_out") and not any(engine is known for known in seen):
                seen.append(engine)
                yield engine


def handles(model: nn.Module) -> list[Handle]:
    """All handles at work in a model, in the order in which it was pruned. A copy of a pruned model (`copy.deepcopy`, `torch.load`, an
    exponential moving average) is pruned as well, and has handles of its own: this finds them."""
    return [handle for engine in engines(model) for handle in engine.handles]


def handle(model: nn.Module) -> Handle:
    """The handle at work in a model that was pruned once. Raises PruneError if there is none, or if there are several (see `handles`)."""
    found = handles(model)
    if len(found) != 1:
        what = (
            "is not pruned; call sparsight.prune first"
            if not found
            else f"is pruned {len(found)} times; take one of sparsight.handles(model)"
        )
        raise PruneError(f"{type(model).__name__} {what}")
    return found[0]


def unprune(model: nn.Module) -> None:
    """Take all pruning off a model, whoever holds its handles. Does nothing to a model that is not pruned."""
    for found in handles(model):
        found.remove()
