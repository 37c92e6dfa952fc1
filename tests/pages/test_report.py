"""report.html: one page without anything from outside, with every row, both plots and every picture."""

import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from compare_data import make_images, make_model
from PIL import Image

from sparsight.evaluation.compare import compare
from sparsight.pages.plots import Point, Series, axis, plot
from sparsight.speed.timing import GAINS

pytest.importorskip("timm")

RECIPES = ["evit:keep=0.5,layers=1/3", "random:keep=0.5,layers=1/3", "tome:remove=10,layers=all"]


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    out = tmp_path_factory.mktemp("report")
    made = compare(make_model(), make_images(out / "images"), [], out=out, recipes=RECIPES, seconds=0, shown=2)
    return made, (out / "report.html").read_text(encoding="utf-8")


class Tags(HTMLParser):
    """Collects start tags and fails on unbalanced ones."""

    def __init__(self):
        super().__init__()
        self.found, self.open = [], []

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def tags(page):
    parser = Tags()
    parser.feed(page)
    assert not parser.open
    return parser.found


def test_readers_learn_what_is_not_due_to_fewer_tokens(done):
    assert GAINS in done[1]


def test_nothing_comes_from_outside(done):
    links = [attrs[name] for _, attrs in tags(done[1]) for name in ("src", "href") if name in attrs]
    assert links
    assert all(link.startswith("data:image/") for link in links)
    assert all(url.startswith('"data:') for url in re.findall(r"url\((.{6})", done[1]))
    assert "<script" not in done[1]
    assert "@import" not in done[1]


def test_every_row_and_both_plots_are_there(done):
    made, page = done
    assert page.count("<figure>") == 2
    for row in made.rows:
        assert row.label in page
        assert f"{row.gmacs:.2f}" in page
    points = [tag for tag, attrs in tags(page) if tag == "title"]
    assert len(points) == 1 + 2 * len(made.rows) + len(RECIPES)


def test_pictures_show_what_each_recipe_kept(done):
    page = done[1]
    thumbs = [attrs for tag, attrs in tags(page) if tag == "img"]
    assert len(thumbs) == 2 * (2 + 2 + 4)
    masks = [Image.open(io.BytesIO(base64.b64decode(attrs["src"].partition(",")[2]))) for attrs in thumbs]
    assert {mask.size for mask in masks} == {(10, 10)}
    random = next(a for a, t in zip(masks, thumbs) if t["alt"] == "block 3: 25 tokens left")
    assert (np.asarray(random)[..., 3] == 0).sum() == 25
    assert len(page) < 200_000


def test_axis_has_round_ticks():
    assert axis([1.0, 1.9], 0, 100).ticks == [1.0, 1.2, 1.4, 1.6, 1.8] or len(axis([1.0, 1.9], 0, 100).ticks) in range(4, 10)
    assert max(axis([97.0, 100.0], 0, 100, most=100).ticks) <= 100
    assert len(axis([3.0, 3.0], 0, 100).ticks) >= 3


def test_names_are_escaped():
    svg = plot([Series("a", 0, points=[Point(1, 2, "<b>")])], Point(1, 1, "&"), "x", "y")
    assert "<b>" not in svg
    assert "&lt;b&gt;" in svg
