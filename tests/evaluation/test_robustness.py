"""Corruptions: reproducible, all fifteen, and what they do to a tiny model adds up."""

import numpy as np
import pytest
import torch
from compare_data import COUNT, make_images, make_model
from PIL import Image

from sparsight.errors import PruneError
from sparsight.evaluation.corruption_rows import Robustness
from sparsight.evaluation.robustness import overlap, robustness
from sparsight.ops.rank import effective_rank

pytest.importorskip("timm")
pytest.importorskip("imagecorruptions")

RECIPES = ["random:keep=0.5,layers=1/3", "class_attention:keep=0.5,layers=1/3"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    images = make_images(tmp_path_factory.mktemp("images"))
    Image.new("RGB", (20, 20)).save(images / "cat" / "small.png")
    return images


@pytest.fixture(scope="module")
def loaded():
    return make_model()


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    return tmp_path_factory.mktemp("out")


@pytest.fixture(scope="module")
def done(loaded, folder, out):
    return robustness(loaded, folder, RECIPES, out, corruptions=["jpeg_compression", "glass_blur"], severities=[1, 5], batch_size=4)


def test_all_fifteen_change_the_image_and_are_reproducible():
    from sparsight.data.corruptions import corrupt, corruption_names

    pixels = np.random.default_rng(0).integers(0, 255, (6, 8, 3), dtype=np.uint8)
    image = Image.fromarray(pixels).resize((64, 48))
    assert len(corruption_names()) == 15
    np.random.seed(5)
    state = np.random.get_state()[1].copy()
    for name in corruption_names():
        once = corrupt(image, name, 3, 7)
        assert once.size == image.size
        assert once.tobytes() != image.tobytes()
        assert corrupt(image, name, 3, 7).tobytes() == once.tobytes(), name
    assert np.array_equal(np.random.get_state()[1], state)


def test_rows(done):
    assert len(done.rows) == 3 * (1 + 2 * 2)
    assert done.images == COUNT + 1
    for row in done.rows:
        assert row.images == COUNT + (row.severity == 0)
        assert 1 <= row.rank <= 100
        assert (row.top1_change is None) == (row.severity == 0)
        assert (row.kept is None) == (row.recipe == "unpruned")
        if row.severity == 0:
            assert row.rank_change == 0
            assert row.kept in (None, 1)
        elif row.recipe.startswith("random"):
            assert row.kept == 1  # random places do not look at the image
        elif row.kept is not None:
            assert 0 < row.kept < 1
    assert [name for name, _ in done.skipped] == ["cat/small.png"]
    assert "too few to corrupt" in done.skipped[0][1]


def test_rank_is_that_of_the_tokens_after_the_last_block(done, loaded, folder):
    files = sorted(folder.rglob("*.png"))
    images = torch.stack([loaded.transform(Image.open(path).convert("RGB")) for path in files])
    kept = []
    hook = loaded.model.blocks[-1].register_forward_hook(lambda _m, _a, output: kept.append(output))
    with torch.no_grad():
        loaded.model(images)
    hook.remove()
    prefix = loaded.model.num_prefix_tokens
    assert done.rows[0].rank == pytest.approx(effective_rank(kept[0][:, prefix:]).mean().item(), rel=1e-4)


def test_files(done, out):
    assert Robustness.load(out) == done
    with Image.open(out / "robustness.png") as picture:
        assert min(picture.size) > 400
    assert "average" in str(done)
    assert str(done).count("glass_blur") == 6


def test_going_on_asks_nothing_twice(done, loaded, folder, copied):
    before = {path: path.stat().st_mtime_ns for path in (copied / "rows").iterdir()}
    robustness(loaded, folder, RECIPES, copied, corruptions=["glass_blur"], severities=[5], batch_size=4)
    assert {path: path.stat().st_mtime_ns for path in (copied / "rows").iterdir()} == before


def test_overlap_by_hand():
    clean = torch.tensor([[0, 1, 2, 3], [4, 5, -1, -1]])
    assert overlap(torch.tensor([[3, 9, 0], [4, 5, -1]]), clean) == pytest.approx((2 / 4 + 1) / 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"corruptions": ["rain"]}, "choose all or some of gaussian_noise"),
        ({"severities": [6]}, "not one of 1 to 5"),
        ({"severities": []}, "at least one"),
    ],
)
def test_bad_input(loaded, folder, tmp_path, arguments, message):
    with pytest.raises(PruneError, match=message):
        robustness(loaded, folder, out=tmp_path / "out", **arguments)
    assert not (tmp_path / "out").exists()
