"""Listening to a module: its output is kept on it until a site has read it."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ..errors import PruneError


def record(module: nn.Module, _args: Any, output: Tensor) -> None:
    """Forward hook: keep the output on the module until the site has read it. No closure, so that deep copies work."""
    module._sparsight_out = output


def recorded(module: nn.Module) -> Tensor:
    """Take what `record` kept; a PruneError if the hook did not fire."""
    output = module.__dict__.pop("_sparsight_out", None)
    if output is None:
        raise PruneError(
            f"{type(module).__name__} was not called where pruning listens to it; this model runs its attention elsewhere"
        )
    assert isinstance(output, Tensor)
    return output
