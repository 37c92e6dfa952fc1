"""The Triton kernels compiled for GPUs that need not be there: what Triton's interpreter cannot see (test_attention.py checks the numbers)."""

import re
import subprocess
from pathlib import Path

import pytest
import torch

triton = pytest.importorskip("triton")

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from sparsight.ops import attention_triton as kernels  # noqa: E402

TOOL = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
SHARED = 99 * 1024
"""Bytes of shared memory per block that every GPU of compute capability 8.0 or more has."""

if not TOOL.exists():
    pytest.skip("this Triton has no CUDA back end", allow_module_level=True)


def signature(kernel, name, constants):
    """Types of a kernel's arguments for contiguous tensors, as a launch would find them, and what it knows to be multiples of 16."""
    types, multiples, known = {}, {}, dict(constants)
    for place, argument in enumerate(kernel.arg_names):
        if argument in constants:
            types[argument] = "constexpr"
        elif argument in ("q", "k", "mask", "lse", "out"):
            types[argument] = f"*{name}" if argument in ("q", "k") else "*fp32"
        elif argument in ("sqd", "skd", "smk", "step"):
            types[argument], known[argument] = "constexpr", 1
        else:
            types[argument] = "fp32" if argument in ("scale", "order") else "i32"
        if types[argument].startswith("*") or argument in ("sqb", "sqh", "sqr", "skb", "skh", "skr", "width"):
            multiples[(place,)] = [["tt.divisibility", 16]]
    return types, multiples, known


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fp32", "bf16"])
@pytest.mark.parametrize(("capability", "width"), [(80, 64), (80, 128), (90, 64)])
@pytest.mark.parametrize("case", ["shannon", "renyi", "columns", "columns of any order"])
def test_compiles_without_spilling(case, capability, name, width, tmp_path):
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[name]
    sizes = kernels.tiles(dtype, width)
    warps = sizes.pop("num_warps")
    if case in ("shannon", "renyi"):
        kernel, what = kernels.row_kernel, {"WHAT": kernels.SHANNON if case == "shannon" else kernels.RENYI}
    else:
        kernel, what = kernels.column_kernel, {"DIAGONAL": case == "columns", "ORDER": 2 if case == "columns" else kernels.ANY}
    constants = {"MASKED": case.startswith("columns of"), "FLOOR": kernels.FLOOR, **sizes, **what}
    types, multiples, known = signature(kernel, name, constants)
    source = ASTSource(kernel, types, constexprs=known, attrs=multiples)
    built = triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": warps})
    assert built.metadata.shared <= SHARED
    assert ("mma" in built.asm["ptx"]) == (name == "bf16")  # tensor cores for halves, plain float32 otherwise
    file = tmp_path / "kernel.cubin"
    file.write_bytes(built.asm["cubin"])
    usage = subprocess.run([TOOL, "-res-usage", file], capture_output=True, text=True, check=True).stdout
    assert re.search(r"STACK:0 .*LOCAL:0 ", usage), usage
