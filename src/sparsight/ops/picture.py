"""Pictures made smaller."""

from __future__ import annotations

import torch
from torch import Tensor


def shrunk(pictures: Tensor, size: tuple[int, int]) -> Tensor:
    """Pictures [B, C, H, W] at the size (h, w) in pixels: bicubic with antialiasing, computed in float32."""
    made = torch.nn.functional.interpolate(pictures.float(), size, mode="bicubic", antialias=True)
    return made.to(pictures.dtype)
