"""Look at the tokens and the attention of every block of a vision model, at the places where methods prune, and prune nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import nn

from ..errors import PruneError
from ..models.family import Family
from ..models.site import Outcome, Site
from ..ops.select import everything
from ..prune import family_of
from ..vlms.family import LVLM

See = Callable[[int, dict[str, Any]], None]
"""Hears of a block and the signals there."""


def unpruned(model: nn.Module) -> Family:
    """The family of a vision model that is not pruned; a PruneError for others."""
    family: Family = family_of(model)
    if isinstance(family, LVLM):
        raise PruneError(f"{type(model).__name__} is a vision-language model; give a vision model, such as its image tower")
    if family.sites:
        raise PruneError("the model is pruned, so its tokens are no longer those of the image; remove the handle first")
    return family


@contextmanager
def watch(model: nn.Module, where: str, layers: Iterable[int], names: Iterable[str], see: See) -> Iterator[None]:
    """Within this context every forward calls `see` for each of the blocks with the signals `names` (and x), as a recipe gets them.

    where: "attn", "block" or "before", as in a Recipe; before a block, q and k are those of the block in front of it, and block 0 has
    none. All tokens stay. Raises PruneError for a model that is pruned or has no blocks to prune in.
    """
    family, wanted = unpruned(model), tuple(dict.fromkeys(("x", *names)))
    # the place before a block is the one after the block in front of it
    places = [(layer, layer - 1, "block") if where == "before" else (layer, layer, where) for layer in layers]
    sites = [Site(at, place, wanted, partial(passing, see, layer), False) for layer, at, place in places]
    family.add(sites)
    try:
        yield
    finally:
        family.take_out(sites)


def passing(see: See, layer: int, given: dict[str, Any]) -> Outcome:
    """The step of a site that lets everything pass."""
    del given["entered"]
    see(layer, given)
    return None, everything(given["x"]), None, None
