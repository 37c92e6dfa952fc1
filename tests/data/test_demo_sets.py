"""Data sets made of the packaged photos."""

import numpy as np
import pytest
import torch
from PIL import Image

from sparsight import PruneError, prune
from sparsight.data.demo_sets import KINDS, photos_of, square
from sparsight.data.reading import by_threads
from sparsight.data.sources import open_source
from sparsight.demo import demo_images
from sparsight.load.models import at_size, load


def pictures(text):
    return [np.asarray(ref.read()) for ref in open_source(text).refs(lambda place: True)]


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_words_make_the_same_pictures(kind):
    text = f"demo:{kind},size=112,n=15"
    first, again, other = pictures(text), pictures(text), pictures(f"{text},seed=1")
    assert [image.shape for image in first] == [(112, 112, 3)] * 15
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not np.array_equal(first[13], other[13])
    assert not np.array_equal(first[0], first[12])  # the same photo again: cropped, perhaps mirrored
    source = open_source(text)
    assert source.fingerprint() == open_source(text).fingerprint() != open_source(f"{text},seed=1").fingerprint()
    names = [ref.name for ref in source.refs(lambda place: True)]
    assert len(set(names)) == 15
    assert [source.classes[ref.label] in ref.name for ref in source.refs(lambda place: True)] == [True] * 15
    assert "used 1.25 times" in source.note


def test_pictures_know_their_photo():
    names = [ref.name for ref in open_source("demo:centred,n=30").refs(lambda place: True)]
    photos = photos_of(names)
    assert len(set(photos)) == 12
    assert photos[0] == photos[12] == photos[24]
    assert photos_of(names[:12]) is None
    assert photos_of(["a.png", "a.png"]) is None


def test_the_object_lies_in_the_picture_as_it_is():
    source = open_source("demo:small,size=200,object=60,n=1")
    photo = np.asarray(square(Image.open(next((demo_images() / "Leopards").iterdir())).convert("RGB"), 60, np.random, 1.0))
    picture = np.asarray(source.ref(0).read())
    ground = (picture == picture[0, 0]).all(axis=2)
    assert 0.85 < ground.mean() < 0.92
    rows, columns = (np.flatnonzero(~ground.all(axis=axis))[[0, -1]] for axis in (1, 0))
    part = picture[rows[0] : rows[1] + 1, columns[0] : columns[1] + 1]
    assert np.array_equal(part[:60, :60], photo)


def test_limit_own_photos_and_writing(tmp_path):
    source = open_source(f"demo:scene,size=64,object=32,n=40,photos={demo_images()},ground={demo_images() / 'llama'}", limit=13)
    assert (source.total, str(source)) == (13, "demo:scene,size=64,object=32,n=13,seed=0,photos=images,ground=llama: 13 images")
    source.save(tmp_path)
    written = open_source(tmp_path)
    assert written.total == 13
    assert set(written.classes) == set(source.classes)
    assert np.array_equal(np.asarray(written.ref(0).read()), np.asarray(source.ref(0).read()))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("demo:smal", "choose demo:centred, demo:small, demo:scene, demo:mosaic"),
        ("demo:small,side=3", "cannot use 'side=3'; give size="),
        ("demo:small,ground=x", "cannot use 'ground=x'"),
        ("demo:small,size=-4", "size must be whole numbers"),
        ("demo:small,size=100,object=101", "an object of 101 pixels in a picture of 100"),
        ("demo:mosaic,size=100,object=100", "cannot be made"),
        ("demo:small,n=0", "0 times, cannot be made"),
        ("demo:small,photos=/nowhere", "does not exist"),
    ],
)
def test_what_cannot_be_made_is_refused(text, message):
    with pytest.raises(PruneError, match=message):
        open_source(text)


def test_no_splits():
    with pytest.raises(PruneError, match="has no splits"):
        open_source("demo:small", "val")


def test_a_model_is_brought_to_the_size_of_the_pictures():
    demo = load("demo")
    larger = at_size(demo, 448)
    assert (larger.image_size, demo.image_size) == ((448, 448), (224, 224))
    ramp = Image.fromarray(np.random.default_rng(0).integers(0, 256, (448, 448, 3), dtype=np.uint8))
    mean, std = (torch.tensor(demo.model.default_cfg[name]).view(3, 1, 1) for name in ("mean", "std"))
    pixels = torch.from_numpy(np.asarray(ramp).copy()).permute(2, 0, 1) / 255
    torch.testing.assert_close(larger.transform(ramp), (pixels - mean) / std)
    with pytest.raises(PruneError, match="size=100 is no multiple of the patches of demo, 14 pixels"):
        at_size(demo, 100)


def correct(loaded, source, recipe):
    found = []
    with torch.inference_mode(), prune(loaded.model, recipe) as handle:
        for group in by_threads(source.refs(lambda place: True), loaded.transform, 20, 2):
            found += [int(top) == ref.label for top, ref in zip(loaded.model(group.images).argmax(dim=1), group.refs, strict=True)]
    return sum(found), handle.counts[-1]


def test_where_the_evidence_is_small_pruning_is_above_resizing_at_equal_tokens():
    source = open_source("demo:small,size=224,object=98,n=40")
    loaded = at_size(load("demo"), source.size)
    source = source.aligned(loaded.classes, len(loaded.classes))
    pruned, tokens = correct(loaded, source, "similarity:keep=0.15,layers=input")
    resized, left = correct(loaded, source, f"resize:tokens={tokens}")
    assert (tokens, left) == (39, 36)
    assert pruned >= resized + 20  # 34 against 1 of 40
