"""LLaVA-OneVision: SigLIP, tiles as in LLaVA-NeXT, shrunk by interpolation where the image is large; several images in a prompt have no tiles.

Read with transformers 5.23 (LlavaOnevisionForConditionalGeneration). A token made by interpolation is scored as the patch nearest to
its place. Videos are refused: they are pooled, and no method says how to score pooled tokens.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ..errors import PruneError
from .llava_next import LlavaNext
from .tiles import ImageSite


class LlavaOnevision(LlavaNext):
    """LlavaOnevisionForConditionalGeneration."""

    name = "transformers LLaVA-OneVision"
    classes = ("LlavaOnevisionForConditionalGeneration",)

    def taps(self, kind: str, call: dict[str, Any], site: ImageSite) -> dict[str, nn.Module]:
        refuse_videos(kind)
        return super().taps(kind, call, site)

    def views(self, kind: str, call: dict[str, Any]) -> list[list[Tensor]]:
        refuse_videos(kind)
        return super().views(kind, call)

    def tile_counts(self, call: dict[str, Any]) -> list[int]:
        counts = super().tile_counts(call)
        images = call.get("batch_num_images")
        if images is None:
            return counts
        alone = [int(n) == 1 for n in images for _ in range(int(n))]
        return [count if one else 1 for count, one in zip(counts, alone, strict=True)]

    def pack(self, features: list[Tensor], call: dict[str, Any], newline: Tensor) -> list[Tensor]:
        ratio = call.get("vision_aspect_ratio") or self.config.vision_aspect_ratio
        packed: list[Tensor] = self.core.pack_image_features(
            features, call["image_sizes"], image_newline=newline, vision_aspect_ratio=ratio
        )[0]
        return packed


def refuse_videos(kind: str) -> None:
    """Raise PruneError for a video."""
    if kind == "video":
        raise PruneError("videos of LLaVA-OneVision cannot be pruned; give frames as images, or remove the handle for this call")
