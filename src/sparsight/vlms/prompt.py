"""Prompts that lose visual tokens: which of the user's columns stay, and what a cache must remember of it. Pure tensor work."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import PruneError

FILL = {"labels": -100}
"""What padding made here holds in arguments that run along the sequence; 0 in all others but the ids."""


PACKED = ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k", "seq_idx")
"""Arguments that say where samples begin in a packed row."""


@dataclass(frozen=True, eq=False)
class Span:
    """One image in a batch of prompts: its row, the columns [n] of its placeholders, and which of them (0..n-1) stand for the tokens
    that stay, in the order of these tokens [K]. between: columns of text among them that leave as well."""

    row: int
    columns: Tensor
    anchors: Tensor
    between: Tensor | None = None


@dataclass(frozen=True, eq=False)
class PromptMap:
    """What a cache has had of the user's prompt.

    index  [B, L] the user's column behind every token that the language model was given, -1 for padding made here.
    mask   [B, L] 1 for real tokens.        padded   whether any of them is padding.
    width  columns of the user's prompt.    ahead    [B, 1] how far position ids run ahead of the count of real tokens (M-RoPE).
    """

    index: Tensor
    mask: Tensor
    padded: bool
    width: int
    ahead: Tensor | None = None

    @property
    def length(self) -> int:
        return int(self.index.shape[1])

    def repeated(self, batch: int) -> PromptMap:
        """Rows repeated where each sample has become several (num_return_sequences)."""
        rows = self.index.shape[0]
        if rows == batch:
            return self
        if batch % rows:
            raise PruneError(f"the cache was made for a batch of {rows}, this one has {batch}")
        index, mask = (part.repeat_interleave(batch // rows, dim=0) for part in (self.index, self.mask))
        ahead = None if self.ahead is None else self.ahead.repeat_interleave(batch // rows, dim=0)
        return PromptMap(index, mask, self.padded, self.width, ahead)


def locate(marked: Tensor, sizes: list[int], kind: str) -> list[tuple[int, Tensor]]:
    """Row and columns of the placeholders of every image, in the order of rows and columns. marked [B, U] bool; sizes: tokens of each
    image. Raises PruneError if the placeholders are not exactly those of these images."""
    place = marked.nonzero()
    if place.shape[0] != sum(sizes):
        raise PruneError(
            f"the prompt has {place.shape[0]} placeholder tokens, but {len(sizes)} {kind}{'s' * (len(sizes) != 1)} have "
            f"{sum(sizes)}; give as many {kind}s as the prompt names, in one processor call"
        )
    found = []
    for part in torch.split(place, sizes):
        rows = part[[0, -1], 0].tolist()
        if rows[0] != rows[1]:
            raise PruneError(f"the placeholders of one {kind} reach from sample {rows[0]} into sample {rows[1]} of the batch")
        found.append((int(rows[0]), part[:, 1]))
    return found


def between(columns: Tensor) -> Tensor:
    """Columns among an image's columns [n] that are not its own."""
    every = torch.arange(int(columns[0]), int(columns[-1]) + 1, device=columns.device)
    return every[~torch.isin(every, columns)]


def refuse_meta(tokens: Tensor | None) -> None:
    """Raise PruneError for a prompt without values."""
    if tokens is not None and tokens.is_meta:
        raise PruneError("a pruned prompt cannot be on device meta: its length depends on where the images are; use real tensors")


def refuse_packed(call: dict[str, Any]) -> None:
    """Raise PruneError for rows of several samples: by `PACKED`, or by position ids [B, L] (or [4, B, L], the text's first) without a mask
    that start again."""
    found = [name for name in PACKED if call.get(name) is not None]
    position = call.get("position_ids")
    if isinstance(position, Tensor) and call.get("attention_mask") is None and (position.dim() == 2 or position.shape[0] == 4):
        line = position if position.dim() == 2 else position[0]
        found += ["position_ids that start again"] if bool((line.diff(dim=-1) <= 0).any()) else []
    if found:
        raise PruneError(f"{found[0]}: packed rows (several samples in one) cannot be pruned; give every sample a row of its own")


def shortened(batch: int, width: int, spans: list[Span], mask: Tensor | None, device: torch.device) -> Tensor:
    """Columns that stay, [B, L]: text where it was, the tokens of each image that stay at the places of their anchors.

    If all rows lose equally many columns, they keep their padding. Otherwise they are freed of it and padded anew with -1, on the
    right if the user's batch is padded there (mask [B, U] ends in 0 somewhere), else on the left.
    """
    rows = []
    for row in range(batch):
        text = torch.ones(width, dtype=torch.bool, device=device)
        chosen, place = [], []
        for span in (span for span in spans if span.row == row):
            text[span.columns] = False
            if span.between is not None:
                text[span.between] = False
            chosen.append(span.columns[span.anchors])
            place.append(chosen[-1].sort().values)
        others = text.nonzero().squeeze(1)
        order = torch.cat([others, *place]).argsort(stable=True)
        rows.append(torch.cat([others, *chosen])[order])
    if len({row.shape[0] for row in rows}) == 1:
        return torch.stack(rows)
    right = mask is not None and not bool(mask[:, -1].all())
    if mask is not None:
        rows = [columns[mask[row, columns] != 0] for row, columns in enumerate(rows)]
    longest = max(row.shape[0] for row in rows)
    spare = [longest - row.shape[0] for row in rows]
    sides = [(0, more) if right else (more, 0) for more in spare]
    return torch.stack([torch.nn.functional.pad(row, side, value=-1) for row, side in zip(rows, sides, strict=True)])


def take(values: Tensor, index: Tensor, fill: int = 0) -> Tensor:
    """Columns of values [..., B, U] (or [..., 1, U]) by index [B, L]; `fill` where the index is -1."""
    index = index.to(values.device)
    shape = (*values.shape[:-2], *index.shape)
    wide = values.expand(*values.shape[:-2], index.shape[0], -1)
    return wide.gather(-1, index.clamp(min=0).expand(shape)).masked_fill(index < 0, fill)


def settle(anchors: Tensor, total: int) -> Tensor:
    """Anchors of an image's tokens with those that have none (-1), or one that is taken, put on free columns: [K] of 0..total-1.
    Tokens for which none is free (PruMerge may add one to all) share the last column."""
    order = anchors.argsort(stable=True)
    again = torch.zeros_like(anchors, dtype=torch.bool)
    again[order[1:]] = anchors[order[1:]] == anchors[order[:-1]]
    homeless = again | (anchors < 0)
    if not bool(homeless.any()):
        return anchors
    free = torch.ones(total, dtype=torch.bool, device=anchors.device)
    free[anchors[~homeless]] = False
    spots, wanted = free.nonzero().squeeze(1), int(homeless.sum())
    spots = torch.cat([spots, spots.new_full((max(0, wanted - spots.shape[0]),), total - 1)])
    placed = anchors.clone()
    placed[homeless] = spots[spots.shape[0] - wanted :]
    return placed
