"""show() draws a sheet; the patches in it are those of the plans."""

import numpy as np
import pytest
import torch
from compare_data import make_images, make_model
from PIL import Image

from sparsight.errors import PruneError
from sparsight.look.patches import FUSED, WHITE, look, pictures, tint
from sparsight.look.show import font, lines, show
from sparsight.plan import Plan
from sparsight.prune import prune
from sparsight.registry import parse

pytest.importorskip("timm")


@pytest.fixture(scope="module")
def loaded():
    return make_model()


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    return next(make_images(tmp_path_factory.mktemp("images")).rglob("*.png"))


@pytest.mark.parametrize("recipe", ["col_ln:keep=0.5,layers=1/3", "evit:keep=0.5,layers=1/3", "tome:remove=9,layers=all"])
def test_a_sheet_is_drawn(loaded, image, tmp_path, recipe):
    found = show(image, loaded, recipe, tmp_path / "new" / "kept.png")
    with Image.open(tmp_path / "new" / "kept.png") as sheet:
        assert sheet.width > 600
        assert len(sheet.getcolors(1 << 24)) > 100
    assert found.patches == 100
    assert len(found.tokens) == len(found.layers)
    assert "\n" not in str(found)
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["kept.png"]


def test_tint_follows_the_composed_plan(loaded):
    images = torch.randn(2, 3, *loaded.image_size)
    sites = look(loaded.model, parse("random:keep=0.5,layers=1/3"), images)[1]
    with torch.no_grad(), prune(loaded.model, "random:keep=0.5,layers=1/3") as handle:
        loaded.model(images)
        kept = handle.sources()[1].keep[1]
    assert [site.tokens for site in sites] == [50, 25]
    clear = tint(sites[1])[..., 3].reshape(-1) == 0
    assert np.flatnonzero(clear).tolist() == kept.tolist()
    assert np.isnan(sites[1].score).sum() == 50


def test_fused_and_merged_patches_are_coloured(loaded):
    images = torch.randn(1, 3, *loaded.image_size)
    evit = look(loaded.model, parse("evit:keep=0.5,layers=1"), images)[0][0]
    colours = {tuple(c) for c in tint(evit).reshape(-1, 4).tolist()}
    assert {c[:3] for c in colours if c[3]} == {FUSED}
    tome = look(loaded.model, parse("tome:remove=20,layers=1"), images)[0][0]
    assert tome.shared
    assert (tint(tome)[..., 3] == 0).sum() == np.sum(np.unique(tome.owner, return_counts=True)[1] == 1)
    assert WHITE not in {tuple(c) for c in tint(tome).reshape(-1, 4).tolist()}


def test_pictures_are_what_the_model_sees(loaded, image):
    with Image.open(image) as source:
        tensor = loaded.transform(source.convert("RGB"))
    drawn = pictures(tensor.unsqueeze(0), loaded.transform)[0]
    assert drawn.size == (160, 160)
    again = loaded.transform(drawn)
    if drawn.size == tuple(tensor.shape[1:]):
        assert again.shape == tensor.shape


def test_scores_of_later_sites_reach_the_patches(loaded):
    plan = Plan(torch.tensor([[0, 3]]), 4)
    from sparsight.look.patches import spread

    assert np.array_equal(spread(plan, torch.tensor([[1.0, 2.0]]), 0), [1.0, np.nan, np.nan, 2.0], equal_nan=True)


def test_bad_input(loaded, image, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    for arguments, message in (
        ((tmp_path / "none.png", loaded, "evit"), "no image file"),
        ((broken, loaded, "evit:layers=1"), "not an image"),
        ((image, loaded, "evit:layers=99"), "out of range"),
        ((image, loaded, "evit:layers=1", tmp_path / "kept.bmp"), r"must end in \.png"),
        ((image, loaded, "evit:layers=1", broken / "kept.png"), "cannot be written"),
    ):
        with pytest.raises(PruneError, match=message):
            show(*arguments)
    assert [file.name for file in tmp_path.iterdir()] == ["broken.png"]


def test_long_names_are_broken_not_cut():
    name = "compose:keep=0.5,layers=0/1/2/3/4/5/6/7/8/9/10/11,score=col_ln,select=topk,reduce=fuse_rest"
    for width in (60, 400, 5000):
        found = lines(name, 24, width)
        assert "".join(found) == name
        assert all(font(24).getlength(line) <= width for line in found)
    assert len(found) == 1
