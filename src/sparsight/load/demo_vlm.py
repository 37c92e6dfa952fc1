"""The demo vision-language model: a LLaVA whose vision tower is the embedded ViT, with pictures and questions, read from the package.

Its folder holds what transformers saves, with two differences: matrices are int8 with one scale per row (`sparsight.demo.dequantise`), and
weights of the tower that are the embedded ViT's are not there a second time. Any folder of that kind can be loaded by its path.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..demo import HERE, SCALE, demo_weights, dequantise
from ..demo.tower import dinov2_state
from ..errors import PruneError
from .checkpoint import complain, one_line, read_config, read_shapes

NAME = "demo-vlm"
FOLDER = HERE / "vlm"
FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "questions.jsonl")
"""Files without which the package is not whole."""
QUESTION = "what is in the picture ?"
"""A question that the demo model was trained on."""
TOWER = "model.vision_tower."
OLDER = {
    ".attention.q_proj.": ".attention.attention.query.",
    ".attention.k_proj.": ".attention.attention.key.",
    ".attention.v_proj.": ".attention.attention.value.",
    ".attention.o_proj.": ".attention.output.dense.",
}
"""What older versions of transformers call the parts of a DINOv2 block."""


def packaged(name: str) -> str:
    """The folder of a model's name: the package's for "demo-vlm", else the name itself. Raises PruneError if the package is not whole."""
    if name != NAME:
        return name
    missing = [file for file in FILES if not os.path.isfile(FOLDER / file)]
    if missing or not os.path.isdir(pictures()):
        raise PruneError(
            f"{NAME} is not whole: {', '.join(missing) or 'pictures'} missing in {FOLDER}; install sparsight again, or make the model with "
            "benchmarks/make_demo_vlm.py"
        )
    return str(FOLDER)


def pictures() -> Path:
    """Folder with the sample pictures of the package."""
    return FOLDER / "pictures"


def questions() -> Path:
    """The questions about them."""
    return FOLDER / "questions.jsonl"


def is_compact(folder: Path) -> bool:
    """Whether the folder's weights are stored as the demo model's are. Raises PruneError if they cannot be read."""
    file = folder / "model.safetensors"
    return file.is_file() and any(name.endswith(SCALE) for name in read_shapes(file))


def load_compact(folder: Path, config: Any, device: str = "cpu", dtype: torch.dtype = torch.float32) -> nn.Module:
    """The model of the configuration with the folder's weights, in evaluation mode; layers that the configuration cuts off are left out.
    Raises PruneError for a file that is damaged or does not fit."""
    from transformers import GenerationConfig, LlavaForConditionalGeneration

    if getattr(config, "model_type", "") != "llava":
        raise PruneError(f"{folder} holds int8 weights of a {getattr(config, 'model_type', '?')}; they are read for LLaVA only")
    model: Any = LlavaForConditionalGeneration(config)
    wanted = model.state_dict()
    state = {name: value for name, value in weights(folder, config).items() if name in wanted or not cut_off(name, config)}
    if "lm_head.weight" not in state and "model.language_model.embed_tokens.weight" in state:
        state["lm_head.weight"] = state["model.language_model.embed_tokens.weight"]
    differ = [
        f"{name} {list(value.shape)} instead of {list(wanted[name].shape)}"
        for name, value in state.items()
        if name in wanted and value.shape != wanted[name].shape
    ]
    complain(str(folder), [name for name in wanted if name not in state], [name for name in state if name not in wanted], differ)
    bad = [name for name, value in state.items() if not value.isfinite().all()]
    if bad:
        raise PruneError(f"{folder / 'model.safetensors'} holds NaN or infinite numbers ({', '.join(bad[:3])}); install it again")
    model.load_state_dict(state)
    if (folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder)
    model.config._name_or_path = NAME if folder == FOLDER else str(folder)
    made: nn.Module = model.to(device, dtype).eval()
    return made


def weights(folder: Path, config: Any) -> dict[str, Tensor]:
    """Float32 weights by the names of this version of transformers: the embedded ViT's, and over them what the file holds."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    file = folder / "model.safetensors"
    try:
        stored = load_file(file)
    except (OSError, SafetensorError) as error:
        raise PruneError(f"{file} cannot be read ({one_line(error)}); install it again") from None
    state: dict[str, Tensor] = {}
    if not any(name.startswith(f"{TOWER}embeddings.") for name in stored):
        state = {TOWER + name: value for name, value in dinov2_state(demo_weights()[0]).items()}
    state |= dequantise(stored)
    return {older(name, config): value for name, value in state.items()}


def older(name: str, config: Any) -> str:
    """A weight's name in the installed version of transformers."""
    if not name.startswith(TOWER) or getattr(config.vision_config, "model_type", "") != "dinov2":
        return name
    from transformers.models.dinov2 import modeling_dinov2

    if hasattr(modeling_dinov2, "Dinov2SelfAttention"):  # transformers before 5.20 or so
        for new, old in OLDER.items():
            name = name.replace(new, old)
    return name


def cut_off(name: str, config: Any) -> bool:
    """Whether a weight belongs to a layer of the language model that the configuration leaves out."""
    start = "model.language_model.layers."
    return name.startswith(start) and int(name.removeprefix(start).partition(".")[0]) >= config.get_text_config().num_hidden_layers


def load_tower(dtype: torch.dtype = torch.float32) -> tuple[nn.Module, Any]:
    """The packaged model's vision tower alone, and its image processor."""
    from transformers import AutoConfig, AutoImageProcessor

    folder = Path(packaged(NAME))
    read_config(folder)
    model: Any = load_compact(folder, AutoConfig.from_pretrained(folder, local_files_only=True), dtype=dtype)
    tower: nn.Module = model.model.vision_tower
    return tower, AutoImageProcessor.from_pretrained(folder, local_files_only=True)
