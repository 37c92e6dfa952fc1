"""Positions that follow the tokens: rows of rotary tables, rows and columns of relative biases.

place [B, K] says which patch of the image each token comes from, -1 for a token without a place: one that was fused of many.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..ops.attention import class_row


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


def take_pairs(bias: Tensor, place: Tensor, prefix: int) -> Tensor:
    """Relative bias between the tokens that are left, prefix included: bias [1, H, P+N, P+N] -> [B, H, P+K, P+K].

    A token without a place has the bias of the class token, which has no place either, or, without one, the mean over the patches.
    """
    if prefix == 0:
        bias = torch.cat([bias, bias.mean(dim=2, keepdim=True)], dim=2)
        bias = torch.cat([bias, bias.mean(dim=3, keepdim=True)], dim=3)
    blank = 0 if prefix else bias.shape[-1] - 1
    spot = torch.where(place < 0, blank, place + prefix)
    spot = torch.cat([torch.arange(prefix, device=place.device).expand(place.shape[0], -1), spot], dim=1)
    pairs = spot.unsqueeze(2) * bias.shape[-1] + spot.unsqueeze(1)
    return bias[0].flatten(1)[:, pairs].transpose(0, 1)


def biased_signals(
    needs: tuple[str, ...], q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, prefix: int, scale: float
) -> dict[str, Tensor]:
    """Signals of an attention whose logits carry a bias [1 or B, H, P+N, P+N].

    class_attn has the bias in it. A recipe that asks for q and k together makes logits of them: the bias is then appended, as more
    columns of q against unit vectors in k, so that every statistic sees the model's own attention. k alone, a metric, is left as it is.
    """
    if bias is None:
        return {name: value for name, value in (("q", q), ("k", k), ("v", v)) if name in needs or "class_attn" in needs}
    exact = torch.promote_types(q.dtype, torch.float32)
    more = (bias.to(exact) / scale).expand(q.shape[0], q.shape[1], -1, -1)
    unit = torch.eye(k.shape[2], dtype=exact, device=k.device).expand(*k.shape[:2], -1, -1)
    given = {name: value for name, value in (("k", k), ("v", v)) if name in needs}
    if "class_attn" in needs:
        row = torch.cat([q[:, :, :1].to(exact), more[:, :, :1]], dim=-1)
        given["class_attn"] = class_row(row, torch.cat([k.to(exact), unit], dim=-1), prefix, scale)
    if "q" in needs:
        given["q"], given["k"] = torch.cat([q.to(exact), more], dim=-1), torch.cat([k.to(exact), unit], dim=-1)
    return given
