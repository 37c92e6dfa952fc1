"""A block as a straight line of operations, for inference: modules that only hold weights, or do nothing, are not called.

At batch 1 the calls of a block's twenty modules take as long as the arithmetic on a few dozen tokens. A line runs the same operations on
the same weights. It stands back for every block and every call in which somebody could see the difference.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ._packed import Store, multiply, rows_of, store_of, unwatched
from ._tap import record

NORMS = ("torch.nn.modules.normalization.LayerNorm", "timm.layers.norm.LayerNorm")
FRAMEWORKS = ("timm", "transformers")
IDLE = ("Identity", "Dropout", "DropPath")
"""How the names of classes end that do nothing outside training."""
SCALE = "LayerScale"
"""How the names of classes end that multiply each channel with their only parameter."""
MASKS = ("attn_mask", "attention_mask", "is_causal")
"""What a pruned block gets besides x and has no use for."""

Part = tuple[nn.Module, str, nn.Module, type, Any, Any]
"""Parent, name in it, module, its class, the class's forward and the one that packed weights put over it."""


@dataclass(frozen=True, eq=False)
class Straight:
    """What a family says of a pre-norm block: its modules by the parts that they play.

    frames: the block and those of its modules that only call others. inputs: one layer for q, k and v together, or one for each.
    scales: LayerScale, or what stands in its place, of attention and MLP; () where the family has none. mlp: layer, activation, layer.
    """

    frames: tuple[nn.Module, ...]
    norms: tuple[nn.Module, nn.Module]
    inputs: tuple[nn.Module, ...]
    output: nn.Module
    mlp: tuple[nn.Module, nn.Module, nn.Module]
    heads: int
    scale: float
    scales: tuple[nn.Module, ...] = ()

    @property
    def layers(self) -> tuple[nn.Module, ...]:
        return (*self.inputs, self.output, self.mlp[0], self.mlp[2])

    def known(self, block: nn.Module) -> bool:
        """Whether each module of the block is of a class whose arithmetic a line repeats, and no other tool runs it."""
        if not all(full_name(norm) in NORMS for norm in self.norms) or not all(type(layer) is nn.Linear for layer in self.layers):
            return False
        if not all(original(type(frame)) for frame in self.frames):
            return False
        if any("forward" in module.__dict__ and store_of(module) is None for module in block.modules()):
            return False
        named = {id(module) for module in (*self.frames, *self.norms, *self.layers, self.mlp[1])}
        rest = [module for module in block.modules() if id(module) not in named]
        scales = [module for module in self.scales if scales_channels(module)]
        return all(kind_of(module).endswith(IDLE) or any(module is scale for scale in scales) for module in rest)


class Line:
    """One block of a model as a straight line. Its methods are named as the family's, in whose place it stands.

    tapped: whether a site listens to the block's queries, keys or values, which only the attention module tells it.
    """

    def __init__(self, block: nn.Module, straight: Straight, tapped: bool) -> None:
        self.straight, self.tapped = straight, tapped
        self.parts: tuple[Part, ...] = tuple(
            (parent, name, module, type(module), type(module).forward, module.__dict__.get("forward"))
            for parent in block.modules()
            for name, module in parent._modules.items()
            if module is not None
        )
        self.inputs, self.output = tuple(layer(found) for found in straight.inputs), layer(straight.output)
        self.first, self.last = layer(straight.mlp[0]), layer(straight.mlp[2])
        self.scales = [found if scales_channels(found) else None for found in straight.scales] or [None, None]

    def ready(self, x: Tensor, kwargs: dict[str, Any]) -> bool:
        """Whether this call may take the line: in inference, with nobody watching, and with every module as it was."""
        if torch.is_grad_enabled() or not unwatched(x) or torch.nn.modules.module._has_any_global_hook():  # type: ignore[no-untyped-call]
            return False
        return all(name in MASKS or value is None for name, value in kwargs.items()) and all(map(untouched, self.parts))

    def project(self, _block: nn.Module, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q, k, v [B, H, L, D] of the block's input x [B, L, C]."""
        batch, length = x.shape[:2]
        rows, heads = rows_of(x), self.straight.heads
        x = normal(self.straight.norms[0], x)
        if len(self.inputs) == 1:
            q, k, v = multiply(*self.inputs[0], x, rows).view(batch, length, 3, heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        else:
            q, k, v = (multiply(*found, x, rows).view(batch, length, heads, -1).transpose(1, 2) for found in self.inputs)
        return q, k, v

    def attend(self, block: nn.Module, x: Tensor, bias: Tensor | None, _kwargs: dict[str, Any]) -> Tensor:
        """x [B, L, C] plus the attention branch."""
        q, k, v = self.project(block, x)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=self.straight.scale)
        return self.close(block, x, mixed.transpose(1, 2).flatten(2))

    def close(self, _block: nn.Module, x: Tensor, mixed: Tensor) -> Tensor:
        """x [B, L, C] plus the attention branch, of which mixed [B, L, H * D] are the values mixed by attention."""
        return plus(x, multiply(*self.output, mixed, rows_of(x)), self.scales[0])

    def feed(self, _block: nn.Module, x: Tensor) -> Tensor:
        """x [B, L, C] plus the MLP branch."""
        rows = rows_of(x)
        inner = self.straight.mlp[1](multiply(*self.first, normal(self.straight.norms[1], x), rows))
        return plus(x, multiply(*self.last, inner, rows), self.scales[1])


def layer(linear: nn.Module) -> tuple[nn.Module, Store | None]:
    """A linear layer, and where its packed weight lies."""
    return linear, store_of(linear)


def untouched(part: Part) -> bool:
    """Whether a module is the one that it was, does nothing that only training does, and nobody else listens to it."""
    parent, name, module, kind, plain, own = part
    if parent._modules.get(name) is not module or type(module) is not kind:
        return False
    if kind.forward is not plain or module.__dict__.get("forward") is not own:
        return False
    if module.training or module._forward_pre_hooks:
        return False
    return not module._forward_hooks or all(hook is record for hook in module._forward_hooks.values())


def normal(norm: Any, x: Tensor) -> Tensor:
    """LayerNorm of x [B, L, C]."""
    own = norm._parameters
    return torch.layer_norm(x, norm.normalized_shape, own["weight"], own["bias"], norm.eps)


def plus(x: Tensor, branch: Tensor, scale: nn.Module | None) -> Tensor:
    """x plus the branch, scaled by channel where the model has LayerScale."""
    if scale is None:
        return x + branch
    (weight,) = scale._parameters.values()
    assert weight is not None
    return torch.addcmul(x, branch, weight)


def original(kind: type) -> bool:
    """Whether a class is a framework's, with the forward that stands there."""
    forward: Any = kind.forward  # type: ignore[attr-defined]
    return kind.__module__.partition(".")[0] in FRAMEWORKS and forward.__module__ == kind.__module__


def kind_of(module: nn.Module) -> str:
    """Name of the module's class."""
    return type(module).__name__


def scales_channels(module: nn.Module) -> bool:
    """Whether a module is LayerScale."""
    return kind_of(module).endswith(SCALE)


def full_name(module: nn.Module) -> str:
    """Name of the module's class with that of its Python module."""
    return f"{type(module).__module__}.{kind_of(module)}"
