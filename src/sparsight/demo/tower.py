"""The embedded ViT as transformers' Dinov2Model, the vision tower of the demo vision-language model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Mapping

WIDTH, DEPTH, HEADS, SIDE, PATCH = 384, 12, 6, 224, 14
TRAINED = (9, 10)
"""Blocks of the tower that were trained with the vision-language model; the others are the embedded ViT's."""
BLOCK = {
    "norm1": "norm1", "norm2": "norm2", "attn.proj": "attention.o_proj", "mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2",
    "ls1": "layer_scale1", "ls2": "layer_scale2",
}  # fmt: skip


def dinov2_config() -> Any:
    """The configuration of the tower."""
    from transformers import Dinov2Config

    return Dinov2Config(
        hidden_size=WIDTH, num_hidden_layers=DEPTH, num_attention_heads=HEADS, mlp_ratio=4, image_size=SIDE, patch_size=PATCH,
        hidden_act="gelu", layer_norm_eps=1e-6, qkv_bias=True, use_mask_token=False, drop_path_rate=0.0,
    )  # fmt: skip


def dinov2_state(timm: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of timm's ViT [names of timm] as those of Dinov2Model; the classifier is left out."""
    state = {
        "embeddings.cls_token": timm["cls_token"],
        "embeddings.position_embeddings": timm["pos_embed"],
        "embeddings.patch_embeddings.projection.weight": timm["patch_embed.proj.weight"],
        "embeddings.patch_embeddings.projection.bias": timm["patch_embed.proj.bias"],
        "layernorm.weight": timm["norm.weight"],
        "layernorm.bias": timm["norm.bias"],
    }
    for name, value in timm.items():
        if not name.startswith("blocks."):
            continue
        _, number, rest = name.split(".", 2)
        part, _, kind = rest.rpartition(".")
        start = f"encoder.layer.{number}."
        if part == "attn.qkv":
            for letter, one in zip("qkv", value.chunk(3), strict=True):
                state[f"{start}attention.{letter}_proj.{kind}"] = one
        else:
            state[f"{start}{BLOCK[part]}.{'lambda1' if kind == 'gamma' else kind}"] = value
    return state
