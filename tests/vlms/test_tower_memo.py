"""The memo of the vision tower: bit for bit what the tower gives, whatever listens; bounded, and out of the way where it must be."""

from contextlib import nullcontext

import pytest
import torch
from lvlms import Size, answer, build, inputs

import sparsight
from sparsight.prune import family_of
from sparsight.vlms.tower_memo import remembering

RECIPES = [
    "fastervlm:tokens=5", "col_ln:tokens=5", "vispruner:tokens=5", "visionzip:tokens=6,contextual=2", "prumerge:tokens=4", "divprune:tokens=5",
    "prunesid:tokens=5", "pool:tokens=4", "random:tokens=5", "resize:tokens=4", "hiprune:tokens=5", "agile:tokens=5", "fastv:layer=1,keep=0.5", "sparsevlm:layers=0/1,count=rank,scale=0.5",
]  # fmt: skip
PICTURES = [Size(16, 16, seed) for seed in range(3)]


@pytest.fixture(scope="module", params=["llava", "llava-dinov2"])
def name(request):
    return request.param


@pytest.fixture(scope="module")
def model(name):
    return build(name)


def tower_runs(model):
    """How many pictures go through the tower from now on."""
    seen = []
    hook = model.model.vision_tower.register_forward_pre_hook(
        lambda _m, args, kwargs: seen.append(len(args[0] if args else kwargs["pixel_values"])), with_kwargs=True
    )
    return seen, hook


@torch.no_grad()
def outcome(model, recipe, given):
    with sparsight.prune(model, recipe) if recipe else nullcontext() as handle:
        logits = model(**given).logits
        answers = answer(model, given)
        return logits, answers, handle and [plan.keep for plan in handle.plans], handle and handle.scores


def same(one, other):
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


@pytest.mark.parametrize(
    "recipe", [pytest.param(one, marks=pytest.mark.product if one in RECIPES[1::2] else ()) for one in (None, *RECIPES)]
)
def test_bit_for_bit_the_same(name, model, recipe):
    given = inputs(name, model, [[3, PICTURES[0], 4]])
    plain = outcome(model, recipe, given)
    with remembering(family_of(model)) as memo:
        assert same(outcome(model, recipe, given), plain)
        assert same(outcome(model, recipe, given), plain)
        # a CLIP tower has to be told of a picture of another size, so that call is none that the memo knows
        assert (memo.runs, memo.replays) == ((0, 0) if recipe == "resize:tokens=4" and name == "llava" else (1, 3))
    assert same(outcome(model, recipe, given), plain)


def test_one_run_of_the_tower_for_all(name, model):
    """All recipes and batches after each other: as without the memo, up to the order of additions in a batch of the tower."""
    batches = [inputs(name, model, [[3, one, 4], [2, two, 5]]) for one in PICTURES for two in PICTURES]
    plain = {recipe: [outcome(model, recipe, given) for given in batches] for recipe in RECIPES[::4]}
    seen, hook = tower_runs(model)
    with remembering(family_of(model)) as memo:
        for recipe, want in plain.items():
            for given, (logits, answers, keep, _) in zip(batches, want, strict=True):
                got = outcome(model, recipe, given)
                torch.testing.assert_close(got[0], logits)
                assert same(got[1:3], (answers, keep)), recipe
        assert seen == [1, 1, 1]
        assert memo.replays > 100
    hook.remove()


def test_it_is_bounded(name, model):
    with remembering(family_of(model)) as memo, torch.no_grad():
        model.model.get_image_features(inputs(name, model, [[3, PICTURES[0], 4]])["pixel_values"])
        each = memo.size
    seen, hook = tower_runs(model)
    with remembering(family_of(model), most=2 * each) as memo, torch.no_grad():
        for place in (0, 1, 0, 2, 0, 1):
            model.model.get_image_features(inputs(name, model, [[3, PICTURES[place], 4]])["pixel_values"])
            assert memo.size <= 2 * each
        assert len(memo.known) == 2
        assert len(seen) == 4
    assert memo.size == 0
    hook.remove()


def test_out_of_the_way(name, model):
    """Gradients, features of other layers, and a tower that is pruned itself."""
    given = inputs(name, model, [[3, PICTURES[0], 4]])
    with remembering(family_of(model)) as memo:
        model(**given)
        with torch.no_grad():
            model.model.get_image_features(given["pixel_values"], vision_feature_layer=-1)
            whole = model.model.get_image_features(given["pixel_values"]).pooler_output[0]
            assert memo.runs == 1
            with sparsight.prune(model.model.vision_tower, "random:keep=0.5,layers=1"):
                pruned = model.model.get_image_features(given["pixel_values"]).pooler_output[0]
        assert pruned.shape[0] < whole.shape[0]
        assert (memo.runs, memo.replays) == (1, 0)


def test_nothing_is_left(name, model):
    given = inputs(name, model, [[3, PICTURES[0], 4]])
    outcome(model, "fastervlm:tokens=5", given)  # transformers' own hooks come with the first call, and stay
    before = {module: dict(module._forward_hooks) for module in model.modules()}
    with remembering(family_of(model)):
        outcome(model, "fastervlm:tokens=5", given)
    assert before == {module: dict(module._forward_hooks) for module in model.modules()}
    assert "get_image_features" not in model.model.__dict__


def test_pictures_in_tiles_are_not_remembered():
    model = build("llava-next")
    with remembering(family_of(model)) as memo:
        assert memo is None
        assert "get_image_features" not in model.model.__dict__
