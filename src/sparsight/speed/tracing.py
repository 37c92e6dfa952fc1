"""Trace a model with a free batch size; turn the trace into an ONNX, OpenVINO or torch.export model."""

from __future__ import annotations

import json
import os
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..errors import PruneError
from .engines import SECTION

Format = Literal["onnx", "openvino", "torch-export"]

ONE_FILE = 1_900_000_000
"""Bytes of weights up to which an ONNX file holds them itself; protocol buffers end at 2 GiB."""


def trace(module: nn.Module, example: Tensor) -> Any:
    """The module as a torch.export program that takes any batch size; example [B, 3, H, W]. Raises PruneError if it cannot be traced."""
    batch = torch.export.Dim("batch", min=1)
    if len(example) == 1:  # a batch of one would become a constant
        example = torch.cat([example, example])
    with torch.no_grad(), complaint("the model cannot be traced"):
        return torch.export.export(module, (example,), dynamic_shapes=({0: batch},), strict=False)


class complaint:
    """Turns whatever an exporter meets into one PruneError, and keeps it from printing warnings."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.warnings = warnings.catch_warnings()

    def __enter__(self) -> None:
        self.warnings.__enter__()
        warnings.simplefilter("ignore")

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        self.warnings.__exit__(kind, error, trace)
        if isinstance(error, Exception) and not isinstance(error, (PruneError, OSError)):
            raise PruneError(f"{self.text}: {reason(error)}") from error


def reason(error: Exception) -> str:
    """What the exporter stumbled over, of its pages of advice."""
    lines = [line for line in str(error).strip().splitlines() if line.strip()] or [""]
    missing = re.search(r"No ONNX function found for <OpOverload\(op='([\w.]+)'", str(error))
    if missing:
        return f"ONNX has no operation for {missing.group(1)}"
    missing = re.search(r"No conversion rule found for operations: (.+)", str(error))
    return f"OpenVINO has no operation for {missing.group(1)}" if missing else f"{type(error).__name__}: {lines[0]}"


def to_onnx(program: Any, names: list[str]) -> Any:
    """A torch.export program as torch's ONNX program with outputs of these names."""
    with complaint("the model cannot be traced for onnx"):
        return torch.onnx.export(
            program, dynamo=True, verbose=False, input_names=["images"], output_names=names, custom_translation_table=onnx_rules()
        )  # fmt: skip


def to_openvino(program: Any, names: list[str]) -> Any:
    """A torch.export program as a model of OpenVINO's with outputs of these names."""
    import openvino

    with complaint("the model cannot be traced for openvino"):
        model = openvino.convert_model(program, extension=openvino_rules())
    model.inputs[0].get_tensor().set_names({"images"})
    example = next(
        value
        for node in program.graph.nodes
        if (value := node.meta.get("val")) is not None and node.name == program.graph_signature.user_inputs[0]
    )
    model.reshape([-1, *example.shape[1:]])
    for output, name in zip(model.outputs, names, strict=True):
        output.get_tensor().set_names({name})
    return model


def save(program: Any, file: Path, format: Format, names: list[str], metadata: dict[str, Any]) -> None:
    """Write a torch.export program as a file with outputs of these names; OpenVINO's weights and large ONNX ones go into a second one."""
    if format == "torch-export":
        with complaint("the model cannot be traced for torch-export"):
            torch.export.save(program, file, extra_files={f"{SECTION}.json": json.dumps(metadata)})
    elif format == "openvino":
        import openvino

        model = to_openvino(program, names)
        for name, value in metadata.items():
            model.set_rt_info(json.dumps(value), [SECTION, name])
        openvino.save_model(model, file, compress_to_fp16=False)
    else:
        made = to_onnx(program, names)
        made.model.metadata_props.update({f"{SECTION}.{name}": json.dumps(value) for name, value in metadata.items()})
        weights = sum(tensor.nbytes for tensor in program.state_dict.values())
        made.save(str(file), external_data=weights > ONE_FILE)


def onnx_rules() -> dict[Any, Callable[..., Any]]:
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


def openvino_rules() -> list[Any]:
    """What OpenVINO's reader does not know: resizing with antialiasing, by which timm fits position tables to the images."""
    import openvino.opset13 as op
    from openvino.frontend import ConversionExtension

    def resize(mode: str, cube: float) -> Callable[[Any], Any]:
        def rule(node: Any) -> Any:
            size = op.constant([int(length) for length in node.get_values_from_const_input(1)], dtype="int64")
            return op.interpolate(
                node.get_input(0), size, mode, "sizes", coordinate_transformation_mode="half_pixel", cube_coeff=cube, axes=op.constant([2, 3], dtype="int64")
            ).outputs()  # fmt: skip

        return rule

    rules = {"_upsample_bicubic2d_aa": resize("bicubic_pillow", -0.5), "_upsample_bilinear2d_aa": resize("bilinear_pillow", 0.0)}
    return [ConversionExtension(f"aten.{name}.{kind}", rule) for name, rule in rules.items() for kind in ("vec", "default")]


def quantise(file: Path) -> None:
    """Replace an ONNX file by one whose matrix products have int8 weights."""
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
    """Leave only the first output in an ONNX or OpenVINO file."""
    if file.suffix == ".onnx":
        import onnx

        graph = onnx.load(str(file), load_external_data=False)
        del graph.graph.output[1:]
        onnx.save(graph, str(file))
        return
    import openvino

    model = openvino.Core().read_model(file)
    for result in model.get_results()[1:]:
        model.remove_result(result)
    part = file.with_stem(f"{file.stem}_part")  # the old file is read while the new one is written
    openvino.save_model(model, part, compress_to_fp16=False)
    del model
    for ending in (".bin", ".xml"):
        os.replace(part.with_suffix(ending), file.with_suffix(ending))
