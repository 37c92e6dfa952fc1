"""The image encoders of transformers that need no more than names: ViT, DeiT, DINOv2 with and without registers, CLIP.

Bare, with a projection or a classifier, and inside the image-text models. The backbones of DINOv2 fold their tokens into feature maps,
which pruned tokens cannot fill; they are no members.
"""

from __future__ import annotations

from typing import ClassVar

from .transformers_family import TransformersViT


class HFViT(TransformersViT):
    """ViTModel and its wrapper: one class token."""

    name = "transformers ViT"
    classes: ClassVar[tuple[str, ...]] = ("ViTModel", "ViTForImageClassification")
    inner, layers = "vit", "layers"
    norms, after = ("layernorm_before", "layernorm_after"), (("dropout",), ("dropout",))


class HFDeiT(HFViT):
    """DeiTModel and its wrappers: class token, then distillation token."""

    name = "transformers DeiT"
    classes = ("DeiTModel", "DeiTForImageClassification", "DeiTForImageClassificationWithTeacher")
    inner = "deit"

    @property
    def prefix(self) -> int:
        return 2


class HFDinov2(TransformersViT):
    """Dinov2Model and its wrapper (class token beside the mean of the patches): one class token, LayerScale, drop path."""

    name = "transformers Dinov2"
    classes: ClassVar[tuple[str, ...]] = ("Dinov2Model", "Dinov2ForImageClassification")
    averaging = ("Dinov2ForImageClassification", "Dinov2WithRegistersForImageClassification")
    inner, layers = "dinov2", "encoder.layer"
    norms, after = ("norm1", "norm2"), (("layer_scale1", "drop_path"), ("layer_scale2", "drop_path"))


class HFDinov2WithRegisters(HFDinov2):
    """Dinov2WithRegistersModel and its wrapper: class token, then registers."""

    name = "transformers Dinov2WithRegisters"
    classes = ("Dinov2WithRegistersModel", "Dinov2WithRegistersForImageClassification")
    inner = "dinov2_with_registers"


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
    inner, layers, patches = "vision_model", "encoder.layers", "embeddings.patch_embedding"
    norms = ("layer_norm1", "layer_norm2")
