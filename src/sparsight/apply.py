"""Run one recipe on the tensors of one site: derive signals, score, select, reduce."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .errors import PruneError
from .learned import check_weights
from .ops import ragged
from .ops.reduce import drop, sizes
from .ops.schedule import as_tuple
from .plan import Plan
from .recipe import Recipe
from .signals import INTERNAL, SIGNALS, as_usual, check_shapes, derivable, derive


@dataclass(frozen=True, eq=False)
class Reduced:
    """What `reduce` returns: tokens x [B, K, C], the plan, and how many patches each token stands for, size [B, K, 1]."""

    x: Tensor
    plan: Plan
    size: Tensor | None
    score: Tensor | None = None


def needs(recipe: Recipe) -> tuple[str, ...]:
    """Signals that the recipe's steps ask for, by the names of their parameters."""
    unknown = [name for name in recipe.needs if name not in SIGNALS and name not in INTERNAL]
    if unknown:
        raise PruneError(f"recipe {recipe} asks for {', '.join(unknown)}; the signals are {', '.join(SIGNALS)}")
    return tuple(name for name in recipe.needs if name not in INTERNAL)


def reduce(recipe: Recipe | str, **signals: Any) -> Reduced:
    """Apply a recipe to raw tensors, as at one pruning site.

    Pass `x` [B, N, C] without prefix tokens and the signals that the method needs (see `SIGNALS`): for example
    `reduce("evit:keep=0.7", x=x, class_attn=a)` or `reduce("tome:remove=8", x=x, k=k, prefix=1)`. A derived signal may stand
    in for its sources. Raises PruneError if a signal is missing or shapes do not fit.
    """
    from .registry import parse

    recipe = parse(recipe) if isinstance(recipe, str) else recipe
    if recipe.where == "image":
        raise PruneError(f"{recipe.name} makes the image smaller, not its tokens; give it to prune, or take pool")
    given = as_usual({name: value for name, value in signals.items() if value is not None})
    check_shapes(given)
    wanted = needs(recipe)
    missing = [name for name in wanted if not derivable(name, given)]
    if missing:
        lines = "; ".join(f"{name}: {SIGNALS[name]}" for name in missing)
        raise PruneError(f"{recipe.name} needs {' and '.join(missing)} ({lines}); got {', '.join(given)}")
    n = given["x"].shape[1]
    asked = max(as_tuple(recipe.schedule.tokens), default=0)
    if asked > n:
        raise PruneError(f"{recipe.name}: tokens={int(asked)} is more than the {n} tokens that there are")
    count = recipe.schedule.count(n, 0, 1)
    if recipe.weights is not None and "weights" in wanted:
        check_weights(recipe.name, given["weights"], recipe.weights(given["x"].shape[2], count))
    x, plan, size, score = apply(recipe, lambda n: recipe.schedule.count(n, 0, 1), given)
    x = plan.gather(given["x"]) if x is None else x
    return Reduced(x, plan, sizes(x, size), score)


def apply(recipe: Recipe, count: int | Callable[[int], int], given: dict[str, Any]) -> ragged.Outcome:
    """Run a recipe on the signals of a site: tokens (None: those that the plan keeps, as they are), plan, sizes, score.

    count: how many tokens to keep, or a function of how many there are. Scores are computed in float32 or better, whatever autocast
    says. Choosing has no gradient, except where tokens are weighted by the score, or where the method has learned weights. Where images
    have different numbers of tokens (the signal `valid`) and the choice does not ask for it, images with equal numbers run together
    without padding.
    """
    *_, select, reducer = recipe.steps
    if given.get("valid") is not None and "valid" not in select.needs:
        return ragged.by_count(partial(apply, recipe, count), given)
    x, size = given["x"], given.get("size")
    learning = torch.is_grad_enabled() and recipe.weights is not None
    with full_precision(x.device.type):
        signals = {name: derive(name, given) for name in recipe.needs if name not in INTERNAL}
        signals.update(count=count if isinstance(count, int) else count(x.shape[1]), attended=given.get("attended"))
        if recipe.score is not None:
            with gradients(learning or (torch.is_grad_enabled() and "s" in reducer.needs)):
                signals["s"] = recipe.steps[0].run(signals)
        with gradients(learning):
            plan: Plan = select.run(signals)
        if only_drops(recipe):
            reduced, size = None, None if size is None else plan.gather(size)
        else:
            reduced, size = reducer.run({**signals, "x": x, "plan": plan})
    score = signals.get("s")
    plan = plan if plan.mix is None else replace(plan, mix=plan.mix.detach())
    return reduced, plan, size, None if score is None else score.detach()


def before_attention(recipe: Recipe) -> bool:
    """Whether a site may choose by q and k before its block's attention has run, so that only the survivors' rows of it are made."""
    late = {"x", "feats", "class_token", "valid"}
    asked = {name for step in recipe.steps[:-1] for name in step.needs}
    plain = not (recipe.adaptive or recipe.hides or recipe.remembers or recipe.weights)
    return recipe.where == "attn" and plain and only_drops(recipe) and not late & asked


def only_drops(recipe: Recipe) -> bool:
    """Whether the survivors stay as they are, so that the plan alone says what comes out."""
    return recipe.steps[-1].function is drop


def gradients(wanted: bool) -> AbstractContextManager[object]:
    """Gradients off where they are on and not wanted."""
    return nullcontext() if wanted == torch.is_grad_enabled() else torch.set_grad_enabled(wanted)


def full_precision(device: str) -> AbstractContextManager[object]:
    """Autocast off where it is on; elsewhere nothing, which exported programs can be saved with."""
    return torch.autocast(device, enabled=False) if device != "meta" and torch.is_autocast_enabled(device) else nullcontext()
