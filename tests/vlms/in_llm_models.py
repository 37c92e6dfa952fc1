"""Tiny random vision-language models whose language model is known, beyond those of `lvlms`: each with a prompt of one image."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

IMAGE, VOCAB = 90, 96
TEXT = {
    "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": None, "max_position_embeddings": 256,
}  # fmt: skip
VISION = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}

Made = tuple[Any, int, dict[str, Tensor]]
"""Configuration and class of a model, tokens of an image, pixels."""


def pixels(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(2))


def text(kind: str = "llama", **more: Any) -> dict[str, Any]:
    return {"model_type": kind, **TEXT, **more}


def idefics2() -> Made:
    import transformers as t

    perceiver = {"hidden_size": 32, "resampler_n_latents": 9, "resampler_depth": 1, "resampler_n_heads": 2, "resampler_head_dim": 16,
                 "num_key_value_heads": 1}  # fmt: skip
    config = t.Idefics2Config(
        vision_config={**VISION, "image_size": 16, "patch_size": 4},
        perceiver_config=perceiver,
        text_config=text("mistral"),
        image_token_id=IMAGE,
    )
    return t.Idefics2ForConditionalGeneration(config), 9, {"pixel_values": pixels(1, 1, 3, 16, 16)}


def idefics3(kind: str = "Idefics3") -> Made:
    import transformers as t

    config = getattr(t, f"{kind}Config")(
        vision_config={**VISION, "image_size": 32, "patch_size": 4}, text_config=text(), image_token_id=IMAGE, scale_factor=2
    )
    return getattr(t, f"{kind}ForConditionalGeneration")(config), 16, {"pixel_values": pixels(1, 1, 3, 32, 32)}


def smolvlm() -> Made:
    return idefics3("SmolVLM")


def internvl() -> Made:
    import transformers as t

    vision = {**VISION, "image_size": [32, 32], "patch_size": [4, 4]}
    config = t.InternVLConfig(
        vision_config=vision, text_config=text("qwen2"), image_token_id=IMAGE, image_seq_length=16, downsample_ratio=0.5
    )
    return t.InternVLForConditionalGeneration(config), 16, {"pixel_values": pixels(1, 3, 32, 32)}


def mistral3() -> Made:
    import transformers as t

    vision = {"model_type": "pixtral", **VISION, "image_size": 32, "patch_size": 4}
    config = t.Mistral3Config(
        vision_config=vision, text_config=text("mistral"), image_token_index=IMAGE, spatial_merge_size=2, vision_feature_layer=-1
    )
    return (
        t.Mistral3ForConditionalGeneration(config),
        16,
        {"pixel_values": pixels(1, 3, 32, 32), "image_sizes": torch.tensor([[32, 32]])},
    )


def clip() -> dict[str, Any]:
    return {"model_type": "clip_vision_model", **VISION, "image_size": 16, "patch_size": 4, "projection_dim": 16}


def llava_next_video() -> Made:
    import transformers as t

    config = t.LlavaNextVideoConfig(
        vision_config=clip(), text_config=text(), image_token_index=IMAGE, video_token_index=91, image_grid_pinpoints=[[16, 32], [32, 16]],
    )  # fmt: skip
    # two frames of 16 patches, pooled to 4 each
    return t.LlavaNextVideoForConditionalGeneration(config), 8, {"pixel_values_videos": pixels(1, 2, 3, 16, 16)}


def vipllava() -> Made:
    import transformers as t

    config = t.VipLlavaConfig(vision_config=clip(), text_config=text(), image_token_index=IMAGE, vision_feature_layers=[-1, -2])
    return t.VipLlavaForConditionalGeneration(config), 16, {"pixel_values": pixels(1, 3, 16, 16)}


def janus() -> Made:
    import transformers as t

    vision = {**VISION, "image_size": 16, "patch_size": 4, "projection_dim": 32, "mlp_ratio": 2, "depth": 1, "num_image_tokens": 16}
    vq = {"embed_dim": 8, "num_embeddings": 16, "base_channels": 32, "channel_multiplier": [1, 1], "num_res_blocks": 1, "latent_channels": 8,
          "num_patches": 4, "projection_dim": 32, "image_token_embed_dim": 32}  # fmt: skip
    config = t.JanusConfig(vision_config=vision, vq_config=vq, text_config=text(), image_token_id=IMAGE)
    return t.JanusForConditionalGeneration(config), 16, {"pixel_values": pixels(1, 3, 16, 16)}


def deepseek_vl() -> Made:
    import transformers as t

    vision = {"model_type": "siglip_vision_model", **VISION, "image_size": 16, "patch_size": 4}
    config = t.DeepseekVLConfig(vision_config=vision, text_config=text(), image_token_id=IMAGE)
    return t.DeepseekVLForConditionalGeneration(config), 16, {"pixel_values": pixels(1, 3, 16, 16)}


def lighton_ocr() -> Made:
    import transformers as t

    vision = {"model_type": "pixtral", **VISION, "image_size": 32, "patch_size": 4}
    config = t.LightOnOcrConfig(
        vision_config=vision, text_config=text("qwen3", head_dim=8), image_token_id=IMAGE, spatial_merge_size=2
    )
    return (
        t.LightOnOcrForConditionalGeneration(config),
        16,
        {"pixel_values": pixels(1, 3, 32, 32), "image_sizes": torch.tensor([[32, 32]])},
    )


def video_llava() -> Made:
    import transformers as t

    config = t.VideoLlavaConfig(vision_config=clip(), text_config=text(), image_token_index=IMAGE, video_token_index=91)
    return t.VideoLlavaForConditionalGeneration(config), 16, {"pixel_values_images": pixels(1, 3, 16, 16)}


def qianfan_ocr() -> Made:
    import transformers as t

    vision = {**VISION, "image_size": [32, 32], "patch_size": [4, 4]}
    config = t.QianfanOCRConfig(
        vision_config=vision, text_config=text("qwen3", head_dim=8), image_token_id=IMAGE, image_seq_length=16
    )
    return t.QianfanOCRForConditionalGeneration(config), 16, {"pixel_values": pixels(1, 3, 32, 32)}


def ovis2() -> Made:
    import transformers as t

    vision = {**VISION, "image_size": 16, "patch_size": 4, "vocab_size": 40}
    config = t.Ovis2Config(
        vision_config=vision, text_config=text("qwen2"), image_token_id=IMAGE, visual_indicator_token_ids=[91, 92, 93, 94, 95],
        vocab_size=VOCAB, hidden_size=32,
    )  # fmt: skip
    return t.Ovis2ForConditionalGeneration(config), 16, {"pixel_values": pixels(1, 3, 16, 16)}


def got_ocr2() -> Made:
    import transformers as t

    vision = {"hidden_size": 32, "output_channels": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 128, "patch_size": 4,
              "window_size": 4, "global_attn_indexes": [1], "mlp_dim": 48}  # fmt: skip
    config = t.GotOcr2Config(vision_config=vision, text_config=text("qwen2"), image_token_index=IMAGE, image_seq_length=64)
    return t.GotOcr2ForConditionalGeneration(config), 64, {"pixel_values": pixels(1, 3, 128, 128)}


MODELS: dict[str, Callable[[], Made]] = {
    function.__name__: function
    for function in (
        idefics2,
        idefics3,
        smolvlm,
        internvl,
        mistral3,
        llava_next_video,
        vipllava,
        janus,
        deepseek_vl,
        lighton_ocr,
        video_llava,
        qianfan_ocr,
        ovis2,
        got_ocr2,
    )
}


def build(name: str) -> tuple[nn.Module, dict[str, Tensor]]:
    """A model and a prompt with one image for it."""
    torch.manual_seed(0)
    model, count, given = MODELS[name]()
    model.generation_config.pad_token_id = 0
    model.generation_config.eos_token_id = None
    token = IMAGE + ("pixel_values_videos" in given)
    ids = torch.tensor([[5, 6, *[token] * count, 7, 8, 9, 10]])
    return model.eval(), {"input_ids": ids, "attention_mask": torch.ones_like(ids), **given}
