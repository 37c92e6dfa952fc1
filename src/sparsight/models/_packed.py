"""Linear layers and patch embeddings on a CPU: their weights lie packed for the product, which otherwise packs them in every call.

After pruning, a block at batch 1 sees few tokens, and preparing the weights takes as long as multiplying with them. The layer's class,
weights and hooks stay as they are; the packed weights are a second copy of the same size, made in the second forward with as many rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from ._kernel import FEW, Kernel, kernel

LEAST = 2
"""From how many rows on packed weights were measured to be faster; a single row is slower with MKL."""

PROBES = 16
"""Numbers of a weight that every call looks at; few, because each one is a cache line from memory."""

LINEAR = (nn.Linear, NonDynamicallyQuantizableLinear)
"""Classes whose forward is nn.Linear's own."""

STORE = "_sparsight_store"
"""Where a module that multiplies with a weight of its own, without calling another one, keeps what it has packed."""

State = tuple[int, int, int]
"""Rows, address and version of a weight: what tells one product from another."""


@dataclass(frozen=True, eq=False)
class Packed:
    """A weight packed for one number of rows and one kernel. origin: the weight itself, [N, K]. probes: some of its numbers, where they
    lie; values: their bytes when it was packed."""

    kernel: Kernel
    state: State
    weight: Tensor
    origin: Tensor
    probes: Any
    values: bytes

    def fits(self, state: State) -> bool:
        """Whether it is still the same weight. Writing through `weight.data`, and in inference mode, leaves no trace in the version, hence
        the probes."""
        return bool(self.state == state and self.probes.tobytes() == self.values)

    def times(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """The product of x [..., K], of so many rows, with the weight, plus the bias [N]: [..., N]."""
        return self.kernel.times(x, self.weight, self.origin, bias, self.state[0])


class Store:
    """What a layer has packed; copies and pickles of it are empty."""

    def __init__(self) -> None:
        self.packed: Packed | None = None
        self.last: State | None = None

    def __reduce__(self) -> tuple[type[Store], tuple[()]]:
        return Store, ()

    def fresh(self, weight: Tensor) -> Packed | None:
        """What is packed, if it is of this weight as it is now."""
        packed = self.packed
        return packed if packed is not None and packed.fits((packed.state[0], *identity(weight))) else None

    def take(self, weight: Tensor, rows: int) -> Packed | None:
        """The weight [N, K] (of a convolution: [N, ...] with as many numbers) for so many rows; None where the call before this one was of another kind."""
        if type(weight) is not nn.Parameter:  # weights of quantisation tools are tensors of their own kind, some without an address
            return None
        state, packed = (rows, *identity(weight)), self.packed
        again, self.last = self.last == state, state
        if packed is not None and packed.fits(state):
            return packed
        found = kernel()
        if not again or not weight.is_contiguous() or found is None:
            return None
        weight = weight.detach().flatten(1)
        probes = weight.view(-1)[:: max(1, weight.numel() // PROBES) | 1].numpy()
        self.packed = Packed(found, state, found.pack(weight, rows), weight, probes, probes.tobytes())
        return self.packed


def identity(weight: Tensor) -> tuple[int, int]:
    """Address and version of a weight."""
    return weight.data_ptr(), 0 if weight.is_inference() else weight._version


class Layer:
    """A product with a weight [N, K] of a module: nn.Linear's, or that of a module which multiplies like one.

    weight: the parameter's name. biases: modules and names of what is added, one after the other, instead of the module's `bias`.
    """

    def __init__(
        self, module: nn.Module, store: Store | None, weight: str = "weight", biases: Sequence[tuple[nn.Module, str]] = ()
    ) -> None:
        self.module, self.store, self.name, self.biases = module, store, weight, biases

    def bias(self) -> Tensor | None:
        """What is added, [N], or None."""
        if not self.biases:
            return self.module.bias  # type: ignore[return-value]
        parts: list[Any] = [getattr(module, name) for module, name in self.biases]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def fresh(self) -> Packed | None:
        """What is packed, if it is of the weight as it is now."""
        return None if self.store is None else self.store.fresh(self.module._parameters[self.name])  # type: ignore[arg-type]

    def of(self, x: Tensor) -> Tensor:
        """x [..., K] -> x W^T + b, [..., N]."""
        alone = unwatched(x) and self.fits(x) and not (torch.is_grad_enabled() and self.learns(x))
        return self.multiply(x, rows_of(x) if alone else 0)

    def fits(self, x: Tensor) -> bool:
        """Whether x has as many channels as the weight takes."""
        weight = self.module._parameters.get(self.name)
        return weight is not None and x.shape[-1:] == weight.shape[1:]

    def learns(self, x: Tensor) -> bool:
        """Whether the product has a gradient, for which the packed one has no rule."""
        return learns(self.module, x) or any(learns(module, x) for module, _ in self.biases)

    def multiply(self, x: Tensor, rows: int) -> Tensor:
        """The product, from the packed weight if it has one for so many rows; rows 0: from the weight itself."""
        weight = self.module._parameters.get(self.name)
        packed = self.store.take(weight, rows) if rows and self.store is not None and weight is not None else None
        bias = self.bias()
        return F.linear(x, getattr(self.module, self.name), bias) if packed is None else packed.times(x, bias)


def learns(layer: nn.Module, x: Tensor) -> bool:
    """Whether the layer's output has a gradient."""
    return x.requires_grad or any(p is not None and p.requires_grad for p in layer._parameters.values())


def embed(conv: Any, store: Store, x: Tensor) -> Tensor:
    """What a convolution computes whose stride is its kernel's size: each patch times the weight. x [B, I, H, W] -> [B, N, h, w]."""
    if unwatched(x) and whole(conv, x) and not (torch.is_grad_enabled() and learns(conv, x)):
        high, wide = conv.kernel_size
        batch, h, w = x.shape[0], x.shape[2] // high, x.shape[3] // wide
        rows = rows_in(x, batch * h * w) if batch * h * w <= FEW else 0
        packed = store.take(conv.weight, rows) if rows else None
        if packed is not None:
            patches = x.reshape(batch, -1, h, high, w, wide).permute(0, 2, 4, 1, 3, 5).reshape(rows, -1)
            return packed.times(patches, conv.bias).view(batch, h, w, -1).permute(0, 3, 1, 2)
    out: Tensor = conv._conv_forward(x, conv.weight, conv.bias)
    return out


def whole(conv: nn.Conv2d, x: Tensor) -> bool:
    """Whether x is a batch of images that are whole patches."""
    high, wide = conv.kernel_size
    return x.dim() == 4 and x.shape[1] == conv.in_channels and not (x.shape[2] % high or x.shape[3] % wide)


def rows_of(x: Tensor) -> int:
    """How many rows x [..., K] has if packed weights were measured to be faster for it, else 0."""
    return rows_in(x, x.numel() // x.shape[-1] if x.shape[-1] else 0)


def rows_in(x: Tensor, rows: int) -> int:
    """The number of rows that x holds if packed weights were measured to be faster for it, else 0."""
    found = kernel()
    return rows if found is not None and LEAST <= rows <= found.most and x.dtype is torch.float32 and x.is_cpu else 0


def unwatched(x: Tensor) -> bool:
    """Whether nothing follows or changes this call: compilers and tracers, whose graph outlives its number of rows; modes that watch
    operations (counters of FLOPs know the plain product); autocast, torch.func, forward-mode differentiation; a tensor's own subclass."""
    if torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None or torch._C._len_torch_dispatch_stack():
        return False
    if type(x) is not Tensor or torch.is_autocast_enabled(x.device.type):
        return False
    return forward_ad._current_level < 0 and not torch._C._are_functorch_transforms_active()


def install(part: nn.Module) -> list[nn.Module]:
    """Give the plain nn.Linear layers of a part of the model the product of a `Layer` as their forward, and its patch embedding `embed`; an
    nn.MultiheadAttention gets a place for what is packed of its weight for q, k and v. Returns those, for `uninstall`.

    Layers of a subclass, and those that have a forward of their own already, are left alone. A partial and no bound method, because
    a pickled model finds it again.
    """
    found: list[nn.Module] = []
    for module in part.modules():
        if "forward" in module.__dict__ or STORE in module.__dict__:
            continue
        if type(module) in LINEAR:
            module.forward = partial(Layer.of, Layer(module, Store()))
        elif cuts(module):
            module.forward = partial(embed, module, Store())
        elif type(module) is nn.MultiheadAttention and module.in_proj_weight is not None:
            module.__dict__[STORE] = Store()
        else:
            continue
        found.append(module)
    return found


def cuts(module: nn.Module) -> bool:
    """Whether a module is a convolution that cuts an image into patches."""
    if type(module) is not nn.Conv2d or module.groups != 1 or module.stride != module.kernel_size:
        return False
    return module.padding in ((0, 0), "valid") and module.dilation == (1, 1)


def uninstall(layers: Iterable[nn.Module]) -> None:
    """Take the forwards of `install` off again, where no one else has put another in their place."""
    for layer in layers:
        if layer.__dict__.pop(STORE, None) is None and store_of(layer) is not None:
            del layer.forward


def held(model: nn.Module) -> int:
    """Bytes of packed weights that the layers of a model keep. MKL reserves more, but touches no more than the weight's own size."""
    stores = (store_of(module) for module in model.modules())
    return sum(store.packed.origin.nbytes for store in stores if store is not None and store.packed is not None)


def store_of(module: nn.Module) -> Store | None:
    """Where a layer keeps what it has packed; None for a module whose forward is another one."""
    forward = module.__dict__.get("forward")
    if not isinstance(forward, partial) or forward.func not in (Layer.of, embed):
        place: Store | None = module.__dict__.get(STORE)
        return place
    given: Store | Layer = forward.args[-1]
    return given if isinstance(given, Store) else given.store
