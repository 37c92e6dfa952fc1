"""Exported models as functions of images: onnxruntime, OpenVINO, torch.export."""

from __future__ import annotations

import ctypes
import importlib
import json
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import PruneError

Runner = Callable[[Tensor], list[Tensor]]
"""Images [B, 3, H, W] -> the outputs of an exported model."""

EXTRA = {
    **dict.fromkeys(("onnx", "onnxruntime", "onnxscript"), "onnx"),
    "openvino": "openvino",
    **dict.fromkeys(("fastapi", "fastapi_offline", "uvicorn", "python_multipart", "prometheus_client"), "serve"),
}
"""Which extra brings a module."""

SECTION = "sparsight"
"""Under this name a file keeps its metadata."""


@dataclass(frozen=True, eq=False)
class Session:
    """An exported model, ready to run: images [B, 3, H, W] float32 -> its outputs. May be called by several threads at once.

    metadata: what `sparsight export` wrote into the file (sparsight, recipe, model, image_size, mean, std, classes, outputs); empty if
    others made it.
    """

    engine: str
    size: tuple[int, ...]
    run: Runner = field(repr=False)
    metadata: dict[str, Any] = field(default_factory=dict, repr=False)

    def __call__(self, images: Tensor) -> list[Tensor]:
        check_images(images, self.size)
        return [found.to(images.device) for found in self.run(images)]


def check_images(images: Tensor, size: tuple[int, ...], dtype: torch.dtype = torch.float32) -> None:
    """Raise a PruneError for anything but a batch of images of this size (3, H, W) and type."""
    if not isinstance(images, Tensor) or images.dim() != 4 or tuple(images.shape[1:]) != size or not len(images):
        found = list(images.shape) if isinstance(images, Tensor) else type(images).__name__
        wanted = ", ".join(map(str, ("B", *size)))
        raise PruneError(f"this model was compiled for images [{wanted}], got {found}; resize them, or compile it for that size")
    if images.dtype != dtype:
        raise PruneError(f"this model takes images in {dtype}, got {images.dtype}; give images.to({dtype})")


def need_module(name: str) -> None:
    """Raise a PruneError that names the install command if the module is missing."""
    try:
        importlib.import_module(name)
    except ImportError:
        raise PruneError(f"{name} is needed here; install it with: pip install 'sparsight[{EXTRA[name]}]'") from None


def open_exported(file: str | Path, threads: int = 0) -> Session:
    """An exported file as a function, by its ending (.onnx, .xml of OpenVINO, or .pt2), with its metadata.

    threads 0 = as many as torch uses. OpenVINO computes in float32. Raises PruneError for a file that is missing or cannot be read.
    """
    path = Path(file).expanduser()
    if not path.is_file():
        raise PruneError(f"no file {path}; make one with sparsight export")
    if path.suffix == ".onnx":
        return open_onnx(path, threads)
    if path.suffix == ".xml":
        return open_openvino(path, threads)
    if path.suffix == ".pt2":
        return open_program(path)
    raise PruneError(f"{path} is no exported model; expected .onnx, .xml or .pt2")


def open_onnx(path: Path, threads: int = 0) -> Session:
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
    entry = session.get_inputs()[0]

    def run(images: Tensor) -> list[Tensor]:
        return [torch.from_numpy(found) for found in session.run(None, {entry.name: as_array(images)})]

    kept = session.get_modelmeta().custom_metadata_map
    found = {name.partition(".")[2]: json.loads(text) for name, text in kept.items() if name.startswith(f"{SECTION}.")}
    return Session("onnxruntime", tuple(entry.shape[1:]), run, found)


