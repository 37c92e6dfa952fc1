"""A computation written down operation by operation, and run again by TorchScript's interpreter."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.weak import WeakTensorKeyDictionary

SEEN = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
"""Operations whose result Python sees."""

INDEX = torch.ops.aten.index.Tensor

ONEDNN = """
def linear(x: Tensor, weight: Tensor, bias: Optional[Tensor], attr: str, scalars: List[int], algorithm: str) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, attr, [], algorithm)
"""
"""A product whose list of scalars, empty here, the tracer does not know how to write down."""


class TapeError(Exception):
    """Python has looked at a result, so what it does next may depend on the input."""


@dataclass(frozen=True)
class Slot:
    """Stands for a tensor, the number-th that the tape has met."""

    number: int


class Tape(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Writes down every operation on tensors: what, on what, and what came out.

    inputs: what the computation is a function of. held: other tensors that no operation has made, by their numbers.
    """

    def __init__(self, inputs: Sequence[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.numbers: Any = WeakTensorKeyDictionary()
        self.met = 0
        self.held: dict[int, Tensor] = {}
        self.steps: list[tuple[Any, Any, Any, list[int]]] = []
        for tensor in inputs:
            self.meet(tensor)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if SEEN & set(func.tags) and not (func is INDEX and by_numbers(args[1])):
            raise TapeError(str(func))
        given = tree_map(self.slot, numbers(func, args)), tree_map(self.slot, kwargs or {})
        out = func(*args, **(kwargs or {}))
        if isinstance(out, int):  # which kernel of SDPA: from shapes alone, and of no use to the program
            return out
        self.steps.append((func, *given, [self.meet(tensor) for tensor in tree_leaves(out)]))
        return out

    def meet(self, tensor: Tensor) -> int:
        """Number of a tensor that is new, or whose content is."""
        self.numbers[tensor] = self.met
        self.met += 1
        return self.met - 1

    def slot(self, value: Any) -> Any:
        """What stands for a value in a step."""
        if not isinstance(value, Tensor):
            return value
        if value not in self.numbers:
            self.held[self.meet(value)] = value
        return Slot(self.numbers[value])


def by_numbers(index: Sequence[Tensor | None]) -> bool:
    """Whether an index says which rows, so that their number is known, and not of each row whether."""
    return all(part is None or part.dtype in (torch.int32, torch.int64) for part in index)


def numbers(func: Any, args: Sequence[Any]) -> list[Any]:
    """The arguments of an operation with truth values as numbers where it takes numbers, as TorchScript wants them."""
    kinds = [str(argument.type) for argument in func._schema.arguments]
    return [int(value) if kind == "number" and isinstance(value, bool) else value for kind, value in zip(kinds, args, strict=False)]


class Program(nn.Module):
    """The steps of a tape as a function of its inputs; what it holds are parameters and buffers. results: numbers of what it returns."""

    def __init__(self, tape: Tape, results: Sequence[Tensor]) -> None:
        super().__init__()
        self.steps, self.results = tape.steps, [tape.slot(tensor).number for tensor in results]
        self.held = list(tape.held)
        for number, tensor in tape.held.items():
            keep: Any = self.register_parameter if isinstance(tensor, nn.Parameter) else self.register_buffer
            keep(f"held{number}", tensor)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        now = {number: getattr(self, f"held{number}") for number in self.held}
        now.update(enumerate(inputs))

        def current(value: Any) -> Any:
            return now[value.number] if isinstance(value, Slot) else value

        for func, args, kwargs, made in self.steps:
            func = traceable(func)
            out = func(*tree_map(current, args), **tree_map(current, kwargs))
            now.update(zip(made, tree_leaves(out), strict=True))
        return tuple(now[number] for number in self.results)


def traceable(func: Any) -> Any:
    """An operation in a form that the tracer can write down."""
    return scripted().linear if str(func) == "mkldnn._linear_pointwise.default" else func


@cache
def scripted() -> Any:
    return torch.jit.CompilationUnit(ONEDNN)


def script(function: Callable[..., Sequence[Tensor]], inputs: Sequence[Tensor]) -> Any:
    """The function as a script that runs the same operations on the same weights, without Python. Raises TapeError where Python looks at
    a result on the way, AssertionError if the function does something else the next time, or on other inputs of these shapes."""
    with Tape(inputs) as tape:
        results = function(*inputs)
    program: Any = torch.jit.trace(Program(tape, results), tuple(inputs), check_trace=False)  # type: ignore[no-untyped-call]
    others = [torch.empty_like(tensor).copy_(tensor.flip(1)) for tensor in inputs]
    for found, expected in zip(program(*others), function(*others), strict=True):
        torch.testing.assert_close(found, expected, equal_nan=True)
    return program
