"""show() draws a sheet; the patches in it are those of the plans."""

import itertools

import numpy as np
import pytest
import torch
from compare_data import make_images, make_model
from PIL import Image

from sparsight.errors import PruneError
from sparsight.look.patches import FUSED, WHITE, look, pictures, tint
from sparsight.look.sheet import Sheet, font, lines
from sparsight.look.show import show
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
    (cell,) = found.rows[0]
    assert cell.total == 100
    assert len(cell.tokens) == len(cell.layers)
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
        ((image, loaded, "evit:layers=1", tmp_path / "kept.bmp"), r"must end in \.png, \.svg, \.gif or \.webp"),
        ((image, loaded, "evit:layers=1", broken / "kept.png"), "cannot be written"),
    ):
        with pytest.raises(PruneError, match=message):
            show(*arguments)
    with pytest.raises(PruneError, match="a question needs a vision-language model"):
        show(image, loaded, "evit:layers=1", question="what is it ?")
    assert [file.name for file in tmp_path.iterdir()] == ["broken.png"]


def test_long_names_are_broken_not_cut():
    name = "compose:keep=0.5,layers=0/1/2/3/4/5/6/7/8/9/10/11,score=col_ln,select=topk,reduce=fuse_rest"
    for width in (60, 400, 5000):
        found = lines(name, 24, width)
        assert "".join(found) == name
        assert all(font(24).getlength(line) <= width for line in found)
    assert len(found) == 1


RECIPES = ["evit:keep=0.5,layers=1/3", "tome:remove=9,layers=1/2"]


@pytest.fixture(scope="module")
def table(loaded, image):
    return show([image, Image.new("RGB", (80, 50), "navy")], loaded, RECIPES)


def test_images_and_recipes_are_rows_and_columns(table):
    assert [[(cell.image, cell.recipe) for cell in row] for row in table.rows] == [
        [(name, str(parse(recipe))) for recipe in RECIPES] for name in (table.rows[0][0].image, "image")
    ]
    cell = table.rows[0][0]
    assert cell.left == "27 of 100 tokens left, 27%"
    assert "%" in cell.before
    assert "%" in cell.after
    assert len(str(table).splitlines()) == 4


def test_an_svg_has_the_texts_of_the_picture(table, tmp_path):
    from xml.etree import ElementTree

    table.save(tmp_path / "kept.svg")
    root = ElementTree.parse(tmp_path / "kept.svg").getroot()
    texts = [node.text for node in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"27 of 100 tokens left, 27%", table.rows[0][0].before, *map(str, map(parse, RECIPES))} <= set(texts)
    assert len(list(root.iter("{http://www.w3.org/2000/svg}image"))) == 2 * 3
    assert root.get("width") == str(table.sheet.raster().width)


def test_a_name_is_text_in_an_svg():
    sheet = Sheet(200)
    sheet.write(0, 0, ["<script>&\x00"], 12)
    assert "&lt;script&gt;&amp;?</text>" in sheet.svg()


@pytest.mark.parametrize("suffix", [".gif", ".webp"])
def test_layers_follow_each_other(table, tmp_path, suffix):
    table.save(tmp_path / f"kept{suffix}")
    with Image.open(tmp_path / f"kept{suffix}") as moving:
        assert moving.n_frames == 1 + len({1, 2, 3})
        frames = []
        for place in range(moving.n_frames):
            moving.seek(place)
            frames.append(np.asarray(moving.convert("RGB")).astype(int))
    assert all(np.abs(one - other).mean() > 1 for one, other in itertools.pairwise(frames))


def test_a_notebook_shows_it(loaded, image, tmp_path):
    table = show(image, loaded, RECIPES[0])
    assert table._repr_png_().startswith(b"\x89PNG")
    assert table._repr_html_() is None
    assert 'src="data:image/gif;base64,' in table.save(tmp_path / "kept.gif")._repr_html_()


def test_a_smaller_picture_is_shown_smaller(loaded, image):
    from sparsight.look.overlay import EMPTY, kept

    view = show(image, loaded, "resize:keep=0.25").rows[0][0].views[0]
    assert kept(view.picture, view.sites[0]).getpixel((2, 2)) == EMPTY
