"""Sites that choose by queries and keys: they do so before the block's attention, of which then only the survivors' rows are made."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from ..ops.attention_shared import Attended
from .family import Family
from .heads import join_heads, split_heads
from .site import Site
from .state import ForwardState

if TYPE_CHECKING:
    from .engine import PatchedBlock

Heads = tuple[Tensor, Tensor, Tensor]


class Opened(Family):
    """A family whose attention can be taken apart into its own sub-modules: queries, keys and values, and what follows their mixing."""

    @abstractmethod
    def opens(self, block: nn.Module) -> bool:
        """Whether the attention is the usual one and nobody listens to it, so that its parts may stand for the whole."""

    @abstractmethod
    def project(self, block: nn.Module, x: Tensor, kwargs: dict[str, Any]) -> Heads:
        """q, k, v [B, H, P+N, D] of the block's attention for the block's input x [B, P+N, C] and what it got besides."""

    @abstractmethod
    def close(self, block: nn.Module, x: Tensor, mixed: Tensor) -> Tensor:
        """x [B, L, C] plus the attention branch, of which mixed [B, L, H * D] are the values mixed by attention."""

    @abstractmethod
    def dropout(self, block: nn.Module) -> float:
        """Rate of the attention's own dropout, as it is now."""


def select_first(
    patched: PatchedBlock, state: ForwardState, site: Site, x: Tensor, bias: Tensor | None, kwargs: dict[str, Any]
) -> Tensor | None:
    """Select by q and k before attention; compute attention for the kept queries only. x [B, P+N, C] -> the survivors with their
    attention branch [B, P+K, C]; None where the choice has to wait."""
    engine, block, before = patched.engine, patched.block, state.before(patched.index)
    family = engine.family
    if not isinstance(family, Opened) or not family.opens(block):
        return None
    if (before is not None and before.valid is not None) or (bias is not None and bias.shape[2] > 1):
        return None
    q, k, v = family.project(block, x, kwargs)
    for name in ("q", "k", "v"):  # hooks have kept what the projections made
        state.heard.pop(name, None)
    engine.note(state, patched.index, {"q": q, "k": k})
    rate, scale, prefix = family.dropout(block), family.scale(block), family.prefix
    shares = site.shares and bias is None and rate == 0 and Attended.possible(v)
    shared = Attended(q, k, v, scale) if shares else None
    plan = engine.visit(state, site, block, x[:, prefix:], {"q": q, "k": k, "v": v, "attended": shared})[1]
    rows = plan.index(x.shape[1], prefix)
    mixed = None if shared is None else shared.output(rows)
    if mixed is None:
        queries = split_heads(plan.gather(join_heads(q), prefix, rows), q.shape[1])
        mixed = join_heads(nn.functional.scaled_dot_product_attention(queries, k, v, attn_mask=bias, dropout_p=rate, scale=scale))
    return family.close(block, plan.gather(x, prefix, rows), mixed)


def unheard(module: nn.Module) -> bool:
    """Whether a module runs as its class says: no hooks of others, no forward put over its own."""
    return not (module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or "forward" in module.__dict__)
