"""Vision-language models of a known shape with random weights, so that speed can be measured without a checkpoint."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import PruneError

IMAGE = 32000
"""Id of the image placeholder, as in LLaVA-1.5."""

TOWER = {"model_type": "clip_vision_model", "image_size": 336, "patch_size": 14}
LLAMA = {"model_type": "llama", "vocab_size": 32064, "pad_token_id": 0, "max_position_embeddings": 4096}

SHAPES: dict[str, dict[str, dict[str, Any]]] = {
    "tiny": {
        "vision": {**TOWER, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4, "projection_dim": 64},
        "text": {**LLAMA, "hidden_size": 64, "intermediate_size": 172, "num_hidden_layers": 8, "num_attention_heads": 4},
    },
    "llava-7b-shape": {
        "vision": {**TOWER, "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16, "projection_dim": 768},
        "text": {**LLAMA, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32},
    },
}  # fmt: skip
"""LLaVA-1.5 with a CLIP tower for 336 x 336 pixels and 576 image tokens: as large as the 7B model, and as small as makes sense."""

PATTERN = 1048583
"""Random numbers that fill all weights again and again; a prime, so that rows of a matrix differ."""

SPARE = 1.05
"""What the memory check adds for everything that is not counted."""


def shape_config(name: str, vision_layers: int | None = None) -> Any:
    """The configuration of a shape; a tower with fewer layers on request. Raises PruneError for an unknown name."""
    from transformers import LlavaConfig

    if name not in SHAPES:
        raise PruneError(f"config {name!r} is not known; choose {' or '.join(SHAPES)}, or give a checkpoint with --model")
    parts = {part: dict(values) for part, values in SHAPES[name].items()}
    if vision_layers is not None:
        parts["vision"]["num_hidden_layers"] = vision_layers
    return LlavaConfig(
        vision_config=parts["vision"], text_config=parts["text"], image_token_id=IMAGE, vision_feature_layer=-2,
        vision_feature_select_strategy="default",
    )  # fmt: skip


def cut(config: Any, layers: int | None) -> None:
    """Leave only the first layers of the language model in a configuration. Raises PruneError if it has not so many."""
    text = config.get_text_config()
    depth = text.num_hidden_layers
    if layers is None:
        return
    if not 1 <= layers <= depth:
        raise PruneError(f"layers={layers} is not possible: the language model of {type(config).__name__} has 1 to {depth}")
    text.num_hidden_layers = layers
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:layers]


def skeleton(config: Any) -> nn.Module:
    """The model of a configuration without data. Raises PruneError if it reads no images."""
    from transformers import AutoModelForImageTextToText

    try:
        with torch.device("meta"):
            model: nn.Module = AutoModelForImageTextToText.from_config(config)
    except ValueError:
        kind = type(config).__name__.removesuffix("Config")
        raise PruneError(
            f"{kind} is no vision-language model of transformers; sparsight takes LLaVA, Qwen, Gemma, InternVL and others"
        ) from None
    return model


def random_model(config: Any, device: str, dtype: torch.dtype, seed: int = 0) -> nn.Module:
    """A model of the configuration with random weights: matrices normal with a deviation of 0.02, norms one, biases zero."""
    from transformers import AutoModelForImageTextToText
    from transformers.initialization import no_init_weights

    # transformers' own way of drawing 7e9 numbers takes minutes
    with no_init_weights(), torch.device(device):
        model: Any = AutoModelForImageTextToText.from_config(config, dtype=dtype)
    draw = torch.Generator().manual_seed(seed)
    pattern = (torch.randn(PATTERN, generator=draw) * 0.02).to(device, dtype)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() > 1:
                fill(weight.view(-1), pattern, int(torch.randint(PATTERN, (1,), generator=draw)))
            else:
                weight.fill_(float("norm" in name and name.endswith("weight")))
    model.generation_config.pad_token_id, model.generation_config.eos_token_id = config.get_text_config().pad_token_id, None
    made: nn.Module = model.eval()
    return made


def fill(values: Tensor, pattern: Tensor, start: int) -> None:
    """Write the pattern over and over, from `start` on."""
    done = 0
    while done < values.numel():
        count = min(pattern.numel() - start, values.numel() - done)
        values[done : done + count] = pattern[start : start + count]
        done, start = done + count, 0


def check_memory(model: nn.Module, config: Any, device: str, dtype: torch.dtype, batch: int, tokens: int) -> None:
    """Raise PruneError, with the number of layers that fit, if weights, cache and activations need more memory than is free.

    model: the skeleton; tokens: length of the longest prompt, with what is generated.
    """
    text, layers, each = config.get_text_config(), model.model.language_model.layers, dtype.itemsize  # type: ignore[union-attr]
    weights = sum(p.numel() for p in model.parameters())
    layer = sum(p.numel() for p in layers[0].parameters())  # type: ignore[index, union-attr]
    head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    cache = 2 * batch * tokens * head * (getattr(text, "num_key_value_heads", None) or text.num_attention_heads)
    work = batch * tokens * (6 * text.hidden_size + 3 * text.intermediate_size)
    depth = len(layers)  # type: ignore[arg-type]
    need, free = SPARE * each * (weights + depth * cache + work), free_memory(device)
    if need > free:
        fit = math.floor((free - SPARE * each * (weights - depth * layer + work)) / (SPARE * each * (layer + cache)))
        help_ = f"--layers {fit} fits" if fit > 0 else "not one layer fits"
        raise PruneError(
            f"{depth} layers in {str(dtype).removeprefix('torch.')} at batch {batch} need {need / 2**30:.1f} GiB of memory, "
            f"{free / 2**30:.1f} are free on {device}; {help_}{', or take --precision bf16' if each > 2 else ''}"
        )


def free_memory(device: str) -> int:
    """Bytes that can still be had on the device."""
    if device.startswith("cuda"):
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        found = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):  # no Linux: what the machine has
        return int(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    try:  # a container's share
        group = Path("/sys/fs/cgroup")
        limit, used = ((group / name).read_text(encoding="ascii").strip() for name in ("memory.max", "memory.current"))
        return found if limit == "max" else min(found, int(limit) - int(used))
    except (OSError, ValueError):
        return found
