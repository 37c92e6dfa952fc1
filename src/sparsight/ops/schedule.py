"""How many tokens stay at which block: plain integers in, plain integers out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import torch

from ..errors import PruneError, shown

IN_BLOCKS = ("before", "attn", "block")
PLACES = ("image", *IN_BLOCKS, "encoder", "projector", "decoder")
"""Where tokens leave. In a vision model: with the "image", which is made smaller; "before" a block, between its "attn" and its MLP (as most papers do), or after the whole
"block". In a vision-language model: between the vision "encoder" and the projector, after the "projector", or between blocks of the
language "decoder"."""

BUDGET = ("keep", "tokens", "remove")
"""The budget words that every method shares; at most one of them is set in a Schedule."""

NAMED_LAYERS = ("early", "all", "input")
"""Layer lists with a name: the first six blocks, every block, before the first block."""

Layers = tuple[int, ...] | str
Amount = float | tuple[float, ...]
Rounding = Literal["up", "down", "nearest"]

EARLY = 6


@dataclass(frozen=True)
class Schedule:
    """Blocks and budget of a recipe.

    layers   0-based block indices, or one of `NAMED_LAYERS`; () for methods that work between vision encoder and language model.
    keep     fraction kept at each site, of the tokens present there: ceil(keep * n). One number, or one per site.
    tokens   absolute count kept at each site.        remove   count removed at each site.
    All three None: the method finds each image's count itself (adaptive).
    inflect  slope of `remove` over the sites: 0 constant, -1 falls from 2r to 0, +1 rises from 0 to 2r (ToMe).
    rounding of keep * n to a count: "up", "down" or "nearest" (an exact half to the even number, as Python rounds).
    least    the smallest count that the method can give.
    compound keep counts from the tokens that entered the first block instead: int(entered * keep^(site+1)), as DynamicViT and the
             Token Reduction benchmark do. Several numbers are multiplied up.
    """

    layers: Layers = (3, 6, 9)
    keep: Amount | None = None
    tokens: Amount | None = None
    remove: Amount | None = None
    inflect: float = 0.0
    rounding: Rounding = "up"
    least: int = 1
    compound: bool = False

    def __post_init__(self) -> None:
        given = [word for word in BUDGET if getattr(self, word) is not None]
        if len(given) > 1:
            got = " and ".join(f"{w}={shown(show(getattr(self, w)))}" for w in given)
            raise PruneError(f"budget words conflict: give one of {', '.join(BUDGET)}, got {got}")
        for word in given:
            for value in as_tuple(getattr(self, word)):
                check_amount(word, value)
        if isinstance(self.layers, str):
            if self.layers not in NAMED_LAYERS:
                raise PruneError(
                    f"layers={shown(self.layers)} is not known; give block numbers such as layers=3/6/9 or 3-6, or one of "
                    + ", ".join(NAMED_LAYERS)
                )
        elif len(set(self.layers)) != len(self.layers) or list(self.layers) != sorted(self.layers):
            raise PruneError(f"layers={shown(show(self.layers))}: give each block once, in ascending order")
        if not -1 <= self.inflect <= 1:
            raise PruneError(f"inflect={self.inflect:g} is outside [-1, 1]")
        if self.inflect and self.remove is None:
            raise PruneError(f"inflect={self.inflect:g} changes `remove` over the sites; it has no meaning with {self.word}")
        _ = self.word, self.spelt  # made here, where no compiler sees the numbers themselves

    @cached_property
    def word(self) -> str:
        """The budget word in use, "" for an adaptive count."""
        return next((word for word in BUDGET if getattr(self, word) is not None), "")

    @cached_property
    def numbers(self) -> tuple[float, ...]:
        """`inflect` and the budget's numbers."""
        return self.inflect, *(as_tuple(getattr(self, self.word)) if self.word else ())

    @cached_property
    def spelt(self) -> tuple[str, ...]:
        """The same as text (see `spell`)."""
        return tuple(map(spell, self.numbers))

    def with_budget(self, word: str, value: Amount) -> Schedule:
        """The same layers under another budget."""
        return replace(self, **{**dict.fromkeys(BUDGET), word: value})  # type: ignore[arg-type]

    def resolve(self, depth: int) -> tuple[int, ...]:
        """Block indices for a model of `depth` blocks; -1 stands for the place before the first block."""
        if self.layers == ():
            raise PruneError("no layers are given; give block numbers such as layers=3/6/9")
        if self.layers == "input":
            blocks: tuple[int, ...] = (-1,)
        elif self.layers == "early":
            blocks = tuple(range(min(EARLY, depth)))
        elif self.layers == "all":
            blocks = tuple(range(depth))
        else:
            blocks = tuple(int(layer) for layer in self.layers)
        outside = [layer for layer in blocks if layer >= depth or layer < -1]
        if outside or (self.layers != "input" and min(blocks) < 0):
            raise PruneError(
                f"layers={shown(show(self.layers))} is out of range: the model has {depth} blocks, give numbers from 0 to "
                f"{depth - 1}, or one of {', '.join(NAMED_LAYERS)}"
            )
        amounts = as_tuple(getattr(self, self.word)) if self.word else ()
        if len(amounts) not in (0, 1, len(blocks)):
            raise PruneError(
                f"{self.word}={shown(show(amounts))} has {len(amounts)} values for {len(blocks)} sites (layers="
                f"{shown(show(self.layers))}); give one value, or one for each site"
            )
        return blocks

    def count(self, n: int, site: int, sites: int, entered: int = 0) -> int:
        """Tokens to keep of the `n` present at the `site`-th of `sites` places: from 1 to n; 0 if the method finds the count itself.
        `entered` is how many there were before the first place, for `compound` budgets (0: these n are the first)."""
        if not self.word:
            return 0
        inflect, *amounts = [float(text) for text in self.spelt] if torch.compiler.is_compiling() else self.numbers
        amount = amounts[site] if len(amounts) > 1 else amounts[0]
        if self.word == "keep" and self.compound:
            kept = int((entered or n) * (math.prod(amounts[: site + 1]) if len(amounts) > 1 else amount ** (site + 1)))
        elif self.word == "keep":
            kept = rounded(amount * n, self.rounding)
        elif self.word == "tokens":
            kept = int(amount)
        else:
            kept = n - (removals(int(amount), inflect, sites)[site] if inflect else int(amount))
        kept = max(1, min(n, kept))
        if kept < min(self.least, n):
            raise PruneError(f"{self.word}={show(amount)} leaves {kept} of {n} tokens, but this recipe needs {self.least} or more")
        return kept


