"""What is added to the attention logits of blocks behind a site: how many patches a key stands for, what is padding, what is hidden."""

from __future__ import annotations

import torch
from torch import Tensor

from ..ops.portable import diagonal
from .state import SiteOutcome

HIDDEN = 1e-12
"""Weight that a hidden token keeps: it is not seen, but the mask has a gradient."""


def key_bias(before: SiteOutcome | None, proportional: bool, prefix: int, x: Tensor) -> Tensor | None:
    """For the keys that arrive at a block, [B, 1, 1, P+N]: log(size) if an earlier site merged proportionally, -inf for padding.
    Where a site hides tokens in training instead of dropping them, [B, 1, P+N, P+N]: every token still sees itself."""
    if before is None:
        return None
    if hides(before):
        assert before.size is not None
        log = torch.nn.functional.pad((before.size.squeeze(-1) + HIDDEN).log(), (prefix, 0))[:, None, None]
        itself = diagonal(log.shape[-1], log.device)
        return log.masked_fill(itself, 0).to(x.dtype)
    weight = before.weight(proportional)
    if weight is None:
        return None
    log = torch.nn.functional.pad(weight.squeeze(-1).log(), (prefix, 0))
    return log[:, None, None].to(x.dtype)


def hides(outcome: SiteOutcome) -> bool:
    """Whether tokens have been hidden instead of dropped, here or earlier."""
    return outcome.hiding or (outcome.previous is not None and hides(outcome.previous))
