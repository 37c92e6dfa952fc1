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
from .ops import attention, ragged
from .ops.reduce import drop, sizes
from .ops.schedule import as_tuple
from .plan import Plan
from .recipe import Recipe, Step

SIGNALS: dict[str, str] = {
    "x": "[B, N, C] tokens to be reduced, prefix excluded",
    "q": "[B, H, P+N, D] queries of the scoring attention, prefix first",
    "k": "[B, H, P+N, D] keys",
    "v": "[B, H, P+N, D] values",
    "prefix": "P, the number of prefix tokens in q, k, v (derived: k.shape[2] - N)",
    "scale": "factor of the attention logits (derived: D ** -0.5)",
    "class_attn": "[B, H, N] class token's softmax row, patch columns (derived from q, k)",
    "feats": "[B, N, D'] features that similarity compares (derived: x)",
    "class_token": "[B, 1, D'] the class token's feature, from where feats comes",
    "size": "[B, N, 1] how many patches each token stands for (derived: ones)",
    "position": "[B, N] place of each token on the grid, -1 for none (derived: 0..N-1)",
    "grid": "(h, w) patch grid",
    "attn": "[B, H, P+N, P+N] the whole softmax matrix (never derived; stands in for q and k where somebody has it)",
    "text": "[B, T, C] text embeddings",
    "text_attn": "[B, T, N] attention of the chosen text queries over the tokens",
    "noise": "[B, M] random numbers that break ties in clustering, as authors' code draws them (derived: zeros)",
    "valid": "[B, N] bool, which tokens are real where images have different counts, padding last (derived: None, all of them)",
    "weights": "learned tensors of the method by name (shapes: see the method; in a model from prune's weights=)",
}
"""The fixed vocabulary of signals. Families may offer them, callers of `reduce` may pass them."""

INTERNAL = ("s", "plan", "count")


@dataclass(frozen=True, eq=False)
class Reduced:
    """What `reduce` returns: tokens x [B, K, C], the plan, and how many patches each token stands for, size [B, K, 1]."""

    x: Tensor
    plan: Plan
    size: Tensor | None
    score: Tensor | None = None


def needs(recipe: Recipe) -> tuple[str, ...]:
    """Signals that the recipe's steps ask for, by the names of their parameters."""
    names = dict.fromkeys(name for step in recipe.steps for name in step.needs)
    unknown = [name for name in names if name not in SIGNALS and name not in INTERNAL]
    if unknown:
        raise PruneError(f"recipe {recipe} asks for {', '.join(unknown)}; the signals are {', '.join(SIGNALS)}")
    return tuple(name for name in names if name not in INTERNAL)


def reduce(recipe: Recipe | str, **signals: Any) -> Reduced:
    """Apply a recipe to raw tensors, as at one pruning site.

    Pass `x` [B, N, C] without prefix tokens and the signals that the method needs (see `SIGNALS`): for example
    `reduce("evit:keep=0.7", x=x, class_attn=a)` or `reduce("tome:remove=8", x=x, k=k, prefix=1)`. A derived signal may stand
    in for its sources. Raises PruneError if a signal is missing or shapes do not fit.
    """
    from .registry import parse

    recipe = parse(recipe) if isinstance(recipe, str) else recipe
    given = {name: with_heads(name, value) for name, value in signals.items() if value is not None}
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
    if recipe.weights is not None:
        check_weights(recipe.name, given["weights"], recipe.weights(given["x"].shape[2], count))
    x, plan, size, score = settle(recipe, lambda n: recipe.schedule.count(n, 0, 1), given)
    x = plan.gather(given["x"]) if x is None else x
    return Reduced(x, plan, sizes(x, size), score)