def open_openvino(path: Path, threads: int = 0) -> Session:
    """A file of OpenVINO's, an .xml with its .bin beside it, in float32."""
    need_module("openvino")
    import openvino

    try:
        model = openvino.Core().read_model(path)
    except Exception as error:
        raise PruneError(f"{path} cannot be read by OpenVINO: {str(error).strip().splitlines()[-1]}") from None
    found = {}
    if model.has_rt_info([SECTION]):
        found = {name: json.loads(value.astype(str)) for name, value in model.get_rt_info([SECTION]).astype(dict).items()}
    size = tuple(int(length.get_length()) for length in list(model.inputs[0].partial_shape)[1:])
    return Session("openvino", size, OpenVINO(model, threads=threads), found)


class OpenVINO:
    """A model of OpenVINO's on the CPU: a graph of its own for each of the given batch sizes, one with a free batch size for the others."""

    def __init__(self, model: Any, batch_sizes: Iterable[int] = (), precision: str = "f32", threads: int = 0) -> None:
        self.model = model
        self.batch_sizes = frozenset(batch_sizes)
        self.precision, self.threads = precision, threads
        self.graphs: dict[int, tuple[Any, list[Any]]] = {}
        self.lock = threading.Lock()

    def graph(self, batch: int) -> tuple[Any, list[Any]]:
        """The compiled graph for a batch size, and its requests that nobody is using."""
        batch = batch if batch in self.batch_sizes else -1
        with self.lock:
            if batch not in self.graphs:
                model = self.model.clone()
                model.reshape([batch, *list(model.inputs[0].partial_shape)[1:]])
                self.graphs[batch] = on_cpu(model, self.precision, self.threads), []
            return self.graphs[batch]

    def __call__(self, images: Tensor) -> list[Tensor]:
        graph, idle = self.graph(len(images))
        try:
            request = idle.pop()
        except IndexError:
            request = graph.create_infer_request()
        try:
            found = request.infer({0: as_array(images)}, share_inputs=True, share_outputs=False)
            return [torch.from_numpy(found[index]) for index in range(len(graph.outputs))]
        finally:
            idle.append(request)


def on_cpu(model: Any, precision: str = "f32", threads: int = 0) -> Any:
    """A model of OpenVINO's, compiled for the CPU. threads 0 = as many as torch uses."""
    import openvino

    # on CPUs with AMX the default would be bf16, which changes kept tokens; keys and values would be kept in 8 bits
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": precision,
        "KV_CACHE_PRECISION": "f32",
        "INFERENCE_NUM_THREADS": threads or torch.get_num_threads(),
    }
    with own_signal_stack():
        return openvino.Core().compile_model(model, "CPU", settings)


class SignalStack(ctypes.Structure):
    """stack_t of Linux: where signals are handled."""

    _fields_ = (("place", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


@contextmanager
def own_signal_stack() -> Iterator[None]:
    """Keep the thread's place for handling signals.

    On CPUs with AMX, OpenVINO 2026.4 puts its own there when it compiles a model, and frees it with the model, from whichever thread:
    after that Ctrl-C, or the end of a child while a handler for it is set, is a segmentation fault.
    """
    if not sys.platform.startswith("linux"):
        yield
        return
    system, before = ctypes.CDLL(None), SignalStack()
    system.sigaltstack(None, ctypes.byref(before))
    try:
        yield
    finally:
        system.sigaltstack(ctypes.byref(before), None)


def as_array(images: Tensor) -> Any:
    """The images as a NumPy array in one piece."""
    return images.detach().cpu().contiguous().numpy()


def open_program(path: Path) -> Session:
    """A torch.export program."""
    extra = {f"{SECTION}.json": ""}
    try:
        program = torch.export.load(path, extra_files=extra)
    except Exception as error:
        raise PruneError(f"{path} cannot be read by torch.export: {str(error).splitlines()[0]}") from None
    module = program.module()
    entry = next(
        node
        for node in program.graph.nodes
        if node.op == "placeholder" and "val" in node.meta and node.name == program.graph_signature.user_inputs[0]
    )

    def run(images: Tensor) -> list[Tensor]:
        with torch.no_grad():
            return list(module(images))

    found = json.loads(extra[f"{SECTION}.json"] or "{}")
    return Session("torch-export", tuple(entry.meta["val"].shape[1:]), run, found)
