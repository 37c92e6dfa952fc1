"""Stack: what `prune` returns for several recipes on one model."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from torch import nn

from .handle import Handle
from .plan import Plan


@dataclass(eq=False, repr=False)
class Stack:
    """Several recipes at work in one model, and the way back for all of them. Also a context manager.

    handles  one for each recipe, in the order in which they were given: each shows its own part of the last call.
    """

    handles: list[Handle]

    def __str__(self) -> str:
        return " + ".join(str(handle.recipe) for handle in self.handles)

    def __repr__(self) -> str:
        return f"<Stack of {'; '.join(map(repr, self.handles))}>"

    @property
    def model(self) -> nn.Module:
        """The model that the last recipe prunes; a tower inside it may be pruned by others."""
        return self.handles[-1].model

    @property
    def counts(self) -> list[list[Any]]:
        """Visual tokens of the last call, recipe by recipe: see `Handle.counts`."""
        return [handle.counts for handle in self.handles]

    @property
    def plans(self) -> list[list[Plan]]:
        """Plans of the last call, recipe by recipe."""
        return [handle.plans for handle in self.handles]

    def remove(self) -> None:
        """Give the model back as it was before, the last recipe first. Doing it twice does no harm."""
        for handle in reversed(self.handles):
            handle.remove()

    def __enter__(self) -> Stack:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.remove()


def stacked(steps: Iterable[Callable[[], Handle]]) -> Stack:
    """Install one after the other; where one is refused, those before it are taken off again."""
    stack = Stack([])
    try:
        for step in steps:
            stack.handles.append(step())
    except BaseException:
        stack.remove()
        raise
    return stack
