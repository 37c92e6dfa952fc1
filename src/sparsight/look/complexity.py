"""How complex images are to a model: effective rank of their tokens and entropy of the attention they get, as `agile` measures them.

Section 3 and equation 7 of arXiv:2603.01236. A vision-language model is asked between vision encoder and language model, without
running the latter; a vision model after one of its blocks. Nothing is pruned.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, get_args

import torch
from torch import Tensor, nn

from ..data.feed import Feed
from ..errors import PruneError
from ..models.family import Family
from ..ops import rank, reduce, schedule
from ..ops.score import Importance
from ..ops.select import everything
from ..plan import Plan
from ..prune import engine_of, family_of, prune
from ..recipe import Recipe, Step, attention_score
from ..vlms.before_llm import check_signals, make_site
from ..vlms.family import LVLM
from ..vlms.tiles import reduced

SPACES = ("tokens", "features")
NOT_FINITE = "tokens or attention are NaN or infinite"
FROM_END = 2
"""The block whose output is measured in a vision model, counted from the end: the one that LLaVA takes its features from."""


@dataclass(frozen=True)
class Complexity:
    """One image: number of tokens, effective rank, entropy in nats. Of images in tiles or frames the means over these."""

    tokens: int
    erank: float
    entropy: float

    @property
    def finite(self) -> bool:
        """Whether both numbers are; otherwise the model's weights or activations are not."""
        return math.isfinite(self.erank) and math.isfinite(self.entropy)


def score_of(model: nn.Module, score: str | None = None, order: float = 2.0) -> tuple[str, Step]:
    """The attention whose entropy is asked, and its name: the class token's row where there is one, else the mean column."""
    check_choice("score", score or "class", get_args(Importance))
    name: Any = score or ("class" if family_of(model).class_token else "column_mean")
    return name, attention_score(name, order)


def check_choice(word: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise PruneError for a word that is none of the choices."""
    if value not in choices:
        raise PruneError(f"{word}={value!r} is not known; choose {', '.join(choices)}")


def place_of(model: nn.Module, layer: int | None = None) -> str:
    """Where `measure` looks, in words."""
    family = family_of(model)
    if family.language:
        return "between vision encoder and language model"
    return f"after block {block_of(family, layer)}"


def block_of(family: Family, layer: int | None) -> int:
    """Block of a vision model, by default the last but one."""
    return max(0, len(family.blocks) - FROM_END) if layer is None else layer


def measure(
    model: nn.Module,
    call: Mapping[str, Any],
    score: Step,
    space: str = "tokens",
    like: Recipe | None = None,
    layer: int | None = None,
) -> list[Complexity]:
    """Complexity of every image of a call.

    call: what the model's image processor gives (pixel_values and what belongs to it). space: rank of the "tokens" that the language
    model gets or of the encoder's "features". like: a recipe whose place and attention layer are used in a vision-language model. layer: block of a vision model.
    Raises PruneError where the model does not offer what the score needs.
    """
    family = family_of(model)
    check_choice("space", space, SPACES)
    if call.get("pixel_values") is None or not len(call["pixel_values"]):
        raise PruneError("no images: give pixel_values of at least one image, as the model's image processor makes them")
    found: list[Complexity] = []
    probe = recorder(score, space, found)
    if family.language:
        if like is not None:
            probe = replace(probe, where=like.where, attention=like.attention, name=like.name)
        return of_language_model(family, probe, dict(call), found)
    return of_vision_model(family, probe, call["pixel_values"], layer, found)


def measure_all(
    model: nn.Module, feed: Feed, score: Step, space: str, like: Recipe | None = None, layer: int | None = None
) -> tuple[list[tuple[str, Complexity]], list[tuple[str, str]]]:
    """Complexity of every image of a feed, by name, and the images that have none, with the reason; see `measure`."""
    found, bad = [], []
    for names, call in feed:
        for name, one in zip(names, measure(model, call, score, space, like, layer), strict=True):
            if one.finite:
                found.append((name, one))
            else:
                bad.append((name, NOT_FINITE))
    return found, [*feed.skipped, *bad]


def recorder(score: Step, space: str, found: list[Complexity]) -> Recipe:
    """A recipe that keeps everything and notes what it has seen."""

    def note(s: Tensor, x: Tensor, feats: Tensor) -> Plan:
        ranks = rank.effective_rank(x if space == "tokens" else feats).tolist()
        entropies = rank.attention_entropy(s).tolist()
        found.extend(Complexity(s.shape[1], a, b) for a, b in zip(ranks, entropies, strict=True))
        return everything(s)

    return Recipe(score, Step(note), reduce.drop, schedule.once(keep=1.0), where="projector", name="attention entropy")


@torch.no_grad()
def of_language_model(family: LVLM, probe: Recipe, call: dict[str, Any], found: list[Complexity]) -> list[Complexity]:
    """Images between vision encoder and language model."""
    check_signals(family, probe)
    site = make_site(family, probe)
    _, pictures, _ = family.look("image", call, site)
    images = []
    for picture in pictures:
        found.clear()
        reduced(site, [picture], family.project() if site.where == "encoder" else None)
        images.append(mean(found))
    return images


@torch.no_grad()
def of_vision_model(family: Family, probe: Recipe, pixels: Tensor, layer: int | None, found: list[Complexity]) -> list[Complexity]:
    """Images after a block of a vision model."""
    at = replace(probe, where="block", schedule=schedule.staged(1.0, (block_of(family, layer),)))
    if engine_of(family).sites:
        raise PruneError("the model is pruned, so its tokens are no longer those of the image; remove the handle first")
    with prune(family.model, at):
        family.model(pixels)
    return list(found)


def mean(parts: list[Complexity]) -> Complexity:
    """An image from its tiles or frames."""
    count = len(parts)
    return Complexity(sum(p.tokens for p in parts), sum(p.erank for p in parts) / count, sum(p.entropy for p in parts) / count)
