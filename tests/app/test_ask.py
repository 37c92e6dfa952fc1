"""Questions on the page: words that the model does not know, methods of every kind, what is left of the picture."""

import pytest
import torch
from PIL import Image

pytest.importorskip("transformers")

from web import tiny_language

import sparsight
from sparsight import PruneError
from sparsight.app.language import ATTENTION, BASELINE, BOTH, DIVERSITY, INSIDE, PROMPT, Language
from sparsight.app.vision import DROPPED


@pytest.fixture(scope="module")
def language():
    return Language(tiny_language())


@pytest.fixture(scope="module")
def picture():
    pixels = torch.rand(28, 28, 3, generator=torch.Generator().manual_seed(0)).mul(255).byte().numpy()
    return Image.fromarray(pixels)


def test_cards(language):
    groups = {card.name: card.group for card in language.cards()}
    wanted = {
        "col_ln": ATTENTION,
        "divprune": DIVERSITY,
        "vispruner": BOTH,
        "cdpruner": PROMPT,
        "fastv": INSIDE,
        "random": BASELINE,
    }
    assert wanted.items() <= groups.items()
    assert all(control.kind != "layers" for card in language.cards() if card.group == ATTENTION for control in card.controls)


def test_unknown_words_are_named(language, picture):
    talk = language.ask(picture, "  What is Zorg in the picture,  or a FRUMP?", [])
    assert talk.unknown == ["zorg", "or", "frump"]
    assert talk.question == "what is zorg in the picture , or a frump ?"
    assert language.ask(picture, "what is in the picture ?", []).unknown == []


def test_questions_that_cannot_be_asked(language, picture):
    for question, said in (("   ", "is empty"), ("what is <image> ?", "marks the picture"), ("x" * 201, "201 characters")):
        with pytest.raises(PruneError, match=said):
            language.ask(picture, question, [])


def test_what_is_left(language, picture):
    recipes = ["divprune:tokens=4", "fastv:tokens=3", "resize:tokens=4", "prumerge"]
    talk = language.ask(picture, "what is in the picture ?", [*recipes, "divprune:token=9"])
    whole, far, inside, smaller, merged, bad = talk.replies
    assert (whole.tokens, whole.site) == (16, None)
    assert far.tokens == 4
    assert far.site.paint.count(DROPPED) == 12
    assert inside.tokens == 3
    assert inside.site.paint.count(DROPPED) == 13
    assert smaller.site.side == 0.5
    assert merged.tokens < 16
    assert "did you mean 'tokens'" in bad.error
    assert not sparsight.handles(language.model)
