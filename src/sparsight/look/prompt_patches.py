"""Where in a picture the visual tokens of a prompt lie, and what became of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ..prune import Handle
from .patches import Look, pictures


def prompt_looks(handle: Handle, views: Sequence[Tensor]) -> list[list[Look]]:
    """What happened to the first image's tokens at each site, view by view."""
    sites, owner = [], None
    single = len(views) == 1
    for plan, score, layer in zip(handle.plans, handle.scores, handle.layers):  # of several images the first
        own = plan.owner[0].cpu()
        heat = None if score is None or not single else spread(score[0], owner, views[0])
        owner = own if owner is None else torch.where(owner < 0, -1, own[owner.clamp(min=0)])
        fused = {plan.slots - 1} if plan.fused else set()
        fused |= set(torch.nonzero(plan.keep[0].cpu() < 0).flatten().tolist())
        grids = [torch.where(view < 0, -1, owner[view.clamp(min=0)]).numpy() for view in views]
        place = "layer" if handle.recipe.where == "decoder" else "encoder"
        sites.append([Look(layer, int(plan.slots), grid, frozenset(fused), heat, place) for grid in grids])
    return sites


def spread(score: Tensor, owner: Tensor | None, view: Tensor) -> NDArray[np.float64] | None:
    """A score of the tokens that were there [n], on the grid of a view; NaN where none was. None if it is not theirs."""
    values = score.double().cpu()
    if owner is not None:
        values = torch.where(owner < 0, torch.nan, values[owner.clamp(min=0)]) if int(owner.max()) < len(values) else values
    if len(values) == view.numel():
        return values.view(view.shape).numpy()
    return values[view].numpy() if len(values) > int(view.max()) else None


def model_picture(processor: Any, picture: Image.Image) -> Image.Image:
    """The picture as the model gets it; in tiles or at its own size: as it is."""

    def transform(image: Image.Image) -> Tensor:
        pixels: Tensor = processor.image_processor(images=image, return_tensors="pt")["pixel_values"][0]
        return pixels

    pixels = transform(picture)
    return pictures(pixels.unsqueeze(0), transform)[0] if pixels.dim() == 3 else picture
