"""The embedded demo model, a ViT-S/14 for the 101 classes of Caltech-101, and a dozen images to run it on.

Weights are int8 with one scale per output channel; README.md beside this file says how they were made and how accurate they are.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor

from ..errors import PruneError

HERE = Path(__file__).parent
WEIGHTS = HERE / "caltech101_vits14_int8.safetensors"
ARCHITECTURE = "vit_small_patch14_dinov2"
IMAGE_SIZE = 224
SCALE = "::scale"
"""Suffix of the tensor that holds the scales of an int8 weight."""


def demo_images() -> Path:
    """Folder with a dozen Caltech-101 images, one folder per class."""
    return HERE / "images"


def demo_weights(path: Path = WEIGHTS) -> tuple[dict[str, Tensor], list[str]]:
    """State dict in float32 (timm names) and class names in the order of the logits; PruneError if the file is damaged."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a dict)
            classes = json.loads(file.metadata()["classes"])
    except (OSError, SafetensorError, KeyError, TypeError) as error:
        raise PruneError(f"the demo weights {path} cannot be read ({error}); install sparsight again") from None
    return dequantise(stored), list(classes)


def quantise(weight: Tensor, shrinks: int = 41) -> tuple[Tensor, Tensor]:
    """int8 weight [O, ...] and scales [O] with the least squared error per output channel."""
    rows = weight.float().flatten(1)
    top = rows.abs().amax(1, keepdim=True).clamp_min(1e-8)
    best = torch.full_like(top, torch.inf)
    scale = top / 127
    for shrink in torch.linspace(1.0, 0.6, shrinks):
        step = top * shrink / 127
        error = (rows - (rows / step).round().clamp(-127, 127) * step).square().sum(1, keepdim=True)
        scale = torch.where(error < best, step, scale)
        best = torch.minimum(error, best)
    whole = (rows / scale).round().clamp(-127, 127).to(torch.int8)
    return whole.view_as(weight).contiguous(), scale.flatten()


def dequantise(stored: dict[str, Tensor]) -> dict[str, Tensor]:
    """Float32 weights from int8 weights [O, ...] times scales [O]; other tensors are only cast."""
    state = {}
    for name, tensor in stored.items():
        if name.endswith(SCALE):
            continue
        scale = stored.get(name + SCALE)
        wide = tensor.float()
        state[name] = wide if scale is None else wide * scale.float().view(-1, *[1] * (wide.dim() - 1))
    return state
