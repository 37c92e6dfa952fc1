"""Positions of pruned images in models with M-RoPE: each token that stays keeps the row and column that it had in the whole image.

vLLM asks for positions before an image is encoded, when nobody knows which tokens stay. So all tokens of a pruned image get the place of
its first one, and the rest, rows down and columns to the right, rides behind their embeddings as digits. `TokenShifts` cuts the digits off,
holds them for one step and adds them to the positions. A text behind the image goes on where it would behind the whole one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

BASE = 256
"""Of the digits: bfloat16 knows all whole numbers up to it."""
LayOut = Callable[[list[int], list[Any]], tuple[Tensor, int]]
"""Token ids, features -> positions [3, L], their lead over the length."""
DIGITS = 4
"""Columns behind an embedding: rows down in two digits, columns to the right in two."""


def with_digits(tokens: Tensor, anchors: Tensor, columns: int) -> Tensor:
    """Tokens [K, D] of an image of so many columns, and where each stood in it [K] -> [K, D + DIGITS]."""
    down, right = anchors // columns, anchors % columns
    digits = torch.stack([down // BASE, down % BASE, right // BASE, right % BASE], dim=-1)
    return torch.cat([tokens, digits.to(tokens)], dim=-1)


def shifts_of(digits: Tensor) -> Tensor:
    """Digits [K, DIGITS] -> rows down and columns to the right [K, 2]."""
    whole = digits.float().round().long()
    return torch.stack([whole[:, 0] * BASE + whole[:, 1], whole[:, 2] * BASE + whole[:, 3]], dim=-1)


class TokenShifts:
    """Shifts of the tokens of one step, and the shifted positions.

    most: tokens of the largest step; last: the last position that the language model knows. Both tensors stay where they are, as CUDA
    graphs ask for, and have a column to spare: one that is exactly as long as the first step would be compiled as contiguous.
    """

    def __init__(self, most: int, last: int, device: Any = None) -> None:
        self.shift = torch.zeros(2, most + 1, dtype=torch.int64, device=device)
        self.positions = torch.zeros(3, most + 1, dtype=torch.int64, device=device)
        self.last = last

    def read(self, embeddings: Sequence[Tensor], width: int, places: Tensor | None) -> list[Tensor]:
        """Take the digits off embeddings [n, width] or [n, width + DIGITS] and note the shifts for the places [L] where they go."""
        self.shift.zero_()
        if all(one.shape[-1] == width for one in embeddings):
            return list(embeddings)
        assert places is not None
        found = [
            shifts_of(one[:, width:]) if one.shape[-1] > width else one.new_zeros(one.shape[0], 2, dtype=torch.int64)
            for one in embeddings
        ]
        self.shift[:, : places.shape[0]][:, places] = torch.cat(found).t()
        return [one[:, :width] for one in embeddings]

    def moved(self, positions: Tensor) -> Tensor:
        """Positions [3, L] of a step with the shifts."""
        if positions.dim() != 2:
            return positions
        length = positions.shape[-1]
        moved = self.positions[:, :length]
        moved.copy_(positions)
        moved[1:] += self.shift[:, :length]
        return moved.clamp_(max=self.last)


def shortened_positions(lay_out: LayOut, tokens: list[int], features: list[Any], merge: int) -> tuple[Tensor, int]:
    """Positions [3, L] and their lead over the length, of a prompt whose images have fewer placeholders than tokens.

    lay_out: vLLM's own for prompts with whole images. It is given the prompt that has them; of a pruned image all places are that of its
    first token.
    """
    whole: list[int] = []
    index: list[int] = []
    moved, done = [], 0
    for feature in sorted(features, key=lambda one: one.mm_position.offset):
        place = feature.mm_position
        size = whole_size(feature, merge)
        text = tokens[done : place.offset]
        index += range(len(whole), len(whole) + len(text))
        whole += text
        moved.append(replace(feature, mm_position=replace(place, offset=len(whole), length=size or place.length)))
        inside = tokens[place.offset : place.offset + place.length]
        pruned = size is not None and size != place.length
        index += [len(whole)] * place.length if pruned else range(len(whole), len(whole) + place.length)
        whole += [inside[0]] * size if size is not None and pruned else inside
        done = place.offset + place.length
    index += range(len(whole), len(whole) + len(tokens) - done)
    whole += tokens[done:]
    positions, lead = lay_out(whole, moved)
    return positions[:, index], lead + len(whole) - len(tokens)


def whole_size(feature: Any, merge: int) -> int | None:
    """Tokens of a whole image; None for a video."""
    if feature.modality != "image":
        return None
    _, h, w = feature.data["image_grid_thw"].data.tolist()
    return int(h // merge * (w // merge))


def last_position(language_model: Any) -> int:
    """The last position that all rotary embeddings know. Positions run ahead of a pruned prompt, and only close to the end of the longest
    text may they come as far; they stop there."""
    caches = [module.cos_sin_cache for module in language_model.modules() if getattr(module, "mrope_section", None) is not None]
    return min((cache.shape[0] for cache in caches), default=2**31) - 1
