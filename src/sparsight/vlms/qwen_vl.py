"""Qwen2-VL, Qwen2.5-VL, Qwen3-VL: no class token, 2x2 patches merged into one token, images and videos of any size, 3-D positions.

Read with transformers 5.23. Tokens leave after the merger and keep the positions (M-RoPE) that they had in the full prompt. Attention
is that of the last block with full attention; scores are made for patches and summed over the four of a token, other uses of q and k
see their mean over the four. A video is pruned frame by frame, its budget shared evenly among the frames.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import PruneError
from ..ops import select
from ..ops.schedule import earlier_block
from ..signals import SHALLOW, heads_of
from . import mrope
from .family import LVLM, PIXELS
from .request import VlmRequest
from .smaller import FlatPatches, SmallerImages, cells
from .tiles import ImageSite, ImageTokens, KeptTokens, Tile

GRIDS = {"image": "image_grid_thw", "video": "video_grid_thw"}


class QwenVL(LVLM):
    """The three generations of Qwen's vision-language models."""

    name = "transformers Qwen-VL"
    classes = ("Qwen2VLForConditionalGeneration", "Qwen2_5_VLForConditionalGeneration", "Qwen3VLForConditionalGeneration")

    @property
    def blocks(self) -> list[nn.Module]:
        return list(self.core.visual.blocks)

    @property
    def prefix(self) -> int:
        return 0

    @property
    def full(self) -> list[int]:
        """Blocks in which every patch of a frame sees every other."""
        return sorted(getattr(self.core.visual, "fullatt_block_indexes", None) or range(len(self.blocks)))

    @property
    def scored(self) -> Any:
        """The last one of these."""
        return self.blocks[self.full[-1]]

    def listened(self, site: ImageSite) -> dict[str, Any]:
        """Blocks whose attention the site asks for: the scored one under "", the earlier one that the recipe names under "shallow_"."""
        wanted = heads_of(site.needs)
        found = {"": self.scored} if wanted & {"q", "k", "v"} else {}
        if wanted & {"shallow_q", "shallow_k"} and site.shallow is not None:
            found[SHALLOW] = self.blocks[earlier_block(site.shallow, len(self.blocks), self.full)]
        return found

    @property
    def scale(self) -> float:
        """Factor of that block's attention logits."""
        attention: Any = self.scored.attn
        return float(getattr(attention, "scaling", None) or attention.head_dim**-0.5)

    def taps(self, kind: str, call: dict[str, Any], site: ImageSite) -> dict[str, nn.Module]:
        blocks = self.listened(site)
        taps = {f"{ahead}attention": block.attn for ahead, block in blocks.items()}
        return {**taps, **{f"{ahead}qkv": block.attn.qkv for ahead, block in blocks.items()}}

    def check_images(self, kind: str, call: dict[str, Any]) -> None:
        if call.get(GRIDS[kind]) is None:
            raise PruneError(f"{GRIDS[kind]} is missing: pass everything that the processor gives")
        super().check_images(kind, call)

    @property
    def other_sizes(self) -> bool:
        return True

    def smaller(self, kind: str, call: dict[str, Any], budget: Callable[[int], int]) -> SmallerImages:
        """Every frame of a video gets an even share of its budget."""
        pixels, grids, merge = call[PIXELS[kind]], call[GRIDS[kind]], self.core.visual.spatial_merge_size
        embed = self.core.visual.patch_embed
        flat = FlatPatches(int(embed.patch_size), int(embed.temporal_patch_size), merge)
        made, sizes, plans, given = [], [], [], []
        for rows, (t, h, w) in zip(pixels.split(grids.prod(dim=1).tolist()), grids.tolist(), strict=True):
            grid = (h // merge, w // merge)
            count = max(1, budget(t * grid[0] * grid[1]) // t)
            side = select.smaller(grid, count)
            made.append(rows if side == grid else flat.smaller(rows, (t, h, w), side))
            sizes.append((t, side[0] * merge, side[1] * merge))
            plans.append(cells(grid, count, pixels.device, frames=t))
            given.append(grid)
        return SmallerImages({PIXELS[kind]: torch.cat(made), GRIDS[kind]: grids.new_tensor(sizes)}, plans, given)

    # ---- signals ------------------------------------------------------------------------------------------------------

    def images(self, kind: str, output: Any, call: dict[str, Any], heard: dict[str, Any], site: ImageSite) -> list[ImageTokens]:
        visual, grids = self.core.visual, call[GRIDS[kind]]
        merge = visual.spatial_merge_size
        signals = {}
        for ahead, block in self.listened(site).items():
            heads = self.patch_signals(grids, block, heard[f"{ahead}qkv"][2], heard[f"{ahead}attention"][1])
            signals.update({ahead + name: value for name, value in heads.items()})
        extras = getattr(output, "deepstack_features", None) or []
        found, first = [], 0
        for i, (t, h, w) in enumerate(grids.tolist()):
            tokens, n, tiles = output.pooler_output[i], h * w // merge**2, []
            grid = (h // merge, w // merge)
            for frame in range(t):
                place = torch.arange(n, device=tokens.device)
                given: dict[str, Any] = {"grid": grid, "position": place} if {"grid", "position"} & set(site.needs) else {}
                span = slice(first * merge**2, (first + n) * merge**2)
                given.update(of_frame({name: value[:, span] for name, value in signals.items()}, n, self.scale))
                tiles.append(Tile(place + frame * n, given))
                first += n
            found.append(ImageTokens(tokens, tiles, tuple(layer[i] for layer in extras), grid))
        return found

    def views(self, kind: str, call: dict[str, Any]) -> list[list[Tensor]]:
        merge, found = self.core.visual.spatial_merge_size, []
        for t, h, w in call[GRIDS[kind]].tolist():
            found.append(list(torch.arange(t * h * w // merge**2).view(t, h // merge, w // merge)))
        return found

    def patch_signals(self, grids: Tensor, block: Any, qkv: Tensor, kwargs: dict[str, Any]) -> dict[str, Tensor]:
        """q, k, v of all patches [H, S, D] in a block after RoPE, in the order of the tokens, the patches of one token side by side."""
        q, k, v = qkv.view(qkv.shape[0], 3, block.attn.num_heads, -1).permute(1, 2, 0, 3)
        position = kwargs.get("position_embeddings")
        if position is None:
            raise PruneError(f"{type(block).__name__} was called without position_embeddings; its attention is not known")
        cos, sin = (part.to(q.dtype) if q.dtype == torch.float64 else part.float() for part in position)
        q, k = (turned(part, cos, sin) for part in (q, k))
        visual = self.core.visual
        merged = visual.spatial_merge_size**2
        if hasattr(visual, "fullatt_block_indexes"):
            order = self.window_order(grids).argsort()
            q, k, v = (part.reshape(part.shape[0], -1, merged, part.shape[2])[:, order].flatten(1, 2) for part in (q, k, v))
        return {"q": q, "k": k, "v": v}

    def window_order(self, grids: Tensor) -> Tensor:
        """The order in which the tower's windows take the tokens."""
        visual = self.core.visual
        function = sys.modules[type(visual).__module__].get_vision_window_index
        order: Tensor = function(
            grids, spatial_merge_size=visual.spatial_merge_size, window_size=visual.window_size, patch_size=visual.patch_size
        )[0]
        return order.to(grids.device)

    def output(self, output: Any, kept: list[KeptTokens]) -> Any:
        made = super().output(output, kept)
        if getattr(output, "deepstack_features", None):
            made.deepstack_features = [list(layer) for layer in zip(*(one.extras for one in kept), strict=True)]
        return made

    def set_positions(self, request: VlmRequest) -> None:
        mrope.set_positions(self.core, request)


def of_frame(signals: dict[str, Tensor], n: int, scale: float) -> dict[str, Any]:
    """Signals of one frame: q, k, v [H, 4n, D] of its patches under `patches`, their means over the patches of a token [H, n, D]."""
    if not signals:
        return {}
    means = {name: value.reshape(value.shape[0], n, -1, value.shape[2]).mean(dim=2) for name, value in signals.items()}
    return {**means, "prefix": 0, "scale": scale, "patches": {**signals, "prefix": 0, "scale": scale}}


def turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """RoPE of the vision tower. x [H, S, D]; cos, sin [S, D]."""
    x = x.to(cos.dtype)
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin
