"""What is added to the attention logits of blocks behind a site: how many patches a key stands for, what is padding, what is hidden."""

from __future__ import annotations

import torch
from torch import Tensor

from .site import Site

HIDDEN = 1e-12
"""Weight that a hidden token keeps: it is not seen, but the mask has a gradient."""


def key_bias(before: list[Site], prefix: int, x: Tensor) -> Tensor | None:
    """For the keys that arrive at a block, [B, 1, 1, P+N]: log(size) if an earlier site merged proportionally, -inf for padding.
    Where a site hides tokens in training instead of dropping them, [B, 1, P+N, P+N]: every token still sees itself."""
    if any(site.hiding for site in before):
        policy = before[-1].size
        assert policy is not None
        log = torch.nn.functional.pad((policy.squeeze(-1) + HIDDEN).log(), (prefix, 0))[:, None, None]
        itself = torch.eye(log.shape[-1], dtype=torch.bool, device=log.device)
        return log.masked_fill(itself, 0).to(x.dtype)
    weight = before[-1].weight(any(site.proportional for site in before)) if before else None
    if weight is None:
        return None
    log = torch.nn.functional.pad(weight.squeeze(-1).log(), (prefix, 0))
    return log[:, None, None].to(x.dtype)
