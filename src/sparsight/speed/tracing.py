"""Trace a model with a free batch size; turn the trace into an ONNX, OpenVINO or torch.export model."""

from __future__ import annotations

import json
import logging
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
    with torch.no_grad(), complaint("the model cannot be traced"):
        return torch.export.export(module, (pair(example),), dynamic_shapes=FREE, strict=False)


FREE = ({0: torch.export.Dim("batch", min=1)},)
"""The free dimension of the images."""


def pair(example: Tensor) -> Tensor:
    """The example; two images instead of one, because a batch of one would become a constant."""
    return torch.cat([example, example]) if len(example) == 1 else example


class complaint:
    """Turns whatever an exporter meets into one PruneError, and keeps it from printing warnings and, where it fails, its graphs."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.warnings = warnings.catch_warnings()
        self.logged = logging.root.manager.disable

    def __enter__(self) -> None:
        self.warnings.__enter__()
        warnings.simplefilter("ignore")
        logging.disable(logging.CRITICAL)

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        logging.disable(self.logged)
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


def to_onnx(module: nn.Module, example: Tensor, names: list[str]) -> Any:
    """The module as an ONNX program of torch's that takes any batch size, with outputs of these names."""
    with torch.no_grad(), complaint("the model cannot be traced for onnx"):
        return torch.onnx.export(
            module, (pair(example),), dynamo=True, verbose=False, input_names=["images"], output_names=names, dynamic_shapes=FREE
        )


def write_onnx(module: nn.Module, example: Tensor, names: list[str], file: Path, metadata: dict[str, Any]) -> None:
    """Write the module as an ONNX file; weights that are too large for it go into a second one."""
    made = to_onnx(module, example, names)
    made.model.metadata_props.update({f"{SECTION}.{name}": json.dumps(value) for name, value in metadata.items()})
    weights = sum(tensor.nbytes for tensor in module.state_dict().values())
    made.save(str(file), external_data=weights > ONE_FILE)


def to_openvino(module: nn.Module, example: Tensor, names: list[str]) -> Any:
    """The module as a model of OpenVINO's that takes any batch size, with outputs of these names."""
    import openvino

    program = trace(module, example)
    with complaint("the model cannot be traced for openvino"):
        model = openvino.convert_model(program, extension=openvino_rules())
    model.inputs[0].get_tensor().set_names({"images"})
    model.reshape([-1, *example.shape[1:]])
    for output, name in zip(model.outputs, names, strict=True):
        output.get_tensor().set_names({name})
    return model


def save(module: nn.Module, example: Tensor, names: list[str], file: Path, format: Format, metadata: dict[str, Any]) -> None:
    """Write the module as a file that takes any batch size, with outputs of these names. Raises PruneError."""
    if format == "onnx":
        write_onnx(module, example, names, file, metadata)
    elif format == "openvino":
        import openvino

        model = to_openvino(module, example, names)
        for name, value in metadata.items():
            model.set_rt_info(json.dumps(value), [SECTION, name])
        openvino.save_model(model, file, compress_to_fp16=False)
    else:
        program = trace(module, example)
        with complaint("the model cannot be traced for torch-export"):
            torch.export.save(program, file, extra_files={f"{SECTION}.json": json.dumps(metadata)})


def openvino_rules() -> list[Any]:
    """What OpenVINO's reader does not know: resizing with antialiasing, by which timm fits position tables to the images, and the diagonal
    of a matrix."""
    import openvino.opset13 as op
    from openvino.frontend import ConversionExtension

    def resize(mode: str, cube: float) -> Callable[[Any], Any]:
        def rule(node: Any) -> Any:
            size = op.constant([int(length) for length in node.get_values_from_const_input(1)], dtype="int64")
            return op.interpolate(
                node.get_input(0), size, mode, "sizes", coordinate_transformation_mode="half_pixel", cube_coeff=cube, axes=op.constant([2, 3], dtype="int64")
            ).outputs()  # fmt: skip

        return rule

    def diagonal(node: Any) -> Any:
        x = node.get_input(0)
        own = op.constant(torch.eye(x.get_partial_shape()[-1].get_length(), dtype=torch.bool).numpy())
        return op.reduce_sum(op.select(own, x, op.convert_like(op.constant(0), x)), op.constant(-1)).outputs()

    rules = {"_upsample_bicubic2d_aa": resize("bicubic_pillow", -0.5), "_upsample_bilinear2d_aa": resize("bilinear_pillow", 0.0)}
    found = [(f"aten.{name}.{kind}", rule) for name, rule in rules.items() for kind in ("vec", "default")]
    return [ConversionExtension(name, rule) for name, rule in [*found, ("aten.diagonal.default", diagonal)]]


def quantise(file: Path) -> None:
    """Replace an ONNX file by one whose matrix products have int8 weights, of 7 bits: sums of pairs of larger ones overflow on processors
    without VNNI."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    whole = onnx.load(str(file))
    del whole.graph.value_info[:]  # shapes that the exporter noted before it folded transposes; they are inferred again
    logging.getLogger().addFilter(advice := lambda record: "pre-processing" not in record.getMessage())
    part = file.with_suffix(".int8")
    try:
        quantize_dynamic(whole, str(part), weight_type=QuantType.QInt8, per_channel=True, reduce_range=True)
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
