"""What the image encoders of transformers have in common. Read with transformers 5.23.

Layers keep q, k and v in projections of their own and choose their attention by configuration. The inner model is the one that is
pruned, whichever of the wrapping classes was given, so that all of them find the same sites.
"""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..errors import PruneError
from . import _recording as recording
from ._line import Straight
from .select_first import Heads, Opened, unheard
from .site import Site

BETWEEN = ("output_hidden_states", "output_attentions")
"""What a caller may ask for that lies between the blocks."""

MLP = (("fc1", "activation_fn", "fc2"), ("gate_proj", "act_fn", "down_proj"), ("up_proj", "act_fn", "down_proj"))
"""What the parts of an MLP are called; beside `gate_proj` stands `up_proj`."""


def without_mask(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Forward pre-hook: a layer whose tokens are fewer gets no mask made for all of them."""
    return args[:1], {**kwargs, "attention_mask": None}


class TransformersViT(Opened):
    """An image encoder of transformers: the model that is given, or its attribute `inner`."""

    inner: ClassVar[str]
    averaging: ClassVar[tuple[str, ...]] = ()
    """Names of the wrapping classes that take the plain mean of the patch tokens."""

    def __init__(self, model: nn.Module) -> None:
        encoder = getattr(model, self.inner, model)
        super().__init__(encoder if isinstance(encoder, nn.Module) else model)
        self.averager: nn.Module | None = None
        self.averages = False
        if any(kind.__name__ in self.averaging for kind in type(model).__mro__):
            self.averager = model
            working = self.model.__dict__.get("_sparsight")
            if isinstance(working, TransformersViT):  # the encoder was pruned by itself before; now its wrapper is known
                working.averager = model

    def check(self) -> None:
        super().check()
        if not self.blocks or not all(hasattr(self.attention(block), "q_proj") for block in self.blocks):
            kind = type(self.model)
            raise PruneError(f"the layers of {kind.__name__} of {kind.__module__} are not built like those of {self.name}")

    def add(self, sites: list[Site]) -> None:
        """Install sites; refuse attention that could not follow them."""
        backend = self.attention(self.blocks[0]).config._attn_implementation
        fix = "call model.set_attn_implementation('sdpa') before pruning"
        if backend == "flex_attention":
            raise PruneError(f"flex_attention makes its mask for the full sequence, which does not fit a pruned one; {fix}")
        if backend not in ("sdpa", "eager"):
            if any(site.proportional for site in sites):
                raise PruneError(f"{backend} takes no bias, which proportional attention needs; {fix}, or set proportional=false")
            if any(site.adaptive or site.hides for site in sites):
                raise PruneError(
                    f"{backend} takes no mask, which images with different numbers of tokens need, and methods that hide tokens in "
                    f"training; {fix}"
                )
        super().add(sites)

    def patch(self) -> None:
        super().patch()
        if self.sites:
            self.hooks.append(self.model.register_forward_pre_hook(self.refuse_call, with_kwargs=True))
            rest = [block for block in self.blocks if block not in self.patched]
            self.hooks += [block.register_forward_pre_hook(without_mask, with_kwargs=True) for block in rest]
            loop: Any = getattr(self.model, "encoder", None) or getattr(self.model, "model", self.model)
            recording.install_in_loop(self, getattr(loop, "layers", None) or getattr(loop, "layer", None), loop, announced=True)

    def refuse_call(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A forward of the model begins: refuse a mask that the user gives, unless it is all ones."""
        if not torch.compiler.is_compiling():
            asked = [kwargs.get(name, getattr(self.model.config, name, None)) for name in BETWEEN]
            self.lines.called = len(args) < 2 and not any(asked)
        mask = kwargs.get("attention_mask")
        if not isinstance(mask, Tensor) or mask.dim() != 2 or not bool(mask.all()):
            super().refuse_mask((), kwargs)

    def refuse_mask(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Nothing: `refuse_call` has seen the user's own. While tracing, transformers makes one of ones for its layers."""

    def attention(self, block: nn.Module) -> Any:
        """The attention module of a layer."""
        return getattr(block, "attention", None) or getattr(block, "self_attn", None)

    @property
    def grid(self) -> tuple[int, int]:
        config: Any = self.model.config
        h, w = pair(config.image_size) if self.image == (0, 0) else self.image
        patch = pair(config.patch_size)
        return h // patch[0], w // patch[1]

    @property
    def width(self) -> int:
        return int(self.model.config.hidden_size)  # type: ignore[union-attr, arg-type]

    def features(self, projected: Tensor) -> Tensor:
        return projected.flatten(2).transpose(1, 2) if projected.dim() == 4 else projected

    def taps(self, block: nn.Module) -> dict[str, nn.Module]:
        a = self.attention(block)
        return {"q": a.q_proj, "k": a.k_proj, "v": a.v_proj}

    def heads(self, block: nn.Module, tapped: Tensor) -> Tensor:
        return tapped.view(*tapped.shape[:2], -1, self.attention(block).head_dim).transpose(1, 2)

    def scale(self, block: nn.Module) -> float:
        a = self.attention(block)
        return float(a.scaling if hasattr(a, "scaling") else a.scale)

    @abstractmethod
    def normal(self, block: nn.Module, x: Tensor) -> Tensor:
        """x as the attention gets it."""

    @abstractmethod
    def residual(self, block: nn.Module, x: Tensor, branch: Tensor) -> Tensor:
        """x plus the output of the attention."""

    def attend(self, block: nn.Module, x: Tensor, bias: Tensor | None, kwargs: dict[str, Any]) -> Tensor:
        return self.residual(block, x, self.attended(block, self.normal(block, x), bias, kwargs))

    def opens(self, block: nn.Module) -> bool:
        return self.fused(block) and unheard(self.attention(block))

    def fused(self, block: nn.Module) -> bool:
        return bool(self.attention(block).config._attn_implementation == "sdpa")

    def usual(self, block: nn.Module, norms: tuple[nn.Module, nn.Module], *scales: nn.Module) -> Straight | None:
        """The parts of a layer with these norms (and LayerScale), if its MLP is known: two linear layers and an activation, or three, gated."""
        b: Any = block
        a, m = self.attention(block), b.mlp
        mlp: Any = next((parts for names in MLP if None not in (parts := tuple(m._modules.get(name) for name in names))), None)
        if mlp is None:
            return None
        gate = m.up_proj if "gate_proj" in m._modules else None
        inputs, width = (a.q_proj, a.k_proj, a.v_proj), int(a.head_dim)
        heads = int(a.q_proj.out_features) // width
        return Straight((block, a, m), norms, inputs, output(a), mlp, heads, self.scale(block), scales, gate)

    def project(self, block: nn.Module, x: Tensor, kwargs: dict[str, Any]) -> Heads:
        a, x = self.attention(block), self.normal(block, x)
        return self.heads(block, a.q_proj(x)), self.heads(block, a.k_proj(x)), self.heads(block, a.v_proj(x))

    def close(self, block: nn.Module, x: Tensor, mixed: Tensor) -> Tensor:
        return self.residual(block, x, output(self.attention(block))(mixed))

    def dropout(self, block: nn.Module) -> float:
        a = self.attention(block)
        return float(a.attention_dropout if hasattr(a, "attention_dropout") else a.dropout) if a.training else 0.0

    def attended(self, block: nn.Module, x: Tensor, bias: Tensor | None, kwargs: dict[str, Any]) -> Tensor:
        """Output of a layer's attention for its normalised input; an additive 4-D mask suits sdpa and eager alike."""
        others = {name: value for name, value in kwargs.items() if name != "attention_mask"}
        out: Tensor = self.attention(block)(x, attention_mask=bias, **others)[0]
        return out

    def weigh_pooling(self) -> None:
        if self.averager is not None:
            self.hooks.append(self.averager.register_forward_pre_hook(self.enter))
            self.hooks.append(self.averager.register_forward_hook(self.leave, always_call=True))
            self.hooks.append(self.model.register_forward_hook(self.weigh))

    def enter(self, _module: nn.Module, _args: Any) -> None:
        self.averages = True

    def leave(self, _module: nn.Module, _args: Any, _output: Any) -> None:
        self.averages = False

    def weigh(self, _module: nn.Module, _args: Any, output: Any) -> Any:
        """Inside the averaging wrapper only: scale the patch tokens so that their plain mean is the one weighted by size."""
        size = self.last_size()
        if not self.averages or size is None:
            return output
        x: Tensor = output.last_hidden_state
        size = size.to(torch.promote_types(size.dtype, x.dtype))
        weight = (size * size.shape[1] / size.sum(dim=1, keepdim=True)).to(x.dtype)
        weighed = torch.cat([x[:, : self.prefix], x[:, self.prefix :] * weight], dim=1)
        return dataclasses.replace(output, last_hidden_state=weighed)


def output(attention: Any) -> nn.Module:
    """The layer behind an attention's heads."""
    found: nn.Module = attention.o_proj if hasattr(attention, "o_proj") else attention.out_proj
    return found


def pair(size: Any) -> tuple[int, int]:
    """(h, w) of a size that may be one number."""
    h, w = size if isinstance(size, (tuple, list)) else (size, size)
    return int(h), int(w)
