"""Multiply-accumulates of a pruned model, counted on the meta device, and the closed formula to check them with."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import wraps
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ..errors import PruneError
from ..ops import select
from ..ops.schedule import Schedule
from ..prune import prune, resolve
from ..recipe import Recipe, Step

Convention = Literal["all", "published"]

NORM_COST = 5
"""Multiply-accumulates per normalised element in the published tables (fvcore's rule for LayerNorm)."""


Forward = Callable[[Any, Tensor], object]
"""Calls a model with images [1, 3, H, W]."""


def as_model(model: Any, images: Tensor) -> object:
    """The ordinary call."""
    return model(images)


def macs(
    model: nn.Module | str,
    recipe: Recipe | str | None = None,
    image_size: int | tuple[int, int] = 224,
    *,
    convention: Convention = "all",
    counts: Sequence[Any] | None = None,
    forward: Forward = as_model,
) -> int:
    """Multiply-accumulates per image, from torch.utils.flop_counter on the meta device; attention inside SDPA is counted.

    model: a module (it is copied, not touched) or a timm name (no weights are loaded). recipe None = as the model is now.
    convention "all" counts every matrix product that runs, the score's own included; where tokens are chosen by q and k alone, a
    site's attention runs for the survivors only. "published" counts as the tables of the token pruning papers do (fvcore): LayerNorm
    at 5 per element is added, the attention is whole, and the score is free because it reads that attention's matrix.
    counts: for adaptive methods, `Handle.counts` of a forward on real images, whose means count. forward: how the
    model is called with the images. Raises PruneError as `prune` does.
    """
    if convention not in ("all", "published"):
        raise PruneError(f"convention={convention!r} is not known; choose all or published")
    if recipe is not None:
        recipe = resolve(recipe, {})
        recipe = typical(recipe, counts) if recipe.adaptive else recipe
    shell = skeleton(model, image_size)
    counter = FlopCounterMode(display=False)
    free, norms = [0], [0]
    if recipe is not None:
        install(shell, metered(recipe, counter, free) if convention == "published" else recipe, convention)
    if convention == "published":
        for module in shell.modules():
            if isinstance(module, nn.LayerNorm):
                module.register_forward_hook(lambda _m, _a, out: norms.__setitem__(0, norms[0] + out.numel()))
    h, w = image_size if isinstance(image_size, tuple) else (image_size, image_size)
    images = torch.zeros(1, 3, h, w, device="meta", dtype=next(shell.parameters()).dtype)
    with torch.no_grad(), counter:
        try:
            forward(shell, images)
        except (AssertionError, ValueError) as error:
            if isinstance(error, PruneError):
                raise
            raise PruneError(f"{type(shell).__name__} does not take images of {h} x {w}: {error}") from None
    return int(counter.get_total_flops() - free[0]) // 2 + NORM_COST * norms[0]


def install(model: nn.Module, recipe: Recipe, convention: Convention) -> None:
    """Prune the model; weights that a method learns are only counted. Published numbers have the attention of every site whole."""
    handle = prune(model, recipe, weights="random" if recipe.weights else None)
    for site in handle.sites:
        site.early = site.early and convention == "all"


def skeleton(model: nn.Module | str, image_size: int | tuple[int, int]) -> nn.Module:
    """A copy of the model without data, on the meta device, in evaluation mode."""
    if isinstance(model, str):
        model = named(model, image_size)
    memo: dict[int, Any] = {}
    for tensor in (*model.parameters(), *model.buffers()):
        empty = torch.empty_like(tensor, device="meta")
        memo[id(tensor)] = nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty
    plain = [value for module in model.modules() for value in vars(module).values() if isinstance(value, Tensor)]
    memo |= {id(tensor): torch.empty_like(tensor, device="meta") for tensor in plain}
    return copy.deepcopy(model, memo).eval()


def named(name: str, image_size: int | tuple[int, int]) -> nn.Module:
    """A model by name: timm architectures are built without weights and for the image size; all else is loaded."""
    from ..load.models import check_timm_name, load, need

    if name == "demo" or any(sign in name for sign in ":@/\\"):
        return load(name).model
    timm = need("timm", name)
    check_timm_name(timm, name, pretrained=False)
    with torch.device("meta"):
        try:
            model = timm.create_model(name, img_size=image_size)
        except TypeError:  # architectures that take any size have no such argument
            model = timm.create_model(name)
    assert isinstance(model, nn.Module)
    return model


def typical(recipe: Recipe, counts: Sequence[Any] | None) -> Recipe:
    """The recipe with the mean count of an adaptive one as a fixed budget."""
    if not counts:
        raise PruneError(
            f"{recipe.name} leaves a different number of tokens in each image, so its MACs depend on the images: run some, and give "
            "counts=handle.counts; `sparsight compare` does that"
        )
    budget = Schedule(recipe.schedule.layers, tokens=tuple(mean_counts(counts)))
    return replace(recipe, select=Step(select.topk), schedule=budget, adaptive=False)


def mean_counts(counts: Sequence[Any]) -> list[int]:
    """`Handle.counts` with the mean over the images, to the nearest whole number, where they differ."""
    return [max(1, round(sum(n) / len(n))) if isinstance(n, list) else int(n) for n in counts]


def metered(recipe: Recipe, counter: FlopCounterMode, free: list[int]) -> Recipe:
    """The recipe with the cost of scoring and selecting added up in `free`, to be taken off again."""

    def meter(step: Step) -> Step:
        @wraps(step.function)
        def metered_step(*args: Any, **kwargs: Any) -> Any:
            before = counter.get_total_flops()
            result = step.function(*args, **kwargs)
            free[0] += counter.get_total_flops() - before
            return result

        return Step(metered_step, **dict(step.numbers))

    score, select = recipe.score, recipe.select
    assert isinstance(select, Step)
    return replace(recipe, score=meter(score) if isinstance(score, Step) else None, select=meter(select))


def vit_macs(
    width: int,
    attended: Iterable[int],
    processed: Iterable[int],
    *,
    patches: int,
    patch: int = 16,
    mlp_ratio: float = 4.0,
    classes: int = 1000,
    norm_cost: int = 0,
    final: int | None = None,
) -> int:
    """Multiply-accumulates of a plain ViT by formula.

    attended[l], processed[l]: tokens (prefix included) that enter the attention and the MLP of block l; they differ where
    tokens leave between the two. norm_cost is counted per element of every LayerNorm, also of the last one, which `final` tokens
    enter (those of the last MLP if not given).
    """
    total = patches * 3 * patch * patch * width
    last = 0
    for a, m in zip(attended, processed, strict=True):
        total += 4 * a * width * width + 2 * a * a * width + int(2 * mlp_ratio * m * width * width)
        total += norm_cost * (a + m) * width
        last = m
    return total + norm_cost * (last if final is None else final) * width + width * classes


def walk(
    depth: int, patches: int, prefix: int, after: Callable[[int, int], int], where: str = "attn"
) -> tuple[list[int], list[int], int]:
    """Tokens entering attention and MLP of every block, and the last norm, when block l leaves `after(l, n)` of its n patches."""
    attended, processed = [], []
    n = patches
    for layer in range(depth):
        attended.append(n + prefix)
        left = after(layer, n)
        processed.append((left if where == "attn" else n) + prefix)
        n = left
    return attended, processed, n + prefix
