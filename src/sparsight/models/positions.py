"""Positions that follow the tokens: rows of rotary tables, rows and columns of relative biases.

place [B, K] says which patch of the image each token comes from, -1 for a token without a place: one that was fused of many.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..ops.portable import diagonal


def take_rows(table: Tensor, place: Tensor, blank: float | Tensor) -> Tensor:
    """Rows of a rotary table for the tokens that are left; a token without a place gets `blank`, which rotates nothing.

    table [N, D], [H, N, D] per head, [B, 1, N, D] or [B, H, N, D] per image -> [B, 1, K, D] or [B, H, K, D].
    """
    spot = place.clamp(min=0)
    if table.dim() == 4:
        rows = table.gather(2, spot[:, None, :, None].expand(-1, table.shape[1], -1, table.shape[3]))
    else:
        rows = table[..., spot, :]
        rows = rows.unsqueeze(1) if rows.dim() == 3 else rows.transpose(0, 1)
    return torch.where((place < 0)[:, None, :, None], blank, rows)


def numbers_of_pairs(place: Tensor, prefix: int, total: int) -> Tensor:
    """Of the tokens that are left, prefix included, the number of each pair in a matrix of `total` rows: [B, P+K, P+K]. A token without a
    place has the class token's, or without one the last."""
    spot = torch.where(place < 0, 0 if prefix else total - 1, place + prefix)
    spot = torch.cat([torch.arange(prefix, device=place.device).expand(place.shape[0], -1), spot], dim=1)
    return spot.unsqueeze(2) * total + spot.unsqueeze(1)


def look_up_pairs(table: Tensor, index: Tensor, place: Tensor, prefix: int) -> Tensor:
    """As `take_pairs` of a bias that is looked up in a table [R, H] by an index [P+N, P+N], without the lookups of all other pairs."""
    numbers = index.flatten()[numbers_of_pairs(place, prefix, index.shape[-1])]
    return torch.nn.functional.embedding(numbers, table).permute(0, 3, 1, 2)


def take_pairs(bias: Tensor, place: Tensor, prefix: int) -> Tensor:
    """Relative bias between the tokens that are left, prefix included: bias [1, H, P+N, P+N] or [B, ...] -> [B, H, P+K, P+K].

    A token without a place has the bias of the class token, which has no place either, or, without one, the mean over the patches.
    """
    if prefix == 0:
        bias = torch.cat([bias, bias.mean(dim=2, keepdim=True)], dim=2)
        bias = torch.cat([bias, bias.mean(dim=3, keepdim=True)], dim=3)
    pairs = numbers_of_pairs(place, prefix, bias.shape[-1])
    if bias.shape[0] == 1:
        return bias[0].flatten(1)[:, pairs].transpose(0, 1)
    rows = pairs.flatten(1).unsqueeze(1).expand(-1, bias.shape[1], -1)
    return bias.flatten(2).gather(2, rows).view(*bias.shape[:2], *pairs.shape[1:])


def with_bias(relative: Tensor | None, bias: Tensor | None) -> Tensor | None:
    """The model's own bias of the logits plus the one of sizes and padding, either of which may be missing."""
    if relative is None or bias is None:
        return bias if relative is None else relative
    return torch.add(relative, bias)


def with_columns(found: dict[str, Tensor], bias: Tensor | None, scale: float) -> dict[str, Tensor]:
    """q and k of an attention whose logits carry a bias [1 or B, H, P+N, P+N], so that q @ k^T * scale is logits and bias together.

    Whoever asks for both makes logits of them: the bias becomes more columns of q, against unit vectors in k, and every statistic
    sees the model's own attention. k alone is a metric and stays as it is.
    """
    if bias is None or "q" not in found or "k" not in found:
        return found
    q, k = found["q"], found["k"]
    exact = torch.promote_types(q.dtype, torch.float32)
    more = (bias.to(exact) / scale).expand(q.shape[0], q.shape[1], -1, -1)
    unit = diagonal(k.shape[2], k.device).to(exact).expand(*k.shape[:2], -1, -1)
    return {**found, "q": torch.cat([q.to(exact), more], dim=-1), "k": torch.cat([k.to(exact), unit], dim=-1)}
