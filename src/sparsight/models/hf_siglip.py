"""transformers' SigLIP: alone, with a classifier, and inside the image-text model."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import nn

from .engine import Engine
from .hf_vit import HFCLIP


class HFSiglip(HFCLIP):
    """SiglipVisionModel and the models that hold one: no class token, pooled by attention."""

    name = "transformers SigLIP"
    classes = ("SiglipVisionModel", "SiglipForImageClassification", "SiglipModel")

    @property
    def prefix(self) -> int:
        return 0

    @property
    def class_token(self) -> bool:
        return False

    def install(self, engine: Engine) -> None:
        super().install(engine)
        head = getattr(self.model, "head", None)
        if head is not None and any(site.adaptive for site in engine.sites):
            engine.hook(head.attention.register_forward_pre_hook(partial(hide_padding, engine), with_kwargs=True))


def hide_padding(engine: Engine, _attention: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Give attention pooling a mask [B, N] where images have different numbers of tokens."""
    state = engine.states.current()
    valid = None if state is None or state.last is None else state.last.valid
    return None if valid is None else (args, {**kwargs, "key_padding_mask": ~valid})
