"""compile(model, example, engine) -> Compiled: a pruned or unpruned model in a faster engine, with the same inputs and outputs."""

from __future__ import annotations

import inspect
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from ..errors import PruneError
from ..load.models import twin
from ..models.engine import Engine
from ..plan import Plan
from .engines import OpenVINO, Runner, check_images, need_module, open_onnx
from .tracing import complaint, quantise, to_openvino, write_onnx

ENGINES = {
    "openvino": ("f32", "bf16", "f16"),
    "onnxruntime": ("f32", "int8"),
    "inductor": (),
}
"""Engines, and the precisions in which they run float32 weights; inductor runs weights as they are."""

TENSORS = ("keep", "merged", "mix", "valid")
"""The parts of a plan that are tensors."""


def compile(
    model: nn.Module,
    example: Tensor | Mapping[str, Tensor],
    engine: str = "openvino",
    *,
    precision: str | None = None,
    batch_sizes: Sequence[int] | None = None,
    threads: int = 0,
) -> Compiled:
    """Compile a model, pruned or not, with an engine that takes whole graphs: the same outputs for every batch size, sooner.

    model: an image model in evaluation mode; it is not changed, and what is changed in it later is not seen, but for weights with
    inductor. example: images [B, 3, H, W] of the size that the compiled model takes, or a mapping with them alone as a processor makes it.
    engine: "openvino" (CPU), "onnxruntime" (CPU) or "inductor" (torch.compile, on the model's device).
    precision: of OpenVINO "f32", "bf16" or "f16"; of onnxruntime "f32" or "int8" (weights of matrix products, quantised). By default f32,
    also on CPUs with AMX, where OpenVINO would choose bf16 and keep other tokens.
    batch_sizes: those for which OpenVINO makes a graph of their own, a little faster; by default the example's. threads: 0 = as many as
    torch uses. Raises PruneError for an engine that is not known or not installed and for a model that cannot be exported.
    """
    wanted = check_engine(engine, precision)
    images, keyword = unpack(example)
    check_model(model, engine)
    wrapper = WithPlans(twin(model))
    if engine != "inductor":
        check_images(images, tuple(images.shape[1:]))
    with torch.no_grad(), complaint(f"{type(model).__name__} does not take the example"):
        wrapper(images[:1])
    if engine == "inductor":
        run = inductor(wrapper, images)
    elif engine == "openvino":
        run = OpenVINO(to_openvino(wrapper, images, wrapper.names), batch_sizes or [len(images)], wanted, threads)
    else:
        run = onnxruntime(wrapper, images, wanted, threads)
    return Compiled(engine, wanted, tuple(images.shape[1:]), images.dtype, keyword or first_parameter(model), run, wrapper.layout)


def check_engine(engine: str, precision: str | None) -> str:
    """The precision; a PruneError for an engine or a precision that is not known, and for a package that is missing."""
    if engine not in ENGINES:
        raise PruneError(f"engine={engine!r} is not known; choose {', '.join(ENGINES)}")
    known = ENGINES[engine]
    if precision is not None and precision not in known:
        raise PruneError(
            f"precision={precision!r} is not known to {engine}; choose {' or '.join(known)}"
            if known
            else f"precision= is not for {engine}, which runs the weights as they are; convert the model, as in model.to(torch.bfloat16)"
        )
    for name in {"openvino": ("openvino",), "onnxruntime": ("onnx", "onnxscript", "onnxruntime")}.get(engine, ()):
        need_module(name)
    return precision or (known[0] if known else "as the weights are")


def unpack(example: Tensor | Mapping[str, Tensor]) -> tuple[Tensor, str | None]:
    """The images, and the keyword that they come under, if any."""
    if isinstance(example, Mapping):
        if len(example) != 1:
            raise PruneError(f"example has {', '.join(map(str, example)) or 'nothing'}; a compiled model takes images alone")
        keyword, example = next(iter(example.items()))
        return unpack(example)[0], str(keyword)
    if not isinstance(example, Tensor) or example.dim() != 4 or not len(example):
        found = list(example.shape) if isinstance(example, Tensor) else type(example).__name__
        raise PruneError(f"example must be images [B, 3, H, W], got {found}")
    return example, None


def check_model(model: nn.Module, engine: str) -> None:
    """Raise PruneError for a model that the engine cannot take."""
    if not isinstance(model, nn.Module):
        raise PruneError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    name = type(model).__name__
    if model.training:
        raise PruneError(f"{name} is in training mode; call model.eval() before it is compiled")
    if engine == "inductor":
        return
    engine_inside = at_work(model)
    if engine_inside is not None and any(site.adaptive for site in engine_inside.sites):
        raise PruneError(
            f"{name} keeps another number of tokens in every image, which no static graph can hold; give a fixed budget, or engine='inductor'"
        )
    for tensor in model.parameters():
        if tensor.dtype != torch.float32 or tensor.device.type != "cpu":
            raise PruneError(
                f"{name} has weights in {str(tensor.dtype).removeprefix('torch.')} on {tensor.device}; {engine} takes float32 on the CPU: "
                "give model.float().cpu(), or engine='inductor'"
            )


def at_work(model: nn.Module) -> Engine | None:
    """The engine that prunes the model; None where nothing is pruned."""
    return next((found for module in model.modules() if isinstance(found := module.__dict__.get("_sparsight"), Engine)), None)


