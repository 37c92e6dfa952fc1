"""Every family and every method as parameters, with readable ids: `pytest -k evit`, `-k siglip`."""

import pytest
from zoo import FEW, RECIPES, ZOO, made, needs

import sparsight

SAMPLE = 31
"""Of the product of models and recipes, one in so many pairs is tested every time, and all recipes on one model."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Variants of a family run with a few recipes. Every time a sample of the product runs, in which every model and every recipe is
    there, and of the tests without recipes every model has half; the rest is marked."""
    given = [getattr(getattr(item, "callspec", None), "params", {}) for item in items]
    spare = [p.get("name") in ZOO and ZOO[p["name"]].variant and p.get("recipe", FEW[0]) not in FEW for p in given]
    config.hook.pytest_deselected(items=[item for item, gone in zip(items, spare, strict=True) if gone])
    items[:] = [item for item, gone in zip(items, spare, strict=True) if not gone]
    models, seen, plain = list(ZOO), {}, {}
    for item in items:
        params = getattr(getattr(item, "callspec", None), "params", {})
        recipe = params.get("recipe", params.get("later"))
        if params.get("name") in ZOO and recipe is not None:
            seen.setdefault((item.module, item.originalname), {}).setdefault(recipe, []).append(
                (models.index(params["name"]), item)
            )
        elif params.get("name") in ZOO:
            plain.setdefault((item.module, item.originalname), []).append((models.index(params["name"]), item))
    for number, pairs in enumerate(plain.values()):
        for model, item in pairs:
            if model and (model + number) % 2:
                item.add_marker(pytest.mark.product)
    for recipes in seen.values():
        for number, pairs in enumerate(recipes.values()):
            for model, item in pairs:
                if model and (model * 5 + number) % min(SAMPLE, len(recipes)):
                    item.add_marker(pytest.mark.product)


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
