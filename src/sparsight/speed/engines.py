"""Ways to run an image model: eagerly, compiled, as an ONNX file, as an int8 ONNX file."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch
from torch import nn

from ..errors import PruneError
from ..load.models import Loaded, twin
from ..prune import Handle, prune
from ..recipe import Recipe
from .export import export
from .runtimes import need_module, open_exported
from .timing import Forward

BACKENDS = {
    "eager": "the model as it is",
    "compile": "torch.compile(fullgraph=True)",
    "onnxruntime": "an ONNX file made by sparsight export",
    "onnxruntime-int8": "the same with int8 weights in the matrix products",
}

GRAPHS = 1024
"""How many graphs torch.compile may keep of one forward, in place of 8: each recipe and batch size has its own. The setting goes by its
older name, which every torch knows."""


def check_backends(backends: list[str], precisions: list[str], device: str) -> None:
    """Raise a PruneError for names that are not known and combinations that cannot run."""
    unknown = [name for name in backends if name not in BACKENDS]
    if unknown:
        raise PruneError(f"backend {', '.join(unknown)} is not known; choose {', '.join(BACKENDS)}")
    by_file = [name for name in backends if name.startswith("onnx")]
    if by_file:
        for name in ("onnx", "onnxscript", "onnxruntime"):
            need_module(name)
        if "fp32" not in precisions:
            raise PruneError(f"{by_file[0]} runs fp32 files; add fp32 to the precisions, or leave it out")
        if device != "cpu":
            raise PruneError(f"{by_file[0]} is timed on the CPU only; give device=cpu, or leave it out")


def build(loaded: Loaded, recipe: Recipe | None, backend: str, folder: Path) -> tuple[Forward, nn.Module | None, Handle | None]:
    """The engine, and where it is PyTorch's own the module and its handle. Exported files are kept in the folder."""
    if backend.startswith("onnxruntime"):
        return exported(loaded, recipe, backend.endswith("int8"), folder), None, None
    model = twin(loaded.model)
    # what a learned method has learned does not change its speed
    handle = None if recipe is None else prune(model, recipe, weights="random" if recipe.weights and not recipe.file else None)
    run: Forward = torch.compile(model, fullgraph=True) if backend == "compile" else model
    return run, model, handle


def exported(loaded: Loaded, recipe: Recipe | None, int8: bool, folder: Path) -> Forward:
    """A session on a file of its own, gone as soon as the session has read it."""
    file = folder / "engine.onnx"
    try:
        export(loaded, recipe, file, int8=int8)
        run = open_exported(file)
    finally:
        file.unlink(missing_ok=True)
        file.with_name(f"{file.name}.data").unlink(missing_ok=True)
    return run


@contextmanager
def quiet(backend: str) -> Iterator[None]:
    """Where engines run: without gradients. A compiled graph for inference tensors differs from the one without gradients."""
    if backend == "compile":
        from torch._dynamo import config

        with torch.no_grad(), config.patch(cache_size_limit=GRAPHS):
            yield
    else:
        with torch.inference_mode() if backend == "eager" else nullcontext():
            yield
