"""transformers' ViT and DeiT (with its distillation token), bare or with a classifier."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn

from .transformers_family import TransformersViT


class HFViT(TransformersViT):
    """ViTModel and its wrapper: one class token."""

    name = "transformers ViT"
    classes: ClassVar[tuple[str, ...]] = ("ViTModel", "ViTForImageClassification")
    inner = "vit"

    @property
    def blocks(self) -> list[nn.Module]:
        return list(self.model.layers)  # type: ignore[arg-type]

    @property
    def prefix(self) -> int:
        return 1

    def projection(self) -> nn.Module:
        return self.model.embeddings.patch_embeddings  # type: ignore[return-value, union-attr]

    def normal(self, block: nn.Module, x: Tensor) -> Tensor:
        b: Any = block
        out: Tensor = b.layernorm_before(x)
        return out

    def residual(self, block: nn.Module, x: Tensor, branch: Tensor) -> Tensor:
        b: Any = block
        branch = b.dropout(branch)
        return branch + x

    def feed(self, block: nn.Module, x: Tensor) -> Tensor:
        b: Any = block
        branch: Tensor = b.dropout(b.mlp(b.layernorm_after(x)))
        return branch + x


class HFDeiT(HFViT):
    """DeiTModel and its wrappers: class token, then distillation token."""

    name = "transformers DeiT"
    classes: ClassVar[tuple[str, ...]] = ("DeiTModel", "DeiTForImageClassification", "DeiTForImageClassificationWithTeacher")
    inner = "deit"

    @property
    def prefix(self) -> int:
        return 2
