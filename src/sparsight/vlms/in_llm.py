"""Methods inside the language model: recipes with where="decoder" meet decoders."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..apply import apply, needs, only_drops
from ..errors import PruneError
from ..ops.schedule import as_tuple
from ..ops.text import DecoderSchedule
from ..plan import Plan
from ..recipe import Recipe
from .decoder import Decoder as Decoder
from .decoder import DecoderSite, decoder_of
from .decoder_forward import SiteOutcome
from .prompt_handle import PromptHandle

OFFERS = ("x", "text_attn", "k", "feats", "text", "text_k", "size", "position", "noise")


@dataclass(eq=False, repr=False)
class DecoderHandle(PromptHandle):
    """Handle of a method inside the language model. Sites and layers are those of the decoder; of a `generate` it shows the forward on
    its prompt.

    counts   visual tokens left after each site: an int where all samples of the batch have as many, else a list.
    left     for each site, which tokens of the prompt are left [B, n] (clusters named by their centres), -1 for padding.
    """

    @property
    def outcomes(self) -> list[SiteOutcome]:
        return [] if self.last is None else [self.last.sites[site] for site in self.sites if site in self.last.sites]

    @property
    def plans(self) -> list[Plan]:
        return [outcome.plan for outcome in self.outcomes]

    @property
    def scores(self) -> list[Tensor | None]:
        """The score [1, n] at each site, None for methods without one and for batches."""
        return [outcome.score for outcome in self.outcomes]

    @property
    def counts(self) -> list[Any]:
        per_site = [plan.counts for plan in self.plans]
        return [counts[0] if len(set(counts)) == 1 else counts for counts in per_site]

    def kept_per_image(self) -> list[int]:
        """Visual tokens left of every image after the last site, sample by sample; images without a token between them count as one."""
        return [] if self.last is None else self.last.kept_per_image()

    @property
    def left(self) -> list[Tensor]:
        return [outcome.left for outcome in self.outcomes]

    @property
    def grid(self) -> tuple[int, int]:
        raise PruneError("a language model has no patch grid")


def prune_decoder(model: nn.Module, recipe: Recipe, visual: Any = None, noise: Any = None) -> DecoderHandle:
    """Put the recipe's sites into the model's language model. See `prune` for `visual` and `noise`."""
    schedule = recipe.schedule
    if not isinstance(schedule, DecoderSchedule):
        raise PruneError(f"recipe {recipe.name} has where='decoder', so its schedule must be an ops.text.DecoderSchedule")
    missing = [name for name in needs(recipe) if name not in OFFERS]
    if missing:
        raise PruneError(f"{recipe.name} needs {', '.join(missing)}; inside a language model there are {', '.join(OFFERS)}")
    decoder = decoder_of(model, visual)
    layers = schedule.resolve(decoder.depth)
    if noise is not None and len(noise) != len(layers):
        raise PruneError(f"noise must be a list of tensors, one for each of {len(layers)} sites, got {len(noise)}")
    sites = [make_site(recipe, decoder, i, layers, None if noise is None else noise[i]) for i in range(len(layers))]
    decoder.add(sites)
    return DecoderHandle(recipe, decoder, list(sites))


def make_site(recipe: Recipe, decoder: Decoder, index: int, layers: tuple[int, ...], noise: Tensor | None) -> DecoderSite:
    """One site that runs the recipe on the visual tokens of one sample."""
    schedule = recipe.schedule
    assert isinstance(schedule, DecoderSchedule)
    # a grid of positions (M-RoPE) has no contiguous numbering: its survivors keep their places
    renumber = schedule.positions == "renumbered" and not decoder.gridded
    return DecoderSite(
        layer=layers[index],
        needs=needs(recipe),
        reduce=partial(reduce_sample, recipe, index, len(layers), noise),
        check=schedule.check if recipe.fewer == "error" else None,
        rows=schedule.rows,
        attention=schedule.attention,
        renumber=renumber,
        asked=0 if getattr(schedule, "ranked", False) else int(max(as_tuple(schedule.tokens), default=0)),
    )


def reduce_sample(
    recipe: Recipe, index: int, sites: int, noise: Tensor | None, given: dict[str, Any], original: int, images: int
) -> tuple[Tensor | None, Plan, Tensor | None]:
    """The recipe on the visual tokens of one sample, at its site number `index` of so many."""
    schedule = recipe.schedule
    assert isinstance(schedule, DecoderSchedule)
    count = schedule.stay(original, given["x"].shape[1], index, sites, images)
    if noise is not None:
        given = {**given, "noise": noise.to(given["x"].device)}
    with torch.set_grad_enabled(torch.is_grad_enabled() and not only_drops(recipe)):
        tokens, plan, _, score = apply(recipe, count, given)
    return tokens, plan, score
