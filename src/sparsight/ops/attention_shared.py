"""Attention and its statistic in one pass, where a site runs both on the same queries and keys: the softmax rows are made once.

The output costs one product of rows with values more than the statistic alone, instead of a second pass over `q k^T` and its exponentials.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from . import attention_streamed as streamed
from . import attention_torch as plain
from .attention_torch import Rows

ORDERS = (1, 2)
"""Orders of norms and entropies that are sums over exp(logits) or their squares; other orders want logarithms."""


FAINT = 1e-15
"""Attention to all patches together below which float32 no longer knows how it is distributed: squares get lost."""


@dataclass(eq=False)
class Attended:
    """An attention of q, k, v [B, H, P+N, D] whose output somebody wants, and the output [B, P+N, H * D] if a statistic of the same q
    and k has made it on the way; None if not. Only for CPU tensors without gradients or mask. doubts: if given, gets whether a statistic can
    be trusted, for the caller to ask later."""

    q: Tensor
    k: Tensor
    v: Tensor
    scale: float
    output: Tensor | None = None
    doubts: list[Tensor] | None = None

    @staticmethod
    def possible(v: Tensor) -> bool:
        """Whether a statistic may make the output of attention with these values."""
        usual = v.device.type == "cpu" and v.dtype in (torch.float32, torch.float64)
        return usual and not torch.is_grad_enabled() and not torch.compiler.is_compiling()

    def takes(self, q: Tensor, k: Tensor, scale: float, order: float) -> bool:
        """Whether a statistic of all rows can be had together with the output: this very attention."""
        return q is self.q and k is self.k and scale == self.scale and order in ORDERS and q.shape == k.shape

    def matrices(self, rows: Rows, heads: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Softmax matrices [b, H, P+N, P+N] and their logits, as many images at a time as fit in a piece; heads gets the output."""
        for image, _, logits in plain.pieces(rows):
            some = slice(image, image + logits.shape[0])
            matrix = logits.softmax(dim=-1)
            heads[some] = matrix @ self.v[some]
            yield matrix, logits

    def sure(self, found: Tensor) -> bool:
        """Whether the statistic can be trusted, or is asked about that later."""
        finite = found.isfinite().all()
        if self.doubts is None:
            return bool(finite)
        self.doubts.append(finite)
        return True

    def columns(self, order: float, start: int) -> Tensor:
        """As `attention_streamed.column_pass` over the rows from `start` on; leaves the output of all rows. -> [B, H, P+N]"""
        rows, (out, heads) = Rows(self.q, self.k, self.scale), empty(self.v)
        if streamed.small(rows):
            parts = [column_sums(matrix[:, :, start:], order) for matrix, _ in self.matrices(rows, heads)]
            self.output = out
            return torch.cat(parts).pow(1 / order)
        total = rows.q.new_zeros(rows.q.shape[0], rows.q.shape[1], 1, rows.k.shape[2])
        for image, some, here, logits, _ in streamed.blocks(rows, order):
            weight = logits.exp_().sum(dim=-1).reciprocal_()
            torch.mul(torch.bmm(logits, self.v[image, some]), weight.unsqueeze(-1), out=heads[image, some, here])
            counted = slice(max(0, start - here.start), None)
            weight, logits = streamed.raised(weight[:, counted], order), streamed.raised(logits[:, counted], order)
            total[image, some].baddbmm_(weight.unsqueeze(1), logits)
        self.output = out
        return total.squeeze(2).pow_(1 / order)

    def entropies(self, order: float, prefix: int) -> Tensor | None:
        """Entropy of the softmax over the patch keys of the patch rows; leaves the output. -> [B, H, N], or None where prefix tokens
        get so much of the attention that nothing measurable is left for patches.
        """
        rows, (out, heads) = Rows(self.q, self.k, self.scale), empty(self.v)
        if streamed.small(rows):
            pairs = self.matrices(rows, heads)
            found = torch.cat([over_patches(matrix[..., prefix:], logits[..., prefix:], order) for matrix, logits in pairs])
            self.output = out
            return found[:, :, prefix:] if self.sure(found) else None
        found = rows.q.new_empty(rows.q.shape[:3])
        spare = None
        for image, some, here, logits, _ in streamed.blocks(rows, order, prefix):
            if order == 1:  # Shannon's wants the logits too
                spare = torch.empty_like(logits) if spare is None or spare.shape != logits.shape else spare
                weight = torch.exp(logits, out=spare)
            else:
                weight = logits.exp_()
            total = weight[..., prefix:].sum(dim=-1)
            whole = total + weight[..., :prefix].sum(dim=-1) if prefix else total
            torch.mul(torch.bmm(weight, self.v[image, some]), whole.reciprocal().unsqueeze(-1), out=heads[image, some, here])
            if order == 2:
                entropy = 2 * (total.log() - torch.linalg.vector_norm(weight[..., prefix:], dim=-1).log())
            else:
                entropy = total.log() - logits.mul_(weight)[..., prefix:].sum(dim=-1) / total
            found[image, some, here] = entropy.masked_fill_(total < FAINT, math.nan)
        self.output = out
        return found[:, :, prefix:] if self.sure(found) else None


def column_sums(matrix: Tensor, order: float) -> Tensor:
    """Sum of powers down the columns, as a product with ones, which is faster. Uses the matrix up. [b, H, R, K] -> [b, H, K]"""
    ones = matrix.new_ones(matrix.shape[0] * matrix.shape[1], 1, matrix.shape[2])
    return torch.bmm(ones, streamed.raised(matrix, order).flatten(0, 1)).view(*matrix.shape[:2], -1)


def over_patches(matrix: Tensor, logits: Tensor, order: float) -> Tensor:
    """Entropy of rows whose weights add up to less than 1, made to add up to 1; not a number where they are too faint. Uses the logits up.
    [b, H, R, N] -> [b, H, R]"""
    total = matrix.sum(dim=-1)
    if order == 2:
        entropy: Tensor = 2 * (total.log() - torch.linalg.vector_norm(matrix, dim=-1).log())
    else:
        lse = logits.amax(dim=-1) - matrix.amax(dim=-1).log()
        entropy = total.log() + lse - logits.mul_(matrix).sum(dim=-1) / total
    return entropy.masked_fill_(total < FAINT, math.nan)


def empty(v: Tensor) -> tuple[Tensor, Tensor]:
    """Room for the output, as [B, P+N, H * D] and, the same memory, by heads [B, H, P+N, D]."""
    batch, heads, length, depth = v.shape
    out = v.new_empty(batch, length, heads * depth)
    return out, out.view(batch, length, heads, depth).transpose(1, 2)
