"""What the image encoders of transformers have in common. Read with transformers 5.23.

Layers keep q, k and v in projections of their own and choose their attention by configuration. The inner model is the one that is
pruned, whichever of the wrapping classes was given, so that all of them find the same sites.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from functools import partial
from operator import attrgetter
from typing import Any, ClassVar

from torch import Tensor, nn

from ..errors import PruneError
from .engine import Engine
from .family import Family
from .pooling import weighed
from .select_first import Heads, Opened, unheard
from .site import Site
from .state import ForwardState


def without_mask(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Forward pre-hook: a layer whose tokens are fewer gets no mask made for all of them."""
    return args[:1], {**kwargs, "attention_mask": None}


def replace_pixels(
    smaller: Callable[[Tensor], Tensor], asks: bool, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Forward pre-hook: the smaller image in place of the image. asks: positions for its size have to be asked for."""
    kwargs = {**kwargs, **({"interpolate_pos_encoding": True} if asks else {})}
    if args:
        return (smaller(args[0]), *args[1:]), kwargs
    return args, {**kwargs, "pixel_values": smaller(kwargs["pixel_values"])}


class TransformersViT(Opened):
    """An image encoder of transformers: the model that is given, or its attribute `inner`. Subclasses name its parts."""

    inner: ClassVar[str]
    layers: ClassVar[str]
    """Where the layers are, from the encoder on."""
    patches: ClassVar[str] = "embeddings.patch_embeddings"
    norms: ClassVar[tuple[str, str]]
    """In a layer, what normalises the input of attention and MLP."""
    after: ClassVar[tuple[tuple[str, ...], tuple[str, ...]]] = ((), ())
    """In a layer, what the output of attention and MLP passes before it is added: dropout, LayerScale (module or parameter), drop path."""
    averaging: ClassVar[tuple[str, ...]] = ()
    """Names of the wrapping classes that take the plain mean of the patch tokens."""

    def __init__(self, model: nn.Module) -> None:
        encoder = getattr(model, self.inner, model)
        super().__init__(encoder if isinstance(encoder, nn.Module) else model)
        self.averager = model if any(kind.__name__ in self.averaging for kind in type(model).__mro__) else None

    @property
    def blocks(self) -> list[nn.Module]:
        return list(attrgetter(self.layers)(self.model))

    @property
    def prefix(self) -> int:
        """A class token, and registers where there are some."""
        registers = getattr(self.model.embeddings, "register_tokens", None)
        return 1 if registers is None else 1 + int(registers.shape[1])

    @property
    def class_token(self) -> bool:
        return True

    def projection(self) -> nn.Module:
        found: nn.Module = attrgetter(self.patches)(self.model)
        return found

    @property
    def other_sizes(self) -> bool:
        return True

    @property
    def asks_for_other_sizes(self) -> bool:
        """Whether a call has to say `interpolate_pos_encoding=True` for images of another size than the model's own."""
        return "interpolate_pos_encoding" in inspect.signature(type(self.model).forward).parameters

    @property
    def patch(self) -> tuple[int, int]:
        return pair(self.model.config.patch_size)  # type: ignore[union-attr]

    def replace_images(self, engine: Engine, smaller: Callable[[Tensor], Tensor]) -> None:
        replaced = partial(replace_pixels, smaller, self.asks_for_other_sizes)
        engine.hook(self.model.register_forward_pre_hook(replaced, with_kwargs=True))

    def adopt(self, other: Family) -> None:
        """The encoder was pruned by itself before; now its wrapper is known."""
        if isinstance(other, TransformersViT):
            self.averager = other.averager or self.averager

    def check(self) -> None:
        super().check()
        if not self.blocks or not all(hasattr(self.attention(block), "q_proj") for block in self.blocks):
            kind = type(self.model)
            raise PruneError(f"the layers of {kind.__name__} of {kind.__module__} are not built like those of {self.name}")

    def check_sites(self, sites: list[Site]) -> None:
        """Refuse attention that could not follow the sites."""
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

    def entrances(self) -> dict[str, nn.Module]:
        return super().entrances() if self.averager is None else {"averager": self.averager, **super().entrances()}

    def install(self, engine: Engine) -> None:
        engine.hook(self.model.register_forward_pre_hook(self.refuse_call, with_kwargs=True))
        for block in self.blocks:
            if block not in engine.patched:
                engine.hook(block.register_forward_pre_hook(without_mask, with_kwargs=True))
        if self.averager is not None:
            engine.hook(self.model.register_forward_hook(partial(weigh_mean, engine)))

    def refuse_call(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A forward of the model begins: refuse a mask that the user gives, unless it is all ones."""
        mask = kwargs.get("attention_mask")
        if not isinstance(mask, Tensor) or mask.dim() != 2 or not bool(mask.all()):
            super().refuse_mask((), kwargs)

    def refuse_mask(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Nothing: `refuse_call` has seen the user's own. While tracing, transformers makes one of ones for its layers."""

    def attention(self, block: nn.Module) -> Any:
        """The attention module of a layer."""
        return getattr(block, "attention", None) or getattr(block, "self_attn", None)

    def grid_of(self, state: ForwardState | None) -> tuple[int, int]:
        config: Any = self.model.config
        h, w = pair(config.image_size) if state is None or state.image == (0, 0) else state.image
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

    def normal(self, block: nn.Module, x: Tensor) -> Tensor:
        """x as the attention gets it."""
        return through(block, self.norms[:1], x)

    def residual(self, block: nn.Module, x: Tensor, branch: Tensor) -> Tensor:
        """x plus the output of the attention."""
        return through(block, self.after[0], branch) + x

    def feed(self, block: nn.Module, x: Tensor) -> Tensor:
        return through(block, (self.norms[1], "mlp", *self.after[1]), x) + x

    def attend(self, block: nn.Module, x: Tensor, bias: Tensor | None, kwargs: dict[str, Any]) -> Tensor:
        return self.residual(block, x, self.attended(block, self.normal(block, x), bias, kwargs))

    def opens(self, block: nn.Module) -> bool:
        a = self.attention(block)
        return bool(a.config._attn_implementation == "sdpa") and unheard(a)

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


def weigh_mean(engine: Engine, _module: nn.Module, _args: Any, output: Any) -> Any:
    """Inside the wrapper that averages: scale the patch tokens so that their plain mean is the one weighted by size."""
    family, state = engine.family, engine.states.running()
    assert isinstance(family, TransformersViT)
    if state is None or state.size is None or not engine.states.within("averager"):
        return output
    return dataclasses.replace(output, last_hidden_state=weighed(output.last_hidden_state, state.size, family.prefix))


def through(block: nn.Module, names: tuple[str, ...], x: Tensor) -> Tensor:
    """x through the modules of these names, or times the parameters."""
    for name in names:
        part: Any = getattr(block, name)
        x = part * x if isinstance(part, nn.Parameter) else part(x)
    return x


def output(attention: Any) -> nn.Module:
    """The layer behind an attention's heads."""
    found: nn.Module = attention.o_proj if hasattr(attention, "o_proj") else attention.out_proj
    return found


def pair(size: Any) -> tuple[int, int]:
    """(h, w) of a size that may be one number."""
    h, w = size if isinstance(size, (tuple, list)) else (size, size)
    return int(h), int(w)
