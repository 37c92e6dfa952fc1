"""What graphs need: whether one is being made, and operations that PyTorch's exporters to ONNX have no translation for in terms of others."""

from __future__ import annotations

import torch
from torch import Tensor


def tracing() -> bool:
    """Whether operations become a graph, by torch.compile, torch.export or torch.jit.trace: batch sizes are open, nothing depends on values."""
    return torch.compiler.is_compiling() or bool(torch.jit.is_tracing())  # type: ignore[no-untyped-call,attr-defined]


def stable_order(s: Tensor, descending: bool = False) -> Tensor:
    """Indices that sort along the second dimension, ties by the lower index. s [B, N] -> [B, N].

    ONNX has no stable sort, but its TopK of all entries gives ties to the lower index.
    """
    if torch.onnx.is_in_onnx_export():
        return s.topk(s.shape[1], dim=1, largest=descending).indices
    return s.sort(dim=1, descending=descending, stable=True).indices


def cdist(a: Tensor, b: Tensor) -> Tensor:
    """Pairwise Euclidean distance. a [..., M, D], b [..., N, D] -> [..., M, N]."""
    if torch.onnx.is_in_onnx_export():
        lengths = a.square().sum(dim=-1).unsqueeze(-1) + b.square().sum(dim=-1).unsqueeze(-2)
        return (lengths - 2 * a @ b.transpose(-2, -1)).clamp(min=0).sqrt()
    return torch.cdist(a, b)


def diagonal(n: int, device: torch.device) -> Tensor:
    """True where row and column are the same, [n, n].

    In graphs torch makes `eye`, and `tril` as well, of numbers in uint16 where there are 256 or more, which OpenVINO's reader does not know.
    """
    place = torch.arange(n, device=device)
    return place.unsqueeze(1) == place


def lower(n: int, device: torch.device) -> Tensor:
    """True on the diagonal and below, [n, n]; see `diagonal`."""
    place = torch.arange(n, device=device)
    return place.unsqueeze(1) >= place
