"""A block as a straight line of operations, for inference: modules that only hold weights, or do nothing, are not called.

At batch 1 the calls of a block's twenty modules take as long as the arithmetic on a few dozen tokens. A line runs the same operations on
the same weights. It stands back for every block and every call in which somebody could see the difference.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ._packed import LINEAR, Layer, Packed, rows_of, store_of
from ._parts import by_images, by_tokens
from ._snapshot import Snapshot
from .heads import join_heads, split_heads
from .positions import with_bias, with_columns

Heads = tuple[Tensor, Tensor, Tensor]
NORMS = ("torch.nn.modules.normalization.LayerNorm", "timm.layers.norm.LayerNorm", "open_clip.transformer.LayerNorm")
GELU = "torch.nn.modules.activation.GELU"
FRAMEWORKS = ("torch", "timm", "transformers", "open_clip")
MULTIPLY = (*LINEAR, nn.MultiheadAttention)
"""Classes with weights that a line multiplies by."""
IDLE = ("Identity", "Dropout", "DropPath")
"""How the names of classes end that do nothing outside training."""
SCALE = "LayerScale"
"""How the names of classes end that multiply each channel with their only parameter."""
MASKS = ("attn_mask", "attention_mask", "is_causal")
"""What a pruned block gets besides x and has no use for."""


@dataclass(frozen=True, eq=False)
class Straight:
    """What a family says of a pre-norm block: its modules by the parts that they play.

    frames: the block and those of its modules that only call others. inputs: one layer for q, k and v together, or one for each.
    scales: LayerScale, or what stands in its place, of attention and MLP, or names of the block's own parameters; () where the family
    has none. mlp: layer, activation, layer. gate: another layer beside the first, whose output the activation's is multiplied by; halves:
    the first layer makes both, the activation's part first. heads_norms: of q and k. inner_norms: before `output` and the MLP's last layer.
    positions: name of what the block gets besides x; pairs: it is a bias of every pair of tokens. Otherwise `ready` makes of it, for an
    input x, what `turn` rotates q and k with.
    """

    frames: tuple[nn.Module, ...]
    norms: tuple[nn.Module, nn.Module]
    inputs: tuple[nn.Module | Layer, ...]
    output: nn.Module
    mlp: tuple[nn.Module, nn.Module, nn.Module]
    heads: int
    scale: float
    scales: tuple[nn.Module | str, ...] = ()
    gate: nn.Module | None = None
    halves: bool = False
    heads_norms: tuple[nn.Module, ...] = ()
    inner_norms: tuple[nn.Module, ...] = ()
    positions: str = ""
    ready: Callable[[Any, Tensor], Any] | None = None
    turn: Callable[[Tensor, Any], Tensor] | None = None
    pairs: bool = False

    @property
    def block(self) -> nn.Module:
        return self.frames[0]

    @property
    def layers(self) -> list[Layer]:
        gate = () if self.gate is None else (self.gate,)
        given = (*self.inputs, *gate, self.output, self.mlp[0], self.mlp[2])
        return [found if isinstance(found, Layer) else Layer(found, store_of(found)) for found in given]

    @property
    def widest(self) -> int:
        """Channels inside the MLP, the most that a block has."""
        found: Any = self.mlp[0]
        return int(found.weight.shape[0])

    @property
    def all_norms(self) -> list[nn.Module]:
        return [*self.norms, *(norm for norm in (*self.heads_norms, *self.inner_norms) if normed(norm) is not None)]

    def known(self) -> bool:
        """Whether a line repeats the arithmetic of each module of the block, all of them as their frameworks wrote them. The activation
        may be any, because it is called."""
        layers = [layer.module for layer in self.layers]
        act, named = self.mlp[1], {id(module) for module in (*self.frames, *self.all_norms, *layers)}
        if not all(module is act or original(module) for module in self.block.modules()):
            return False
        if not all(full_name(norm) in NORMS for norm in self.all_norms) or not all(type(layer) in MULTIPLY for layer in layers):
            return False
        rest = [module for module in self.block.modules() if module is not act and id(module) not in named]
        scales = [found for found in self.scales if isinstance(found, nn.Module) and scales_channels(found)]
        return all(kind_of(module).endswith(IDLE) or any(module is scale for scale in scales) for module in rest)


class Line:
    """One block of a model as a straight line. Its methods are named as the family's, in whose place it stands.

    tapped: which of the block's q, k, v sites ask for. biased: whether attention logits may get a bias here. width: channels of
    what parts of a batch are made small for; 0 where the activation is somebody's own and may want to see all images.
    """

    def __init__(self, straight: Straight, tapped: Sequence[str], biased: bool) -> None:
        self.straight, self.tapped, self.biased = straight, tapped, biased
        self.modules = Snapshot.of(straight.block)
        ours = original(straight.mlp[1])
        self.gelu = full_name(straight.mlp[1]) == GELU and ours
        self.width = straight.widest if ours else 0
        self.layers = straight.layers
        self.nothing = (None,) * len(self.layers)
        self.fresh: Sequence[Packed | None] = self.nothing
        self.heads_norms = tuple(normed(norm) for norm in straight.heads_norms) or (None, None)
        self.inner_norms = tuple(normed(norm) for norm in straight.inner_norms) or (None, None)
        self.scales = [self.scale_of(found) for found in straight.scales] or [None, None]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "fresh": self.nothing}

    def scale_of(self, given: nn.Module | str) -> tuple[nn.Module, str] | None:
        """The module and the name of the parameter that scales a branch, if it has one when it is asked for; None where nothing does."""
        if isinstance(given, str):
            return self.straight.block, given
        return (given, next(iter(given._parameters))) if scales_channels(given) else None

    def packed(self) -> list[Packed | None]:
        """What the layers have packed, as far as it is of their weights as they are now."""
        return [layer.fresh() for layer in self.layers]

    def reads(self, kwargs: dict[str, Any]) -> bool:
        """Whether all that a block got besides x is what a line knows."""
        return all(value is None or name in MASKS or name == self.straight.positions for name, value in kwargs.items())

    def multiply(self, number: int, x: Tensor, rows: int) -> Tensor:
        """The product of one of the layers with x of so many rows: inputs, output, MLP's first and last."""
        layer, fresh = self.layers[number], self.fresh[number]
        if fresh is None or fresh.state[0] != rows:
            return layer.multiply(x, rows_of(x))
        return fresh.times(x, layer.bias())

    def positions(self, x: Tensor, kwargs: dict[str, Any]) -> Any:
        """What says where the tokens of the block's input x are, as `heads` and `attended` take it; None where nothing does."""
        given = kwargs.get(self.straight.positions)
        return given if given is None or self.straight.ready is None else self.straight.ready(given, x)

    def project(self, _block: nn.Module, x: Tensor, kwargs: dict[str, Any]) -> Heads:
        """q, k, v [B, H, L, D] of the block's input x [B, L, C]. kwargs: what the block got besides x, for the tokens that are there."""
        return self.heads(x, self.positions(x, kwargs))

    def heads(self, x: Tensor, table: Any) -> Heads:
        """As `project`, with positions that are ready."""
        batch, length, _ = x.shape
        rows, heads = batch * length, self.straight.heads
        x = normal(self.straight.norms[0], x)
        if len(self.straight.inputs) == 1:
            parts = self.multiply(0, x, rows).view(batch, length, 3, heads, -1).permute(2, 0, 3, 1, 4)
            if self.straight.turn is not None and table is not None and self.heads_norms == (None, None):  # both in one
                q, k = self.turned(parts[:2], None, table).unbind(0)
                return q, k, parts[2]
            q, k, v = parts.unbind(0)
        else:
            q, k, v = (split_heads(self.multiply(number, x, rows), heads) for number in range(3))
        return self.turned(q, self.heads_norms[0], table), self.turned(k, self.heads_norms[1], table), v

    def turned(self, x: Tensor, norm: nn.Module | None, table: Any) -> Tensor:
        """x [..., L, D] as the model normalises and rotates its queries and keys."""
        x = x if norm is None else normal(norm, x)
        return x if table is None or self.straight.turn is None else self.straight.turn(x, table)

    def attend(self, block: nn.Module, x: Tensor, bias: Tensor | None, kwargs: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        """x [B, L, C] plus the attention branch, and those of q, k, v [B, H, L, D] that are asked for, as it has used them."""
        positions = self.positions(x, kwargs)
        x, heads = self.attended(x, bias, positions)
        tapped = {name: part for name, part in zip("qkv", heads, strict=True) if name in self.tapped}
        return x, with_columns(tapped, positions if self.straight.pairs else None, self.straight.scale)

    def attended(self, x: Tensor, bias: Tensor | None, positions: Any) -> tuple[Tensor, Heads]:
        """x [B, L, C] plus the attention branch, and q, k, v [B, H, L, D]."""
        q, k, v = self.heads(x, positions)
        mask = with_bias(positions if self.straight.pairs else None, bias)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=self.straight.scale)
        return self.close(self.straight.block, x, join_heads(mixed)), (q, k, v)

    def close(self, _block: nn.Module, x: Tensor, mixed: Tensor) -> Tensor:
        """x [B, L, C] plus the attention branch, of which mixed [B, L, H * D] are the values mixed by attention."""
        mixed = mixed if self.inner_norms[0] is None else normal(self.inner_norms[0], mixed)
        return plus(x, self.multiply(-3, mixed, x.shape[0] * x.shape[1]), self.scales[0])

    def run(self, block: nn.Module, x: Tensor, bias: Tensor | None, kwargs: dict[str, Any]) -> Tensor:
        """The whole block."""

        def work(x: Tensor, bias: Tensor | None, positions: Any) -> Tensor:
            return self.feed(block, self.attended(x, bias, positions)[0])

        return by_images(work, x, self.width, bias, self.positions(x, kwargs))

    def feed(self, _block: nn.Module, x: Tensor) -> Tensor:
        """x [B, L, C] plus the MLP branch."""
        return by_tokens(self.mlp, x, self.width)

    def mlp(self, x: Tensor) -> Tensor:
        """As `feed`, at once."""
        s, rows = self.straight, x.shape[0] * x.shape[1]
        act, x_normed = s.mlp[1], normal(s.norms[1], x)
        inner = self.multiply(-2, x_normed, rows)
        if s.halves:
            inner, other = inner.chunk(2, dim=-1)
            inner = act(inner) * other
        elif s.gate is not None:
            inner = act(inner) * self.multiply(len(s.inputs), x_normed, rows)
        else:
            inner = torch.ops.aten.gelu_.default(inner, approximate=act.approximate) if self.gelu else act(inner)
        inner = inner if self.inner_norms[1] is None else normal(self.inner_norms[1], inner)
        return plus(x, self.multiply(-1, inner, rows), self.scales[1])


