"""What `Handle.restore` does: check the tokens against the last forward, set the prefix aside, fill the grid."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .errors import PruneError


def restore(engine: Any, tokens: Tensor, after: int | None = None, as_map: bool = False) -> Tensor:
    """Tokens [B, P+K, C] or [B, K, C] that leave block `after` (default: the model), on the full grid; see `Handle.restore`."""
    if not hasattr(engine, "restore"):
        kind = type(engine.model).__name__
        raise PruneError(f"restore fills the patch grid of a vision model; {kind} drops tokens on the way to a language model")
    family, state = engine.family, engine.states.last()
    kind, depth = type(family.model).__name__, len(family.blocks)
    if after is not None and not -depth <= after < depth:
        raise PruneError(f"after={after} is no block of {kind}; it has blocks 0 to {depth - 1}")
    after = depth - 1 if after is None else after % depth
    if state is None:
        raise PruneError(f"{kind} has not run since it was pruned; call it before restore")
    h, w = family.grid_of(state)
    before = state.before(after + 1)
    left = h * w if before is None else before.plan.slots
    prefix = tokens.shape[1] - left if tokens.dim() == 3 else -1
    if prefix not in (0, family.prefix):
        raise PruneError(
            f"tokens after block {after} must be [B, {left}, C], or [B, {family.prefix + left}, C] with the prefix tokens; "
            f"got {list(tokens.shape)}; tokens of an earlier block need after=BLOCK"
        )
    full: Tensor = engine.restore(state, tokens[:, prefix:], after)
    if as_map:
        return full.transpose(1, 2).reshape(full.shape[0], -1, h, w)
    return torch.cat([tokens[:, :prefix], full], dim=1) if prefix else full
