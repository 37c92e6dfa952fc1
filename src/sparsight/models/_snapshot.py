"""Whether modules are still as they were, asked often and of many: by whole lists at a time, because each step of Python costs as much
as a small product."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

from torch import nn

from .capture import record

LISTS = ("parents", "children", "modules", "kinds", "forwards")
CHILDREN, TRAINING = itemgetter("_modules"), itemgetter("training")
BEFORE, AFTER = itemgetter("_forward_pre_hooks"), itemgetter("_forward_hooks")


@dataclass(frozen=True, eq=False)
class Snapshot:
    """Modules as they were: those that contain others and what they contained, all that were contained, their classes and own forwards,
    and the forwards that the classes had."""

    parents: list[nn.Module]
    children: list[dict[str, nn.Module | None]]
    modules: list[nn.Module]
    kinds: list[Any]
    forwards: list[Any]
    written: dict[Any, Any]

    @staticmethod
    def of(frame: nn.Module) -> Snapshot:
        """All modules inside another one, as they are now."""
        return Snapshot.around([parent for parent in frame.modules() if any(True for _ in parent.children())])

    @staticmethod
    def around(parents: list[nn.Module]) -> Snapshot:
        """The children of some modules, as they are now."""
        children = [dict(parent._modules) for parent in parents]
        modules = [module for found in children for module in found.values() if module is not None]
        kinds: list[Any] = list(map(type, modules))
        forwards = [module.__dict__.get("forward") for module in modules]
        return Snapshot(parents, children, modules, kinds, forwards, {kind: kind.forward for kind in kinds})

    @staticmethod
    def together(snapshots: Sequence[Snapshot]) -> Snapshot:
        """Several as one."""
        written = {kind: forward for snapshot in snapshots for kind, forward in snapshot.written.items()}
        lists: dict[str, Any] = {name: [entry for snapshot in snapshots for entry in getattr(snapshot, name)] for name in LISTS}
        return Snapshot(**lists, written=written)

    def holds(self) -> bool:
        """Whether the modules are the same, do nothing that only training does, and nobody else listens to one of them."""
        if list(map(CHILDREN, map(vars, self.parents))) != self.children or list(map(type, self.modules)) != self.kinds:
            return False
        states = list(map(vars, self.modules))
        if [state.get("forward") for state in states] != self.forwards or any(map(TRAINING, states)) or any(map(BEFORE, states)):
            return False
        if not all(kind.forward is forward for kind, forward in self.written.items()):
            return False
        return all(hook is record for hooks in filter(None, map(AFTER, states)) for hook in hooks.values())
