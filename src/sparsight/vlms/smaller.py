"""Images made smaller before the vision encoder: what is left of their tokens, and pictures that come as flat patches."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..ops import select
from ..ops.picture import shrunk
from ..plan import Plan
from .tiles import ImageTokens, KeptTokens

Grid = tuple[int, int]


@dataclass(frozen=True, eq=False)
class SmallerImages:
    """The images (or videos) of a call, made smaller.

    arguments  those of the call that speak of them.        options  more arguments for the encoder.
    plans      for every image which tokens of it, as it was given, those of the smaller one stand for; each stands at the one in the middle.
    grids      (h, w) of every image's tokens as it was given.
    """

    arguments: dict[str, Any]
    plans: list[Plan]
    grids: list[Grid]
    options: dict[str, Any] = field(default_factory=dict)

    def kept(self, number: int, image: ImageTokens) -> KeptTokens:
        """An image of that number, from the tokens of the smaller one."""
        plan = self.plans[number]
        return KeptTokens(image.tokens, plan.keep[0], plan, image.extras, None, self.grids[number])


def cells(grid: Grid, count: int, device: torch.device, frames: int = 1, ahead: int = 0) -> Plan:
    """A plan over `ahead` tokens, which all stay, and the tokens of so many frames, each cut into a coarser grid of at most `count`."""
    one = select.cells(torch.zeros(1, grid[0] * grid[1], 0, device=device), grid, count)
    frame = torch.arange(frames, device=device).unsqueeze(1)
    keep, owner = (frame * one.total + one.keep).flatten(), (frame * one.slots + one.owner).flatten()
    first = torch.arange(ahead, device=device)
    keep, owner = torch.cat([first, keep + ahead]).unsqueeze(0), torch.cat([first, owner + ahead]).unsqueeze(0)
    return Plan(keep, owner.shape[1], owner)


@dataclass(frozen=True)
class FlatPatches:
    """How pictures lie in rows of patches [t * h * w, C * frames * patch * patch]: `frames` pictures in each row, and the patches of a
    merged token, merge x merge, side by side."""

    patch: int
    frames: int
    merge: int

    def smaller(self, rows: Tensor, grid: tuple[int, int, int], merged: Grid) -> Tensor:
        """Patches of pictures of grid (t, h, w) so much smaller that merged tokens (h, w) are left of each."""
        height, width = (side * self.merge * self.patch for side in merged)
        return self.rows(shrunk(self.pictures(rows, grid), (height, width)))

    def pictures(self, rows: Tensor, grid: tuple[int, int, int]) -> Tensor:
        """Patches of grid (t, h, w) as pictures [t * frames, C, H, W]."""
        (t, h, w), m, p = grid, self.merge, self.patch
        parts = rows.reshape(t, h // m, w // m, m, m, -1, self.frames, p, p).permute(0, 6, 5, 1, 3, 7, 2, 4, 8)
        return parts.reshape(t * self.frames, -1, h * p, w * p)

    def rows(self, pictures: Tensor) -> Tensor:
        """Pictures [t * frames, C, H, W] as patches."""
        m, p = self.merge, self.patch
        channels, height, width = pictures.shape[1:]
        h, w = height // p, width // p
        parts = pictures.reshape(-1, self.frames, channels, h // m, m, p, w // m, m, p).permute(0, 3, 6, 4, 7, 2, 1, 5, 8)
        return parts.reshape(-1, channels * self.frames * p * p)
