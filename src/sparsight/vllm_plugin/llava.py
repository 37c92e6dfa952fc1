"""vLLM's LLaVA, LLaVA-NeXT and LLaVA-OneVision with pruned images; videos stay whole. Read with vLLM 0.32.

Hooks hear the tower and its layers, of which the last is the one that makes the selected features: vLLM builds no more.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from vllm.model_executor.models import llava, llava_next, llava_onevision
from vllm.multimodal import MULTIMODAL_REGISTRY

from ..signals import SHALLOW
from ..vlms.tiles import ImageSite, ImageTokens
from .processor import FIELD, PruningProcessor, UnprunedBudget
from .pruner import EncodedImages, Encoder, ImagePruner
from .recipes import EncoderOutput
from .startup import enabled, served_recipes

ROWS = "rows"
"""Name, among what a call says, of the numbers of the pictures that are no padding."""


class LlavaInfo(UnprunedBudget, llava.LlavaProcessingInfo):  # type: ignore[misc]
    """What there is to know before processing."""


class LlavaProcessor(PruningProcessor, llava.LlavaMultiModalProcessor):  # type: ignore[misc]
    """Images of one size."""


class LlavaNextInfo(UnprunedBudget, llava_next.LlavaNextProcessingInfo):  # type: ignore[misc]
    """What there is to know before processing."""


class LlavaNextProcessor(PruningProcessor, llava_next.LlavaNextMultiModalProcessor):  # type: ignore[misc]
    """Images in tiles."""

    sized_by = ("pixel_values", "image_sizes")


class OnevisionInfo(UnprunedBudget, llava_onevision.LlavaOnevisionProcessingInfo):  # type: ignore[misc]
    """What there is to know before processing."""

    def get_mm_max_tokens_per_item(self, seq_len: int, mm_counts: Mapping[str, int]) -> Any:
        most = super().get_mm_max_tokens_per_item(seq_len, mm_counts)
        return most and {**most, "video": self.get_max_video_tokens(seq_len, mm_counts)}


class OnevisionProcessor(PruningProcessor, llava_onevision.LlavaOnevisionMultiModalProcessor):  # type: ignore[misc]
    """Images in tiles, every image of a prompt."""

    sized_by = ("pixel_values", "image_sizes")


def llava_info(ctx: Any) -> Any:
    """vLLM's own where the tower is Pixtral's, which is not pruned."""
    found = llava._build_llava_or_pixtral_hf_info(ctx)
    return LlavaInfo(ctx) if isinstance(found, llava.LlavaProcessingInfo) else found


def llava_processor(info: Any, dummy_inputs: Any) -> Any:
    if isinstance(info, LlavaInfo):
        return LlavaProcessor(info, dummy_inputs)
    return llava._build_llava_or_pixtral_hf_processor(info, dummy_inputs)


class TowerEncoder(Encoder):
    """A CLIP or SigLIP tower and what follows it. rows: which of the pictures that went through it are real, None for all."""

    def __init__(self, tower: Any) -> None:
        self.tower = tower
        self.layers = tower.vision_model.encoder.layers

    def modules(self, family: Any, site: ImageSite) -> dict[str, nn.Module]:
        places = {name: self.place(family, site, name) for name in family.taps("image", {}, site)}
        return {place: self.module(place) for place in places.values()}

    def place(self, family: Any, site: ImageSite, name: str) -> str:
        """Where vLLM has what transformers' module of that name says."""
        if name in ("projector", "block"):
            return name
        block = family.shallow(site) if name.startswith(SHALLOW) else family.blocks[family.layer({}, site.consuming)]
        return f"qkv {family.blocks.index(block)}"

    def module(self, place: str) -> nn.Module:
        if place == "projector":
            return self.tower  # type: ignore[no-any-return]  # what the tower gives, the projector takes
        layer: Any = self.layers[-1 if place == "block" else int(place.partition(" ")[2])]
        return layer if place == "block" else layer.self_attn.qkv_proj  # type: ignore[no-any-return]

    def images(self, family: Any, site: ImageSite, given: EncodedImages) -> list[ImageTokens]:
        rows = given.call.get(ROWS)
        heard: dict[str, Any] = {}
        for name in family.taps("image", {}, site):
            output = given.heard[self.place(family, site, name)][2]
            value = output[0] if isinstance(output, tuple) else output
            value = value if rows is None else value.index_select(0, rows.to(value.device))
            if name == "projector":
                heard[name] = ((value,), {}, None)
            else:
                heard[name] = ((), {}, value if name == "block" else value.chunk(3, dim=-1)["qkv".index(name[-1])])
        return family.images("image", EncoderOutput(pooler_output=given.tokens), given.call, heard, site)  # type: ignore[no-any-return]


class TowerModel:
    """Mixin in front of a model of vLLM with a CLIP or SigLIP tower and a projector."""

    def __init__(self: Any, *, vllm_config: Any, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)  # type: ignore[call-arg]
        self.pruner = None
        if enabled(self.config):
            self.pruner = ImagePruner(served_recipes(self.config), TowerEncoder(self.vision_tower), self.multi_modal_projector)

    def embed_multimodal(self: Any, **kwargs: Any) -> Any:
        texts = self.pruner.texts(kwargs.pop(FIELD, None)) if self.pruner is not None else []
        if not texts:
            return super().embed_multimodal(**kwargs)  # type: ignore[misc]
        with self.pruner.hearing(texts) as heard:
            tokens = list(super().embed_multimodal(**kwargs))  # type: ignore[misc]
        left = self.pruner.prune(texts, EncodedImages(tokens, self.call_of(kwargs), heard))
        return [whole if one is None else one.tokens for whole, one in zip(tokens, left, strict=True)]

    def call_of(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        """What transformers' model would have been called with, and which pictures are real (`ROWS`)."""
        return {"pixel_values": kwargs["pixel_values"]}


@MULTIMODAL_REGISTRY.register_processor(llava_processor, info=llava_info, dummy_inputs=llava.LlavaDummyInputsBuilder)
class PrunedLlava(TowerModel, llava.LlavaForConditionalGeneration):  # type: ignore[misc]
    """LlavaForConditionalGeneration."""


class TiledModel(TowerModel):
    """Mixin in front of a model that cuts images into tiles. Where images of a request have different numbers of tiles, they are padded
    with empty ones."""

    def call_of(self: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        pixels = kwargs["pixel_values"]
        call = {"pixel_values": pixels[0], "image_sizes": kwargs["image_sizes"]}
        given, real = [len(image) for image in pixels], self.pruner.family.tile_counts(call)
        if given == real:
            return call
        starts = [sum(given[:i]) for i in range(len(given))]
        return {**call, ROWS: torch.cat([torch.arange(start, start + count) for start, count in zip(starts, real, strict=True)])}


@MULTIMODAL_REGISTRY.register_processor(LlavaNextProcessor, info=LlavaNextInfo, dummy_inputs=llava.LlavaDummyInputsBuilder)
class PrunedLlavaNext(TiledModel, llava_next.LlavaNextForConditionalGeneration):  # type: ignore[misc]
    """LlavaNextForConditionalGeneration."""


@MULTIMODAL_REGISTRY.register_processor(
    OnevisionProcessor, info=OnevisionInfo, dummy_inputs=llava_onevision.LlavaOnevisionDummyInputsBuilder
)
class PrunedLlavaOnevision(TiledModel, llava_onevision.LlavaOnevisionForConditionalGeneration):  # type: ignore[misc]
    """LlavaOnevisionForConditionalGeneration."""
