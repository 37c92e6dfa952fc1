"""transformers' DINOv2, with and without registers, bare or with a classifier (class token beside the mean of the patches).

The backbones fold their tokens into feature maps, which pruned tokens cannot fill; they are no members.
"""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn

from .transformers_family import TransformersViT


class HFDinov2(TransformersViT):
    """Dinov2Model and its wrapper: one class token, LayerScale, drop path."""

    name = "transformers Dinov2"
    classes: ClassVar[tuple[str, ...]] = ("Dinov2Model", "Dinov2ForImageClassification")
    averaging = ("Dinov2ForImageClassification", "Dinov2WithRegistersForImageClassification")
    inner = "dinov2"

    @property
    def blocks(self) -> list[nn.Module]:
        return list(self.model.encoder.layer)  # type: ignore[arg-type, union-attr]

    @property
    def prefix(self) -> int:
        return 1

    def projection(self) -> nn.Module:
        return self.model.embeddings.patch_embeddings  # type: ignore[return-value, union-attr]

    def normal(self, block: nn.Module, x: Tensor) -> Tensor:
        b: Any = block
        out: Tensor = b.norm1(x)
        return out

    def residual(self, block: nn.Module, x: Tensor, branch: Tensor) -> Tensor:
        b: Any = block
        branch = b.drop_path(b.layer_scale1(branch))
        return branch + x

    def feed(self, block: nn.Module, x: Tensor) -> Tensor:
        b: Any = block
        branch: Tensor = b.drop_path(b.layer_scale2(b.mlp(b.norm2(x))))
        return branch + x


class HFDinov2WithRegisters(HFDinov2):
    """Dinov2WithRegistersModel and its wrapper: class token, then registers."""

    name = "transformers Dinov2WithRegisters"
    classes: ClassVar[tuple[str, ...]] = ("Dinov2WithRegistersModel", "Dinov2WithRegistersForImageClassification")
    inner = "dinov2_with_registers"

    @property
    def prefix(self) -> int:
        embeddings: Any = self.model.embeddings
        return 1 + int(embeddings.register_tokens.shape[1])
