"""LLaVA-NeXT: an overview and tiles of the image (anyres), padding cut off, a newline vector behind each row.

Read with transformers 5.23 (LlavaNextForConditionalGeneration). A budget is for the whole image. Recipes that read attention run on
every tile by itself, with a share of the budget in proportion to the tile's patches; others see the image as one set. Newline vectors
are not counted, and leave as soon as anything of their image leaves, as in FasterVLM and VisPruner.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .llava import Llava
from .tiles import ImageSite, ImageTokens

Place = tuple[Tensor, int, Tensor]


class LlavaNext(Llava):
    """LlavaNextForConditionalGeneration."""

    name = "transformers LLaVA-NeXT"
    one_row = False
    classes = ("LlavaNextForConditionalGeneration",)

    def capacity(self) -> int | None:
        return None

    @property
    def other_sizes(self) -> bool:
        return False  # the model packs tiles of one size

    def images(self, kind: str, output: Any, call: dict[str, Any], heard: dict[str, Any], site: ImageSite) -> list[ImageTokens]:
        tiles = self.tiles(call, heard, site)
        counts = self.tile_counts(call)
        first, found = 0, []
        for tokens, marks, count in zip(output.pooler_output, self.packed_places(call, counts), counts, strict=True):
            found.append(self.tiled(tokens, self.places(marks.to(tokens.device), first), tiles))
            first += count
        return found

    def tile_counts(self, call: dict[str, Any]) -> list[int]:
        """Tiles of every image, the overview among them."""
        from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches

        config = self.config
        pinpoints, size = config.image_grid_pinpoints, config.vision_config.image_size
        return [image_size_to_num_patches(one, pinpoints, size) for one in call["image_sizes"]]

    def pack(self, features: list[Tensor], call: dict[str, Any], newline: Tensor) -> list[Tensor]:
        """The model's own packing of tiles into one sequence."""
        given = call.get("vision_feature_select_strategy")
        strategy = self.config.vision_feature_select_strategy if given is None else given
        packed: list[Tensor] = self.core.pack_image_features(features, call["image_sizes"], strategy, image_newline=newline)[0]
        return packed

    def packed_places(self, call: dict[str, Any], counts: list[int]) -> list[Tensor]:
        """For every image [n, 3]: 1 in the overview and 0 in the tiles, row and column of the token's patch; -1 for newline vectors.
        Coordinates are packed in place of features, so that whatever the model cuts off or resizes is known."""
        h, w = self.grid
        rows, columns = (part.flatten() for part in torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij"))
        features = []
        for count, size in zip(counts, call["image_sizes"], strict=True):
            across = self.across(size)
            tiles = [torch.stack([torch.ones(h * w), rows, columns], dim=-1)]
            for tile in range(count - 1):
                down, right = divmod(tile, across)
                tiles.append(torch.stack([torch.zeros(h * w), rows + down * h, columns + right * w], dim=-1))
            features.append(torch.stack(tiles).float())
        packed = self.pack(features, call, torch.full((3,), -1.0))
        return [one.round().long() for one in packed]

    def views(self, kind: str, call: dict[str, Any]) -> list[list[Tensor]]:
        """The overview and all tiles together, without the padding that the model cuts off."""
        found = []
        for marks in self.packed_places(call, self.tile_counts(call)):
            parts = [(marks[:, 0] == sign).nonzero().squeeze(1) for sign in (1, 0)]
            found.append([laid_out(part, marks[part, 1:]) for part in parts if part.shape[0]])
        return found

    def across(self, size: Any) -> int:
        """Tiles in a row of the image's grid."""
        from transformers.models.llava_next.modeling_llava_next import get_anyres_image_grid_shape

        config = self.config
        return int(get_anyres_image_grid_shape(size, config.image_grid_pinpoints, config.vision_config.image_size)[1])

    def places(self, marks: Tensor, first: int) -> list[Place]:
        """Which tokens of an image are of which tile, and which of its patches."""
        h, w = self.grid
        overview, row, column = marks.unbind(dim=-1)
        across = int(column.max()) // w + 1
        tile = torch.where(overview == 1, 0, 1 + row.div(h, rounding_mode="floor") * across + column // w)
        tile = tile.masked_fill(overview < 0, -1)
        patch = (row % h) * w + column % w
        found = []
        for number in range(int(tile.max()) + 1):
            columns = (tile == number).nonzero().squeeze(1)
            if columns.shape[0]:
                found.append((columns, first + number, patch[columns]))
        return found


def laid_out(tokens: Tensor, places: Tensor) -> Tensor:
    """Tokens [n] at their places [n, 2] as a grid of as many rows and columns as there are, -1 where none lies."""
    rows, columns = (torch.unique(places[:, axis], return_inverse=True)[1] for axis in (0, 1))
    grid = tokens.new_full((int(rows.max()) + 1, int(columns.max()) + 1), -1)
    grid[rows, columns] = tokens
    return grid
