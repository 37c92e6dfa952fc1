"""A GPU for machines that have none: tensors that say they are on it compute on the CPU, but refuse to meet tensors of the CPU as they
would there, and it is written down where somebody waits for their values. With a real GPU the same tests run on that."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

import sparsight
from sparsight.ops import attention

GPU = torch.device("cuda", 0)
REAL = torch.cuda.is_available()
SOURCES = Path(sparsight.__file__).parent

READS = {"aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::is_nonzero", "aten::equal"}
"""Operations whose result the CPU, or the shape of a tensor, depends on."""

MOVES = {"aten::_to_copy", "aten::copy_"}
INDEXES = {"aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_"}

waits: list[str] = []


class Pretended(Tensor):
    """A tensor of the GPU that is not there; `inner` has its values."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> Pretended:
        shape = {"strides": inner.stride(), "storage_offset": inner.storage_offset(), "dtype": inner.dtype}
        made: Pretended = Tensor._make_wrapper_subclass(cls, inner.shape, **shape, device=GPU, requires_grad=False)
        made.inner = inner
        return made

    def __repr__(self) -> str:
        return f"Pretended({self.inner})"

    def tolist(self) -> Any:
        note_wait("tolist")
        return self.inner.tolist()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})


class Everywhere(TorchDispatchMode):
    """Also where tensors are made."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})


def note_wait(what: str) -> None:
    frames = [frame for frame in traceback.extract_stack() if SOURCES in Path(frame.filename).parents]
    waits.append(f"{what} at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else what)


def run(func: Any, args: Any, kwargs: Any) -> Any:
    """One operation: on the CPU, its results on the GPU if that is where it would have run."""
    name = func._schema.name
    tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
    there = [x for x in tensors if isinstance(x, Pretended)]
    lists = [x for x in tensors if not isinstance(x, Pretended) and x.dim()]
    device = kwargs.get("device")
    on = bool(there) if device is None else torch.device(device).type == "cuda"
    if name == "aten::copy_":
        on = isinstance(args[0], Pretended)
    crosses = name in MOVES and bool((lists and on) or (there and not on))
    mixes = name not in MOVES and bool(there and lists)
    if crosses or (there and name in READS) or (mixes and name in INDEXES):
        note_wait(name)
    elif mixes:
        places = [(x.device.type, *x.shape) for x in tensors]
        raise RuntimeError(f"{name}: expected all tensors to be on the same device, got {places}")
    if on and isinstance(kwargs.get("generator"), torch.Generator):
        raise RuntimeError(f"{name}: expected a 'cuda' device type for generator but found 'cpu'")
    if name == "aten::_fused_sdp_choice":
        return 0  # plain operations, which are the same on both
    given = {**kwargs, **({} if device is None else {"device": torch.device("cpu")})}
    out = func(*tree_map(inner, args), **tree_map(inner, given))
    if not on:
        return out
    known = {id(x.inner): x for x in there}  # operations in place give back what they got
    return tree_map(lambda x: (known[id(x)] if id(x) in known else Pretended(x)) if isinstance(x, Tensor) else x, out)


def inner(x: Any) -> Any:
    return x.inner if isinstance(x, Pretended) else x


def to_gpu(x: Any) -> Any:
    """A tensor, or all tensors of a dictionary, on the GPU."""
    return tree_map(lambda x: (x.to(GPU) if REAL else Pretended(x)) if isinstance(x, Tensor) else x, x)


def to_cpu(x: Tensor) -> Tensor:
    assert x.device.type == "cuda", "it has left the GPU"
    return x.cpu() if REAL else inner(x)


def moved(model: nn.Module) -> nn.Module:
    """The model with its weights, buffers and other tensors on the GPU."""
    if REAL:
        return model.to(GPU)
    for module in model.modules():
        for place in (module._parameters, module._buffers, vars(module)):
            for name, x in place.items():
                if isinstance(x, nn.Parameter):
                    place[name] = nn.Parameter(Pretended(x.data), requires_grad=False)
                elif isinstance(x, Tensor):
                    place[name] = Pretended(x)
    return model


@contextmanager
def gpu() -> Iterator[None]:
    """While it lasts, tensors can be on the GPU."""
    if REAL:
        yield
        return
    make = torch.tensor
    with pytest.MonkeyPatch.context() as patch, Everywhere():
        torch._C._ensureCUDADeviceGuardSet()
        patch.setattr(torch.cuda, "_lazy_init", lambda: None)
        patch.setattr(torch, "tensor", lambda data, **options: make(tree_map(inner, data), **options))
        patch.setattr(attention, "has_triton", lambda: False)  # kernels have no pretended form: test_attention.py interprets them
        torch._C._set_only_lift_cpu_tensors(True)
        try:
            yield
        finally:
            torch._C._set_only_lift_cpu_tensors(False)


@contextmanager
def nobody_waits() -> Iterator[None]:
    """Raises where the CPU waits for the GPU, or copies to it from memory that a recorded graph could not read again."""
    waits.clear()
    if REAL:
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        if REAL:
            torch.cuda.set_sync_debug_mode("default")
    assert waits == []
