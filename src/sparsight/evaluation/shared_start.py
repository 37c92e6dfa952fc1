"""Many questions about few pictures: the language model reads a picture once per recipe, not once per question.

Prompts such as LLaVA's begin with the picture, and what a recipe keeps of it does not depend on the words that follow. So the beginnings of
all pictures' prompts run once, pruned; every batch of questions then goes on from a copy of their cache, as a chat's next turn would. The
answers are those of whole prompts up to the order of sums in floating point.

Where that would not be so, `of` or `read` says None and the prompts are asked as a whole: several pictures or other inputs than ids, mask
and pixels (M-RoPE, token types, tiles), recipes that look at the words or work inside the language model, different counts per picture.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..recipe import Recipe
from .asking import Prompted

INPUTS = {"input_ids", "attention_mask", "pixel_values"}
WORDS = {"text", "text_attn", "text_k"}
"""Signals that depend on the question."""


@dataclass(frozen=True, eq=False)
class Rest:
    """What follows the picture in one batch of prompts. rows: its pictures' places in the beginning; ids, mask [B, T], padded on the left."""

    batch: Prompted
    rows: Tensor
    ids: Tensor
    mask: Tensor


@dataclass(frozen=True, eq=False)
class SharedStart:
    """Beginnings of the prompts about some pictures, one row each, and the rests. inputs: the model's arguments for the beginnings."""

    inputs: dict[str, Tensor]
    rests: list[Rest]

    @classmethod
    def of(cls, batches: Sequence[Prompted], pictures: Mapping[str, Hashable], image: int | None) -> SharedStart | None:
        """Split the prompts of some batches behind their picture. pictures: which one a question (by its key) is about; image: id of a
        visual token. None where prompts do not all begin alike."""
        places: dict[Hashable, int] = {}
        pixels: list[Tensor] = []
        rests: list[Rest] = []
        start: Tensor | None = None
        if image is None:
            return None
        for batch in batches:
            if set(batch.inputs) != INPUTS or set(batch.images) != {1} or len(batch.inputs["pixel_values"]) != len(batch.images):
                return None
            tails, rows = [], []
            for i, question in enumerate(batch.questions):
                ids = batch.inputs["input_ids"][i][batch.inputs["attention_mask"][i].bool()]
                visual = (ids == image).nonzero()
                end = int(visual[-1]) + 1 if len(visual) else len(ids)
                start = ids[:end] if start is None else start
                if not torch.equal(ids[:end], start) or end == len(ids):
                    return None
                tails.append(ids[end:])
                if pictures[question.key] not in places:
                    places[pictures[question.key]] = len(places)
                    pixels.append(batch.inputs["pixel_values"][i])
                rows.append(places[pictures[question.key]])
            ids, mask = padded(tails)
            rests.append(Rest(batch, torch.tensor(rows, device=ids.device), ids, mask))
        if start is None:
            return None
        ids = start.expand(len(pixels), -1)
        return cls({"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": torch.stack(pixels)}, rests)

    @torch.no_grad()
    def read(self, model: Any, handle: Any) -> tuple[Any, list[int]] | None:
        """Run the beginnings: their cache, and how many visual tokens are left of each picture (none without a handle); None where the
        counts differ, so that rows of the cache would be padded."""
        cache = model(**self.inputs, use_cache=True, logits_to_keep=1).past_key_values
        kept = [] if handle is None else list(handle.kept_per_image())
        return (cache, kept) if len(set(kept)) <= 1 else None


def is_shared(recipe: Recipe | None) -> bool:
    """Whether what a recipe keeps of a picture depends on the picture alone."""
    return recipe is None or (recipe.where != "decoder" and not WORDS & set(recipe.needs))


def going_on(rest: Rest, cache: Any, fill: int) -> Prompted:
    """The rest of a batch of prompts, from a copy of the beginnings' cache. fill: an id that stands where the cache knows better."""
    own = copy(cache)
    own.layers = [copy(layer) for layer in cache.layers]
    own.batch_select_indices(rest.rows)
    before = rest.ids.new_full((len(rest.rows), cache.get_seq_length()), fill)
    ids, mask = torch.cat([before, rest.ids], dim=1), torch.cat([torch.ones_like(before), rest.mask], dim=1)
    return Prompted(rest.batch.questions, {"input_ids": ids, "attention_mask": mask, "past_key_values": own}, [0] * len(rest.rows))


def padded(tails: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Ids of one batch, filled up with zeros on the left, and their mask."""
    most = max(map(len, tails))
    ids = torch.stack([torch.cat([tail.new_zeros(most - len(tail)), tail]) for tail in tails])
    mask = torch.stack([torch.cat([tail.new_zeros(most - len(tail)), torch.ones_like(tail)]) for tail in tails])
    return ids, mask
