"""transformers' BEiT, bare or with a classifier (on the mean of the patches, or on the class token).

The relative position bias, per layer or shared, follows the tokens that are left on both axes, image by image, and scores see it in
the attention. A token fused of many has the bias of the class token, which has no place either.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import PruneError
from .engine import Engine
from .pooling import weighed
from .positions import take_pairs, with_bias, with_columns
from .state import ForwardState
from .transformers_family import TransformersViT

MASK = "attention_mask"


class HFBeit(TransformersViT):
    """BeitModel and its wrapper: one class token, LayerScale, drop path."""

    name = "transformers BEiT"
    classes = ("BeitModel", "BeitForImageClassification")
    inner, layers = "beit", "layers"
    other_sizes = False
    norms = ("layernorm_before", "layernorm_after")
    after = (("dropout", "lambda_1", "drop_path"), ("dropout", "lambda_2", "drop_path"))
    positional = True

    def refuse_mask(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """The bias that all layers share comes as a mask: it is one for all pairs of tokens, in floating point."""
        mask = kwargs.get(MASK)
        if args or (mask is not None and (mask.dtype == torch.bool or self.model.shared_position_bias is None)):
            raise PruneError(f"{type(self.model).__name__} was called with an attention mask; a pruned model takes none")

    def follow(self, index: int, kwargs: dict[str, Any], place: Tensor | None, state: ForwardState) -> dict[str, Any]:
        """The bias of the tokens that are there, the layer's own and the shared one added up, as the mask."""
        layer: Any = self.blocks[index]
        own = None
        if layer.relative_position_bias is not None:
            h, w = kwargs["resolution"]
            tokens = 1 + (h // layer.patch_size) * (w // layer.patch_size)
            window = (h // layer.patch_size, w // layer.patch_size)
            own = layer.relative_position_bias(window, kwargs.get("interpolate_pos_encoding", False), dim_size=tokens)
        total = with_bias(kwargs.get(MASK), own)
        return {**kwargs, MASK: total if total is None or place is None else take_pairs(total, place, self.prefix)}

    def opens(self, block: nn.Module) -> bool:
        return False  # every pair of tokens has a bias

    def attended(self, block: nn.Module, x: Tensor, bias: Tensor | None, kwargs: dict[str, Any]) -> Tensor:
        others = {name: value for name, value in kwargs.items() if name not in (MASK, "resolution", "interpolate_pos_encoding")}
        total = with_bias(kwargs.get(MASK), bias)
        return super().attended(block, x, None if total is None else total.to(x.dtype), others)

    def install(self, engine: Engine) -> None:
        super().install(engine)
        pooler: Any = self.model.pooler
        if pooler is not None and pooler.layernorm is not None:
            engine.hook(pooler.register_forward_pre_hook(partial(weigh_pooler, engine)))

    def heard(self, block: nn.Module, tapped: dict[str, Tensor], kwargs: dict[str, Any]) -> dict[str, Tensor]:
        return with_columns(super().heard(block, tapped, kwargs), kwargs.get(MASK), self.scale(block))


def weigh_pooler(engine: Engine, _pooler: nn.Module, args: tuple[Any, ...]) -> Any:
    """Scale the patch tokens that the pooler averages so that their plain mean is the one weighted by size, without padding."""
    state = engine.states.current()
    if state is None or state.size is None:
        return None
    return (weighed(args[0], state.size, engine.family.prefix), *args[1:])
