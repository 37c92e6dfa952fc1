"""Tiny random models of every family and shape, in float64, with no parameter at a value that hides a mistake."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from zoo_builders import (
    DEPTH,
    DIM,
    HEADS,
    IMAGE,
    PATCH,
    SHAPE,
    gated,
    hf,
    image_text,
    naflex,
    open_clip,
    timm_model,
    timm_vit,
    unfused,
)

import sparsight


@dataclass(frozen=True)
class Entry:
    """One model: how it is built, what it is called with, how many prefix tokens and patches it has."""

    build: Callable[[], nn.Module]
    prefix: int
    class_token: bool = True
    image: tuple[int, int] = (32, 32)
    call: dict[str, Any] = field(default_factory=dict)
    variant: bool = False
    """Another shape of a family that is here already: a few recipes will do."""

    @property
    def patches(self) -> int:
        return self.image[0] // PATCH * (self.image[1] // PATCH)


BEIT = {"head_init_scale": 1.0, "use_abs_pos_emb": False}
RELPOS = {"rel_pos_type": "bias", "class_token": True, "shared_rel_pos": True, "global_pool": "token"}
EVA = {"use_rot_pos_emb": True, "head_init_scale": 1.0}
EVA02 = {"qkv_fused": False, "swiglu_mlp": True, "scale_mlp": True, **EVA}
DINOV3 = {"rope_type": "dinov3", "rope_rotate_half": True, "num_reg_tokens": 4, "no_embed_class": True, "use_abs_pos_emb": False}
PE = {
    "attn_type": "rope",
    "qkv_fused": False,
    "num_kv_heads": 1,
    "use_pre_transformer_norm": True,
    "global_pool": "map",
    "rope_grid_indexing": "xy",
    "rope_grid_offset": 1.0,
}
MIXED = {"attn_type": "rope", "rope_type": "mixed", "qk_norm": True, "class_token": False, "swiglu_mlp": True}
VIT = {**SHAPE, **IMAGE, "num_labels": 5}
DROPS = {"hidden_dropout_prob": 0.2, "attention_probs_dropout_prob": 0.2}
DINO = {"hidden_size": DIM, "num_hidden_layers": DEPTH, "num_attention_heads": HEADS, "mlp_ratio": 2, **IMAGE, "num_labels": 5}
DINOV3_HF = {**SHAPE, **IMAGE, "layerscale_value": 0.5, "drop_path_rate": 0.2, "use_gated_mlp": True}
WORDS = {"input_ids": torch.tensor([[1, 2, 10], [3, 4, 10]])}
TOKENS = {"text": torch.tensor([[1, 2, 10], [3, 4, 10]])}
OTHER = {"interpolate_pos_encoding": True}

ZOO: dict[str, Entry] = {
    "timm-token": Entry(timm_vit(), 1),
    "timm-distilled": Entry(timm_vit(distilled=True), 2),
    "timm-registers": Entry(timm_vit(reg_tokens=3, no_embed_class=True), 4),
    "timm-registers-only": Entry(timm_vit(reg_tokens=2, class_token=False, global_pool="avg"), 2, class_token=False),
    "timm-noclass-avg": Entry(timm_vit(class_token=False, global_pool="avg"), 0, class_token=False),
    "timm-noclass-map": Entry(timm_vit(class_token=False, global_pool="map"), 0, class_token=False),
    "timm-token-avg": Entry(timm_vit(global_pool="avg"), 1),
    "timm-avgmax": Entry(timm_vit(global_pool="avgmax", pool_include_prefix=True), 1),
    "timm-layerscale": Entry(timm_vit(init_values=0.1, drop_path_rate=0.2), 1),
    "timm-prenorm": Entry(timm_vit(pre_norm=True, no_embed_class=True), 1),
    "timm-qknorm": Entry(timm_vit(qk_norm=True, scale_attn_norm=True, scale_mlp_norm=True, qkv_bias=False), 1),
    "timm-gated": Entry(gated, 1),
    "timm-unfused": Entry(unfused, 1),
    "timm-dynamic": Entry(timm_vit(dynamic_img_size=True), 1, image=(48, 24)),
    "timm-eva": Entry(timm_model("eva", "Eva", init_values=0.1, drop_path_rate=0.2, head_init_scale=1.0), 1, variant=True),
    "timm-eva02": Entry(timm_model("eva", "Eva", **EVA02), 1),
    "timm-eva02-post": Entry(timm_model("eva", "Eva", use_post_norm=True, **EVA), 1, variant=True),
    "timm-beit": Entry(timm_model("beit", "Beit", use_rel_pos_bias=True, init_values=0.1, drop_path_rate=0.2, **BEIT), 1),
    "timm-beit-shared": Entry(
        timm_model("beit", "Beit", use_shared_rel_pos_bias=True, swiglu_mlp=True, global_pool="token", **BEIT), 1, variant=True
    ),
    "timm-relpos": Entry(timm_model("vision_transformer_relpos", "VisionTransformerRelPos", init_values=0.1), 0, class_token=False),
    "timm-relpos-token": Entry(
        timm_model("vision_transformer_relpos", "VisionTransformerRelPos", qk_norm=True, **RELPOS), 1, variant=True
    ),
    "timm-naflex": Entry(naflex, 0, class_token=False, image=(48, 24), variant=True),
    "timm-dinov3": Entry(timm_model("eva", "Eva", global_pool="token", init_values=0.1, **DINOV3, **EVA), 5),
    "timm-perception": Entry(timm_model("eva", "Eva", **PE, **EVA), 1, variant=True),
    "timm-rope-mixed": Entry(
        timm_model("eva", "Eva", dynamic_img_size=True, **MIXED, **EVA), 0, class_token=False, image=(48, 24), variant=True
    ),
    "vit": Entry(hf("ViTForImageClassification", "ViTConfig", **VIT, **DROPS), 1),
    "vit-model-eager": Entry(hf("ViTModel", "ViTConfig", "eager", **VIT), 1, image=(48, 24), call=OTHER),
    "deit": Entry(hf("DeiTForImageClassification", "DeiTConfig", **VIT, **DROPS), 2),
    "deit-teacher": Entry(hf("DeiTForImageClassificationWithTeacher", "DeiTConfig", **VIT), 2),
    "dinov2": Entry(hf("Dinov2ForImageClassification", "Dinov2Config", drop_path_rate=0.2, **DINO), 1, image=(48, 24)),
    "dinov2-model-swiglu": Entry(hf("Dinov2Model", "Dinov2Config", use_swiglu_ffn=True, **DINO), 1),
    "dinov2-registers": Entry(
        hf("Dinov2WithRegistersForImageClassification", "Dinov2WithRegistersConfig", num_register_tokens=3, **DINO), 4
    ),
    "dinov3": Entry(hf("DINOv3ViTModel", "DINOv3ViTConfig", num_register_tokens=3, **DINOV3_HF), 4, image=(48, 24)),
    "dinov3-plain": Entry(hf("DINOv3ViTModel", "DINOv3ViTConfig", **{**DINOV3_HF, "use_gated_mlp": False}), 1, variant=True),
    "beit": Entry(hf("BeitForImageClassification", "BeitConfig", use_relative_position_bias=True, drop_path_rate=0.2, **VIT), 1),
    "beit-shared-eager": Entry(
        hf("BeitModel", "BeitConfig", "eager", use_shared_relative_position_bias=True, use_mean_pooling=False, **VIT),
        1,
        variant=True,
    ),
    "clip": Entry(image_text("CLIPModel", "CLIPConfig", projection_dim=16), 1, call=WORDS),
    "clip-vision": Entry(hf("CLIPVisionModel", "CLIPVisionConfig", attention_dropout=0.2, **VIT), 1, image=(48, 24), call=OTHER),
    "clip-projection-eager": Entry(hf("CLIPVisionModelWithProjection", "CLIPVisionConfig", "eager", **VIT), 1),
    "clip-classifier": Entry(image_text("CLIPForImageClassification", "CLIPConfig", num_labels=5), 1),
    "openclip": Entry(open_clip(), 1, call=TOKENS),
    "openclip-custom-avg": Entry(
        open_clip(True, qk_norm=True, ls_init_value=0.1, pool_type="avg", scale_attn_inner=True), 1, call=TOKENS, variant=True
    ),
    "siglip": Entry(image_text("SiglipModel", "SiglipConfig"), 0, class_token=False, call=WORDS),
    "siglip-vision": Entry(hf("SiglipVisionModel", "SiglipVisionConfig", **VIT), 0, class_token=False),
    "siglip-nohead": Entry(hf("SiglipVisionModel", "SiglipVisionConfig", vision_use_head=False, **VIT), 0, class_token=False),
    "siglip-classifier": Entry(image_text("SiglipForImageClassification", "SiglipConfig", num_labels=5), 0, class_token=False),
}

SLOTS = ("patch_merger", "sit", "sinkhorn")
"""Methods with learned weights for every slot."""
PARSED = {m.name: sparsight.parse(m.name) for m in sparsight.methods()}
METHODS = [
    name
    for name, recipe in PARSED.items()
    if recipe.where in ("before", "attn", "block") and "layers" in dict(recipe.params) and not recipe.adaptive
]
RECIPES = {name: f"{name}:keep=0.6,layers=0/2" for name in METHODS} | {
    "similarity": "similarity:keep=0.6,layers=0/2,diversity=1.5",
    "similarity-input": "similarity:keep=0.6,layers=input",
    "tome-all-block": "tome:remove=3,layers=all,where=block",
    "evit-block": "evit:keep=0.6,layers=0/2,where=block",
    "k_medoids": "k_medoids:keep=0.6,layers=1/3",
    "k_medoids-equal": "k_medoids:keep=0.6,layers=0/2,weigh=equal",
    "dpc_knn-learned": "dpc_knn:keep=0.6,layers=1/2,weigh=learned",
    "evit-col_ln": "evit:keep=0.6,layers=0/2,score=col_ln",
    "evit-rescue": "evit:keep=0.6,layers=0/2,rescue=0.8",
    "compose-diverse": "compose:keep=0.6,layers=0/2,score=col_ln,select=diverse,reduce=fuse_rest",
    "compose-bipartite": "compose:keep=0.6,layers=0/2,score=renyi,select=bipartite,reduce=merge",
    "compose-rescue": "compose:keep=0.6,layers=1/2,score=rollout,select=rescue,other=similarity,reduce=merge,where=block",
    "compose-thinned": "compose:keep=0.6,layers=0/2,score=column_mean,select=thinned",
    "tca": "tca:keep=0.8,layers=0/2",
    "tca-rescue": "tca:keep=0.8,layers=0,rescue=0.5,centres=2",
    "tca-col_ln": "tca:keep=0.8,layers=1,score=col_ln",
    "rollout-max": "rollout:keep=0.6,layers=1/2,fuse=max,discard=0.5",
    "similarity-cells": "similarity:keep=0.6,layers=0/2,cells=2",
}
"""Recipes for models of four blocks; a method that is new gets two sites."""

FEW = ("col_ln", "evit", "tome", "similarity-input")
"""Recipes for variants: between them they drop, fuse, merge and choose before the first block."""

ADAPTIVE = {
    "ats": "ats:keep=0.8,layers=0/2",
    "ats-tr": "ats:keep=0.6,layers=0/1,version=tr,where=block",
    "similarity-threshold": "similarity:threshold=0.02,layers=0/1",
    "similarity-adaptive": "similarity:threshold=adaptive,kappa=0.2,layers=0/2,metric=l2",
    "similarity-adaptive-input": "similarity:threshold=adaptive,kappa=-0.2,diversity=1.5",
    "similarity-adaptive-cells": "similarity:threshold=adaptive,kappa=0.2,layers=1/2,cells=2",
}
"""Recipes under which images keep different numbers of tokens."""


def prune(model: nn.Module, text: str) -> sparsight.Handle:
    """`sparsight.prune`, with weights to train from for methods that have some."""
    return sparsight.prune(model, text, weights="random" if sparsight.parse(text).weights else None)


def needs(text: str) -> set[str]:
    return {signal for step in sparsight.parse(text).steps for signal in step.needs}


@cache
def made(name: str) -> nn.Module:
    """The model of that name, shared by all tests: whoever prunes it takes the handle off again."""
    torch.manual_seed(sum(map(ord, name)))
    model = ZOO[name].build().double().eval()
    for key, parameter in model.named_parameters():
        # norms and LayerScale around 1, biases off 0, everything else large enough that attention is far from uniform
        scale = key.rsplit(".", 1)[-1] in ("gamma", "gamma_1", "gamma_2", "lambda1", "lambda_1", "lambda_2") or (
            parameter.dim() == 1 and key.endswith("weight")
        )
        with torch.no_grad():
            noise = torch.randn_like(parameter)
            fan = parameter[0].numel() if parameter.dim() > 1 and not any(w in key for w in ("embed", "token", "table")) else 4
            parameter.copy_(1 + 0.3 * noise if scale else 1.2 * fan**-0.5 * noise)
    return model


def images(name: str, batch: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(7)
    return torch.randn(batch, 3, *ZOO[name].image, generator=generator, dtype=torch.float64)


def outputs(name: str, model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """What the model says about x, by name; token lists included."""
    call = {
        k: v[: len(x)].repeat(-(-len(x) // len(v)), 1)[: len(x)] if isinstance(v, Tensor) else v for k, v in ZOO[name].call.items()
    }
    out = model(x, **call) if name.startswith(("timm", "openclip")) else model(pixel_values=x, **call)
    if isinstance(out, Tensor):
        return {"logits": out}
    found = {key: value for key, value in out.items() if isinstance(value, Tensor)}
    if "vision_model_output" in out:
        found["tokens"] = out["vision_model_output"].last_hidden_state
    return found


def fixed(name: str, model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """The outputs whose shape does not depend on how many tokens are left; the mean of the tokens where there are no others."""
    return without_tokens(outputs(name, model, x))


def without_tokens(found: dict[str, Tensor]) -> dict[str, Tensor]:
    rest = {key: value for key, value in found.items() if key not in ("last_hidden_state", "tokens")}
    return rest or {"mean": found["last_hidden_state"].mean(dim=1)}


@cache
def untouched(name: str) -> dict[str, Tensor]:
    """All outputs of the model without pruning for `images(name)`."""
    with torch.no_grad():
        return outputs(name, made(name), images(name))
