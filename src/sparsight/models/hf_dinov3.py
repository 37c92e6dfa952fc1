"""transformers' DINOv3 ViT: class token, registers, rotary positions of the patches.

The rows of the rotary tables follow the tokens that are left; a token fused of many is not rotated, as prefix tokens are not.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .hf_vit import HFDinov2
from .positions import take_rows
from .select_first import Heads
from .state import ForwardState

TABLES = "position_embeddings"
"""What layers get besides x: rows of cosines and sines for the patches."""


class HFDinov3(HFDinov2):
    """DINOv3ViTModel: pre-norm blocks with LayerScale and drop path, plain or gated MLP."""

    name = "transformers DINOv3"
    classes = ("DINOv3ViTModel",)
    inner, layers = "", "model.layer"
    positional = True

    def follow(self, index: int, kwargs: dict[str, Any], place: Tensor | None, state: ForwardState) -> dict[str, Any]:
        if place is None:
            return kwargs
        cos, sin = kwargs[TABLES]
        rows = state.once(TABLES, (cos, sin, place), lambda: (take_rows(cos, place, 1.0), take_rows(sin, place, 0.0)))
        return {**kwargs, TABLES: rows}

    def project(self, block: nn.Module, x: Tensor, kwargs: dict[str, Any]) -> Heads:
        q, k, v = super().project(block, x, kwargs)
        return rotated(q, kwargs[TABLES]), rotated(k, kwargs[TABLES]), v

    def heard(self, block: nn.Module, tapped: dict[str, Tensor], kwargs: dict[str, Any]) -> dict[str, Tensor]:
        return {
            name: value if name == "v" else rotated(value, kwargs[TABLES])
            for name, value in super().heard(block, tapped, kwargs).items()
        }


def rotated(x: Tensor, tables: tuple[Tensor, Tensor]) -> Tensor:
    """x [B, H, P+N, D] with its last N tokens rotated: halves (a, b) of D become (a, b) * cos + (-b, a) * sin."""
    cos, sin = tables
    first = x.shape[2] - cos.shape[-2]
    prefix, patches = x[:, :, :first], x[:, :, first:]
    a, b = patches.chunk(2, dim=-1)
    return torch.cat([prefix, torch.addcmul(patches * cos, torch.cat([-b, a], dim=-1), sin)], dim=2)
