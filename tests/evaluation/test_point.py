"""accuracy(): one recipe on pictures of one size."""

import pytest
import torch
from compare_data import COUNT, make_images, make_model

from sparsight.data.sources import open_source
from sparsight.errors import PruneError
from sparsight.evaluation.evaluate import evaluate
from sparsight.evaluation.point import Point, accuracy
from sparsight.load.models import at_size, crop_of, load
from sparsight.speed.macs import macs

pytest.importorskip("timm")

RECIPE = "evit:keep=0.5,layers=1/3"


@pytest.fixture(scope="module")
def loaded():
    return make_model()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_images(tmp_path_factory.mktemp("images"))


def test_it_says_what_evaluate_says(loaded, folder, tmp_path):
    heard = []
    point = accuracy(loaded, RECIPE, folder, batch_size=4, device="cpu", listen=heard.append)
    score = evaluate(loaded, folder, [RECIPE], tmp_path, batch_size=4, device="cpu").score(RECIPE)
    assert (point.top1, point.tokens, point.macs) == (score.top1, score.tokens, score.macs)
    assert heard == [4, COUNT - 4]
    assert sum(point.hits) == point.top1.value * COUNT
    assert Point.from_json(point.to_json()) == point
    assert "\n" not in str(point)


def test_both_dials(loaded, folder):
    state = {name: tensor.clone() for name, tensor in loaded.model.state_dict().items()}
    small, whole = accuracy(loaded, RECIPE, folder, size=96), accuracy(loaded, None, folder)
    assert (small.size, small.recipe, whole.size, whole.recipe) == ((96, 96), RECIPE, (160, 160), "unpruned")
    assert small.tokens == [19.0, 11.0]
    assert small.macs == macs(at_size(loaded, 96).model, RECIPE, 96) < macs(loaded.model, RECIPE, 160) < whole.macs
    assert all(torch.equal(tensor, state[name]) for name, tensor in loaded.model.state_dict().items())


def test_the_crop_is_the_checkpoints():
    demo = load("demo")
    assert crop_of(demo) == crop_of(at_size(demo, 112, whole=False)) == 0.875
    assert crop_of(at_size(demo, 112)) == 1
    assert at_size(demo, 224, whole=False) is demo


def test_an_opened_source_and_a_demo_set(loaded, folder):
    assert accuracy(loaded, RECIPE, open_source(folder)).images == COUNT
    made = open_source("demo:small,size=224,object=60,n=3")
    points = [accuracy("demo", "random:keep=0.5,layers=0", made, size=size) for size in (None, 112)]
    assert [point.size for point in points] == [(224, 224), (112, 112)]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"size": 100}, "no multiple of the patches"),
        ({"size": 0}, "size=0 leaves no picture"),
        ({"recipe": "evitt"}, "did you mean 'evit'"),
        ({"recipe": "evit:layers=99"}, "out of range"),
        ({"size": 96, "transform": lambda image: torch.zeros(3, 160, 160)}, "a transform of your own"),
        ({"limit": 0}, "limit=0"),
    ],
)
def test_what_cannot_be(loaded, folder, words, message):
    with pytest.raises(PruneError, match=message):
        accuracy(loaded, **{"recipe": RECIPE, "data": folder, **words})


def test_images_without_labels(loaded, tmp_path):
    with pytest.raises(PruneError, match=r"no image of .* has a label"):
        accuracy(loaded, RECIPE, make_images(tmp_path, classes=("",)))
