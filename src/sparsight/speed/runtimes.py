"""Exported files as functions of images: ONNX by onnxruntime, torch.export by torch."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from ..errors import PruneError

Runner = Callable[[Tensor], list[Tensor]]
"""Images [B, 3, H, W] -> the file's outputs."""

EXTRA = {"onnx": "onnx", "onnxruntime": "onnx", "onnxscript": "onnx"}


def need_module(name: str) -> None:
    """Raise a PruneError that names the install command if the module is missing."""
    try:
        importlib.import_module(name)
    except ImportError:
        raise PruneError(f"{name} is needed here; install it with: pip install 'sparsight[{EXTRA[name]}]'") from None


def open_exported(file: str | Path, threads: int = 0) -> Runner:
    """The file as a function, by its ending (.onnx or .pt2). threads 0 = as many as torch uses. Raises PruneError."""
    path = Path(file).expanduser()
    if not path.is_file():
        raise PruneError(f"no file {path}; make one with sparsight export")
    if path.suffix == ".onnx":
        return open_onnx(path, threads)
    if path.suffix == ".pt2":
        return open_program(path)
    raise PruneError(f"{path} is no exported model; expected .onnx or .pt2")


def open_onnx(path: Path, threads: int) -> Runner:
    """An onnxruntime session on the GPU if there is one, else on the CPU."""
    need_module("onnxruntime")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or torch.get_num_threads()
    options.log_severity_level = 3
    able = onnxruntime.get_available_providers()
    wanted = [name for name in ("CUDAExecutionProvider", "CPUExecutionProvider") if name in able]
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=wanted)
    except Exception as error:
        raise PruneError(f"{path} cannot be read by onnxruntime: {str(error).splitlines()[0]}") from None
    name = session.get_inputs()[0].name

    def run(images: Tensor) -> list[Tensor]:
        return [torch.from_numpy(found) for found in session.run(None, {name: images.cpu().numpy()})]

    return run


def open_program(path: Path) -> Runner:
    """A torch.export program."""
    try:
        module = torch.export.load(path).module()
    except Exception as error:
        raise PruneError(f"{path} cannot be read by torch.export: {str(error).splitlines()[0]}") from None

    def run(images: Tensor) -> list[Tensor]:
        return list(module(images))

    return run
