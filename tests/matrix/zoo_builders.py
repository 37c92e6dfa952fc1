"""How the tiny models of the zoo are built, framework by framework."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from torch import nn

DEPTH, DIM, HEADS, PATCH = 4, 32, 2, 8
SHAPE = {"hidden_size": DIM, "num_hidden_layers": DEPTH, "num_attention_heads": HEADS, "intermediate_size": 2 * DIM}
IMAGE = {"image_size": 32, "patch_size": PATCH}
TEXT = {**SHAPE, "num_hidden_layers": 1, "vocab_size": 11, "max_position_embeddings": 8}


def timm_vit(**options: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        from timm.models.deit import VisionTransformerDistilled
        from timm.models.vision_transformer import VisionTransformer

        kind = VisionTransformerDistilled if options.get("distilled") else VisionTransformer
        sizes = {"img_size": 32, "patch_size": PATCH, "embed_dim": DIM, "depth": DEPTH, "num_heads": HEADS, "num_classes": 5}
        return kind(**sizes, mlp_ratio=2.0, **{k: v for k, v in options.items() if k != "distilled"})

    return build


def timm_model(module: str, name: str, **options: Any) -> Callable[[], nn.Module]:
    """A model class of timm other than VisionTransformer."""

    def build() -> nn.Module:
        kind = getattr(importlib.import_module(f"timm.models.{module}"), name)
        sizes = {"img_size": 32, "patch_size": PATCH, "embed_dim": DIM, "depth": DEPTH, "num_heads": HEADS, "num_classes": 5}
        return kind(**sizes, mlp_ratio=2.0, **options)

    return build


def naflex() -> nn.Module:
    from timm.models.naflexvit import NaFlexVit, NaFlexVitCfg

    sizes = {"patch_size": PATCH, "embed_dim": DIM, "depth": DEPTH, "num_heads": HEADS, "pos_embed_grid_size": (4, 4)}
    return NaFlexVit(NaFlexVitCfg(**sizes, global_pool="avg", init_values=0.1), num_classes=5)


def open_clip(custom: bool = False, **options: Any) -> Callable[[], nn.Module]:
    """A CLIP model of open_clip, its image tower its own or timm's."""

    def build() -> nn.Module:
        from open_clip.model import CLIP, CustomTextCLIP

        text = {"context_length": 3, "vocab_size": 11, "width": DIM, "heads": HEADS, "layers": 1}
        vision = {
            "image_size": 32,
            "patch_size": PATCH,
            "width": DIM,
            "head_width": DIM // HEADS,
            "layers": DEPTH,
            "mlp_ratio": 2.0,
        }
        return (CustomTextCLIP if custom else CLIP)(16, {**vision, **options}, text, output_dict=True)

    return build


def gated() -> nn.Module:
    """Attention with an output gate; Block's constructor does not pass the option on."""
    from functools import partial

    from timm.layers import Attention

    model = timm_vit(qkv_bias=True)()
    for block in model.blocks:
        block.attn = partial(Attention, gated=True)(DIM, num_heads=HEADS, qkv_bias=True)
    return model


def unfused() -> nn.Module:
    model = timm_vit(qk_norm=True)()
    for block in model.blocks:
        block.attn.fused_attn = False
    return model


def hf(name: str, config: str, attention: str = "sdpa", **options: Any) -> Callable[[], nn.Module]:
    """A model of transformers by class name."""

    def build() -> nn.Module:
        import transformers

        made = getattr(transformers, config)(**options, attn_implementation=attention)
        return getattr(transformers, name)(made)

    return build


def image_text(name: str, config: str, **options: Any) -> Callable[[], nn.Module]:
    both = {"vision_config": {**SHAPE, **IMAGE}, "text_config": {**TEXT, "eos_token_id": 10}}
    return hf(name, config, **both, **options)
