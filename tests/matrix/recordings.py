"""What the tests of recorded blocks share."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from torch import Tensor, nn
from zoo import images, made

from sparsight.models._recording import AFTER, Recorder

WARM = AFTER + 2
"""Forwards until the first replay: weights are packed in the second, and fresh from the third on."""


def single(name: str, batch: int = 1) -> tuple[nn.Module, Tensor]:
    """A model of the zoo in float32, and images."""
    return copy.deepcopy(made(name)).float(), images(name, batch).float()


def warm(model: nn.Module, x: Tensor, times: int = WARM) -> None:
    for _ in range(times):
        model(x)


def outcome(handle: Any) -> list[Tensor]:
    """All tensors that a forward leaves with its sites."""
    plans = [getattr(plan, name) for plan in handle.plans for name in ("keep", "owner", "mix", "valid")]
    return [value for value in (*plans, *handle.scores, handle.family.last_size()) if isinstance(value, Tensor)]


@contextmanager
def one_by_one() -> Iterator[None]:
    """Blocks run, whatever has been recorded."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Recorder, "replay", lambda *_: None)
        yield
