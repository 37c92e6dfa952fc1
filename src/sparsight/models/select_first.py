"""Sites that choose by queries and keys: they do so before the block's attention, of which then only the survivors' rows are made."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from torch import Tensor, nn

from ..ops.attention_shared import Attended
from ._line import Line
from .family import Family
from .heads import join_heads, split_heads
from .site import Site

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

    def attend_early(self, site: Site, block: nn.Module, index: int, x: Tensor, kwargs: Any, line: Line | None) -> Tensor | None:
        """The block up to its site: the survivors with their attention branch, [B, P+K, C]; None where the choice has to wait."""
        bias = self.bias(index, x) if line is None or line.biased else None
        if site.ragged or (line is None and not self.opens(block)) or (bias is not None and bias.shape[2] > 1):
            return None
        runs = line or self
        q, k, v = runs.project(block, x, kwargs)
        if line is None:
            for module in self.taps(block).values():
                module.__dict__.pop("_sparsight_out", None)
        self.note(index, {"q": q, "k": k})
        rate, scale = self.dropout(block) if line is None else 0.0, self.scale(block)
        shares = site.shares and bias is None and rate == 0 and Attended.possible(v)
        shared = Attended(q, k, v, scale, doubts=site.doubts) if shares else None
        plan = self.decide(site, block, x, {"q": q, "k": k, "v": v, "attended": shared})[1]
        rows = plan.index(x.shape[1], self.prefix)
        mixed = None if shared is None else shared.output(rows)
        if mixed is None:
            queries = split_heads(plan.gather(join_heads(q), self.prefix, rows), q.shape[1])
            mixed = join_heads(
                nn.functional.scaled_dot_product_attention(queries, k, v, attn_mask=bias, dropout_p=rate, scale=scale)
            )
        return runs.close(block, plan.gather(x, self.prefix, rows), mixed)


def unheard(module: nn.Module) -> bool:
    """Whether a module runs as its class says: no hooks of others, no forward put over its own."""
    return not (module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or "forward" in module.__dict__)
