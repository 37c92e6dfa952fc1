"""Look at the tokens and the attention of every block of a vision model, at the places where methods prune, and prune nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import nn

from ..errors import PruneError
from ..models.engine import Engine
from ..models.family import Family
from ..models.site import Outcome, Site
from ..ops.select import everything
from ..prune import engine_of, family_of

See = Callable[[int, dict[str, Any]], None]
"""Hears of a block and the signals there."""


def unpruned(model: nn.Module) -> Engine:
    """An engine for a vision model that is not pruned; a PruneError for others."""
    family = family_of(model)
    if not isinstance(family, Family):
        raise PruneError(f"{type(model).__name__} is a vision-language model; give a vision model, such as its image tower")
    engine = engine_of(family)
    if engine.sites:
        raise PruneError("the model is pruned, so its tokens are no longer those of the image; remove the handle first")
    return engine


@contextmanager
def watch(model: nn.Module, where: str, layers: Iterable[int], names: Iterable[str], see: See) -> Iterator[None]:
    """Within this context every forward calls `see` for each of the blocks with the signals `names` (and x), as a recipe gets them.

    where: "attn", "block" or "before", as in a Recipe; before a block, q and k are those of the block in front of it, and block 0 has
    none. All tokens stay. Raises PruneError for a model that is pruned or has no blocks to prune in.
    """
    engine, wanted = unpruned(model), tuple(dict.fromkeys(("x", *names)))
    # the place before a block is the one after the block in front of it
    places = [(layer, layer - 1, "block") if where == "before" else (layer, layer, where) for layer in layers]
    sites = [Site(at, place, wanted, partial(passing, see, layer)) for layer, at, place in places]
    engine.add(sites)
    try:
        yield
    finally:
        engine.take_out(sites)


def passing(see: See, layer: int, _count: Any, given: dict[str, Any]) -> Outcome:
    """What a site runs that lets everything pass."""
    see(layer, given)
    return None, everything(given["x"]), None, None
