"""vLLM's Qwen2.5-VL and Qwen3-VL with pruned images; videos stay whole. Read with vLLM 0.32.

Hooks hear the last block of the vision encoder with full attention. Positions: `mrope`. Qwen3-VL's DeepStack features are further columns
of the same rows, and follow the tokens that stay.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from vllm.model_executor.models import qwen2_5_vl, qwen3_vl
from vllm.multimodal import MULTIMODAL_REGISTRY

from ..vlms.encoder_rows import token_signals
from ..vlms.tiles import ImageSite, ImageTokens
from .mrope import TokenShifts, last_position, shortened_positions, with_digits
from .processor import FIELD, PruningProcessor
from .pruner import EncodedImages, Encoder, ImagePruner
from .recipes import EncoderOutput
from .startup import enabled, served_recipes

GRIDS = "image_grid_thw"


class Qwen25VLProcessor(PruningProcessor, qwen2_5_vl.Qwen2_5_VLMultiModalProcessor):  # type: ignore[misc]
    """Images of any size."""

    sized_by = (GRIDS,)


class Qwen3VLProcessor(PruningProcessor, qwen3_vl.Qwen3VLMultiModalProcessor):  # type: ignore[misc]
    """Images of any size."""

    sized_by = (GRIDS,)


class VisualEncoder(Encoder):
    """The vision encoder: blocks of patches, some of them within windows only, and a merger of four patches into one token."""

    def __init__(self, visual: Any) -> None:
        self.visual = visual

    def modules(self, family: Any, site: ImageSite) -> dict[str, nn.Module]:
        found: dict[str, nn.Module] = {}
        for block in family.listened(site).values():
            attention = self.visual.blocks[block].attn
            found.update({f"attention {block}": attention, f"qkv {block}": attention.qkv})
        return found

    def images(self, family: Any, site: ImageSite, given: EncodedImages) -> list[ImageTokens]:
        output = EncoderOutput(pooler_output=given.tokens, deepstack_features=given.extras)
        images: list[ImageTokens] = family.images("image", output, given.call, {}, site)
        blocks = family.listened(site)
        if not blocks:
            return images
        heads = {
            f"{ahead}{name}": value for ahead, block in blocks.items() for name, value in self.heads(block, given.heard).items()
        }
        scale, first, found = next(iter(heads.values())).shape[-1] ** -0.5, 0, []
        for image, grid in zip(images, given.call[GRIDS].tolist(), strict=True):
            token = self.token_of_rows(grid, image.tokens.device)
            rows = slice(first, first + token.shape[0])
            signals = token_signals({name: value[:, rows] for name, value in heads.items()}, token, scale) or {}
            found.append(replace(image, tiles=[replace(image.tiles[0], signals={**image.tiles[0].signals, **signals})]))
            first += token.shape[0]
        return found

    def heads(self, block: int, heard: dict[str, Any]) -> dict[str, Tensor]:
        """q, k, v of all patches [H, S, D] after RoPE, in the order in which the blocks have them."""
        qkv, (_, angles, _) = heard[f"qkv {block}"][2][0], heard[f"attention {block}"]
        attention = self.visual.blocks[block].attn
        parts = qkv.reshape(qkv.shape[0], 3, attention.num_attention_heads_per_partition, -1).transpose(0, 1)
        turned = attention.apply_rotary_emb(parts[:2].contiguous(), angles["rotary_pos_emb_cos"], angles["rotary_pos_emb_sin"])
        return {name: part.transpose(0, 1) for name, part in zip("qkv", (*turned, parts[2]), strict=True)}

    def token_of_rows(self, grid: list[int], device: Any) -> Tensor:
        """The token that each patch of an image is part of, in the order in which the blocks have the patches."""
        merge = self.visual.spatial_merge_size**2
        windows = hasattr(self.visual, "get_window_index_thw")
        order = self.visual.get_window_index_thw(*grid)[0] if windows else torch.arange(grid[0] * grid[1] * grid[2] // merge)
        token: Tensor = order.repeat_interleave(merge).to(device)
        return token


class MropeModel:
    """Mixin in front of a model of vLLM whose image tokens have rows and columns."""

    def __init__(self: Any, *, vllm_config: Any, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)  # type: ignore[call-arg]
        self.pruner = self.shifts = None
        if enabled(self.config):
            self.pruner = ImagePruner(served_recipes(self.config), VisualEncoder(self.visual), None)
            most = vllm_config.scheduler_config.max_num_batched_tokens
            self.shifts = TokenShifts(most, last_position(self.language_model))

    @property
    def widths(self: Any) -> tuple[int, int]:
        """Columns of an embedding that are the token, and those of DeepStack behind them."""
        return int(self.config.vision_config.out_hidden_size), int(getattr(self, "multiscale_dim", 0))

    def embed_multimodal(self: Any, **kwargs: Any) -> Any:
        texts = self.pruner.texts(kwargs.pop(FIELD, None)) if self.pruner is not None else []
        if not texts:
            return super().embed_multimodal(**kwargs)  # type: ignore[misc]
        grids = kwargs[GRIDS]
        with self.pruner.hearing(texts) as heard:
            embeddings = list(super().embed_multimodal(**kwargs))  # type: ignore[misc]
        tokens, extras = levels(embeddings, *self.widths)
        left = self.pruner.prune(texts, EncodedImages(tokens, {GRIDS: grids}, heard, extras))
        columns = (grids[:, 2] // self.visual.spatial_merge_size).tolist()
        return tuple(
            whole if one is None else with_digits(torch.cat([one.tokens, *one.extras], dim=-1), one.anchors, width)
            for whole, one, width in zip(embeddings, left, columns, strict=True)
        )

    def embed_input_ids(
        self: Any, input_ids: Tensor, multimodal_embeddings: Any = None, *, is_multimodal: Tensor | None = None
    ) -> Any:
        if self.shifts is not None:
            multimodal_embeddings = self.shifts.read(multimodal_embeddings or [], sum(self.widths), is_multimodal)
        return super().embed_input_ids(input_ids, multimodal_embeddings, is_multimodal=is_multimodal)  # type: ignore[misc]

    def get_mrope_input_positions(self: Any, input_tokens: list[int], mm_features: list[Any]) -> tuple[Tensor, int]:
        lay_out = super().get_mrope_input_positions  # type: ignore[misc]
        if self.shifts is None:
            whole: tuple[Tensor, int] = lay_out(input_tokens, mm_features)
            return whole
        return shortened_positions(lay_out, input_tokens, mm_features, self.visual.spatial_merge_size)

    def forward(
        self: Any, input_ids: Any, positions: Tensor, intermediate_tensors: Any = None, inputs_embeds: Any = None, **kwargs: Any
    ) -> Any:
        if self.shifts is not None:
            positions = self.shifts.moved(positions)
        return super().forward(input_ids, positions, intermediate_tensors, inputs_embeds, **kwargs)  # type: ignore[misc]

    def get_encoder_cudagraph_config(self: Any) -> Any:
        """Images of a server that prunes run without CUDA graphs of the encoder, which nobody can listen to; videos keep them."""
        config = super().get_encoder_cudagraph_config()  # type: ignore[misc]
        if self.pruner is None:
            return config
        return replace(config, modalities=[one for one in config.modalities if one != "image"])


def levels(embeddings: list[Tensor], width: int, deep: int) -> tuple[list[Tensor], list[list[Tensor]]]:
    """Tokens of every image, and its DeepStack features, level by level."""
    depth = deep // width
    parts = [one.reshape(-1, 1 + depth, width).unbind(dim=1) for one in embeddings]
    return [part[0] for part in parts], [[part[1 + level] for part in parts] for level in range(depth)]


@MULTIMODAL_REGISTRY.register_processor(
    Qwen25VLProcessor, info=qwen2_5_vl.Qwen2_5_VLProcessingInfo, dummy_inputs=qwen2_5_vl.Qwen2_5_VLDummyInputsBuilder
)
class PrunedQwen25VL(MropeModel, qwen2_5_vl.Qwen2_5_VLForConditionalGeneration):  # type: ignore[misc]
    """Qwen2_5_VLForConditionalGeneration."""


@MULTIMODAL_REGISTRY.register_processor(
    Qwen3VLProcessor, info=qwen3_vl.Qwen3VLProcessingInfo, dummy_inputs=qwen3_vl.Qwen3VLDummyInputsBuilder
)
class PrunedQwen3VL(MropeModel, qwen3_vl.Qwen3VLForConditionalGeneration):  # type: ignore[misc]
    """Qwen3VLForConditionalGeneration."""
