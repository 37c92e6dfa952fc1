"""Calls of pruned vision-language models that are under way, and what the last ones found: by thread and by asyncio task.

Models, sites and handles hold only what was installed. What a call learns lives in an object of that call, which hooks and handles find
here. Hooks on shared modules stay installed and report to whichever call is under way around them, so threads never mix.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, TypeVar

from torch import Tensor, nn

from ..latest import publish
from .wrapped_method import named

Call = TypeVar("Call")

_under_way: ContextVar[tuple[Any, ...]] = ContextVar("sparsight_calls", default=())
_hooking = threading.Lock()


@contextmanager
def under_way(call: Call) -> Iterator[Call]:
    """Let `call` be the innermost call of this thread or task."""
    token = _under_way.set((*_under_way.get(), call))
    try:
        yield call
    finally:
        _under_way.reset(token)


def calls() -> Iterator[Any]:
    """The calls under way in this thread or task, innermost first."""
    return iter(reversed(_under_way.get()))


def of_owner(owner: object) -> list[Any]:
    """Those of them that belong to `owner`, innermost first."""
    return [call for call in calls() if getattr(call, "owner", None) is owner]


@contextmanager
def forgetting(owner: object) -> Iterator[None]:
    """Where this does not end well, nothing is left of an earlier call."""
    try:
        yield
    except BaseException:
        publish(owner, None)
        raise


@dataclass(eq=False)
class Listener:
    """A call that wants to know how some modules are called: module -> (args, kwargs, output), None until it was."""

    owner: Any
    heard: dict[nn.Module, tuple[Any, Any, Any] | None] = field(default_factory=dict)


def listen(hooks: dict[nn.Module, Any], modules: Iterable[nn.Module]) -> None:
    """Let the modules report their calls from now on; `hooks` holds what there is to remove."""
    with _hooking:
        for module in modules:
            if module not in hooks:
                hooks[module] = module.register_forward_hook(report, with_kwargs=True)


def report(module: nn.Module, args: Any, *rest: Any) -> None:
    """Forward hook: tell the innermost call under way that listens to this module."""
    for call in calls():
        heard = getattr(call, "heard", None)
        if heard is not None and module in heard:
            heard[module] = (args, rest[0] if len(rest) == 2 else {}, rest[-1])
            return


@dataclass(eq=False)
class HeadForward:
    """A forward of the model with the language-model head. full: somebody looks at its logits by places of the full prompt."""

    owner: Any
    full: bool


def head_forward(owner: Any, run: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Around that forward: whether its logits have to fit the full prompt."""
    call = named(run, args, kwargs)
    full = call.get("labels") is not None or isinstance(call.get("logits_to_keep"), Tensor)
    with under_way(HeadForward(owner, full)), forgetting(owner):
        return run(*args, **kwargs)


def of_head(owner: Any) -> tuple[bool, list[Any]]:
    """Whether a forward that begins now is made by such a head whose logits have to fit, and the calls around that."""
    around = of_owner(owner)
    if around and isinstance(around[0], HeadForward):
        return around[0].full, around[1:]
    return False, around
