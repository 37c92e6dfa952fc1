"""Models of open_clip: a folder that it saved, or an architecture with weights."""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import Any

from torch import nn

from ..data.reading import Transform
from ..errors import PruneError, shown
from .checkpoint import check_reach, one_line, pickled

OPEN_CLIP = "open_clip:"
CONFIG, WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"
"""Names in a folder of open_clip."""


def load_open_clip(name: str) -> tuple[nn.Module, Transform]:
    """The model of images and texts, and its preprocessing. name: a folder, open_clip:ARCH@FILE.safetensors, open_clip:ARCH:TAG or
    open_clip:hf-hub:REPO. Raises PruneError."""
    architecture, pretrained = open_clip_name(name)
    open_clip = need_open_clip(name)
    try:
        if architecture.startswith("hf-hub:"):
            check_reach(architecture.removeprefix("hf-hub:"))
        model, _, transform = open_clip.create_model_and_transforms(architecture, pretrained=pretrained)
    except Exception as error:  # whatever the hub client, the network or the registry meets
        raise PruneError(
            f"open_clip cannot load {name} ({one_line(error)}); without network give open_clip:ARCH@FILE.safetensors"
        ) from error
    return model.eval(), transform


def open_clip_tokenizer(name: str) -> Any:
    """The model's tokenizer."""
    try:
        return need_open_clip(name).get_tokenizer(open_clip_name(name)[0])
    except Exception as error:  # whatever the hub client or a damaged folder makes it raise
        raise PruneError(f"open_clip cannot make the tokenizer of {name} ({one_line(error)}); save the model again") from error


def need_open_clip(name: str) -> Any:
    """Import open_clip."""
    try:
        return importlib.import_module("open_clip")
    except ImportError as error:
        raise PruneError(f"{name} needs {error.name or 'open_clip'}; pip install 'sparsight[open-clip]'") from None


def open_clip_name(name: str) -> tuple[str, str | None]:
    """Architecture and weights, as open_clip takes them."""
    rest = name.removeprefix(OPEN_CLIP)
    if not name.startswith(OPEN_CLIP):
        folder = Path(name).expanduser()
        if not (folder / WEIGHTS).is_file():  # open_clip would take a pickled file
            raise PruneError(f"model folder {folder} has no {WEIGHTS}; save the model there again as safetensors")
        return f"local-dir:{folder}", None
    if rest.startswith("hf-hub:"):
        return rest, None
    architecture, at, file = rest.partition("@")
    if at:
        if not file.endswith(".safetensors"):
            raise pickled(file)
        if not os.path.isfile(Path(file).expanduser()):
            raise PruneError(f"no checkpoint file {shown(file)}; expected {OPEN_CLIP}{architecture}@FILE.safetensors")
        return architecture, str(Path(file).expanduser())
    architecture, colon, tag = rest.partition(":")
    if not colon:
        raise PruneError(f"{name} says no weights; write {name}@FILE.safetensors or {name}:TAG")
    return architecture, tag
