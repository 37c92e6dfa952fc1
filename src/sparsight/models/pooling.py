"""Averages over tokens that stand for different numbers of patches."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .state import ForwardState


def last_size(model: Any) -> Tensor | None:
    """How many patches each token stands for where the model pools, 0 for padding: [B, K, 1]; None if one for all."""
    state: ForwardState | None = model._sparsight.states.current()
    return None if state is None else state.size


def weighed(x: Tensor, size: Tensor, prefix: int) -> Tensor:
    """x [B, P+K, C] with the patch tokens scaled so that their plain mean is the mean weighted by size [B, K, 1]."""
    size = size.to(torch.promote_types(size.dtype, x.dtype))
    weight = (size * size.shape[1] / size.sum(dim=1, keepdim=True)).to(x.dtype)
    return torch.cat([x[:, :prefix], x[:, prefix:] * weight], dim=1)
