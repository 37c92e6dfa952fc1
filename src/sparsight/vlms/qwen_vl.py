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
    def scored(self) -> Any:
        """The last block in which every patch of a frame sees every other."""
        full = getattr(self.core.visual, "fullatt_block_indexes", None)
        return self.blocks[max(full) if full else -1]

    @property
    def scale(self) -> float:
        """Factor of that block's attention logits."""
        attention: Any = self.scored.attn
        return float(getattr(attention, "scaling", None) or attention.head_dim**-0.5)

    def taps(self, kind: str, call: dict[str, Any], site: ImageSite) -> dict[str, nn.Module]:
        attention: Any = self.scored.attn
        return {"qkv": attention.qkv, "attention": attention} if any(name in site.needs for name in ("q", "k", "v")) else {}

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
        signals = self.patch_signals(grids, heard) if heard else {}
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

    def patch_signals(self, grids: Tensor, heard: dict[str, Any]) -> dict[str, Tensor]:
        """q, k, v of all patches [H, S, D] after RoPE, in the order of the tokens, the patches of one token side by side."""
        qkv, heads = heard["qkv"][2], self.scored.attn.num_heads
        q, k, v = qkv.view(qkv.shape[0], 3, heads, -1).permute(1, 2, 0, 3)
        _, kwargs, _ = heard["attention"]
        position = kwargs.get("position_embeddings")
        if position is None:
            raise PruneError(f"{type(self.scored).__name__} was called without position_embeddings; its attention is not known")
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
