"""A linear layer for few tokens on a CPU: the same product with its sides changed.

After pruning, a block at batch 1 sees a few dozen tokens. MKL leaves its threads idle in `x W^T` of so few rows, and uses them in
`W x^T`, which has as many rows as the layer has outputs. The layer's class, weights and hooks stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LEAST, MOST = 16, 48
"""From how many rows to how many the other product is the faster one, measured with two threads. From 4 to 12 rows MKL uses its
threads for the plain product and the other one takes up to twice as long; from 52 rows on the two come out even."""

MKL: bool = torch.backends.mkl.is_available()  # type: ignore[no-untyped-call]


def narrow(linear: nn.Linear, x: Tensor) -> Tensor:
    """What nn.Linear computes: x [..., K] -> x W^T + b, [..., N], contiguous where the product is the other one."""
    weight, bias = linear.weight, linear.bias
    if not gains(x, linear.in_features) or wants_gradient(x, weight, bias) or type(weight) is not nn.Parameter:
        return F.linear(x, weight, bias)
    y = torch.mm(weight, x.reshape(-1, weight.shape[1]).t()).t().contiguous()
    return (y if bias is None else y.add_(bias)).view(*x.shape[:-1], weight.shape[0])


def gains(x: Tensor, width: int) -> bool:
    """Whether x [..., width] is an input for which the other product was measured to be the faster one.

    A compiled or traced graph outlives this call's number of rows, so it gets the plain layer; the cheap questions come first.
    """
    traced = torch.compiler.is_compiling() or torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
    if traced or not LEAST * width <= x.numel() <= MOST * width:
        return False
    if x.dtype is not torch.float32 or not x.is_cpu or type(x) is not Tensor or x.shape[-1] != width:
        return False
    return MKL and torch.get_num_threads() > 1 and not torch.is_autocast_enabled("cpu")


def wants_gradient(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether a graph of this layer is being recorded; training keeps the operation that it knows."""
    if not torch.is_grad_enabled():
        return False
    return x.requires_grad or weight.requires_grad or (bias is not None and bias.requires_grad)


def install(block: nn.Module) -> list[nn.Linear]:
    """Give the plain nn.Linear layers of the block `narrow` as their forward; returns those, for `uninstall`.

    Layers of a subclass, and those that have a forward of their own already, are left alone, and so are square ones: their plain
    product uses the threads. A partial and no bound method, because a pickled model finds it again.
    """
    plain = [module for module in block.modules() if type(module) is nn.Linear and "forward" not in module.__dict__]
    found = [linear for linear in plain if linear.in_features != linear.out_features]
    for linear in found:
        linear.forward = partial(narrow, linear)  # type: ignore[method-assign]
    return found


def uninstall(linears: Iterable[nn.Linear]) -> None:
    """Take `narrow` off again, where no one else has put another forward in its place."""
    for linear in linears:
        forward = linear.__dict__.get("forward")
        if isinstance(forward, partial) and forward.func is narrow:
            del linear.forward