def settle(recipe: Recipe, count: Callable[[int], int], given: dict[str, Any]) -> ragged.Outcome:
    """Run the recipe on what arrives at a site: tokens (None: those that the plan keeps, as they are), plan, sizes, score.

    count: tokens present -> tokens to keep. Where images have different numbers of tokens (the signal `valid`) and the choice does
    not ask for it, images with equal numbers run together without padding.
    """
    if given.get("valid") is not None and "valid" not in recipe.steps[-2].needs:
        return ragged.by_count(partial(settle, recipe, count), given)
    left = count(given["x"].shape[1])
    if only_drops(recipe):
        return None, *decide(recipe, left, given)
    done = run(recipe, left, given)
    return done.x, done.plan, done.size, done.score


def run(recipe: Recipe, count: int, given: dict[str, Any]) -> Reduced:
    """Score, select and reduce; arithmetic of scores in float32 or better, whatever autocast says."""
    with full_precision(given["x"].device.type):
        signals, plan = choose(recipe, count, given)
        x, size = call(reducer(recipe), {**signals, "x": given["x"], "plan": plan})
    score = signals.get("s")
    if plan.mix is not None:
        plan = replace(plan, mix=plan.mix.detach())
    return Reduced(x, plan, size, None if score is None else score.detach())


def choose(recipe: Recipe, count: int, given: dict[str, Any]) -> tuple[dict[str, Any], Plan]:
    """Score and select: the signals (the score among them, as `s`) and the plan.

    Choosing has no gradient, so no graph is kept of it, except where the tokens are weighted by the score, and where the method
    has learned weights, which train through the score or the plan's `mix`.
    """
    learning = torch.is_grad_enabled() and recipe.weights is not None
    signals = {name: derive(name, given) for name in needs_of(recipe.steps)}
    signals["count"] = count
    if recipe.score is not None:
        with torch.set_grad_enabled(learning or (torch.is_grad_enabled() and "s" in reducer(recipe).needs)):
            signals["s"] = call(recipe.steps[0], signals)
    with torch.set_grad_enabled(learning):
        return signals, call(recipe.steps[-2], signals)


def reducer(recipe: Recipe) -> Step:
    return recipe.steps[-1]


def only_drops(recipe: Recipe) -> bool:
    """Whether the survivors stay as they are, so that the plan alone says what comes out."""
    return reducer(recipe).function is drop


def decide(recipe: Recipe, count: int, given: dict[str, Any]) -> tuple[Plan, Tensor | None, Tensor | None]:
    """For recipes that only drop: the plan, the survivors' sizes, the score; moving the tokens is left to the caller."""
    with full_precision(given["x"].device.type):
        signals, plan = choose(recipe, count, given)
        size = given.get("size")
    return plan, None if size is None else plan.gather(size), signals.get("s")


def full_precision(device: str) -> AbstractContextManager[object]:
    """Autocast off where it is on; elsewhere nothing, which exported programs can be saved with."""
    return torch.autocast(device, enabled=False) if device != "meta" and torch.is_autocast_enabled(device) else nullcontext()


def call(step: Step, signals: dict[str, Any]) -> Any:
    return step(**{name: signals[name] for name in step.needs})


def needs_of(steps: tuple[Step, ...]) -> list[str]:
    return [name for name in dict.fromkeys(n for step in steps for n in step.needs) if name not in INTERNAL]


def derivable(name: str, given: dict[str, Any]) -> bool:
    """Whether the signal is given or follows from what is given."""
    if name in given or name in ("feats", "size", "position", "noise", "valid"):
        return True
    if name == "class_attn":
        return ("attn" in given or ("q" in given and "k" in given)) and prefix_of(given) > 0
    if name in ("prefix", "scale"):
        return "k" in given or "attn" in given
    if name in ("q", "k"):
        return "attn" in given
    return name == "grid" and square(given["x"].shape[1]) is not None


