"""Where a language model keeps what its attention scores are made of, and who knows its visual tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import PruneError

CLASSES = (
    "LlamaModel", "MistralModel", "Qwen2Model", "Qwen3Model", "Qwen2VLTextModel", "Qwen2_5_VLTextModel",
    "Qwen3VLTextModel", "Qwen3VLMoeTextModel", "Qwen2_5OmniThinkerTextModel", "Qwen3OmniMoeThinkerTextModel", "PaddleOCRTextModel",
)  # fmt: skip
"""Decoders that are known: q_proj, k_proj, input_layernorm, RoPE given to the layers as `position_embeddings`."""

PIXELS = ("pixel_values", "pixel_values_videos")
"""Arguments of vision-language models that hold images, as most are called (pixel_values_images in Video-LLaVA)."""


def check_visual(visual: Any) -> None:
    """Raise PruneError unless `visual` is something that names tokens."""
    if isinstance(visual, slice):
        if visual.stop is None or visual.step not in (None, 1) or visual.stop < 0 or (visual.start or 0) < 0:
            raise PruneError(
                f"visual={visual} must have a stop, no step and no negative numbers: the prompt's length is not known yet"
            )
    elif isinstance(visual, Tensor):
        if visual.dtype != torch.bool or visual.dim() not in (1, 2):
            raise PruneError(f"a visual mask must be bool, [L] or [B, L]; got {visual.dtype} {list(visual.shape)}")
    elif visual is not None and (isinstance(visual, bool) or not isinstance(visual, int)):
        raise PruneError(f"visual must be a slice, a bool mask or a token id, got {type(visual).__name__}")


def find(model: nn.Module) -> nn.Module:
    """The one decoder in a model."""
    found = [module for module in model.modules() if any(kind.__name__ in CLASSES for kind in type(module).__mro__)]
    if len(found) != 1:
        refuse_linear(model)
        what = "no decoder that is known" if not found else f"{len(found)} decoders"
        raise PruneError(f"{type(model).__name__} has {what}; methods inside the language model know {', '.join(CLASSES)}")
    decoder: Any = found[0]
    if not all(hasattr(layer.self_attn, "q_proj") and hasattr(layer, "input_layernorm") for layer in decoder.layers):
        raise PruneError(f"the layers of {type(decoder).__name__} have no q_proj, k_proj and input_layernorm to score by")
    if len(set(getattr(decoder.config, "layer_types", None) or [0])) > 1:
        raise PruneError(f"{type(decoder).__name__} mixes full and sliding-window attention, so its layers cannot share one mask")
    return found[0]


def refuse_linear(model: nn.Module) -> None:
    """Raise PruneError for a language model with layers that keep a state instead of keys (linear attention, convolutions)."""
    for module in model.modules():
        kinds = set(getattr(getattr(module, "config", None), "layer_types", None) or ()) & {
            "linear_attention",
            "conv",
            "mamba",
            "recurrent",
        }
        if kinds and hasattr(module, "layers"):
            raise PruneError(
                f"{type(module).__name__} has layers of {' and '.join(sorted(kinds))}, which keep a running state instead of keys: there is nothing "
                "to score by, and no mask for what has left; prune before the language model instead (divprune, fps, col_ln ...)"
            )


def wrapper(model: nn.Module, decoder: nn.Module) -> nn.Module | None:
    """The vision-language model right around the decoder, if there is one: it knows the placeholders."""
    for module in model.modules():
        if any(child is decoder for child in module.children()) and hasattr(getattr(module, "config", None), "image_token_id"):
            return module
    return None


def check_images(ids: Tensor | None, placeholders: list[int], call: dict[str, Any]) -> None:
    """Raise PruneError if a vision-language model is called with an empty list of images, or with placeholders and no images: the
    untouched model would read the placeholders as words."""
    given = {name: value for name, value in call.items() if "pixel_values" in name and value is not None}
    for name, pixels in given.items():
        if len(pixels) == 0:
            raise PruneError(f"{name} is empty: an empty list of images; leave it out for a prompt of text alone")
    if ids is not None and not given and not call.get("mm_encoder_outputs"):
        found = int(torch.isin(ids, torch.tensor(placeholders, device=ids.device)).sum())
        if found:
            raise PruneError(
                f"the prompt has {found} placeholder tokens, but {' and '.join(PIXELS)} are not given; pass everything that the "
                "processor gives"
            )


def check_checkpointing(decoder: Any) -> None:
    """Raise PruneError where a checkpoint would run the hooks before a layer again, after the forward: transformers before 5.23."""
    for kind in type(decoder.layers[0]).__mro__ if decoder.training else ():
        if kind.__name__ == "GradientCheckpointingLayer" and "__call__" in vars(kind) and decoder.layers[0].gradient_checkpointing:
            raise PruneError(
                "gradient checkpointing of a pruned decoder needs a newer transformers (5.23); upgrade it, or call "
                "gradient_checkpointing_disable()"
            )


def own_comparison(run: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Around a model's `get_placeholder_mask`: its own comparison of placeholders and images ends in a PruneError."""
    try:
        return run(*args, **kwargs)
    except ValueError as error:
        raise PruneError(f"{error}; give as many images as the prompt names, in one processor call") from error


def tap(attention: Any, name: str) -> nn.Module:
    """The module whose output is the layer's queries or keys before RoPE."""
    module: nn.Module = getattr(attention, f"{name}_norm", None) or getattr(attention, f"{name}_proj")
    return module


def project(attention: Any, name: str, x: Tensor) -> Tensor:
    """Queries or keys of x [B, n, C] before RoPE."""
    out: Tensor = getattr(attention, f"{name}_proj")(x)
    norm = getattr(attention, f"{name}_norm", None)
    return out if norm is None else norm(out.view(*out.shape[:2], -1, attention.head_dim))


def in_heads(attention: Any, x: Tensor) -> Tensor:
    """[B, n, H * D] or [B, n, H, D] -> [B, H, n, D]."""
    return x.reshape(*x.shape[:2], -1, attention.head_dim).transpose(1, 2)