@dataclass(frozen=True, eq=False)
class Layout:
    """How the tensors of a traced forward make its outputs and its plans.

    spec and leaves: the tree of the outputs, None in place of tensors. plans: without their tensors. tensors: for each tensor the number
    of its plan, -1 for the outputs, and its name there.
    """

    spec: TreeSpec
    leaves: list[Any]
    plans: list[Plan]
    tensors: list[tuple[int, str]]

    def build(self, found: Sequence[Tensor]) -> tuple[Any, list[Plan]]:
        """Outputs and plans of one forward."""
        given = iter(zip(self.tensors, found, strict=True))
        leaves = [next(given)[1] if leaf is None else leaf[0] for leaf in self.leaves]
        parts: list[dict[str, Any]] = [{} for _ in self.plans]
        for (number, name), tensor in given:
            parts[number][name] = tensor
        return tree_unflatten(leaves, self.spec), [replace(plan, **part) for plan, part in zip(self.plans, parts, strict=True)]


class WithPlans(nn.Module):
    """A model whose forward gives plain tensors: those of its outputs, then those of its plans. `layout` says which is which, once it has
    run eagerly."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.layout = Layout(tree_flatten(None)[1], [], [], [])

    @property
    def names(self) -> list[str]:
        """A name for each tensor."""
        return [f"out_{index}" for index in range(len(self.layout.tensors))]

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        leaves, spec = tree_flatten(self.model(images))
        engine = at_work(self.model)
        state = None if engine is None else engine.states.last()
        plans = [] if state is None else [outcome.plan for outcome in state.outcomes.values()]
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        names = [(-1, "")] * len(tensors)
        for number, plan in enumerate(plans):
            for name in TENSORS:
                value = getattr(plan, name)
                if value is not None:
                    tensors.append(value)
                    names.append((number, name))
        if torch.compiler.is_compiling():
            return tuple(tensors)
        bare: dict[str, Any] = dict.fromkeys(TENSORS)
        shells = [replace(plan, **bare) for plan in plans]
        self.layout = Layout(spec, [None if isinstance(leaf, Tensor) else (leaf,) for leaf in leaves], shells, names)
        return tuple(tensors)


def inductor(wrapper: WithPlans, images: Tensor) -> Runner:
    """torch.compile, with the example run once."""

    def forward(batch: Tensor) -> tuple[Tensor, ...]:
        return wrapper(batch)  # type: ignore[no-any-return]

    # dynamo counts the graphs that it may keep by code object: with one of its own, a model does not take another's
    forward.__code__ = forward.__code__.replace()
    engine = at_work(wrapper)
    adaptive = engine is not None and any(site.adaptive for site in engine.sites)
    compiled: Callable[[Tensor], tuple[Tensor, ...]] = torch.compile(forward, fullgraph=not adaptive)

    def run(batch: Tensor) -> list[Tensor]:
        with torch.no_grad():
            return list(compiled(batch))

    with complaint("the model cannot be compiled by inductor"):
        run(images)
    return run


def onnxruntime(wrapper: WithPlans, images: Tensor, precision: str, threads: int) -> Runner:
    """A session of onnxruntime on a file that is gone as soon as the session has read it."""
    with tempfile.TemporaryDirectory(prefix="sparsight-") as folder:
        file = Path(folder) / "model.onnx"
        write_onnx(wrapper, images, wrapper.names, file, {})
        if precision == "int8":
            quantise(file)
        return open_onnx(file, threads).run


def first_parameter(model: nn.Module) -> str:
    """The name of the first argument of the model's forward."""
    return next(iter(inspect.signature(model.forward).parameters), "images")


@dataclass(eq=False, repr=False)
class Compiled:
    """A compiled model: call it as the model itself, with images of the example's size in any number. Threads may share it.

    engine, precision: what runs. size: (3, H, W) of the images.
    plans, counts, keep, sources: as of a Handle, of the last call in this thread or task; empty where nothing is pruned.
    """

    engine: str
    precision: str
    size: tuple[int, ...]
    dtype: torch.dtype
    keyword: str
    run: Runner
    layout: Layout
    last: ContextVar[list[Plan]] = field(default_factory=lambda: ContextVar("plans", default=[]))  # noqa: B039

    def __repr__(self) -> str:
        pruned = f", {len(self.layout.plans)} pruned blocks" * bool(self.layout.plans)
        return f"<compiled by {self.engine} ({self.precision}) for images [B, {', '.join(map(str, self.size))}]{pruned}>"

    def __call__(self, *args: Tensor, **kwargs: Tensor) -> Any:
        images = self.images(args, kwargs)
        outputs, plans = self.layout.build([found.to(images.device) for found in self.run(images)])
        self.last.set(plans)
        return outputs

    def images(self, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> Tensor:
        """The images of a call; PruneError for anything else."""
        given = [*args, *(kwargs[name] for name in kwargs if name == self.keyword)]
        if len(given) != 1 or len(args) + len(kwargs) != 1:
            names = ", ".join([*(["images"] * len(args)), *kwargs]) or "nothing"
            raise PruneError(f"a compiled model takes images alone, also as {self.keyword}=; got {names}")
        check_images(given[0], self.size, self.dtype)
        return given[0]

    @property
    def plans(self) -> list[Plan]:
        """One Plan per pruned block, in order."""
        return self.last.get()

    @property
    def counts(self) -> list[Any]:
        """Visual tokens after each pruned block: an int, or a list with one for each image where they differ."""
        return [plan.slots if plan.valid is None else plan.counts for plan in self.plans]

    @property
    def keep(self) -> list[Tensor]:
        """The patches kept at each pruned block, as indices into the image's grid: int64 [B, K]."""
        return [plan.keep for plan in self.sources()]

    def sources(self) -> list[Plan]:
        """For each pruned block one Plan over the image's patches, all earlier ones included."""
        found: list[Plan] = []
        for plan in self.plans:
            found.append(found[-1].then(plan) if found else plan)
        return found
