"""Products with packed weights that a CPU has, and the one of them that is fast on it.

MKL multiplies on processors of other makers than Intel without their AVX-512, where oneDNN is two to three times as fast. On Intel's, MKL
was measured and oneDNN was not.
"""

from __future__ import annotations

import platform
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

FEW = 512
"""Up to how many rows it pays to have the weights packed."""


class Kernel(NamedTuple):
    """most: up to how many rows it was measured to be faster than the plain product.
    pack: weight [N, K] for a number of rows. times: x [..., K], the packed weight, the weight, bias [N] or None, rows -> [..., N]."""

    most: int
    pack: Callable[[Tensor, int], Tensor]
    times: Callable[[Tensor, Tensor, Tensor, Tensor | None, int], Tensor]


def pack_mkl(weight: Tensor, rows: int) -> Tensor:
    packed: Tensor = torch.ops.mkl._mkl_reorder_linear_weight.default(weight, rows)
    return packed


def times_mkl(x: Tensor, packed: Tensor, weight: Tensor, bias: Tensor | None, rows: int) -> Tensor:
    out: Tensor = torch.ops.mkl._mkl_linear.default(x, packed, weight, bias, rows)
    return out


def pack_onednn(weight: Tensor, rows: int) -> Tensor:
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight.default(weight, rows)
    return packed


def times_onednn(x: Tensor, packed: Tensor, _weight: Tensor, bias: Tensor | None, _rows: int) -> Tensor:
    out: Tensor = torch.ops.mkldnn._linear_pointwise.default(x, packed, bias, "none", [], "")
    return out


MKL = Kernel(FEW, pack_mkl, times_mkl)
ONEDNN = Kernel(FEW, pack_onednn, times_onednn)


@cache
def kernel() -> Kernel | None:
    """The fast one of this CPU; None if this torch does not have it: its operators are not part of torch's public interface."""
    if intel():
        return MKL if works(MKL) else None
    if platform.machine() not in ("x86_64", "AMD64") or not works(ONEDNN):
        return None
    return ONEDNN._replace(most=sys.maxsize) if torch.backends.cpu.get_cpu_capability() == "AVX512" else ONEDNN


def intel() -> bool:
    """Whether the processor is one of Intel's."""
    try:
        maker = Path("/proc/cpuinfo").read_text()
    except OSError:  # not Linux
        maker = platform.processor()
    return "GenuineIntel" in maker


def works(found: Kernel) -> bool:
    """Whether a kernel multiplies here; and whether torch has NumPy, which reads a few numbers of a weight ten times faster."""
    with torch.inference_mode():
        x, weight = torch.arange(32.0).view(2, 16), torch.arange(48.0).view(3, 16)
        try:
            return torch.equal(found.times(x, found.pack(weight, 2), weight, None, 2), F.linear(x, weight)) and x.numpy().size > 0
        except (AttributeError, RuntimeError, TypeError):
            return False
