"""SDPA inputs whose softmax serves score and output: where a site runs attention and a statistic of it on the same queries and keys.

The output costs one product of rows with values more than the statistic alone, instead of a second pass over `q k^T` and its exponentials.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from . import attention_streamed as streamed
from .attention_streamed import Block
from .attention_torch import Rows
from .portable import tracing

ORDERS = (1, 2)
"""Orders of norms and entropies that are sums over exp(logits) or their squares; other orders want logarithms."""

FAINT = 1e-15
"""Attention to all patches together below which float32 no longer knows how it is distributed: squares get lost."""


Weighed = tuple[Block, Tensor, Tensor]
"""A block, exponentials of its logits [n, r, P+N], and what makes softmax of them in each row, [n, r]."""


@dataclass(eq=False)
class Attended:
    """Inputs q, k, v [B, H, P+N, D] of an attention whose output is wanted too, and what a statistic leaves of it: softmax or output.

    Only for CPU tensors without gradients or mask.
    softmax  of a single image in one block: unnormalised weights [H, P+N, P+N], reciprocal row sums [H, P+N], a buffer like the weights.
    whole    the output [B, P+N, H * D] otherwise.
    begun    the block of a single image whose first row has been asked for, for column norms to go on with.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    scale: float
    softmax: tuple[Tensor, Tensor, Tensor] | None = None
    whole: Tensor | None = None
    begun: Weighed | None = None

    @staticmethod
    def possible(v: Tensor) -> bool:
        """Whether attention with these values can share its softmax."""
        usual = v.device.type == "cpu" and v.dtype in (torch.float32, torch.float64)
        return usual and not torch.is_grad_enabled() and not tracing()

    def takes(self, q: Tensor, k: Tensor, scale: float, order: float, *hidden: Tensor | None) -> bool:
        """Whether a statistic can share the softmax: same q, k and scale, nothing masked, an order that is a sum over exponentials."""
        same = q is self.q and k is self.k and scale == self.scale and q.shape == k.shape
        return same and order in ORDERS and all(given is None for given in hidden)

    def output(self, rows: Tensor) -> Tensor | None:
        """Return the attention output [B, L, H * D] of the given rows [B * L] of all images; None if no statistic has made it.

        Of a single image whose softmax fits in a block, the values are mixed only now, for these rows."""
        if self.softmax is not None:
            weight, normal, room = self.softmax
            chosen = torch.index_select(weight, 1, rows, out=room[:, : rows.shape[0]])
            mixed = torch.bmm(chosen, self.v[0]).transpose(0, 1)
            out = mixed.new_empty(mixed.shape)
            torch.mul(mixed, normal.t().index_select(0, rows).unsqueeze(-1), out=out)
            return out.view(1, rows.shape[0], -1)
        if self.whole is None:
            return None
        return self.whole.flatten(0, 1).index_select(0, rows).view(self.v.shape[0], -1, self.whole.shape[2])

    def mix(self, block: Block, weight: Tensor, normal: Tensor) -> bool:
        """Keep the softmax of a block if it is the whole matrix, else multiply its rows with the values: weight [n, r, P+N], normal [n, r].
        Return whether the weight is kept."""
        batch, heads, length, depth = self.v.shape
        if batch == 1 and block.only:
            self.softmax = weight, normal, block.logits if weight is block.spare else block.spare
            return True
        if self.whole is None:
            self.whole = self.v.new_empty(batch, length, heads * depth)
        place = block.place(self.whole.view(batch, length, heads, depth).transpose(1, 2))
        mixed = torch.bmm(weight, block.of(self.v)).view(place.shape)
        torch.mul(mixed, normal.view(place.shape[:3]).unsqueeze(-1), out=place)
        return False

    def first_row(self) -> Tensor | None:
        """Return the softmax row of the first query, [1, H, P+N], of a single image in one block; None otherwise."""
        batch, heads, length, _ = self.q.shape
        if batch > 1 or not streamed.at_once(heads, length, length):
            return None
        self.begun = next(self.weighed(2))
        _, weight, normal = self.begun
        return (weight[:, 0] * normal[:, :1]).unsqueeze(0)

    def weighed(self, order: float) -> Iterator[Weighed]:
        """Iterate over all blocks for column norms of an order; those of order 2 serve order 1 as well."""
        if self.begun is not None:
            yield self.begun
            return
        for block in streamed.blocks(Rows(self.q, self.k, self.scale), order):
            yield block, *block.column_weights(order)

    def columns(self, order: float, start: int) -> Tensor:
        """Compute `attention_streamed.columns` over the rows from `start` on, and keep the softmax or output. -> [B, H, P+N]"""
        sums = self.q.new_zeros(self.q.shape[:3])
        for block, weight, normal in self.weighed(order):
            kept = self.mix(block, weight, normal)
            counted = slice(max(0, start - block.rows.start), None)
            sums = block.add_columns(weight[:, counted], normal[:, counted], order, sums, spare=kept)
        return streamed.root(sums, order)

    def entropies(self, order: float, prefix: int) -> Tensor | None:
        """Compute the entropy of the patch rows over the patch keys, and keep the softmax or output. -> [B, H, N], or None where prefix
        tokens take so much attention that nothing measurable is left for patches.
        """
        found, shares = self.q.new_empty(self.q.shape[:3]), []
        for block in streamed.blocks(Rows(self.q, self.k, self.scale), order):
            block.shift()  # patches may be far below a prefix token: nothing is raised that counts among them
            weight = block.exponentials(spare=order == 1)
            total = weight[..., prefix:].sum(dim=-1)
            others = weight[..., 0] if prefix == 1 else weight[..., :prefix].sum(dim=-1)  # a class token alone needs no sum
            normal = total.add(others).reciprocal_()
            self.mix(block, weight, normal)
            shares.append(total * normal)
            found = block.put(streamed.entropy(block.logits, weight, total, order, prefix), found)
        least = torch.cat([share.flatten() for share in shares]).amin()
        return found[:, :, prefix:] if least >= FAINT else None
