"""Images made smaller before the vision encoder: what is left of their tokens, and how pictures come."""

from __future__ import annotations

from collections.abc import Callable
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


def squares(pixels: Tensor, unit: int, budget: Callable[[int], int]) -> tuple[Tensor, Plan, Grid]:
    """Pictures [..., C, H, W] of one size so much smaller that of the tokens, unit x unit pixels each, those of the budget are left; the
    plan of each, and its grid as it was given."""
    grid = int(pixels.shape[-2]) // unit, int(pixels.shape[-1]) // unit
    count = budget(grid[0] * grid[1])
    side = select.smaller(grid, count)
    made = pixels if side == grid else shrunk(pixels.flatten(0, -4), (side[0] * unit, side[1] * unit))
    return made.view(*pixels.shape[:-2], *made.shape[-2:]), cells(grid, count, pixels.device), grid


def padded(pixels: Tensor, sizes: Tensor, unit: int, budget: Callable[[int], int]) -> tuple[Tensor, Tensor, list[Plan], list[Grid]]:
    """The same for pictures [B, C, H, W] that are padded on the right and below; sizes [B, 2] are theirs without. Also gives the new sizes."""
    found = [squares(one[None, :, :h, :w], unit, budget) for one, (h, w) in zip(pixels, sizes.tolist(), strict=True)]
    made = [one[0] for one, _, _ in found]
    h, w = (max(one.shape[side] for one in made) for side in (-2, -1))
    whole = torch.stack([torch.nn.functional.pad(one, (0, w - one.shape[-1], 0, h - one.shape[-2])) for one in made])
    return whole, sizes.new_tensor([one.shape[-2:] for one in made]), [plan for _, plan, _ in found], [grid for _, _, grid in found]


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
