"""Every family and every method as parameters, with readable ids: `pytest -k evit`, `-k siglip`."""

from typing import Any

import pytest
from torch import Tensor, nn
from zoo import FEW, RECIPES, ZOO, made, needs

import sparsight
from sparsight.models._line import Line
from sparsight.models._recording import Recording


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Variants of a family run with a few recipes."""
    given = [getattr(getattr(item, "callspec", None), "params", {}) for item in items]
    spare = [p.get("name") in ZOO and ZOO[p["name"]].variant and p.get("recipe", FEW[0]) not in FEW for p in given]
    config.hook.pytest_deselected(items=[item for item, gone in zip(items, spare, strict=True) if gone])
    items[:] = [item for item, gone in zip(items, spare, strict=True) if not gone]


@pytest.fixture(params=ZOO)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=RECIPES)
def recipe(request: pytest.FixtureRequest, name: str) -> str:
    """A recipe that suits the model; where it does not, the test ends with a check that prune says so."""
    text = RECIPES[request.param]
    if {"class_attn", "attns"} & needs(text) and not ZOO[name].class_token:
        with pytest.raises(sparsight.PruneError, match="has no class token"):
            sparsight.prune(made(name), text)
        pytest.skip("scores by class attention; refused on a model without class token")
    return text


@pytest.fixture
def replays(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """Outputs of the blocks that came from a recording since the list was cleared."""
    seen: list[Tensor] = []
    real = Recording.replay

    def replay(recording: Recording, *args: Any) -> Tensor | None:
        out = real(recording, *args)
        if out is not None:
            seen.append(out)
        return out

    monkeypatch.setattr(Recording, "replay", replay)
    return seen


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[nn.Module]:
    """Blocks that have run as a line since the list was cleared."""
    seen: list[nn.Module] = []
    real = Line.feed

    def feed(line: Line, block: nn.Module, x: Tensor) -> Tensor:
        seen.append(block)
        return real(line, block, x)

    monkeypatch.setattr(Line, "feed", feed)
    return seen
