"""The image towers of transformers' CLIP and SigLIP: alone, with a projection or a classifier, and inside the image-text models."""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar

from torch import Tensor, nn

from .engine import Engine
from .transformers_family import TransformersViT


class HFCLIP(TransformersViT):
    """CLIPVisionModel and the models that hold one: one class token, normalised before the first layer."""

    name = "transformers CLIP"
    classes: ClassVar[tuple[str, ...]] = (
        "CLIPVisionModel",
        "CLIPVisionModelWithProjection",
        "CLIPForImageClassification",
        "CLIPModel",
    )
    averaging = ("CLIPForImageClassification", "SiglipForImageClassification")
    inner = "vision_model"

    @property
    def blocks(self) -> list[nn.Module]:
        return list(self.model.encoder.layers)  # type: ignore[arg-type, union-attr]

    @property
    def prefix(self) -> int:
        return 1

    def projection(self) -> nn.Module:
        return self.model.embeddings.patch_embedding  # type: ignore[return-value, union-attr]

    def normal(self, block: nn.Module, x: Tensor) -> Tensor:
        b: Any = block
        out: Tensor = b.layer_norm1(x)
        return out

    def residual(self, block: nn.Module, x: Tensor, branch: Tensor) -> Tensor:
        return x + branch

    def feed(self, block: nn.Module, x: Tensor) -> Tensor:
        b: Any = block
        branch: Tensor = b.mlp(b.layer_norm2(x))
        return x + branch


class HFSiglip(HFCLIP):
    """SiglipVisionModel and the models that hold one: no class token, pooled by attention."""

    name = "transformers SigLIP"
    classes: ClassVar[tuple[str, ...]] = ("SiglipVisionModel", "SiglipForImageClassification", "SiglipModel")

    @property
    def prefix(self) -> int:
        return 0

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
