"""Statistics of softmax attention from queries and keys, without keeping the [B, H, N, N] matrix.

Shapes everywhere: q, k [B, H, P+N, D], prefix tokens (class, distillation, register) first; scale multiplies the logits.
The matrix is made in pieces that fit the processor's cache and is thrown away piece by piece.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Literal

import torch
from torch import Tensor

Heads = Literal["mean", "joint", "average"]
Rows = Literal["all", "patches"]

PIECE = 1 << 19
"""Matrix elements per piece: 2 MiB of float32, about one core's second-level cache."""


def class_row(q: Tensor, k: Tensor, prefix: int, scale: float, valid: Tensor | None = None) -> Tensor:
    """Attention that the class token (position 0) pays to every patch, of the softmax over all keys; not renormalised.
    q, k [B, H, P+N, D] -> [B, H, N]; 0 where valid [B, N] says that there is padding."""
    row = (q[:, :, :1] * scale) @ k.transpose(-2, -1)
    if valid is not None:
        padding = torch.nn.functional.pad(~valid, (prefix, 0))
        row = row.masked_fill(padding[:, None, None], float("-inf"))
    return row.softmax(dim=-1)[:, :, 0, prefix:]


def column_norm(q: Tensor, k: Tensor, prefix: int, scale: float, order: float, heads: Heads, rows: Rows, diagonal: bool) -> Tensor:
    """p-norm of the attention column of every patch: ||A_:j||_p, columns not normalised. q, k [B, H, P+N, D] -> [B, N].

    heads: "mean" of the per-head norms, "joint" norm over heads and rows, norm of the "average" matrix.
    rows: query rows of the "patches" alone or of "all" tokens. diagonal: whether A_jj counts.
    """
    first = prefix if rows == "patches" else 0

    def powers(piece: Tensor, start: int) -> Tensor:
        columns = piece[..., prefix:]
        if not diagonal:
            columns = columns.masked_fill(own_column(columns, start, prefix), 0)
        if heads == "average":
            columns = columns.mean(dim=1, keepdim=True)
        if math.isinf(order):
            return columns.amax(dim=-2)
        return columns.square().sum(dim=-2) if order == 2 else columns.pow(order).sum(dim=-2)

    join = torch.maximum if math.isinf(order) else torch.add
    total = over_pieces(q[:, :, first:] * scale, k, first, lambda s, start: powers(s.softmax(-1), start), join)
    if math.isinf(order):
        return total.amax(dim=1) if heads == "joint" else total.mean(dim=1)
    return total.sum(dim=1).pow(1 / order) if heads == "joint" else total.pow(1 / order).mean(dim=1)


def row_entropy(q: Tensor, k: Tensor, prefix: int, scale: float, order: float) -> Tensor:
    """Renyi entropy (nats) of every patch's attention over the patches, mean over heads; order 1 is Shannon's.

    The row is the softmax over the patch keys alone, the diagonal included. q, k [B, H, P+N, D] -> [B, N].
    """

    def entropy(logits: Tensor, _start: int) -> Tensor:
        if order == 1:
            return logits.logsumexp(-1) - (logits.softmax(-1) * logits).sum(-1)
        if order == 2:
            return -logits.softmax(-1).square().sum(-1).log()
        if math.isinf(order):
            return logits.logsumexp(-1) - logits.amax(-1)
        return ((order * logits).logsumexp(-1) - order * logits.logsumexp(-1)) / (1 - order)

    pieces = row_pieces(q[:, :, prefix:] * scale, k[:, :, prefix:], 0)
    parts: dict[int, list[Tensor]] = {}
    for batch, start, logits in pieces:
        parts.setdefault(batch, []).append(entropy(logits, start))
    return torch.cat([torch.cat(rows, dim=-1) for rows in parts.values()]).mean(dim=1)


def over_pieces(
    q: Tensor, k: Tensor, first: int, work: Callable[[Tensor, int], Tensor], join: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    """Apply `work` to pieces of the logits and join the results of the pieces of one image."""
    done: dict[int, Tensor] = {}
    for batch, start, logits in row_pieces(q, k, first):
        part = work(logits, start)
        done[batch] = join(done[batch], part) if batch in done else part
    return torch.cat(list(done.values()))


def row_pieces(q: Tensor, k: Tensor, first: int) -> Iterator[tuple[int, int, Tensor]]:
    """Pieces of q @ k^T: (first image, first row as a position in the sequence, logits [b, H, rows, keys])."""
    batch, heads, rows, _ = q.shape
    keys = k.transpose(-2, -1)
    if torch.compiler.is_compiling() or q.device.type != "cpu":
        yield 0, first, q @ keys
        return
    per_image = heads * rows * k.shape[2]
    images = max(1, PIECE // max(1, per_image))
    step = rows if images > 1 else max(1, PIECE // max(1, heads * k.shape[2]))
    for image in range(0, batch, images):
        for row in range(0, rows, step):
            yield image, first + row, q[image : image + images, :, row : row + step] @ keys[image : image + images]


def own_column(columns: Tensor, start: int, prefix: int) -> Tensor:
    """Mask of the diagonal in a piece whose first row is position `start` and whose first column is position `prefix`."""
    row = torch.arange(columns.shape[-2], device=columns.device).unsqueeze(-1) + start
    column = torch.arange(columns.shape[-1], device=columns.device) + prefix
    return row == column
