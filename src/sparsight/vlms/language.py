"""Which language models tokens can leave inside, by what their code says, and who knows their visual tokens."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import PruneError
from ..ops.schedule import show
from .attention_listener import uses_interface
from .masks import ATTENTION, STATE, kind_of

NORMS = ("norm", "embedding_norm", "final_layernorm", "final_norm")
"""How the norm behind the layers is called."""

CACHES = frozenset({"past_key_values", "cache_params"})
"""How a module is given the cache."""

TRY = "prune before the language model instead (divprune, fps, col_ln ...)"

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
    """The one decoder in a model, which has passed `check_decoder`."""
    found = {name: module for name, module in model.named_modules() if is_decoder(module)}
    if len(found) > 1:  # of a model that speaks as well, the one that is given images
        seeing = {name: module for name, module in found.items() if hasattr(around(model, name), "get_image_features")}
        found = seeing or found
    if len(found) != 1:
        what = "no decoder that is known" if not found else f"{len(found)} decoders ({', '.join(found)}): prune one of them"
        raise PruneError(
            f"{type(model).__name__} has {what}; methods inside the language model need one with `layers` whose attention asks transformers' "
            "attention interface"
        )
    decoder: nn.Module = next(iter(found.values()))
    check_decoder(decoder)
    return decoder


def is_decoder(module: nn.Module) -> bool:
    """Whether a module is a stack of layers that is given tokens and a cache."""
    layers = getattr(module, "layers", None)
    return (
        isinstance(layers, nn.ModuleList)
        and len(layers) > 0
        and {"past_key_values", "inputs_embeds"} <= set(parameters(type(module)))
    )


def check_decoder(decoder: Any) -> None:
    """Raise PruneError for a decoder of which the code or the configuration says that tokens cannot leave it here; what only a forward can
    tell is checked there."""
    why = unfit(decoder)
    if why:
        raise PruneError(f"tokens cannot leave inside {type(decoder).__name__}: {why}; {TRY}")


def unfit(decoder: Any) -> str:
    """Why tokens cannot leave inside a decoder; empty if nothing speaks against it."""
    config, layers = decoder.config, list(decoder.layers)[: depth_of(decoder)]
    other = sorted(set(getattr(config, "layer_types", None) or ()) - {*ATTENTION, *STATE})
    if other:
        return f"it has layers of {' and '.join(other)}, and what becomes of their masks and caches is not known"
    if not getattr(config, "is_causal", True):
        return "its attention looks both ways"
    if final_norm(decoder) is None:
        return "it has no norm behind its layers that is known by its name"
    for index, layer in enumerate(layers):
        found = attentions(layer)
        crossing = [name for name in parameters(type(layer)) if name.startswith(("encoder_hidden", "cross_attention"))]
        if len(found) > 1 or crossing:
            return f"layer {index} has several attentions, or attends to another sequence"
        if not found and kind_of(config, index) not in STATE:
            return f"layer {index} ({type(layer).__name__}) has no attention that asks transformers' attention interface"
        if not found:
            continue
        if not any(name.startswith("position_embeddings") for name in parameters(type(found[0]))):
            return f"its {type(found[0]).__name__} is not given RoPE, so positions of the tokens that are left are not known"
        beside = [part for part in layer.modules() if part not in (layer, found[0]) and CACHES & set(parameters(type(part)))]
        if beside:
            return f"{type(beside[0]).__name__} in layer {index} has a cache of its own"
    return "" if any(attentions(layer) for layer in layers) else "none of its layers has attention"


def parameters(kind: type[nn.Module]) -> tuple[str, ...]:
    """Names of the arguments of a class's forward, self among them."""
    return names_of(kind.forward)


@cache
def names_of(forward: Callable[..., Any]) -> tuple[str, ...]:
    """Names of the arguments of a function."""
    return tuple(inspect.signature(forward).parameters)


def attentions(layer: nn.Module) -> list[Any]:
    """The attention modules of a layer."""
    return [module for module in layer.modules() if uses_interface(module)]


def depth_of(decoder: Any) -> int:
    """Number of layers that run."""
    return min(len(decoder.layers), int(decoder.config.num_hidden_layers))


def final_norm(decoder: Any) -> Any:
    """The norm behind the last layer; None if it is not known."""
    return next((getattr(decoder, name) for name in NORMS if isinstance(getattr(decoder, name, None), nn.Module)), None)


def check_place(decoder: Any, layer: int, scored: int) -> None:
    """Raise PruneError where tokens cannot leave before `layer`, scored by the attention of layer `scored`."""
    kind, layers = type(decoder).__name__, list(decoder.layers)[: depth_of(decoder)]
    keyed = [index for index, one in enumerate(layers) if attentions(one)]
    if scored not in keyed or layer <= keyed[0]:
        ahead = scored == layer
        places = [index + (not ahead) for index in keyed if index + (not ahead) < len(layers) and (index > keyed[0] or not ahead)]
        why = (
            f"layer {scored} keeps a running state instead of keys, so there is nothing to score by"
            if scored not in keyed
            else f"layer {keyed[0]} is the first with keys, which has to see all tokens"
        )
        raise PruneError(f"tokens cannot leave before layer {layer} of {kind}: {why}; they can before layers {show(tuple(places))}")
    sources = shared_keys(layers)
    if sources and layer > min(sources):
        raise PruneError(
            f"tokens cannot leave before layer {layer} of {kind}: later layers share the keys of layer {min(sources)}, in which all tokens would "
            f"still be; they can before layers 1 to {min(sources)}"
        )


def shared_keys(layers: list[Any]) -> list[int]:
    """Layers whose keys later ones use instead of their own (Gemma 4)."""
    return [index for index, layer in enumerate(layers) for one in attentions(layer) if getattr(one, "store_full_length_kv", False)]


def keyless(decoder: Any) -> int | None:
    """The first layer that has no keys of its own, from which on a decoder may go on with the last token alone; None if it does not."""
    layers = list(decoder.layers)[: depth_of(decoder)] if "logits_to_keep" in parameters(type(decoder)) else []
    borrowing = (n for n, layer in enumerate(layers) for one in attentions(layer) if getattr(one, "is_kv_shared_layer", False))
    return next(borrowing, None)


def wrapper(model: nn.Module, decoder: nn.Module) -> nn.Module | None:
    """The vision-language model around the decoder, if there is one: it knows the placeholders."""
    return around(model, next(name for name, module in model.named_modules() if module is decoder))


def around(model: nn.Module, name: str) -> nn.Module | None:
    """The innermost module around the one of that name whose configuration has an image_token_id."""
    while name:
        name = name.rpartition(".")[0]
        module = model.get_submodule(name)
        if getattr(getattr(module, "config", None), "image_token_id", None) is not None:
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
