"""How complex an image is: effective rank of its features, entropy of its attention."""

from __future__ import annotations

import torch
from torch import Tensor


def effective_rank(x: Tensor) -> Tensor:
    """exp of the entropy of the singular values over their sum: from 1 to min(N, D). x [..., N, D] -> [...], float64.

    Not centred, rows not normalised. Singular values are roots of the eigenvalues of the smaller Gram matrix, in float64 because
    squaring costs half the digits. Zeros, as a tensor of nothing but zeros has, count 1; of NaN or infinities the rank is NaN.
    Roy & Vetterli, EUSIPCO 2007.
    """
    x = wide(x)
    gram = x @ x.transpose(-2, -1) if x.shape[-2] <= x.shape[-1] else x.transpose(-2, -1) @ x
    bad = ~gram.isfinite().all(dim=-1).all(dim=-1)  # which LAPACK refuses
    singular = torch.linalg.eigvalsh(gram.masked_fill(bad[..., None, None], 0)).clamp(min=0).sqrt()
    return entropy(singular).exp().masked_fill(bad, torch.nan)


def attention_entropy(attention: Tensor) -> Tensor:
    """Entropy in nats of attention over the patches, renormalised to sum 1. attention [..., N] -> [...], float64."""
    return entropy(wide(attention))


def entropy(weights: Tensor) -> Tensor:
    """Entropy in nats of non-negative weights over the last dimension, normalised to sum 1; zeros add nothing."""
    share = weights / weights.sum(dim=-1, keepdim=True).clamp(min=torch.finfo(weights.dtype).tiny)
    total: Tensor = torch.special.entr(share).sum(dim=-1)
    return total


def wide(x: Tensor) -> Tensor:
    """float64, or float32 on devices that have no float64."""
    return x.to(torch.float32 if x.device.type == "mps" else torch.float64)