def earlier_block(shallow: tuple[int, int], depth: int, usable: Sequence[int] | None = None) -> int:
    """The block that (8, 24) names in an encoder of `depth` blocks: block 8 of 24, scaled; (8, 0): block 8 itself. Of the usable blocks the
    first one from there on. Raises PruneError for a block that there is not."""
    block, of = shallow
    found = block * depth // of if of else block
    if not 0 <= found < depth:
        raise PruneError(f"block {block} is out of range: the encoder has {depth} blocks, give numbers from 0 to {depth - 1}")
    return found if usable is None else min((at for at in usable if at >= found), default=max(usable))


def staged(keep: Amount, layers: Layers) -> Schedule:
    """Keep a fraction of the tokens present at each of the given blocks."""
    return Schedule(layers, keep=keep)


def once(tokens: Amount | None = None, keep: Amount | None = None, rounding: Rounding = "up", least: int = 1) -> Schedule:
    """One reduction between vision encoder and language model, without layers; adaptive if no budget is given."""
    return Schedule((), keep=keep, tokens=tokens, rounding=rounding, least=least)


def rounded(value: float, rounding: Rounding) -> int:
    """Round to an integer; "down" tolerates floating-point error such as 0.29 * 100 = 28.999999999999996."""
    if rounding == "nearest":
        return round(value)
    return math.ceil(value) if rounding == "up" else math.floor(value + 1e-9)


def removals(remove: int, inflect: float, sites: int) -> list[int]:
    """Tokens to remove at each site when the amount changes linearly from remove*(1-inflect) to remove*(1+inflect).

    Values are truncated to integers, so their sum can be a little below remove*sites. ToMe, appendix D, arXiv:2210.09461.
    """
    low = int(remove * (1 - inflect))
    high = 2 * remove - low
    step = (high - low) / (sites - 1) if sites > 1 else 0.0
    return [int(low + step * site) for site in range(sites)]


def as_tuple(value: Amount | None) -> tuple[float, ...]:
    if value is None:
        return ()
    return value if isinstance(value, tuple) else (value,)


def spell(value: float) -> str:
    """A number as text that reads back as exactly the same one. torch.compile takes text for a constant; of a float that is another one
    in the next model it makes a variable, with which every count of tokens and all shapes would vary."""
    return repr(float(value))


def check_amount(word: str, value: float) -> None:
    if word == "keep":
        if not 0 < value <= 1:
            raise PruneError(f"keep={value:g} is outside (0, 1]: it is the fraction of tokens kept at each site")
    elif not math.isfinite(value) or value != int(value) or value < (1 if word == "tokens" else 0):
        least = "at least 1" if word == "tokens" else "0 or more"
        raise PruneError(f"{word}={value:g} must be a whole number, {least}")


def check_share(word: str, value: float) -> float:
    if not 0 <= value <= 1:
        raise PruneError(f"{word}={value:g} is outside [0, 1]: it is a share")
    return value


def show(value: object) -> str:
    """Format a value for a recipe string: lists joined by '/'."""
    if isinstance(value, tuple):
        return "/".join(show(item) for item in value)
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() and abs(value) < 1e15 else repr(value)
    return str(value)
