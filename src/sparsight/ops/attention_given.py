"""Normalise the inputs of attention statistics: masks, padding, precision."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import PruneError
from . import attention_torch as plain


def real(valid: Tensor | None, k: Tensor) -> Tensor | None:
    """Expand a padding mask [B, N] to [B, P+N]; prefix tokens are never padding."""
    if valid is None or valid.dim() != 2:
        return valid
    return torch.nn.functional.pad(valid, (max(0, k.shape[2] - valid.shape[1]), 0), value=True)


def visible(q: Tensor, k: Tensor, mask: Tensor | None, valid: Tensor | None) -> Tensor | None:
    """Merge attention mask and padding mask into one, expanded (not copied) to [B, H, P+N, P+N]. Raises PruneError if it does not fit."""
    if q.shape[1] % k.shape[1]:
        raise PruneError(f"{q.shape[1]} query heads cannot share {k.shape[1]} key heads: not a multiple")
    shape = (*q.shape[:3], k.shape[2])
    if valid is not None:
        if valid.shape != (q.shape[0], k.shape[2]) or valid.dtype != torch.bool:
            raise PruneError(f"valid must be bool [B, P+N] = {[q.shape[0], k.shape[2]]}, got {valid.dtype} {list(valid.shape)}")
        seen = valid[:, None, None]
        mask = seen if mask is None else mask & seen if mask.dtype == torch.bool else mask.masked_fill(~seen, plain.FLOOR)
    if mask is None:
        return None
    try:
        return mask.expand(shape)
    except RuntimeError:
        raise PruneError(f"mask {list(mask.shape)} does not expand to [B, H, P+N, P+N] = {list(shape)}") from None


def exact(x: Tensor) -> Tensor:
    """Cast to float32; float32 and float64 stay as they are."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()
