"""Trace a model with a free batch size and write it as an ONNX or torch.export file."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..errors import PruneError

Format = Literal["onnx", "torch-export"]

ONE_FILE = 1_900_000_000
"""Bytes of weights up to which an ONNX file holds them itself; protocol buffers end at 2 GiB."""


def write_file(wrapper: nn.Module, example: Tensor, file: Path, format: Format, names: list[str]) -> None:
    """Trace the model with a free batch size and save it."""
    batch = torch.export.Dim("batch", min=1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.export.export(wrapper, (example,), dynamic_shapes=({0: batch},), strict=False)
            if format == "torch-export":
                torch.export.save(program, file)
                return
            made = torch.onnx.export(
                program, dynamo=True, verbose=False, input_names=["images"], output_names=names,
                custom_translation_table=translations(),
            )  # fmt: skip
    except (PruneError, OSError):
        raise
    except Exception as error:
        raise PruneError(f"the model cannot be traced for {format}: {reason(error)}") from error
    assert made is not None
    weights = sum(tensor.nbytes for tensor in wrapper.state_dict().values())
    made.save(str(file), external_data=weights > ONE_FILE)


def reason(error: Exception) -> str:
    """What the exporter stumbled over, of its pages of advice."""
    lines = str(error).strip().splitlines() or [""]
    missing = re.search(r"No ONNX function found for <OpOverload\(op='([\w.]+)'", str(error))
    return f"ONNX has no operation for {missing.group(1)}" if missing else f"{type(error).__name__}: {lines[0]}"


def translations() -> dict[Any, Callable[..., Any]]:
    """What PyTorch's exporter does not know: a stable sort is ONNX's TopK of all entries, whose ties go to the lower index; Euclidean
    distances are roots of |a|^2 + |b|^2 - 2ab."""
    from onnxscript import opset18

    op: Any = opset18

    def stable_sort(self: Any, stable: bool = True, dim: int = -1, descending: bool = False) -> Any:
        size = op.Gather(op.Shape(self), op.Constant(value_ints=[dim]), axis=0)
        return op.TopK(self, size, axis=dim, largest=int(descending), sorted=1)

    def distance(x1: Any, x2: Any, p: float = 2.0, compute_mode: int | None = None) -> Any:
        last = op.Constant(value_ints=[-1])
        lengths = op.Add(op.ReduceSumSquare(x1, last), swapped(op.ReduceSumSquare(x2, last)))
        product = op.MatMul(x1, swapped(x2))
        return op.Sqrt(op.Relu(op.Sub(lengths, op.Add(product, product))))

    def swapped(x: Any) -> Any:
        return op.Transpose(x, perm=[0, 2, 1])

    return {torch.ops.aten.sort.stable: stable_sort, torch.ops.aten._cdist_forward.default: distance}


def quantise(file: Path) -> None:
    """Replace the file by one whose matrix products have int8 weights."""
    import logging

    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    whole = onnx.load(str(file))
    del whole.graph.value_info[:]  # shapes that the exporter noted before it folded transposes; they are inferred again
    logging.getLogger().addFilter(advice := lambda record: "pre-processing" not in record.getMessage())
    part = file.with_suffix(".int8")
    try:
        quantize_dynamic(whole, str(part), weight_type=QuantType.QInt8, per_channel=True)
    finally:
        logging.getLogger().removeFilter(advice)
    os.replace(part, file)


def strip(file: Path) -> None:
    """Leave only the first output in the graph."""
    import onnx

    graph = onnx.load(str(file), load_external_data=False)
    del graph.graph.output[1:]
    onnx.save(graph, str(file))
