"""Patches as pixels: the picture that the model sees, and where each patch went."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from ..data.reading import Transform
from ..load.answers import check_finite
from ..plan import Plan
from ..prune import prune
from ..recipe import Recipe

Pixels = NDArray[np.uint8]
Asked = TypeVar("Asked")

WHITE = (255, 255, 255, 215)
FUSED = (0, 114, 178)
GROUPS = ((230, 159, 0), (86, 180, 233), (0, 158, 115), (213, 94, 0), (204, 121, 167), (240, 228, 66), (0, 114, 178))
"""Okabe and Ito's colours, which stay apart under colour blindness."""
STRENGTH = 165


@dataclass(frozen=True, eq=False)
class Look:
    """What happened to one image at one site.

    owner [h, w]: slot of every patch of the image, -1 if dropped; fused: slots that hold fused tokens; score [h, w]: NaN where no
    token was left, None for methods without a score. layer: -1 before the first block, -2 the image; place: what a layer is called here.
    """

    layer: int
    tokens: int
    owner: NDArray[np.int64]
    fused: frozenset[int]
    score: NDArray[np.float64] | None
    place: str = "block"

    @property
    def title(self) -> str:
        return "image" if self.layer < -1 else "input" if self.layer < 0 else f"{self.place} {self.layer}"

    @property
    def smaller(self) -> bool:
        """Whether the picture itself was made smaller."""
        return self.layer < -1

    @property
    def noun(self) -> str:
        """What tokens are before anything has happened to them."""
        return "patches" if self.place == "block" else "visual tokens"

    @property
    def shared(self) -> list[int]:
        """Slots of several patches."""
        slots, members = np.unique(self.owner[self.owner >= 0], return_counts=True)
        return [int(slot) for slot in slots[members > 1]]


def look(model: nn.Module, recipe: Recipe, images: Tensor) -> list[list[Look]]:
    """Prune, run, and say for every image [B, 3, H, W] what happened at each site."""
    return look_and_ask(model, recipe, images, model)[0]


def look_and_ask(
    model: nn.Module, recipe: Recipe, images: Tensor, ask: Callable[[Tensor], Asked]
) -> tuple[list[list[Look]], Asked]:
    """The same, and what `ask` makes of the images by the pruned model."""
    with torch.inference_mode(), prune(model, recipe) as handle:
        found = ask(images)
        check_finite(found, f"the model under {recipe}")
        plans, scores, grid, layers = handle.sources(), handle.scores, handle.grid, handle.layers
    return [looks(item, plans, scores, layers, grid) for item in range(len(images))], found


def looks(item: int, plans: list[Plan], scores: list[Tensor | None], layers: list[int], grid: tuple[int, int]) -> list[Look]:
    found = []
    before: Plan | None = None
    for plan, score, layer in zip(plans, scores, layers, strict=True):
        owner = plan.owner[item].cpu().numpy().reshape(grid)
        heat = None if score is None else spread(before, score, item).reshape(grid)
        places = {plan.slots - 1} if plan.fused else set()
        places |= set(torch.nonzero(plan.keep[item] < 0).flatten().tolist())
        found.append(Look(layer, plan.counts[item], owner, frozenset(places), heat))
        before = plan
    return found


def spread(before: Plan | None, score: Tensor, item: int) -> NDArray[np.float64]:
    """A score of the tokens present, given to the patches that they stand for; NaN for patches dropped before."""
    s = score.double().cpu()
    if before is not None:
        plan = Plan(before.keep.cpu(), before.total, before.owner.cpu(), before.fused)
        s = plan.spread(s.unsqueeze(-1), fill=float("nan")).squeeze(-1)
    values: NDArray[np.float64] = s[item].numpy()
    return values


def tint(site: Look) -> Pixels:
    """One RGBA pixel per patch to be laid over the image: kept ones clear, dropped ones white, shared slots in colour."""
    layer = np.zeros((*site.owner.shape, 4), np.uint8)
    layer[site.owner < 0] = WHITE
    for turn, slot in enumerate(site.shared):
        colour = FUSED if slot in site.fused else GROUPS[turn * 3 % len(GROUPS)]
        layer[site.owner == slot] = (*colour, STRENGTH)
    return layer


def pictures(images: Tensor, transform: Transform) -> list[Image.Image]:
    """Images [B, 3, H, W] as the model gets them, turned back into pictures.

    Black and white through the same transform tell how it shifts and scales each channel, whatever it is made of.
    """
    black, white = (transform(Image.new("RGB", (320, 320), c)).mean(dim=(1, 2)).view(3, 1, 1) for c in ("black", "white"))
    pixels = ((images.float().cpu() - black) / (white - black)).clamp(0, 1).mul(255).round().byte()
    return [Image.fromarray(p.permute(1, 2, 0).numpy()) for p in pixels]
