"""A method of one model object with something around it, which composes with other tools and survives copies and pickles."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from types import MethodType
from typing import Any

from torch import nn

Around = Callable[[Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]
"""(the method as it was, args, kwargs) -> result."""


class WrappedMethod:
    """Stands in for `module.<name>` on this one object until `remove`.

    It wraps what another tool has put there before (accelerate's hooks and autocast), and lets other tools wrap it. Of several on one
    method, those with `outermost` come before the others.
    """

    def __init__(self, module: nn.Module, name: str, around: Around, outermost: bool = False) -> None:
        self.module, self.name, self.around, self.outermost = module, name, around, outermost
        self.before: Any = None
        self.removed = False

    def install(self) -> WrappedMethod:
        above, present = None, self.module.__dict__.get(self.name)
        while isinstance(present, WrappedMethod) and present.outermost and not self.outermost:
            above, present = present, present.before
        self.before = present
        if above is None:
            self.module.__dict__[self.name] = self
        else:
            above.before = self
        return self

    def remove(self) -> None:
        """Take it away; where another tool has wrapped it, let it pass everything through."""
        self.removed = True
        above, present = None, self.module.__dict__.get(self.name)
        while isinstance(present, WrappedMethod) and present is not self:
            above, present = present, present.before
        if present is not self and getattr(present, "__func__", None) is not self:
            return
        if above is not None:
            above.before = self.before
        elif self.before is None:
            del self.module.__dict__[self.name]
        else:
            self.module.__dict__[self.name] = self.before

    @property
    def inner(self) -> Any:
        """The method below this one."""
        return MethodType(getattr(type(self.module), self.name), self.module) if self.before is None else self.before

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(self.inner)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if args and args[0] is self.module:
            args = args[1:]  # accelerate's unwrap_model(keep_fp32_wrapper=False) binds it to the model once more
        return self.inner(*args, **kwargs) if self.removed else self.around(self.inner, args, kwargs)


def named(method: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """All arguments of a call by their names."""
    return {**dict(zip(inspect.signature(method).parameters, args, strict=False)), **kwargs} if args else dict(kwargs)


def pruned_repr(owner: Any, run: Callable[..., Any], _args: tuple[Any, ...], _kwargs: dict[str, Any]) -> str:
    """Around a model's `extra_repr`: that it is pruned, by which recipes."""
    recipes = " and ".join(str(handle.recipe) for handle in owner.handles)
    return ", ".join(filter(None, (run(), f"pruned by {recipes}")))
