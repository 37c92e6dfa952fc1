"""Which recipe a request gets, and what a variant answers: the pruned model's own outputs and kept sets, in every engine."""

import io

import pytest
import torch
from loopback import RECIPES, SIDE, picture
from PIL import Image

import sparsight
from sparsight.errors import PruneError
from sparsight.serve.refusal import Refusal
from sparsight.serve.uploads import to_tensor
from sparsight.serve.variants import check_recipes, choose, make_variants, named


@pytest.fixture(scope="module")
def variants(vit):
    return make_variants(vit, check_recipes(RECIPES, "eager"), "eager")


@pytest.mark.parametrize(
    ("recipe", "keep", "place"),
    [
        (None, None, 0), (RECIPES[1], None, 1), ("evit", None, 1), (" evit: layers=1 , keep=0.70", None, 1), ("tome", None, 2),
        ("unpruned", None, 3), (None, 0.5, 0), (None, 0.7, 1), (None, 1.0, 3), ("evit", 0.7, 1),
    ],
)  # fmt: skip
def test_a_request_names_a_recipe_or_its_keep(variants, recipe, keep, place):
    assert choose(variants, recipe, keep) is variants[place]


@pytest.mark.parametrize(
    ("recipe", "keep", "words"),
    [
        ("evit:keep=0.6,layers=1", None, "recipe=evit:keep=0.6,layers=1 is not served"), ("nothing", None, "recipe=nothing is not"),
        (None, 0.3, "keep=0.3 is not served"), (None, float("nan"), "keep=nan is not served"), ("evit", 0.5, "recipe=evit and keep=0.5"),
        ("", None, "recipe= is not served"), ("x" * 5000, None, "is not served"), ("sit:weights=/etc/passwd", None, "is not served"),
    ],
)  # fmt: skip
def test_what_is_not_served_is_refused_with_what_is(variants, recipe, keep, words):
    with pytest.raises(Refusal) as refusal:
        choose(variants, recipe, keep)
    assert refusal.value.status == 400
    assert words in refusal.value.text
    assert refusal.value.text.endswith(f"this server has {' | '.join(RECIPES)} | unpruned")
    assert refusal.value.more == {"served": [*RECIPES, "unpruned"]}
    assert len(refusal.value.text) < 400


def test_two_recipes_of_one_keep_or_method(vit):
    both = make_variants(
        vit, check_recipes(["evit:keep=0.5,layers=1", "tome:keep=0.5,layers=1", "evit:keep=0.6,layers=1"], "eager"), "eager"
    )
    with pytest.raises(Refusal, match=r"keep=0\.5 fits 2 recipes"):
        choose(both, None, 0.5)
    assert choose(both, "tome", 0.5).name == "tome:keep=0.5,layers=1"
    assert choose(both, "evit", 0.6).name == "evit:keep=0.6,layers=1"
    assert len(named(both, "evit")) == 2


def test_recipes_are_checked_before_anything_is_loaded():
    assert check_recipes(["evit:keep=0.70", "evit"], "eager") == [sparsight.parse("evit:keep=0.7")]
    with pytest.raises(PruneError, match="engine='tpu' is not known; choose eager, onnxruntime, openvino"):
        check_recipes([], "tpu")
    with pytest.raises(PruneError, match="take engine eager"):
        check_recipes(["ats:keep=0.5,layers=1"], "openvino")
    with pytest.raises(PruneError, match="no method"):
        check_recipes(["nothing"], "eager")


def test_a_recipe_that_does_not_fit_the_model_is_refused(vit):
    with pytest.raises(PruneError, match="layers"):
        make_variants(vit, check_recipes(["evit:keep=0.7,layers=3/6/9"], "eager"), "eager")


@pytest.mark.parametrize(
    ("engine", "recipes"),
    [
        ("eager", (*RECIPES, "ats:keep=0.5,layers=1")),
        ("openvino", RECIPES[:1]),
        pytest.param("onnxruntime", RECIPES[:1], marks=pytest.mark.product),
    ],
)
def test_answers_are_those_of_the_pruned_model(vit, engine, recipes):
    """Logits, features and kept sets at several batch sizes equal `sparsight.prune` and the model called directly."""
    images = [to_tensor(picture(number), vit.transform, 10**6) for number in range(5)]
    for variant in make_variants(vit, check_recipes(recipes, engine), engine, threads=1):
        for some in (images[:1], images[1:], images[:2]):
            answers = variant(some)
            batch = torch.stack(some)
            with torch.no_grad():
                if variant.recipe is None:
                    logits, kept, left = vit.model(batch), [set(range((SIDE // 8) ** 2))] * len(some), [[]] * len(some)
                else:
                    with sparsight.prune(vit.model, variant.recipe) as handle:
                        logits = vit.model(batch)
                        kept = [{place for place in row if place >= 0} for row in handle.sources()[-1].keep.tolist()]
                        left = [list(counts) for counts in zip(*(plan.counts for plan in handle.plans), strict=True)]
                features = vit.model.forward_features(batch) if variant.recipe is None else None
            for number, answer in enumerate(answers):
                assert torch.allclose(answer.probabilities, logits[number].softmax(dim=-1), atol=1e-5)
                assert set(answer.kept) == kept[number]
                assert answer.left == left[number]
                if features is not None:
                    assert torch.allclose(answer.features, features[number, 0], atol=1e-5)


def test_a_tower_without_a_classifier_has_features_only(vit):
    import timm

    from sparsight.load.models import Loaded, timm_transform

    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=SIDE, patch_size=8, embed_dim=32, depth=2, num_heads=2, num_classes=0
    )
    loaded = Loaded("tower", model.eval(), timm_transform(model), None, (SIDE, SIDE))
    (answer,) = make_variants(loaded, [], "eager")[0]([loaded.transform(Image.open(io.BytesIO(picture(0))))])
    assert answer.probabilities is None
    assert answer.features.shape == (32,)
