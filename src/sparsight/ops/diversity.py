"""Choosing tokens that differ: similarity matrices, and greedy choices from them. Ties go to the lower index.

Shapes: x [B, N, D], similarity [B, N, N] symmetric, higher = more alike. Loops run over choices, never over images, and never
wait for a device.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .portable import diagonal, lower, stable_order, tracing
from .rank import wide

STRIP = 128
"""Rows of a similarity matrix that are handled at once where copies of the whole would cost memory."""

PIECE = (1 << 15) - 1
"""Elements that torch still works through in one thread: short steps wait longer for other threads than those help."""


def cosine(x: Tensor) -> Tensor:
    """Pairwise cosine similarity, exactly symmetric; 0 for zero vectors. x [B, N, D] -> [B, N, N]."""
    gram = x @ x.transpose(-2, -1)
    norm = gram.diagonal(dim1=-2, dim2=-1).clamp(min=torch.finfo(x.dtype).tiny).rsqrt()
    return mirrored(gram.mul_(norm.unsqueeze(-1)).mul_(norm.unsqueeze(-2)))


def squared_distance(x: Tensor) -> Tensor:
    """Pairwise squared Euclidean distance, exactly symmetric. x [B, N, D] -> [B, N, N]."""
    x = x - x.mean(dim=1, keepdim=True)  # distances stay, cancellation shrinks
    gram = x @ x.transpose(-2, -1)
    length = gram.diagonal(dim1=-2, dim2=-1)
    return mirrored((length.unsqueeze(-1) + length.unsqueeze(-2)).sub_(gram, alpha=2).clamp_(min=0))


def distance(x: Tensor) -> Tensor:
    """Pairwise Euclidean distance, exactly symmetric with an exactly zero diagonal. x [B, N, D] -> [B, N, N].

    In float64 where there is one, a strip of rows at a time: differences of squares lose half the digits, and near neighbours would be
    ranked by rounding."""
    batch, n, _ = x.shape
    points = wide(x)
    points = points - points.mean(dim=1, keepdim=True)
    length = points.square().sum(dim=-1)
    blocks = strips(n)
    out = x.new_empty(batch, n, n) if len(blocks) > 1 else None
    for here in blocks:
        upto = slice(0, here.stop)
        gram = points[:, here] @ points[:, upto].transpose(-2, -1)
        strip = (
            gram.mul_(-2).add_(length[:, here].unsqueeze(-1)).add_(length[:, upto].unsqueeze(-2)).clamp_(min=0).sqrt_().to(x.dtype)
        )
        itself = diagonal(here.stop - here.start, x.device)
        corner = triangle(strip[..., here]).masked_fill(itself, 0)
        if out is None:
            return corner
        out[:, here, here] = corner
        out[:, here, : here.start] = strip[..., : here.start]
        out[:, : here.start, here] = strip[..., : here.start].transpose(-2, -1)
    assert out is not None
    return out


def mirrored(matrix: Tensor) -> Tensor:
    """Mirror the lower triangle, in place where the matrix is large. [B, N, N] -> [B, N, N].

    A product rounds i, j otherwise than j, i, and two tokens that are each other's nearest would not tie."""
    blocks = strips(matrix.shape[-1])
    if len(blocks) == 1:
        return triangle(matrix)
    for here in blocks:
        matrix[:, here, here] = triangle(matrix[:, here, here])
        matrix[:, here, here.stop :] = matrix[:, here.stop :, here].transpose(-2, -1)
    return matrix


def triangle(matrix: Tensor) -> Tensor:
    """The lower triangle and its mirror image. [B, N, N] -> [B, N, N]."""
    return torch.where(lower(matrix.shape[-1], matrix.device), matrix, matrix.transpose(-2, -1))


def strips(n: int) -> list[slice]:
    """Strips of rows of a matrix; a single one in compiled graphs, which have no use for work in place."""
    step = max(1, n) if tracing() else STRIP
    return [slice(start, min(n, start + step)) for start in range(0, n, step)]


