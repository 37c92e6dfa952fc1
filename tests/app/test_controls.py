"""Controls come from the registry, and what a page must not run is refused."""

import pytest
from loopback import make_vit

from sparsight import PruneError, registry
from sparsight.app.controls import Control, read_recipe, vision_cards
from sparsight.methods.evit import evit
from sparsight.ops.schedule import Layers
from sparsight.recipe import Recipe
from sparsight.registry import methods, parse


@pytest.fixture(scope="module")
def model():
    return make_vit().model


def test_every_method_of_a_vision_model_is_there(model):
    found = {card.name: card for card in vision_cards(model)}
    places = ("image", "before", "attn", "block")
    assert found.keys() == {entry.name for entry in methods() if parse(entry.name).where in places}
    assert [name for name, card in found.items() if card.unfit] == ["dynamicvit", "patch_merger", "sinkhorn", "sit"]
    assert found["tome"].word == "remove"
    assert found["col_ln"].budget == "0.7"
    for card in found.values():  # defaults, in a model of two blocks
        values = {control.name: control.value for control in card.controls if control.kind == "layers"}
        assert all(max(map(int, value.split("/"))) < 2 for value in values.values() if value[0].isdigit())


def test_a_new_method_appears_with_its_own_parameters(model):
    def brightest(keep: float = 0.25, layers: Layers = (1,), glow: float = 1.5, deep: bool = True, rounds: int = 3) -> Recipe:
        """Brightest: keep what shines. Nobody."""
        return evit(keep, layers)

    registry.method(brightest)
    try:
        card = next(card for card in vision_cards(model) if card.name == "brightest")
    finally:
        del registry._methods["brightest"]
    assert (card.summary, card.source, card.word, card.budget, card.unfit) == ("keep what shines", "Nobody", "keep", "0.25", "")
    assert card.controls == (
        Control("layers", "layers", "1", "1"),
        Control("glow", "number", "1.5", "1.5"),
        Control("deep", "flag", "true", "true"),
        Control("rounds", "whole", "3", "3"),
        Control("where", "choice", "attn", "attn", ("before", "attn", "block")),
    )


def test_refused():
    for text, said in (
        ("sit:keep=0.5,weights=/etc/passwd", "weights= of sit is not for the page"),
        ("k_medoids:rounds=1000000000", "rounds=1000000000 is more than the 4096"),
        ("evit:kep=0.5", "did you mean 'keep'"),
    ):
        with pytest.raises(PruneError, match=said):
            read_recipe(text)
