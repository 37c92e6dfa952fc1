"""Every family and every method as parameters, with readable ids: `pytest -k evit`, `-k siglip`."""

from collections.abc import Iterator

import pytest
import torch
from zoo import RECIPES, ZOO, made, needs

import sparsight


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


@pytest.fixture(autouse=True)
def few_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
