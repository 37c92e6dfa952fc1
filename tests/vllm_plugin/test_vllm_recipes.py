"""Which recipes a vLLM server can run, and how many tokens it lays a prompt out for. What vLLM itself does is tested by make test-vllm."""

import lvlms
import pytest
import torch
from lvlms import Size

import sparsight
from sparsight.errors import PruneError
from sparsight.vllm_plugin.recipes import ServedRecipes, check_text, recipe_row, recipe_text

BUDGETS = {
    "llava": [
        "fastervlm:tokens=5",
        "visionzip:tokens=6,contextual=2",
        "evit:keep=0.5",
        "tome:remove=5,proportional=false",
        "pool:tokens=9",
    ],
    "llava-next": ["divprune:keep=0.2", "visionzip:tokens=20,contextual=4", "fastervlm:tokens=4,per_tile=true", "fps:tokens=500"],
    "onevision": ["col_ln:keep=0.3", "divprune:tokens=7"],
    "qwen2.5": ["fastervlm:tokens=3,score=col_ln", "random:keep=0.4", "divprune:tokens=300"],
    "qwen3": ["divprune:tokens=5"],
}
SIZES = [Size(16, 16), Size(16, 32, seed=1), Size(32, 24, seed=2)]


@pytest.fixture(scope="module")
def served():
    found: dict[str, ServedRecipes] = {}
    return lambda name: found.setdefault(name, ServedRecipes(lvlms.build(name).config))


@pytest.mark.parametrize("name", BUDGETS)
def test_counts_are_those_of_prune(name, served):
    """Of every image alone, from its size."""
    model = lvlms.build(name)
    for size in SIZES[:1] if name == "llava" else SIZES:
        given = lvlms.inputs(name, model, [[3, size, 2]])
        total = lvlms.tokens_of(name, model, size)
        for text in BUDGETS[name]:
            with sparsight.prune(model, text) as handle, torch.no_grad():
                model(**given)
                assert served(name).find(text).count(given, total) == handle.counts[0], (text, size)


REFUSED = {
    "prumerge": "finds each image's count itself.*visionzip:tokens=64",
    "agile:tokens=8,count=adaptive": "finds each image's count itself",
    "prumerge:tokens=6": "layer behind the one that makes the features",
    "fastv:keep=0.5": "paged cache.*fastervlm:tokens=64",
    "cdpruner:tokens=6": "reads the prompt.*cdpruner:text=none",
    "resize:keep=0.5": "image processor",
    "sit:keep=0.5": "learned weights",
    "pool:tokens=10": "leaves 9 of 16 tokens where its budget says 10",
    "fastervlm:tokens=99": "more than the 16 tokens",
    "no_such:tokens=6": "no_such",
    "fastervlm:tokens=6,layers=3": "layers",
}


def test_refused(served):
    for text, words in REFUSED.items():
        with pytest.raises(PruneError, match=words) as caught:
            served("llava").find(text)
        assert "\n" not in str(caught.value)


def test_nearest_has_no_class_token_where_the_model_has_none(served):
    with pytest.raises(PruneError, match="visionzip:tokens=64,score=col_ln"):
        served("qwen2.5").find("prumerge")


def test_too_many_tokens_for_a_trial(served):
    """A request may ask for any number: nothing as large is made of it."""
    recipe = served("qwen2.5").find("divprune:tokens=1000000")
    assert recipe.count({"image_grid_thw": torch.tensor([[1, 8, 8]])}, 16) == 16


def test_deaf():
    """Where nobody can listen to the encoder, recipes that need its output alone are left."""
    recipes = ServedRecipes(lvlms.build("llava").config, deaf="tensor_parallel_size=2 gives each rank some heads only")
    recipes.find("divprune:tokens=5")
    for text in ("fastervlm:tokens=5", "visionzip:tokens=5,contextual=1", "fps:tokens=5,space=features"):
        with pytest.raises(PruneError, match=r"some heads only.*divprune"):
            recipes.find(text)


def test_text():
    assert recipe_text(recipe_row(check_text(" divprune:tokens=5 "))) == "divprune:tokens=5"
    for value in ({"tokens": 5}, "", None, "x" * 501):
        with pytest.raises(PruneError):
            check_text(value)
