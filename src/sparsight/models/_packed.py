"""Linear layers of few rows on a CPU: their weights lie packed for MKL, which otherwise packs them again in every call.

After pruning, a block at batch 1 sees few tokens, and preparing the weights takes as long as multiplying with them. The layer's class,
weights and hooks stay as they are; the packed weights are a second copy of the same size, made in the second forward with as many rows.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache, partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad

LEAST, MOST = 2, 512
"""From how many rows to how many packed weights were measured to be faster; a single row is slower, beyond little is gained."""

PROBES = 16
"""Numbers of a weight that every call looks at; few, because each one is a cache line from memory."""

State = tuple[int, int, int]
"""Rows, address and version of a weight: what tells one product from another."""


@dataclass(frozen=True, eq=False)
class Packed:
    """A weight packed for one number of rows. probes: some of the weight's own numbers, values: what they were when it was packed."""

    state: State
    weight: Tensor
    bytes: int
    probes: Tensor
    values: Tensor

    def fits(self, state: State) -> bool:
        """Whether it is still the same weight. Writing through `weight.data`, and in inference mode, leaves no trace in the version, hence
        the probes."""
        return self.state == state and torch.equal(self.probes, self.values)


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

    def take(self, weight: Tensor, rows: int) -> Tensor | None:
        """The weight [N, K], packed for so many rows; None where the call before this one was of another kind."""
        if type(weight) is not nn.Parameter:  # weights of quantisation tools are tensors of their own kind, some without an address
            return None
        state, packed = (rows, *identity(weight)), self.packed
        again, self.last = self.last == state, state
        if packed is not None and packed.fits(state):
            return packed.weight
        if not again or not weight.is_contiguous():
            return None
        weight = weight.detach()
        probes = weight.view(-1)[:: max(1, weight.numel() // PROBES) | 1]
        made: Tensor = torch.ops.mkl._mkl_reorder_linear_weight.default(weight, rows)
        self.packed = Packed(state, made, weight.nbytes, probes, probes.clone())
        return made


def identity(weight: Tensor) -> tuple[int, int]:
    """Address and version of a weight."""
    return weight.data_ptr(), 0 if weight.is_inference() else weight._version


def product(linear: nn.Linear, store: Store, x: Tensor) -> Tensor:
    """What nn.Linear computes: x [..., K] -> x W^T + b, [..., N]. Short, because it runs four times in every block."""
    alone = unwatched(x) and x.shape[-1:] == (linear.in_features,) and not (torch.is_grad_enabled() and learns(linear, x))
    return multiply(linear, store, x, rows_of(x) if alone else 0)


def learns(linear: nn.Linear, x: Tensor) -> bool:
    """Whether the layer's output has a gradient, for which the packed product has no rule."""
    return x.requires_grad or any(p is not None and p.requires_grad for p in linear._parameters.values())


def multiply(linear: nn.Module, store: Store | None, x: Tensor, rows: int, fresh: Packed | None = None) -> Tensor:
    """The product, from the packed weight if it has one for so many rows; rows 0: from the weight itself. fresh: what is packed, if
    somebody has just seen that it is of this weight."""
    own = linear._parameters
    weight, bias = own.get("weight"), own.get("bias")
    if fresh is not None and fresh.state[0] == rows:
        packed: Tensor | None = fresh.weight
    else:
        packed = store.take(weight, rows) if rows and store is not None and weight is not None else None
    if packed is None:
        return F.linear(x, linear.weight, linear.bias)  # type: ignore[arg-type]
    out: Tensor = torch.ops.mkl._mkl_linear.default(x, packed, weight, bias, rows)
    return out


def rows_of(x: Tensor) -> int:
    """How many rows x [..., K] has if packed weights were measured to be faster for it, else 0."""
    rows = x.numel() // x.shape[-1] if x.dtype is torch.float32 and x.is_cpu and x.shape[-1] else 0
    return rows if LEAST <= rows <= MOST and available() else 0


def unwatched(x: Tensor) -> bool:
    """Whether nothing follows or changes this call: compilers and tracers, whose graph outlives its number of rows; modes that watch
    operations (counters of FLOPs know the plain product); autocast, torch.func, forward-mode differentiation; a tensor's own subclass."""
    if torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None or torch._C._len_torch_dispatch_stack():
        return False
    if type(x) is not Tensor or torch.is_autocast_enabled(x.device.type):
        return False
    return forward_ad._current_level < 0 and not torch._C._are_functorch_transforms_active()


@cache
def available() -> bool:
    """Whether this torch has the packed product, whose operators are not part of its public interface, and it multiplies."""
    if not torch.backends.mkl.is_available():  # type: ignore[no-untyped-call]
        return False
    with torch.inference_mode():
        x, weight = torch.arange(32.0).view(2, 16), torch.arange(48.0).view(3, 16)
        try:
            packed = torch.ops.mkl._mkl_reorder_linear_weight.default(weight, 2)
            return torch.equal(torch.ops.mkl._mkl_linear.default(x, packed, weight, None, 2), F.linear(x, weight))
        except (AttributeError, RuntimeError, TypeError):
            return False


def install(block: nn.Module) -> list[nn.Linear]:
    """Give the plain nn.Linear layers of the block `product` as their forward; returns those, for `uninstall`.

    Layers of a subclass, and those that have a forward of their own already, are left alone. A partial and no bound method, because
    a pickled model finds it again.
    """
    found = [module for module in block.modules() if type(module) is nn.Linear and "forward" not in module.__dict__]
    for linear in found:
        linear.forward = partial(product, linear, Store())  # type: ignore[method-assign]
    return found


def uninstall(linears: Iterable[nn.Linear]) -> None:
    """Take `product` off again, where no one else has put another forward in its place."""
    for linear in linears:
        if store_of(linear) is not None:
            del linear.forward


def held(model: nn.Module) -> int:
    """Bytes of packed weights that a model's layers keep. MKL reserves more, but touches no more than the weight's own size."""
    stores = (store_of(module) for module in model.modules())
    return sum(store.packed.bytes for store in stores if store is not None and store.packed is not None)


def store_of(module: nn.Module) -> Store | None:
    """Where a layer keeps what it has packed; None for a module whose forward is another one."""
    forward = module.__dict__.get("forward")
    if not isinstance(forward, partial) or forward.func is not product:
        return None
    store: Store = forward.args[1]
    return store
