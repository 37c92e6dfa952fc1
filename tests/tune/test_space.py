"""Search spaces: read off the registry, kept to what the model can carry out, and drawn from for real."""

import pytest
import timm
import torch
from compare_data import make_model

import sparsight
from sparsight import PruneError, registry
from sparsight.ops import reduce, schedule, score, select
from sparsight.ops.schedule import Layers
from sparsight.recipe import Recipe
from sparsight.tune.knobs import Knob, plain, ranged
from sparsight.tune.space import language_space, vision_space

optuna = pytest.importorskip("optuna")


@pytest.fixture(scope="module")
def model():
    return make_model().model


@pytest.fixture(scope="module")
def space(model):
    return vision_space(model)


def names(space, slot):
    return {method.name for one in space.slots if one.name == slot for method in one.methods}


def knobs(space, name):
    found = next(method for slot in space.slots for method in slot.methods if method.name == name)
    return {knob.name: knob for knob in found.knobs}


def draws(space, count):
    """Stacks and the number of draws that do not go together."""
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    found, futile = [], 0
    for _ in range(count):
        try:
            found.append(space.suggest(study.ask()))
        except PruneError:
            futile += 1
    return found, futile


def test_methods_are_those_that_the_model_can_carry_out(space):
    assert names(space, "picture") == {"resize"}
    assert {"col_ln", "class_attention", "evit", "tome", "compose", "renyi", "pool", "random", "ats"} <= names(space, "method")
    assert not {"sit", "dynamicvit", "vispruner", "fastv", "resize"} & names(space, "method")
    assert set(knobs(space, "compose")) == {"score", "select", "reduce", "other", "share", "order"}
    assert "learned" not in knobs(space, "dpc_knn").get("weigh", Knob("weigh")).choices


def test_without_a_class_token_its_scores_are_gone():
    torch.manual_seed(0)
    bare = timm.create_model("test_vit", class_token=False, global_pool="avg", num_classes=3).eval()
    found = vision_space(bare)
    assert not {"class_attention", "ats", "rollout"} & names(found, "method")
    assert "class_attention" not in knobs(found, "compose")["score"].choices
    assert {"col_ln", "tome"} <= names(found, "method")


def test_draws_are_recipes_that_run(model, space):
    found, futile = draws(space, 120)
    assert futile < 60
    assert {len(stack) for stack in found} == {1, 2}
    assert len({recipe.name for stack in found for recipe in stack}) > 10
    assert any(isinstance(recipe.schedule.keep, tuple) for stack in found for recipe in stack)
    images = torch.randn(1, 3, 160, 160)
    for stack in found[:25]:
        handles = [sparsight.prune(model, recipe) for recipe in stack]
        with torch.inference_mode():
            assert model(images).isfinite().all()
        assert handles[-1].counts
        for handle in handles:
            handle.remove()


def test_what_changes_nothing_is_dropped():
    assert str(plain(sparsight.parse("compose:score=col_ln,other=random,keep=0.5"))) == "compose:keep=0.5,layers=3/6/9,score=col_ln"
    kept = "compose:keep=0.5,layers=3/6/9,score=col_ln,select=rescue,other=random"
    assert str(plain(sparsight.parse(kept))) == kept
    assert str(plain(sparsight.parse("similarity:kappa=0.2,keep=0.5"))) == "similarity:keep=0.5,layers=input"


def test_a_new_method_and_a_new_score_appear_by_themselves(model):
    def brightest(keep: float = 0.7, layers: Layers = (3, 6, 9), gain: float = 3.0, mode: bool = True) -> Recipe:
        """Brightest: keep the tokens with the largest mean. Nobody, never."""
        return Recipe(lambda x: gain * x.mean(dim=-1), select.topk, reduce.drop, schedule.staged(keep, layers))

    try:
        registry.method(brightest)
        sparsight.register_score("largest")(lambda x: x.abs().amax(dim=-1))
        found = vision_space(model)
        assert knobs(found, "brightest") == {
            "gain": Knob("gain", low=0.75, high=12.0, log=True),
            "mode": Knob("mode", ("false", "true")),
        }
        assert "largest" in knobs(found, "compose")["score"].choices
    finally:
        del registry._methods["brightest"], score.SCORES["largest"]


def test_ranges_come_from_defaults():
    found = {p.name: ranged(p) for p in registry.find("tca").parameters}
    assert found["rescue"] == Knob("rescue")
    assert found["centres"] == Knob("centres", low=2, high=8, whole=True)
    assert found["order"] == Knob("order", low=0.5, high=8.0, log=True)
    assert found["cache"] is None
    assert found["layers"] is None


def test_only_some_methods_and_names_that_cannot_be(model):
    found = vision_space(model, ["col_ln", "resize"])
    assert (names(found, "picture"), names(found, "method")) == ({"resize"}, {"col_ln"})
    assert [len(slot.methods) for slot in vision_space(model, ["tome"]).slots] == [1]
    with pytest.raises(PruneError, match="sit cannot be searched on"):
        vision_space(model, ["sit", "col_ln"])
    with pytest.raises(PruneError, match="no method 'nope'"):
        vision_space(model, ["nope"])
    with pytest.raises(PruneError, match="has no language model"):
        language_space(model)


@pytest.mark.product
def test_the_cheapest_recipes_are_cheap(model, space):
    from sparsight.speed.macs import macs

    def cost(stack):
        with sparsight.prune(model, stack[0]):
            return macs(model, stack[1] if len(stack) > 1 else None, 160)

    stacks = {" + ".join(recipe.name for recipe in stack): stack for stack in space.cheapest()}
    assert len(stacks) > 10
    assert "resize" in stacks
    least = cost(stacks["resize + col_ln"])
    drawn = [
        stack for stack in draws(space, 200)[0] if stack[0].name in ("resize", "col_ln") and stack[-1].name in ("resize", "col_ln")
    ]
    assert len(drawn) > 4
    assert all(cost(stack) >= least for stack in drawn)


def test_a_language_model_has_places_before_and_inside():
    pytest.importorskip("transformers")
    import tiny_vlm

    model = tiny_vlm.make_model()
    found = language_space(model)
    assert {"vispruner", "divprune", "col_ln", "visionzip", "prumerge", "resize"} <= names(found, "before")
    assert {"fastv", "pyramiddrop"} <= names(found, "inside")
    assert not {"resize", "tome"} & {method.name for slot in found.slots for method in slot.methods if slot.name == "inside"}
    assert {"ratio", "score"} <= set(knobs(found, "vispruner"))
    stacks, futile = draws(found, 25)
    assert futile < 18
    assert {len(stack) for stack in stacks} == {1, 2}
    for stack in stacks[:10]:
        handles = [sparsight.prune(model, recipe) for recipe in stack]
        for handle in handles:
            handle.remove()
