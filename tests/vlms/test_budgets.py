"""How many tokens of an image, a tile, a frame stay."""

import pytest
import torch
from lvlms import Size, build, inputs

import sparsight
from sparsight.vlms.tiles import spread

SMALL_AND_LARGE = [[3, Size(16, 16), 4], [2, Size(32, 32, 1), 2]]


@torch.no_grad()
def test_a_video_with_fewer_tokens_than_frames_keeps_frames_all_along():
    model = build("qwen2.5")
    with sparsight.prune(model, "col_ln:tokens=4") as handle:
        model(**inputs("qwen2.5", model, [[2, Size(16, 16, frames=8), 3]]))
        assert (handle.plans[0].keep[0] // 4).tolist() == [0, 2, 4, 6]


@torch.no_grad()
def test_weights_of_tokens_are_heard_where_no_score_asks_for_attention():
    """k_medoids weighs by the attention that tokens receive, and asks for neither q nor k."""
    for name in ("llava", "llava-next", "qwen2.5"):
        model = build(name)
        with sparsight.prune(model, "k_medoids:tokens=3") as handle:
            model(**inputs(name, model, [[3, Size(16, 16), 4]]))
            assert handle.counts == [3]


def test_leftovers_are_spread_evenly_largest_remainder_first():
    cases = [
        (32, [4] * 64, [1, 0] * 32),
        (6, [4, 4, 4, 4], [2, 1, 2, 1]),
        (10, [9, 1, 9, 1], [5, 0, 5, 0]),
        (5, [16, 8, 8], [3, 1, 1]),
        (7, [5, 3], [4, 3]),
    ]
    for count, weights, shares in cases:
        assert spread(count, weights) == shares


@pytest.mark.parametrize("recipe", ["col_ln:tokens=9", "divprune:tokens=9", "fastv:layer=1,tokens=9"])
@torch.no_grad()
def test_an_image_with_fewer_tokens_keeps_them_all(recipe):
    model = build("qwen2.5")
    given = inputs("qwen2.5", model, SMALL_AND_LARGE)
    with sparsight.prune(model, recipe) as handle:
        model(**given)
        assert handle.kept_per_image() == [4, 9]
    with sparsight.prune(model, f"{recipe},fewer=error"), pytest.raises(sparsight.PruneError, match=r"tokens=9.*more than"):
        model(**given)


@pytest.mark.parametrize(
    "recipe", ["fastv:layer=1,keep=0.5", "pyramiddrop:layers=1/2,keep=0.5/0.25", "sparsevlm:layers=0/1,count=rank,scale=0.5"]
)
@torch.no_grad()
def test_tokens_left_of_every_image_inside_the_language_model(recipe):
    model = build("llava")
    with sparsight.prune(model, recipe) as handle:
        assert handle.kept_per_image() == []
        model(**inputs("llava", model, [[2, Size(seed=1), 2, Size(seed=2), 6], [4], [3, Size(), 4]]))
        kept = handle.kept_per_image()
        assert len(kept) == 3
        assert [sum(kept[:2]), kept[2]] == [handle.plans[-1].counts[0], handle.plans[-1].counts[2]]
        first = handle.left[-1][0]
        assert kept[0] == int(((first >= 2) & (first < 18)).sum())


@pytest.mark.parametrize(("name", "recipe"), [("qwen2.5", "col_ln:tokens=16"), ("llava", "fastv:layer=1,tokens=16")])
@torch.no_grad()
def test_recipes_that_do_nothing_say_so(name, recipe):
    model = build(name)
    with sparsight.prune(model, recipe), pytest.warns(UserWarning, match="tokens=16.* so all are kept"):
        model(**inputs(name, model, SMALL_AND_LARGE))
    with pytest.warns(UserWarning, match="16 tokens, so all are kept"):
        sparsight.prune(build("llava"), "col_ln:tokens=16")


@torch.no_grad()
def test_contextual_tokens_of_visionzip_are_per_image_as_the_budget_is():
    model = build("llava-next")
    given = inputs("llava-next", model, [[3, Size(32, 32), 4]])  # an overview and four tiles of 16 patches
    with sparsight.prune(model, "visionzip:tokens=20,contextual=5") as handle:
        model(**given)
        assert handle.counts == [20]
        owner = handle.plans[0].owner[0]
        merged = [int((owner == slot).sum()) > 1 for slot in range(20)]
        assert sum(merged) == 5
    with sparsight.prune(model, "visionzip:tokens=4,contextual=2,per_tile=true") as handle:
        model(**given)
        assert handle.counts == [20]
