"""What the last call of an object found, by thread and by asyncio task."""

from __future__ import annotations

import weakref
from contextvars import ContextVar
from typing import Any

_latest: ContextVar[tuple[tuple[weakref.ref[Any], Any], ...]] = ContextVar("sparsight_latest", default=())


def publish(owner: object, result: Any) -> None:
    """Make `result` what `last(owner)` gives in this thread or task; None forgets the one before. It goes when its owner goes."""
    others = tuple((ref, known) for ref, known in _latest.get() if ref() not in (None, owner))
    _latest.set(others if result is None else (*others, (weakref.ref(owner), result)))


def last(owner: object) -> Any:
    """What the last call that finished in this thread or task has published; None without one."""
    return next((result for ref, result in _latest.get() if ref() is owner), None)
