"""The lines of a model's blocks: which of them a forward may take."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any
from weakref import ReferenceType, ref

import torch
from torch import Tensor, nn

from ._line import Line
from ._packed import Packed, unwatched
from ._snapshot import Snapshot


class Lines:
    """The lines of a model's blocks by their numbers.

    Whether modules and packed weights are as they were is asked for all blocks when a forward begins, because it takes a third of the time
    there: between products that fill the caches every object comes from memory. What is found counts for one call of each block, in
    their order and on what the block before gave; any other call of a block looks for itself. called: a forward of the whole model has begun,
    and nothing but its result is asked for; inside: its blocks come next.
    """

    def __init__(self) -> None:
        self.of: dict[int, Line] = {}
        self.found: dict[int, tuple[bool, Sequence[Packed | None]]] = {}
        self.awaited = 0
        self.called = self.inside = False
        self.given: ReferenceType[Tensor] | None = None
        self.modules: Snapshot | None = None

    def __reduce__(self) -> tuple[type[Lines], tuple[()], dict[str, Any]]:
        return Lines, (), {"of": self.of}

    def begin(self, images: Tensor | None, fused: Callable[[nn.Module], bool]) -> None:
        """A forward on these images begins. fused: whether a block's attention is plain SDPA at present."""
        if torch.compiler.is_compiling():
            return
        self.found, self.awaited, self.given = {}, min(self.of, default=0), None
        self.inside, self.called = self.called, False
        if not self.of or images is None or not alone(images):
            return
        if self.modules is None:
            self.modules = Snapshot.together([line.modules for line in self.of.values()])
        all_hold = self.modules.holds()
        for index, line in self.of.items():
            runs = (all_hold or line.modules.holds()) and fused(line.straight.block)
            self.found[index] = runs, line.packed() if runs else line.nothing

    def complete(self) -> list[Sequence[Packed | None]] | None:
        """The packed weights of all blocks, if a forward has begun in which all of them may run as lines and every layer has one."""
        if not self.found or len(self.found) != len(self.of) or self.given is not None:
            return None
        fresh = [packed for runs, packed in self.found.values() if runs and None not in packed]
        return fresh if len(fresh) == len(self.of) else None

    def take(self, index: int, x: Tensor, kwargs: dict[str, Any], fused: Callable[[nn.Module], bool]) -> Line | None:
        """The line of a block, if this call may take it: in inference, with nobody watching, and with every module as it was."""
        if torch.compiler.is_compiling():  # first: compiled graphs shall not ask for what follows
            return None
        line = self.of.get(index)
        if line is None or not line.reads(kwargs):
            return None
        follows = index == self.awaited and (self.given is None or self.given() is x)
        found = self.found.pop(index, None) if follows else None
        if not (alone(x) if found is None or self.given is None else quiet()):
            return None
        if found is None:
            found = line.modules.holds() and fused(line.straight.block), line.nothing
        line.fresh = found[1]
        return line if found[0] else None

    def gave(self, index: int, x: Tensor) -> Tensor:
        """What a block gives to the next one."""
        self.awaited, self.given = index + 1, ref(x)
        return x


def quiet() -> bool:
    """Whether a call on what the block before gave is inference that nobody watches, as that block's was: what can change between the
    two without another tensor."""
    return not (torch.is_grad_enabled() or torch._C._len_torch_dispatch_stack() or torch._C._is_any_autocast_enabled())


def alone(x: Tensor) -> bool:
    """Whether a call is inference that nobody watches, also by hooks on all modules of this process."""
    if torch.is_grad_enabled() or not unwatched(x):
        return False
    return not torch.nn.modules.module._has_any_global_hook()  # type: ignore[no-untyped-call]