def loneliest(similarity: Tensor) -> Tensor:
    """Index of the token whose nearest neighbour is farthest. [B, N, N] -> [B, 1]."""
    itself = diagonal(similarity.shape[-1], similarity.device)
    return similarity.masked_fill(itself, float("-inf")).amax(dim=-1).argmin(dim=-1, keepdim=True)


def farthest_first(similarity: Tensor, first: Tensor, count: int) -> Tensor:
    """Greedy max-min: from `first` [B, 1] on, always the token least similar to its most similar chosen one.
    No token is chosen twice. -> [B, count], in the order of choice."""
    rows = torch.arange(similarity.shape[0], device=similarity.device).unsqueeze(-1)
    picks = [first]
    nearest = similarity[rows, first].squeeze(1).scatter(1, first, float("inf"))
    for _ in range(1, count):
        pick = nearest.argmin(dim=1, keepdim=True)
        nearest = torch.maximum(nearest, similarity[rows, pick].squeeze(1)).scatter(1, pick, float("inf"))
        picks.append(pick)
    return torch.cat(picks, dim=1)


def thin_out(similarity: Tensor, left: Tensor, count: int, step: int = 8) -> Tensor:
    """Remove redundant tokens of the list `left` [B, R], at most `step` a round, until `count` are there -> [B, count].

    A round compares tokens at even places of the list with those at odd places, removes the even ones with the highest
    similarity, and goes on with the other even ones, most similar first, followed by the odd ones. VisPruner, arXiv:2412.01818.
    """
    batch, n, _ = similarity.shape
    if not count:
        return left[:, :0]
    rows = similarity.reshape(batch * n, n)
    start = torch.arange(batch, device=left.device).unsqueeze(-1) * n
    piece = max(8, PIECE // (batch * n)) if left.device.type == "cpu" else n
    while (removed := min(step, left.shape[1] - count)) > 0:
        even, odd = left[:, ::2], left[:, 1::2]
        removed = min(removed, even.shape[1])
        closest = torch.full_like(similarity[:, 0], float("-inf"))
        for part in torch.split(start + odd, piece, dim=1):
            partners = rows.index_select(0, part.flatten()).view(batch, -1, n)
            closest = torch.maximum(closest, partners.amax(dim=1))
        order = stable_order(closest.gather(1, even), descending=True)
        left = torch.cat([even.gather(1, order[:, removed:]), odd], dim=1)
    return left


def by_threshold(
    similarity: Tensor, s: Tensor, count: int, slope: Tensor, cap: float, running: bool = False
) -> tuple[Tensor, Tensor]:
    """Take tokens by descending score s [B, N]; each one taken rules out the others at cosine distance below its threshold.

    The threshold is place * slope [B], at most `cap`; the place, from 1, is the token's in the order of scores, or, if `running`,
    in the order of choice. When all are taken or ruled out, ruled-out ones follow by score.
    -> chosen [B, count] in the order of choice, and how many [B] were chosen before that happened.
    """
    batch, n = s.shape
    order = stable_order(s, descending=True)
    index = torch.arange(n, device=s.device).expand(batch, n)
    rank = torch.zeros_like(order).scatter(1, order, index)
    rows = torch.arange(batch, device=s.device).unsqueeze(-1)
    free = torch.ones_like(rank, dtype=torch.bool)
    alive, picks, natural = free, [], torch.zeros_like(rank[:, 0])
    for step in range(count):
        pick = ((alive.long() + free.long()) * n - rank).argmax(dim=1, keepdim=True)
        natural = natural + alive.gather(1, pick).squeeze(1)
        place = torch.full_like(pick, step) if running else rank.gather(1, pick)
        threshold = ((place + 1) * slope.unsqueeze(-1)).clamp(max=cap)
        free = free.scatter(1, pick, False)
        distance = (1 - similarity[rows, pick].squeeze(1)).clamp(min=0)
        alive = alive & free & (distance >= threshold)
        picks.append(pick)
    return torch.cat(picks, dim=1), natural
