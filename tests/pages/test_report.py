"""The pictures of a report: what each recipe kept of real images."""

import base64
import io
import re

import numpy as np
import pytest
from compare_data import make_images, make_model
from PIL import Image

from sparsight.evaluation.compare import compare

pytest.importorskip("timm")

RECIPES = ["evit:keep=0.5,layers=1/3", "random:keep=0.5,layers=1/3", "tome:remove=10,layers=all"]


def test_pictures_show_what_each_recipe_kept(tmp_path):
    compare(make_model(), make_images(tmp_path / "images"), [], out=tmp_path, recipes=RECIPES, beside=(), seconds=0, shown=2)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    thumbs = re.findall(r'<img alt="([^"]*)" src="data:image/png;base64,([^"]*)">', page)
    assert len(thumbs) == 2 * (1 + 1 + 1) + 2 * (2 + 2 + 4)  # at a glance the last site of each, below it all
    masks = [Image.open(io.BytesIO(base64.b64decode(data))) for _, data in thumbs]
    assert {mask.size for mask in masks} == {(10, 10)}
    kept = next(mask for mask, (text, _) in zip(masks, thumbs) if text == "block 3: 25 tokens left")
    assert (np.asarray(kept)[..., 3] == 0).sum() == 25
    assert page.count('<div class="original') == 2
    assert len(page) < 200_000