def normal(norm: Any, x: Tensor) -> Tensor:
    """LayerNorm of x [B, L, C]."""
    own = norm._parameters
    return torch.layer_norm(x, norm.normalized_shape, own["weight"], own["bias"], norm.eps)


def normed(norm: nn.Module) -> nn.Module | None:
    """The norm, or None where nothing stands in its place."""
    return None if kind_of(norm) == "Identity" else norm


def plus(x: Tensor, branch: Tensor, scale: tuple[nn.Module, str] | None) -> Tensor:
    """x plus the branch, scaled by channel where the model has LayerScale: the module and its parameter's name."""
    weight = None if scale is None else scale[0]._parameters.get(scale[1])
    return x + branch if weight is None else torch.addcmul(x, branch, weight)


def original(module: nn.Module) -> bool:
    """Whether a module's class is a framework's, with the forward that stands there, and no other tool has put its own over it."""
    kind: Any = type(module)
    written = kind.__module__.partition(".")[0] in FRAMEWORKS and kind.forward.__module__ == kind.__module__
    return written and ("forward" not in module.__dict__ or store_of(module) is not None)


def kind_of(module: nn.Module) -> str:
    """Name of the module's class."""
    return type(module).__name__


def scales_channels(module: nn.Module) -> bool:
    """Whether a module is LayerScale."""
    return kind_of(module).endswith(SCALE)


def full_name(module: nn.Module) -> str:
    """Name of the module's class with that of its Python module."""
    return f"{type(module).__module__}.{kind_of(module)}"
