"""What a training step holds in memory, from shapes alone: nothing is computed."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..prune import prune
from ..recipe import Recipe
from ..speed.macs import skeleton


@dataclass(frozen=True)
class Memory:
    """Bytes of one process. weights: all copies of the weights with their gradients, moments and average; activations: what autograd keeps."""

    weights: int
    activations: int

    @property
    def total(self) -> int:
        return self.weights + self.activations

    def __str__(self) -> str:
        return f"{self.total / 1e9:.2f} GB (weights, gradients and optimiser {self.weights / 1e9:.2f}, activations {self.activations / 1e9:.2f})"


def estimate(
    model: nn.Module,
    recipe: Recipe | None,
    image_size: tuple[int, int],
    images: int,
    *,
    teacher: bool = False,
    average: bool = False,
    half: bool = False,
    checkpointing: bool = False,
    training: bool = True,
) -> Memory:
    """Memory of a step of so many images in one forward. AdamW's two moments are assumed; half precision halves the activations;
    recomputed activations are counted as those of one block in four."""
    own = sum(p.numel() * p.element_size() for p in model.parameters())
    moved = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    kept = saved(model, recipe, image_size, training) * images
    kept = kept // 2 if half else kept
    return Memory(own * (1 + teacher + average) + 3 * moved, kept // 4 if checkpointing else kept)


def saved(model: nn.Module, recipe: Recipe | None, image_size: tuple[int, int], training: bool) -> int:
    """Bytes that autograd keeps of one image's forward, weights left out."""
    shell = skeleton(model, image_size)
    shell.train(training)
    if recipe is not None:
        prune(shell, recipe, weights="random" if recipe.weights else None)
    known = {parameter.untyped_storage()._cdata for parameter in shell.parameters()}
    found: dict[int, tuple[int, object]] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in known:
            found[storage._cdata] = storage.nbytes(), storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), torch.enable_grad():
        shell(torch.zeros(1, 3, *image_size, device="meta"))
    return sum(size for size, _ in found.values())