def derive(name: str, given: dict[str, Any]) -> Any:
    """The signal itself, computed from its sources if it is not given; floating point in float32 or better."""
    if name in given:
        value = given[name]
        if name == "weights":
            return {key: weight.to(exact(given["x"])) for key, weight in value.items()}
        return exact(value) if isinstance(value, Tensor) and value.is_floating_point() else value
    x = given["x"]
    if name == "feats":
        return exact(x)
    if name in ("size", "valid"):
        return None
    if name == "position":
        return torch.arange(x.shape[1], device=x.device).expand(x.shape[0], -1)
    if name == "noise":
        return torch.zeros(x.shape[:2], dtype=torch.float32, device=x.device)
    if name == "prefix":
        return prefix_of(given)
    if "attn" in given:
        return from_matrix(name, exact(given["attn"]), prefix_of(given))
    if name == "scale":
        return given["k"].shape[-1] ** -0.5
    if name == "grid":
        return square(x.shape[1])
    return attention.class_row(
        exact(given["q"]), exact(given["k"]), derive("prefix", given), derive("scale", given), given.get("valid")
    )


def from_matrix(name: str, attn: Tensor, prefix: int) -> Any:
    """What a whole attention matrix says in place of q, k and scale: its logarithm as queries and unit vectors as keys,
    whose softmax is the matrix again, so that every statistic has one definition."""
    if name == "class_attn":
        return attn[:, :, 0, prefix:]
    if name == "q":
        return attn.clamp(min=torch.finfo(attn.dtype).tiny).log()
    if name == "k":
        return torch.eye(attn.shape[-1], dtype=attn.dtype, device=attn.device).expand_as(attn)
    return 1.0


def exact(x: Tensor) -> Tensor:
    """float32, or float64 if it is that already: scores of half-precision models are not computed in half precision."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def prefix_of(given: dict[str, Any]) -> int:
    """Number of prefix tokens: given, or what the attention's sequence has more than x."""
    if "prefix" in given:
        return int(given["prefix"])
    sequence = next((given[name].shape[2] for name in ("k", "q", "v", "attn") if name in given), given["x"].shape[1])
    return int(sequence - given["x"].shape[1])


def square(n: int) -> tuple[int, int] | None:
    side = round(n**0.5)
    return (side, side) if side * side == n else None


def with_heads(name: str, value: Any) -> Any:
    """One head is added where the caller has averaged over heads: class_attn [B, N], q, k, v [B, P+N, D]."""
    heads = {"class_attn": 2, "q": 3, "k": 3, "v": 3}
    return value.unsqueeze(1) if isinstance(value, Tensor) and value.dim() == heads.get(name) else value


def check_shapes(signals: dict[str, Any]) -> None:
    """Raise a PruneError that shows both sides where the raw tensors do not fit together."""
    unknown = [name for name in signals if name not in SIGNALS]
    if unknown:
        raise PruneError(f"no signal {', '.join(unknown)}; the signals are {', '.join(SIGNALS)}")
    x = signals.get("x")
    if not isinstance(x, Tensor) or x.dim() != 3:
        raise PruneError(f"x must be a tensor [B, N, C], got {shape_of(x)}")
    b, n = x.shape[:2]
    for name in ("q", "k", "v", "attn"):
        if name in signals and (not isinstance(signals[name], Tensor) or signals[name].dim() != 4):
            raise PruneError(f"{name} must be {SIGNALS[name]}, got {shape_of(signals[name])}")
    prefix = prefix_of(signals)
    expected = {
        **dict.fromkeys("qkv", (b, None, prefix + n, None)),
        "attn": (b, None, prefix + n, prefix + n),
        "class_attn": (b, None, n),
        "feats": (b, n, None),
        "class_token": (b, 1, None),
        "size": (b, n, 1),
        "position": (b, n),
        "text_attn": (b, None, n),
        "noise": (b, None),
        "valid": (b, n),
    }
    for name, shape in expected.items():
        value = signals.get(name)
        if value is None:
            continue
        fits = isinstance(value, Tensor) and value.dim() == len(shape)
        if prefix < 0 or not fits or any(want not in (None, got) for want, got in zip(shape, value.shape, strict=True)):
            raise PruneError(f"{name} must be {SIGNALS[name]}: x is {shape_of(x)}, prefix {prefix}, {name} is {shape_of(value)}")


def shape_of(value: Any) -> str:
    return str(list(value.shape)) if isinstance(value, Tensor) else type(value).__name__
