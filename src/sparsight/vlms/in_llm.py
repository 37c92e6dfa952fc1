"""Methods inside the language model: recipes with where="decoder" meet decoders."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..apply import decide, needs, only_drops, run
from ..errors import PruneError
from ..ops.text import DecoderSchedule
from ..plan import Plan
from ..prune import Handle
from ..recipe import Recipe
from .decoder import Decoder as Decoder
from .decoder import DecoderSite, decoder_of

OFFERS = ("x", "text_attn", "feats", "size", "position", "noise")


@dataclass(eq=False, repr=False)
class DecoderHandle(Handle):
    """Handle of a method inside the language model. Sites and layers are those of the decoder.

    counts   visual tokens left after each site: an int where all samples of the batch have as many, else a list.
    left     for each site, which tokens of the prompt are left [B, n] (clusters named by their centres), -1 for padding.
    """

    @property
    def counts(self) -> list[Any]:
        per_site = [plan.counts for plan in self.plans]
        return [counts[0] if len(set(counts)) == 1 else counts for counts in per_site]

    @property
    def left(self) -> list[Tensor]:
        return [site.left for site in self.sites if isinstance(site, DecoderSite) and site.left is not None]

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
    return DecoderHandle(recipe, decoder, list(sites))  # type: ignore[arg-type]


def make_site(recipe: Recipe, decoder: Decoder, index: int, layers: tuple[int, ...], noise: Tensor | None) -> DecoderSite:
    """One site that runs the recipe on the visual tokens of one sample."""
    schedule = recipe.schedule
    assert isinstance(schedule, DecoderSchedule)

    def reduce(given: dict[str, Any], original: int, images: int) -> tuple[Tensor | None, Plan, Tensor | None]:
        count = schedule.stay(original, given["x"].shape[1], index, len(layers), images)
        if noise is not None:
            given = {**given, "noise": noise.to(given["x"].device)}
        if only_drops(recipe):
            with torch.no_grad():
                plan, _, score = decide(recipe, count, given)
            return None, plan, score
        done = run(recipe, count, given)
        return done.x, done.plan, done.score

    # a grid of positions (M-RoPE) has no contiguous numbering: its survivors keep their places
    renumber = schedule.positions == "renumbered" and not decoder.gridded
    return DecoderSite(
        layers[index], recipe.where, needs(recipe), unused, False,
        reduce=reduce, check=schedule.check, rows=schedule.rows, attention=schedule.attention, renumber=renumber,
    )  # fmt: skip


def unused(_given: dict[str, Any]) -> Any:
    raise PruneError("a site inside a language model reduces sample by sample")
