"""Tiny random models of the generic family in float32, and prompts for them made without a processor."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor

IMAGE, VIDEO, BREAK, OVERVIEW, PAD, VOCAB = 90, 91, 94, 87, 0, 96
TEXT = {
    "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "pad_token_id": PAD, "bos_token_id": 1, "eos_token_id": None, "max_position_embeddings": 512,
}  # fmt: skip
VISION = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 2}
IDS = {"image_token_id": IMAGE, "video_token_id": VIDEO}
MROPE = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}

Sample = list[int | tuple[int, int]]
"""A prompt: a number is a run of so many text tokens, a pair an image by its pixels (h, w)."""


@dataclass
class Kind:
    """A model and what a processor would make for it.

    model   builds it.                         sizes   image sizes that it takes.
    pixels  arguments for images (h, w, seed) of every row.
    block   ids that stand for an image of a size in the prompt.
    types   arguments that run along the prompt: name -> from ids.
    """

    model: Callable[[], Any]
    pixels: Callable[[list[list[tuple[int, int, int]]]], dict[str, Tensor]]
    block: Callable[[int, int], list[int]]
    sizes: list[tuple[int, int]] = field(default_factory=lambda: [(32, 32)])
    types: dict[str, Callable[[Tensor], Tensor]] = field(default_factory=dict)


def noise(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(100 + seed))


def flat(rows: list[list[tuple[int, int, int]]]) -> list[tuple[int, int, int]]:
    return [one for row in rows for one in row]


def text(kind: str = "llama", **more: Any) -> dict[str, Any]:
    return {"model_type": kind, **TEXT, **more}


def marks(ids: Tensor) -> Tensor:
    return (ids == IMAGE).long() + 2 * (ids == VIDEO).long()


# ---- how images come --------------------------------------------------------------------------------------------------


def squares(rows: list[list[tuple[int, int, int]]]) -> dict[str, Tensor]:
    """[images, 3, h, w]"""
    return {"pixel_values": torch.stack([noise(seed, 3, h, w) for h, w, seed in flat(rows)])}


def padded_rows(rows: list[list[tuple[int, int, int]]]) -> dict[str, Tensor]:
    """[rows, images, 3, h, w], rows with fewer images padded by black ones."""
    most = max(map(len, rows))
    stacked = [
        torch.stack([noise(seed, 3, h, w) for h, w, seed in row] + [torch.zeros(3, 32, 32)] * (most - len(row))) for row in rows
    ]
    return {"pixel_values": torch.stack(stacked)}


def sized(rows: list[list[tuple[int, int, int]]]) -> dict[str, Tensor]:
    """[images, 3, H, W] padded on the right and below, with image_sizes"""
    images = flat(rows)
    height, width = max(h for h, _, _ in images), max(w for _, w, _ in images)
    padded = [torch.nn.functional.pad(noise(seed, 3, h, w), (0, width - w, 0, height - h)) for h, w, seed in images]
    return {"pixel_values": torch.stack(padded), "image_sizes": torch.tensor([[h, w] for h, w, _ in images])}


def grids(frames: int = 2, **more: Any) -> Callable[[list[list[tuple[int, int, int]]]], dict[str, Tensor]]:
    """Flat patches of 4 x 4 with image_grid_thw"""

    def make(rows: list[list[tuple[int, int, int]]]) -> dict[str, Tensor]:
        images = flat(rows)
        patches = torch.cat([noise(seed, (h // 4) * (w // 4), 3 * frames * 16) for h, w, seed in images])
        made = {"pixel_values": patches, "image_grid_thw": torch.tensor([[1, h // 4, w // 4] for h, w, _ in images])}
        return {**made, **{name: torch.full((len(images),), value) for name, value in more.items()}}

    return make


def run(side: int = 4) -> Callable[[int, int], list[int]]:
    """One placeholder for every `side` x `side` patch pixels."""
    return lambda h, w: [IMAGE] * ((h // side) * (w // side))


def marked(h: int, w: int) -> list[int]:
    """Placeholders behind the mark of an overview."""
    return [OVERVIEW, *run(8)(h, w)]


# ---- models -----------------------------------------------------------------------------------------------------------

KINDS: dict[str, Callable[[], Kind]] = {}


MORE: dict[str, Callable[[], Kind]] = {}
"""Models that differ from one of `KINDS` inside the language model only."""


def kind(function: Callable[[], Kind]) -> Callable[[], Kind]:
    KINDS[function.__name__] = function
    return function


def inside(function: Callable[[], Kind]) -> Callable[[], Kind]:
    MORE[function.__name__] = function
    return function


def make(name: str, config: Any) -> Callable[[], Any]:
    import transformers

    return lambda: getattr(transformers, name)(config)


SIGLIP = {"model_type": "siglip_vision_model", **VISION, "image_size": 32, "patch_size": 4, "vision_use_head": False}
ANY = [(32, 32), (16, 32), (24, 16)]


@kind
def gemma3() -> Kind:
    import transformers as t

    words = {
        **TEXT,
        "head_dim": 8,
        "sliding_window": 12,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    }
    config = t.Gemma3Config(
        text_config=words,
        vision_config=SIGLIP,
        mm_tokens_per_image=16,
        image_token_index=IMAGE,
        boi_token_index=92,
        eoi_token_index=93,
    )
    types = {"token_type_ids": marks}
    return Kind(make("Gemma3ForConditionalGeneration", config), squares, run(8), types=types)


@kind
def gemma4(**more: Any) -> Kind:
    import transformers as t

    words = {**TEXT, "head_dim": 8, "sliding_window": 64, "layer_types": ["sliding_attention", "full_attention", "full_attention"],
             "vocab_size_per_layer_input": VOCAB, "hidden_size_per_layer_input": 8, "use_bidirectional_attention": "vision", **more}  # fmt: skip
    vision = {
        **VISION,
        "head_dim": 16,
        "num_key_value_heads": 2,
        "pooling_kernel_size": 2,
        "patch_size": 4,
        "position_embedding_size": 64,
    }
    config = t.Gemma4Config(
        text_config=words, vision_config=vision, audio_config=None, boi_token_id=92, eoi_token_id=93, **IDS,
        boa_token_id=95, eoa_token_index=95, audio_token_id=95,
    )  # fmt: skip

    def pixels(rows: list[list[tuple[int, int, int]]]) -> dict[str, Tensor]:
        values, places = [], []
        for h, w, seed in flat(rows):
            n = (h // 4) * (w // 4)
            place = torch.tensor([[x, y] for y in range(h // 4) for x in range(w // 4)])
            values.append(torch.nn.functional.pad(noise(seed, n, 48).sigmoid(), (0, 0, 0, 64 - n)))
            places.append(torch.nn.functional.pad(place, (0, 0, 0, 64 - n), value=-1))
        return {"pixel_values": torch.stack(values), "image_position_ids": torch.stack(places)}

    return Kind(make("Gemma4ForConditionalGeneration", config), pixels, run(8), ANY, {"mm_token_type_ids": marks})


@inside
def gemma4_shared() -> Kind:
    """The last two layers use the keys of those before; the window is small."""
    kinds = ["sliding_attention", "full_attention"] * 3
    return gemma4(
        num_hidden_layers=6, num_kv_shared_layers=2, layer_types=kinds, sliding_window=12, use_bidirectional_attention=None
    )


@kind
def paligemma(kind: str = "gemma", **more: Any) -> Kind:
    import transformers as t

    config = t.PaliGemmaConfig(
        text_config=text(kind, head_dim=8, **{k: v for k, v in more.items() if k != "attention"}), vision_config={**SIGLIP, "image_size": 16, "projection_dim": 32}, image_token_index=IMAGE,
        vocab_size=VOCAB, projection_dim=32, hidden_size=32,
    )  # fmt: skip
    prefix = {"token_type_ids": torch.zeros_like}
    config._attn_implementation = more.get("attention", "sdpa")
    return Kind(make("PaliGemmaForConditionalGeneration", config), squares, run(4), [(16, 16)], prefix)


@inside
def paligemma2() -> Kind:
    """Full and sliding layers, and logits that are capped, which only some implementations of attention can do."""
    return paligemma(
        "gemma2", sliding_window=12, layer_types=["sliding_attention", "full_attention", "sliding_attention"], attention="eager"
    )


def qwen_vision(**more: Any) -> dict[str, Any]:
    return {"depth": 3, "num_heads": 2, "patch_size": 4, "spatial_merge_size": 2, "temporal_patch_size": 2, "hidden_size": 32,
            "out_hidden_size": 32, "intermediate_size": 48, "num_position_embeddings": 64, **more}  # fmt: skip


VISION_IDS = {**IDS, "vision_start_token_id": 92, "vision_end_token_id": 93}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}


def of_qwen(name: str, config: str, words: dict[str, Any], vision: dict[str, Any], types: bool = True, **more: Any) -> Kind:
    import transformers as t

    made = getattr(t, config)(text_config=words, vision_config=vision, **{**VISION_IDS, **more})
    return Kind(make(name, made), grids(), run(8), ANY, {"mm_token_type_ids": marks} if types else {})


def qwen3_5_text(**more: Any) -> dict[str, Any]:
    linear = {"linear_key_head_dim": 8, "linear_value_head_dim": 8, "linear_num_key_heads": 2, "linear_num_value_heads": 4}
    rope = {**MROPE, "partial_rotary_factor": 0.5, "mrope_interleaved": True, "mrope_section": [1, 1, 2]}
    return {
        **TEXT,
        **linear,
        "head_dim": 16,
        "rope_parameters": rope,
        "layer_types": ["linear_attention", "full_attention", "linear_attention"],
        **more,
    }


@kind
def qwen3_5() -> Kind:
    return of_qwen("Qwen3_5ForConditionalGeneration", "Qwen3_5Config", qwen3_5_text(), qwen_vision())


@kind
def qwen3_5_moe() -> Kind:
    words = qwen3_5_text(**EXPERTS, shared_expert_intermediate_size=16)
    return of_qwen("Qwen3_5MoeForConditionalGeneration", "Qwen3_5MoeConfig", words, qwen_vision())


@kind
def qwen3_vl_moe() -> Kind:
    words = {**TEXT, **EXPERTS, "head_dim": 8, "rope_parameters": {**MROPE, "mrope_interleaved": True}}
    vision = qwen_vision(deepstack_visual_indexes=[0, 1])
    return of_qwen("Qwen3VLMoeForConditionalGeneration", "Qwen3VLMoeConfig", words, vision)


@kind
def qwen2_5_omni() -> Kind:
    words = {**TEXT, "rope_parameters": MROPE}
    vision = qwen_vision(window_size=16, fullatt_block_indexes=[1])
    audio = {"encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 16, "d_model": 16, "output_dim": 32}
    more = {"image_token_index": IMAGE, "video_token_index": VIDEO, "audio_token_index": 95, "audio_config": audio, "audio_start_token_id": 88,
            "audio_end_token_id": 89}  # fmt: skip
    return of_qwen("Qwen2_5OmniThinkerForConditionalGeneration", "Qwen2_5OmniThinkerConfig", words, vision, False, **more)


@kind
def qwen3_omni() -> Kind:
    words = {**TEXT, **EXPERTS, "head_dim": 8, "rope_parameters": {**MROPE, "mrope_interleaved": True}}
    vision = qwen_vision(deepstack_visual_indexes=[0, 1])
    audio = {
        "encoder_layers": 1,
        "encoder_attention_heads": 2,
        "encoder_ffn_dim": 16,
        "d_model": 16,
        "output_dim": 32,
        "downsample_hidden_size": 8,
    }
    more = {"audio_token_id": 95, "audio_config": audio, "audio_start_token_id": 88}
    return of_qwen("Qwen3OmniMoeThinkerForConditionalGeneration", "Qwen3OmniMoeThinkerConfig", words, vision, False, **more)


GLM_IDS = {"image_start_token_id": 92, "image_end_token_id": 93, "video_start_token_id": 88, "video_end_token_id": 89}


def glm_vision() -> dict[str, Any]:
    return {**qwen_vision(), "image_size": 32}


@kind
def glm4v() -> Kind:
    return of_qwen("Glm4vForConditionalGeneration", "Glm4vConfig", {**TEXT, "rope_parameters": MROPE}, glm_vision(), **GLM_IDS)


@kind
def glm46v() -> Kind:
    words = {"model_type": "glm4v_text", **TEXT, "rope_parameters": MROPE}
    return of_qwen(
        "Glm46VForConditionalGeneration", "Glm46VConfig", words, {"model_type": "glm4v_vision", **glm_vision()}, **GLM_IDS
    )


@kind
def glm_ocr() -> Kind:
    words = {**TEXT, "rope_parameters": MROPE, "head_dim": 8}
    return of_qwen("GlmOcrForConditionalGeneration", "GlmOcrConfig", words, glm_vision(), **GLM_IDS)


@kind
def paddleocr_vl() -> Kind:
    import transformers as t

    words = {**TEXT, "rope_parameters": MROPE, "head_dim": 8}
    vision = {**VISION, "image_size": 32, "patch_size": 4}
    config = t.PaddleOCRVLConfig(text_config=words, vision_config=vision, **VISION_IDS)

    def pixels(rows: list[list[tuple[int, int, int]]]) -> dict[str, Tensor]:
        made = grids(1)(rows)
        return {**made, "pixel_values": made["pixel_values"].view(-1, 3, 4, 4)}

    return Kind(make("PaddleOCRVLForConditionalGeneration", config), pixels, run(8), ANY, {"mm_token_type_ids": marks})


@kind
def kimi() -> Kind:
    import transformers as t

    mla = {"kv_lora_rank": 8, "q_lora_rank": 16, "qk_rope_head_dim": 4, "qk_nope_head_dim": 8, "v_head_dim": 8, "n_routed_experts": 4, "num_experts_per_tok": 2,
           "moe_intermediate_size": 16, "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1, "n_shared_experts": 1}  # fmt: skip
    vision = {**VISION, "patch_size": 4, "pos_emb_height": 8, "pos_emb_width": 8, "pos_emb_time": 2}
    config = t.Kimi_K25Config(
        text_config=text("deepseek_v3", **{**mla, "num_key_value_heads": 4}),
        vision_config=vision,
        projection_hidden_size=32,
        **VISION_IDS,
    )

    def pixels(rows: list[list[tuple[int, int, int]]]) -> dict[str, Tensor]:
        made = grids(1)(rows)
        return {**made, "pixel_values": made["pixel_values"].view(-1, 3, 4, 4)}

    return Kind(make("Kimi_K25ForConditionalGeneration", config), pixels, run(8), ANY)


@kind
def internvl() -> Kind:
    import transformers as t

    vision = {**VISION, "image_size": [32, 32], "patch_size": [4, 4]}
    config = t.InternVLConfig(
        vision_config=vision, text_config=text("qwen2"), image_token_id=IMAGE, image_seq_length=16, downsample_ratio=0.5
    )
    return Kind(make("InternVLForConditionalGeneration", config), squares, run(8))


def row_breaks(side: int) -> Callable[[int, int], list[int]]:
    return lambda h, w: ([IMAGE] * (w // side) + [BREAK]) * (h // side)


@kind
def mistral3() -> Kind:
    import transformers as t

    vision = {"model_type": "pixtral", **VISION, "image_size": 32, "patch_size": 4}
    config = t.Mistral3Config(
        vision_config=vision, text_config=text("mistral"), image_token_index=IMAGE, spatial_merge_size=2, vision_feature_layer=-1
    )
    return Kind(make("Mistral3ForConditionalGeneration", config), sized, row_breaks(8), ANY)


def idefics(name: str) -> Kind:
    import transformers as t

    config = getattr(t, f"{name}Config")(
        vision_config={**VISION, "image_size": 32, "patch_size": 4}, text_config=text(), image_token_id=IMAGE, scale_factor=2
    )
    return Kind(make(f"{name}ForConditionalGeneration", config), padded_rows, marked)


@kind
def smolvlm() -> Kind:
    return idefics("SmolVLM")


@kind
def idefics3() -> Kind:
    return idefics("Idefics3")


@kind
def lfm2_vl() -> Kind:
    import transformers as t

    vision = {"model_type": "siglip2_vision_model", **VISION, "patch_size": 4, "num_patches": 64, "vision_use_head": False}
    words = text("lfm2", layer_types=["conv", "full_attention", "conv"])
    config = t.Lfm2VlConfig(vision_config=vision, text_config=words, image_token_id=IMAGE, projector_hidden_size=32)

    def pixels(rows: list[list[tuple[int, int, int]]]) -> dict[str, Tensor]:
        images = flat(rows)
        counts = [(h // 4) * (w // 4) for h, w, _ in images]
        values = [
            torch.nn.functional.pad(noise(seed, n, 48), (0, 0, 0, 64 - n)) for (_, _, seed), n in zip(images, counts, strict=True)
        ]
        mask = [torch.arange(64) < n for n in counts]
        return {"pixel_values": torch.stack(values), "spatial_shapes": torch.tensor([[h // 4, w // 4] for h, w, _ in images]),
                "pixel_attention_mask": torch.stack(mask).int()}  # fmt: skip

    return Kind(make("Lfm2VlForConditionalGeneration", config), pixels, run(8), ANY)


@kind
def ovis2() -> Kind:
    import transformers as t

    vision = {**VISION, "image_size": 16, "patch_size": 4, "vocab_size": 40}
    config = t.Ovis2Config(
        vision_config=vision, text_config=text("qwen2"), image_token_id=IMAGE, visual_indicator_token_ids=[85, 86, 87, 88, 89], vocab_size=VOCAB,
        hidden_size=32,
    )  # fmt: skip
    return Kind(make("Ovis2ForConditionalGeneration", config), squares, lambda h, w: [85, *run(4)(h, w), 86], [(16, 16)])


@kind
def minicpm() -> Kind:
    import transformers as t

    vision = {**VISION, "image_size": 32, "patch_size": 4, "insert_layer_id": 1}
    words = qwen3_5_text()
    config = t.MiniCPMV4_6Config(
        vision_config=vision, text_config={"model_type": "qwen3_5_text", **words}, insert_layer_id=1, image_size=32, **IDS
    )

    def pixels(rows: list[list[tuple[int, int, int]]]) -> dict[str, Tensor]:
        images = flat(rows)
        packed = torch.cat([noise(seed, 3, 4, (h // 4) * w) for h, w, seed in images], dim=-1)
        return {"pixel_values": packed.unsqueeze(0), "target_sizes": torch.tensor([[h // 4, w // 4] for h, w, _ in images])}

    return Kind(make("MiniCPMV4_6ForConditionalGeneration", config), pixels, run(16), [(32, 32), (32, 64)])


@kind
def molmo2() -> Kind:
    import transformers as t

    vision = {
        **VISION,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "image_size": [32, 32],
        "patch_size": 4,
        "num_position_embeddings": 64,
    }
    adapter = {"vision_feature_layer": [1, 2], "hidden_size": 32, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16,
               "intermediate_size": 48, "text_hidden_size": 32}  # fmt: skip
    words = {**{k: v for k, v in TEXT.items() if not k.endswith("token_id")}, "head_dim": 8, "additional_vocab_size": 8}
    config = t.Molmo2Config(
        vision_config=vision, adapter_config=adapter, text_config=words, image_patch_id=IMAGE, image_start_token_id=92,
        low_res_image_start_token_id=92, image_end_token_id=93, frame_start_token_id=88, frame_end_token_id=89,
    )  # fmt: skip

    def pixels(rows: list[list[tuple[int, int, int]]]) -> dict[str, Tensor]:
        images = flat(rows)
        patches = torch.stack([noise(seed, 64, 48) for _, _, seed in images])
        place = torch.arange(64).view(4, 2, 4, 2).transpose(1, 2).reshape(16, 4)
        pooling = torch.cat([place + 64 * i for i in range(len(images))])
        return {"pixel_values": patches, "image_token_pooling": pooling, "image_grids": torch.tensor([[0, 0, 4, 4]] * len(images)),
                "image_num_crops": torch.ones(len(images), dtype=torch.long)}  # fmt: skip

    return Kind(make("Molmo2ForConditionalGeneration", config), pixels, run(8), types={"mm_token_type_ids": marks})


@kind
def aya_vision() -> Kind:
    import transformers as t

    config = t.AyaVisionConfig(
        vision_config=SIGLIP, text_config=text("cohere2", sliding_window=64), image_token_index=IMAGE, downsample_factor=2
    )
    return Kind(make("AyaVisionForConditionalGeneration", config), squares, marked)


@kind
def cohere2_vision() -> Kind:
    import transformers as t

    config = t.Cohere2VisionConfig(
        vision_config=SIGLIP,
        text_config=text("cohere2", sliding_window=64),
        image_token_id=IMAGE,
        downsample_factor=2,
        alignment_intermediate_size=32,
    )
    return Kind(make("Cohere2VisionForConditionalGeneration", config), squares, run(8))


@kind
def videollama3() -> Kind:
    import transformers as t

    config = t.VideoLlama3Config(vision_config={**VISION, "patch_size": 4}, text_config=text("qwen2"), **IDS)
    return Kind(make("VideoLlama3ForConditionalGeneration", config), grids(1, image_merge_sizes=2), run(8), ANY)


CLIP = {"model_type": "clip_vision_model", **VISION, "image_size": 16, "patch_size": 4, "projection_dim": 16}


@kind
def vipllava() -> Kind:
    import transformers as t

    config = t.VipLlavaConfig(vision_config=CLIP, text_config=text(), image_token_index=IMAGE, vision_feature_layers=[-1, -2])
    return Kind(make("VipLlavaForConditionalGeneration", config), squares, run(4), [(16, 16)])


@kind
def deepseek_vl() -> Kind:
    import transformers as t

    config = t.DeepseekVLConfig(vision_config={**SIGLIP, "image_size": 16}, text_config=text(), image_token_id=IMAGE)
    return Kind(make("DeepseekVLForConditionalGeneration", config), squares, run(4), [(16, 16)])


@kind
def janus() -> Kind:
    import transformers as t

    vision = {**VISION, "image_size": 16, "patch_size": 4, "projection_dim": 32, "mlp_ratio": 2, "depth": 1, "num_image_tokens": 16}
    vq = {"embed_dim": 8, "num_embeddings": 16, "base_channels": 32, "channel_multiplier": [1, 1], "num_res_blocks": 1, "latent_channels": 8,
          "num_patches": 4, "projection_dim": 32, "image_token_embed_dim": 32}  # fmt: skip
    config = t.JanusConfig(vision_config=vision, vq_config=vq, text_config=text(), image_token_id=IMAGE)
    return Kind(make("JanusForConditionalGeneration", config), squares, run(4), [(16, 16)])


@kind
def lighton_ocr() -> Kind:
    import transformers as t

    vision = {"model_type": "pixtral", **VISION, "image_size": 32, "patch_size": 4}
    config = t.LightOnOcrConfig(
        vision_config=vision, text_config=text("qwen3", head_dim=8), image_token_id=IMAGE, spatial_merge_size=2
    )
    return Kind(make("LightOnOcrForConditionalGeneration", config), sized, run(8), ANY)


@kind
def qianfan_ocr() -> Kind:
    import transformers as t

    vision = {**VISION, "image_size": [32, 32], "patch_size": [4, 4]}
    config = t.QianfanOCRConfig(
        vision_config=vision, text_config=text("qwen3", head_dim=8), image_token_id=IMAGE, image_seq_length=16
    )
    return Kind(make("QianfanOCRForConditionalGeneration", config), squares, run(8))


@kind
def glm4v_moe() -> Kind:
    experts = {
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
        "first_k_dense_replace": 1,
        "head_dim": 8,
    }
    words = {**TEXT, **experts, "rope_parameters": {**MROPE, "mrope_section": [1, 1, 0]}}
    return of_qwen("Glm4vMoeForConditionalGeneration", "Glm4vMoeConfig", words, glm_vision(), **GLM_IDS)


@kind
def ernie() -> Kind:
    import transformers as t

    experts = {
        "moe_intermediate_size": [16, 16],
        "moe_k": 2,
        "moe_num_experts": 4,
        "mlp_layer_types": ["dense", "sparse", "sparse"],
    }
    words = {**TEXT, **experts, "rope_parameters": {**MROPE, "mrope_section": [1, 1, 2]}}
    vision = {
        k: v
        for k, v in qwen_vision().items()
        if k in ("depth", "num_heads", "patch_size", "spatial_merge_size", "hidden_size", "intermediate_size")
    }
    config = t.Ernie4_5_VLMoeConfig(text_config=words, vision_config=vision, **IDS, image_start_token_id=92, image_end_token_id=93,
                                    video_start_token_id=88, video_end_token_id=89)  # fmt: skip
    types = {"mm_token_type_ids": marks, "moe_mm_token_type_ids": lambda ids: (ids == IMAGE).long()}
    return Kind(make("Ernie4_5_VLMoeForConditionalGeneration", config), grids(1), run(8), ANY, types)


@kind
def exaone() -> Kind:
    import transformers as t

    vision = qwen_vision(window_size=16, fullatt_block_indexes=[1], num_key_value_heads=1)
    del vision["num_position_embeddings"]
    config = t.Exaone4_5_Config(
        text_config=text("exaone4", sliding_window=None, layer_types=["full_attention"] * 3), vision_config=vision, **IDS
    )
    return Kind(make("Exaone4_5_ForConditionalGeneration", config), grids(), run(8), ANY)


@kind
def idefics2() -> Kind:
    import transformers as t

    perceiver = {"hidden_size": 32, "resampler_n_latents": 9, "resampler_depth": 1, "resampler_n_heads": 2, "resampler_head_dim": 16,
                 "num_key_value_heads": 1}  # fmt: skip
    config = t.Idefics2Config(
        vision_config={**VISION, "image_size": 32, "patch_size": 4},
        perceiver_config=perceiver,
        text_config=text("mistral"),
        image_token_id=IMAGE,
    )
    return Kind(make("Idefics2ForConditionalGeneration", config), padded_rows, lambda h, w: [IMAGE] * 9)


@kind
def got_ocr2() -> Kind:
    import transformers as t

    vision = {"hidden_size": 32, "output_channels": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 128, "patch_size": 4,
              "window_size": 4, "global_attn_indexes": [1], "mlp_dim": 48}  # fmt: skip
    config = t.GotOcr2Config(vision_config=vision, text_config=text("qwen2"), image_token_index=IMAGE, image_seq_length=64)
    return Kind(make("GotOcr2ForConditionalGeneration", config), squares, lambda h, w: [IMAGE] * 64, [(128, 128)])


@kind
def video_llava() -> Kind:
    import transformers as t

    def pixels(rows: list[list[tuple[int, int, int]]]) -> dict[str, Tensor]:
        return {"pixel_values_images": squares(rows)["pixel_values"]}

    config = t.VideoLlavaConfig(vision_config=CLIP, text_config=text(), image_token_index=IMAGE, video_token_index=VIDEO)
    return Kind(
        make("VideoLlavaForConditionalGeneration", config),
        pixels,
        run(4),
        [(16, 16)],
    )


@kind
def llava_pixtral() -> Kind:
    import transformers as t

    vision = {"model_type": "pixtral", **VISION, "image_size": 32, "patch_size": 4}
    config = t.LlavaConfig(
        vision_config=vision,
        text_config=text("mistral"),
        image_token_index=IMAGE,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )
    return Kind(make("LlavaForConditionalGeneration", config), sized, row_breaks(4), ANY)


@kind
def llama4() -> Kind:
    import transformers as t

    vision = {**VISION, "image_size": 32, "patch_size": 4, "vision_output_dim": 32, "projector_input_dim": 32, "projector_output_dim": 32,
              "intermediate_size": 128}  # fmt: skip
    words = {**TEXT, "head_dim": 8, "intermediate_size_mlp": 48, "num_local_experts": 2, "attention_chunk_size": 64}
    config = t.Llama4Config(
        vision_config=vision, text_config=words, image_token_index=IMAGE, boi_token_index=92, eoi_token_index=93
    )
    return Kind(make("Llama4ForConditionalGeneration", config), squares, marked)


# ---- building ---------------------------------------------------------------------------------------------------------


@cache
def made(name: str) -> Kind:
    return {**KINDS, **MORE}[name]()


@cache
def template(name: str) -> Any:
    torch.manual_seed(0)
    model = made(name).model()
    rng = torch.Generator().manual_seed(1)
    for path, parameter in model.named_parameters():
        if parameter.dim() > 1:
            parameter.data = torch.randn(parameter.shape, generator=rng) * (0.3 if "embed" in path else 0.2)
    head = model.get_output_embeddings()
    head.weight = torch.nn.Parameter(head.weight.detach().clone())  # an answer with placeholders could not be read again
    head.weight.data[80:] = 0
    model.generation_config.pad_token_id = PAD
    model.generation_config.eos_token_id = None
    return model.eval()


def build(name: str) -> Any:
    """A model of its own, equal for equal names."""
    return copy.deepcopy(template(name))


def inputs(name: str, samples: list[Sample]) -> dict[str, Tensor]:
    """What a processor would give, padded on the left. The n-th image of all samples has seed n, wherever it is."""
    kind, rows, images = made(name), [], []
    for sample in samples:
        row: list[int] = []
        mine: list[tuple[int, int, int]] = []
        start = 1 + 5 * len(sample) + sum(item for item in sample if isinstance(item, int))
        for item in sample:
            if isinstance(item, tuple):
                row += kind.block(*item)
                mine.append((*item, start))
            else:
                row += [2 + (start + 3 * i) % 70 for i in range(item)]
            start += 11
        rows.append(row)
        images.append(mine)
    longest = max(map(len, rows))
    ids = torch.tensor([[PAD] * (longest - len(row)) + row for row in rows])
    given = {"input_ids": ids, "attention_mask": torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])}
    given.update({argument: along(ids) for argument, along in kind.types.items()})
    return {**given, **(kind.pixels(images) if any(images) else {})}


def prompt(name: str, *places: int | str) -> Sample:
    """A sample in which every "image" is one of the sizes that the model takes, in turn."""
    sizes = made(name).sizes
    return [sizes[i % len(sizes)] if place == "image" else int(place) for i, place in enumerate(places)]
