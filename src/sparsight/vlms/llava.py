"""LLaVA: a CLIP, SigLIP or DINOv2 tower, a projector, a language model; images of one call have the same number of tokens.

Read with transformers 5.23 (LlavaForConditionalGeneration). KeptTokens tokens are counted anew by the language model: an ordinary shorter prompt.
Registers of a DINOv2 tower, which the model puts in front of the patches, are not counted, and leave as soon as any patch leaves.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import PruneError
from ..models.hf_siglip import HFSiglip
from ..models.hf_vit import HFCLIP, HFDinov2, HFDinov2WithRegisters
from ..models.transformers_family import TransformersViT
from ..ops import select
from ..ops.picture import shrunk
from ..ops.schedule import earlier_block
from ..plan import Plan
from ..signals import heads_of
from .family import LVLM
from .in_tower import left, row
from .smaller import SmallerImages, cells
from .tiles import ImageSite, ImageTokens, Tile

TAPS = ("q", "k", "v", "shallow_q", "shallow_k")
TOWERS = (HFCLIP, HFSiglip, HFDinov2, HFDinov2WithRegisters)


class Llava(LVLM):
    """LlavaForConditionalGeneration."""

    name = "transformers LLaVA"
    one_row = True
    classes = ("LlavaForConditionalGeneration",)

    @classmethod
    def serves(cls, model: nn.Module) -> bool:
        if not super().serves(model):
            return False
        tower = getattr(getattr(model, "model", None), "vision_tower", None)
        return tower is None or any(family.serves(tower) for family in TOWERS)  # others (Pixtral) are the generic family's

    @property
    def tower(self) -> TransformersViT:
        """The vision tower, seen as a family of its own."""
        tower = self.core.vision_tower
        for family in TOWERS:
            if family.serves(tower):
                return family(tower)
        raise PruneError(
            f"{type(self.model).__name__} has the vision tower {type(tower).__name__}; known are those of CLIP, SigLIP and DINOv2"
        )

    @property
    def blocks(self) -> list[nn.Module]:
        return self.tower.blocks

    @property
    def prefix(self) -> int:
        return self.tower.prefix

    @property
    def grid(self) -> tuple[int, int]:
        return self.tower.grid

    @property
    def registers(self) -> int:
        """Tokens of an image in front of those of its patches: the tower's registers, of which the model takes off the class token only."""
        return max(0, self.prefix - 1)

    def grid_of(self, call: dict[str, Any]) -> tuple[int, int]:
        """Patch grid (h, w) of the images, or tiles, of a call."""
        tower, pixels = self.tower, call["pixel_values"]
        return int(pixels.shape[-2]) // tower.patch[0], int(pixels.shape[-1]) // tower.patch[1]

    def views(self, kind: str, call: dict[str, Any]) -> list[list[Tensor]]:
        h, w = self.grid_of(call)
        return [[torch.arange(h * w).view(h, w) + self.registers] for _ in call["pixel_values"]]

    def check(self) -> None:
        super().check()
        config = self.config
        if self.prefix and config.vision_feature_select_strategy != "default":
            raise PruneError(
                f"vision_feature_select_strategy={config.vision_feature_select_strategy!r} puts the class token among the image's "
                "tokens, where no method knows it; set model.config.vision_feature_select_strategy = 'default'"
            )

    def capacity(self) -> int | None:
        return self.grid[0] * self.grid[1] if self.tower.asks_for_other_sizes else None

    @property
    def other_sizes(self) -> bool:
        return True

    def smaller(self, kind: str, call: dict[str, Any], budget: Callable[[int], int]) -> SmallerImages:
        pixels, grid, tower = call["pixel_values"], self.grid_of(call), self.tower
        count = budget(grid[0] * grid[1])
        plans, grids = [cells(grid, count, pixels.device, ahead=self.registers)] * len(pixels), [grid] * len(pixels)
        side = select.smaller(grid, count)
        if side == grid:
            return SmallerImages({}, plans, grids)
        made = shrunk(pixels, (side[0] * tower.patch[0], side[1] * tower.patch[1]))
        options = {"interpolate_pos_encoding": True} if tower.asks_for_other_sizes else {}
        return SmallerImages({"pixel_values": made}, plans, grids, options)

    def project(self) -> Callable[[Tensor], Tensor]:
        projector: Callable[[Tensor], Tensor] = self.core.multi_modal_projector
        return projector

    def layer(self, call: dict[str, Any], consuming: bool) -> int:
        """The block that makes the selected features (of several layers the deepest), or the one after it, which consumes them."""
        given = call.get("vision_feature_layer")
        chosen = self.config.vision_feature_layer if given is None else given
        depth = len(self.blocks)
        indices = [chosen] if isinstance(chosen, int) else list(chosen)
        made = max(index - 1 if index >= 0 else depth + index for index in indices)
        if not 0 <= made < depth:
            raise PruneError(f"vision_feature_layer={chosen} selects no output of the vision tower's {depth} layers")
        return min(made + 1, depth - 1) if consuming else made

    def shallow(self, site: ImageSite) -> nn.Module | None:
        """The earlier block that the site's recipe names, if it does."""
        return None if site.shallow is None else self.blocks[earlier_block(site.shallow, len(self.blocks))]

    def taps(self, kind: str, call: dict[str, Any], site: ImageSite) -> dict[str, nn.Module]:
        block, shallow, wanted = self.blocks[self.layer(call, site.consuming)], self.shallow(site), set(site.needs)
        taps = dict(self.tower.taps(block))
        if shallow is not None:
            taps.update({f"shallow_{name}": module for name, module in self.tower.taps(shallow).items()})
        taps = {name: taps[name] for name in TAPS if name in heads_of(wanted)}
        if "feats" in wanted or site.where == "encoder":
            taps["projector"] = self.core.multi_modal_projector
        if "class_token" in wanted:
            taps["block"] = self.blocks[self.layer(call, consuming=False)]
        return taps

    def images(self, kind: str, output: Any, call: dict[str, Any], heard: dict[str, Any], site: ImageSite) -> list[ImageTokens]:
        tiles, grid = self.tiles(call, heard, site), self.grid_of(call)
        survivors = left(self, self.layer(call, consuming=False))
        if survivors is not None:
            return [self.survived(tokens, i, row(survivors, i), tiles) for i, tokens in enumerate(output.pooler_output)]
        place = torch.arange(grid[0] * grid[1], device=output.pooler_output[0].device)
        columns = place + self.registers
        found = [self.tiled(tokens, [(columns, i, place)], tiles) for i, tokens in enumerate(output.pooler_output)]
        return [replace(image, grid=grid) for image in found]

    def survived(self, tokens: Tensor, number: int, survivors: Plan, tiles: dict[str, Any]) -> ImageTokens:
        """An image whose tower is pruned itself: its tokens [K, D] and signals are those of the patches that are left."""
        signals = {name: value[number] if isinstance(value, Tensor) else value for name, value in tiles.items()}
        columns = torch.arange(tokens.shape[0], device=tokens.device)
        only = Tile(columns, {**signals, "position": survivors.keep[0]})
        return ImageTokens(tokens, [only], grid=tiles["grid"], survivors=survivors)

    def tiles(self, call: dict[str, Any], heard: dict[str, Any], site: ImageSite) -> dict[str, Any]:
        """Signals of all tiles [T, ...] that went through the tower."""
        block = self.blocks[self.layer(call, site.consuming)]
        tiles: dict[str, Any] = {name: self.tower.heads(block, heard[name][2]) for name in TAPS if name in heard}
        if tiles:
            tiles.update(prefix=self.prefix, scale=self.tower.scale(block))
        if "projector" in heard:
            tiles["feats"] = heard["projector"][0][0][:, self.registers :]
        if "block" in heard:
            made = heard["block"][2]
            tiles["class_token"] = (made[0] if isinstance(made, tuple) else made)[:, :1]
        return {**tiles, "grid": self.grid_of(call)}

    def tiled(self, tokens: Tensor, places: list[tuple[Tensor, int, Tensor]], tiles: dict[str, Any]) -> ImageTokens:
        """An image from its tiles: (columns of its tokens [n], number of the tile, patches of the tile [n]) for each."""
        return ImageTokens(tokens, [Tile(columns, self.tile(tiles, number, patches)) for columns, number, patches in places])

    def tile(self, tiles: dict[str, Any], number: int, patches: Tensor) -> dict[str, Any]:
        """Signals of one tile, of which only some patches may be among the image's tokens. The others still take part in attention:
        they stand behind the prefix, so that statistics are over the whole softmax and are asked for the image's tokens alone."""
        signals: dict[str, Any] = {}
        n = tiles["grid"][0] * tiles["grid"][1]
        others = torch.ones(n, dtype=torch.bool, device=patches.device)
        others[patches] = False
        whole = patches.shape[0] == n
        for name, value in tiles.items():
            if name in TAPS:
                order = torch.cat([others.nonzero().squeeze(1), patches]) + self.prefix
                head = torch.arange(self.prefix, device=patches.device)
                signals[name] = value[number] if whole else value[number][:, torch.cat([head, order])]
            elif name == "prefix":
                signals[name] = value + n - patches.shape[0]
            elif name == "feats":
                signals[name] = value[number] if whole else value[number][patches]
            elif name == "class_token":
                signals[name] = value[number]
            else:
                signals[name] = value
        return {**signals, **({"position": patches} if whole else own_grid(patches, tiles["grid"]))}


def own_grid(patches: Tensor, grid: tuple[int, int]) -> dict[str, Any]:
    """Grid and position of a tile's patches [n] that are in the image: a grid of their own where they are whole rows and columns, as they
    are where padding was cut off; else places on the tile's grid."""
    rows, columns = (len(set(part.tolist())) for part in (patches // grid[1], patches % grid[1]))
    if rows * columns != patches.shape[0]:
        return {"grid": grid, "position": patches}
    return {"grid": (rows, columns), "position": torch.arange(patches.shape[0], device=patches.device)}
