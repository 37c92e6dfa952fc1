"""What the page says of a picture is what the library says."""

import dataclasses

import pytest
import torch
from loopback import make_vit

import sparsight
from sparsight import PruneError
from sparsight.app.vision import DROPPED, FUSED, Vision
from sparsight.prune import prune


@pytest.fixture(scope="module")
def vision():
    return Vision(make_vit())


@pytest.fixture(scope="module")
def image():
    return torch.randn(3, 64, 64, generator=torch.Generator().manual_seed(1))


def test_look(vision, image):
    seen = vision.look(image, ["evit:keep=0.5,layers=0/1", "tome:remove=60,layers=1"], "PHOTO.jpg")
    with torch.inference_mode(), prune(vision.loaded.model, "evit:keep=0.5,layers=0/1") as handle:
        chances = vision.loaded.model(image[None])[0].softmax(dim=0)
        plan, counts = handle.sources()[-1], handle.counts
    evit, tome = seen.sides
    assert evit.classes[0].probability == pytest.approx(float(chances.max()), abs=1e-6)
    assert [site.tokens for site in evit.sites] == counts
    assert evit.sites[-1].owner == plan.owner[0].tolist()
    assert set(evit.sites[-1].paint) == {0, FUSED}
    assert all(0 <= shade <= 255 for shade in evit.sites[0].score)
    assert tome.sites[0].score is None
    assert DROPPED not in tome.sites[0].paint
    assert max(tome.sites[0].paint) > FUSED
    assert (seen.grid, seen.depth) == ((8, 8), 2)
    assert len(seen.classes) == 5
    assert not sparsight.handles(vision.loaded.model)


def test_code_can_be_pasted(vision, image):
    side = vision.look(image, ["evit:keep=0.5,layers=0/1"], "my photo.jpg").sides[0]
    assert side.command == "sparsight show 'my photo.jpg' --model tiny --recipe evit:keep=0.5,layers=0/1 --out kept.png"
    compile(side.python, "page", "exec")
    assert 'sparsight.prune(loaded.model, "evit:keep=0.5,layers=0/1")' in side.python


def test_one_recipe_that_cannot_be_leaves_the_other(vision, image):
    bad, good = vision.look(image, ["evit:layers=50", "resize:keep=0.25"], "PHOTO.jpg").sides
    assert "layers" in bad.error
    assert bad.sites == []
    assert good.error == ""
    assert good.sites[0].side == 0.5
    assert not sparsight.handles(vision.loaded.model)


def test_measure(vision, image):
    whole, half, own = vision.measure(image, ["col_ln:keep=0.5,layers=0", "ats:layers=0"])
    assert whole.macs == sparsight.macs(vision.loaded.model, image_size=64)
    assert half.macs == sparsight.macs(vision.loaded.model, "col_ln:keep=0.5,layers=0", image_size=64)
    assert own.macs < whole.macs
    assert whole.speedup == 1
    assert all(0 < cost.low <= cost.milliseconds <= cost.high for cost in (whole, half, own))


def test_a_model_that_was_trained_pruned(vision):
    loaded = make_vit()
    prune(loaded.model, "evit:keep=0.7,layers=1")
    found = Vision(dataclasses.replace(loaded, recipes=(sparsight.parse("evit:keep=0.7,layers=1"),)))
    assert found.first[0] == "evit:keep=0.7,layers=1"
    assert not sparsight.handles(loaded.model)
    learned = make_vit()
    prune(learned.model, "sit:keep=0.5,layers=1", weights="random")
    with pytest.raises(PruneError, match="learned weights"):
        Vision(learned)
