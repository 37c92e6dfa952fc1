"""Rank and entropy over a folder: against the maths by hand, and what is written."""

import csv
import json

import pytest
import torch
from compare_data import make_images, make_model
from PIL import Image

from sparsight import PruneError
from sparsight.evaluation import metrics
from sparsight.load.vlms import speaks
from sparsight.look.rank import pearson, rank, spearman

pytest.importorskip("timm")
pytest.importorskip("matplotlib")
lvlms = pytest.importorskip("lvlms")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_images(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def loaded():
    return make_model()


def test_numbers_are_those_of_the_block(loaded, folder):
    """Tokens after the last block but one, and the attention of its class token, taken by hooks."""
    done = rank(loaded, folder, batch_size=4)
    block, seen = loaded.model.blocks[-2], {}
    hooks = [block.register_forward_hook(lambda _m, _a, out: seen.update(x=out))]
    for name in ("q_norm", "k_norm"):
        hooks.append(getattr(block.attn, name).register_forward_hook(lambda _m, _a, out, name=name: seen.update({name: out})))
    row = done.rows[2]
    with torch.no_grad():
        loaded.model(loaded.transform(Image.open(folder / row.image).convert("RGB"))[None])
    for hook in hooks:
        hook.remove()
    q, k = seen["q_norm"], seen["k_norm"]
    attention = (q[:, :, :1] @ k.transpose(-2, -1) * block.attn.scale).softmax(-1)[:, :, 0, 1:]
    assert row.erank == pytest.approx(float(metrics.effective_rank(seen["x"][0, 1:])), rel=1e-4)
    assert row.entropy == pytest.approx(float(metrics.attention_entropy(attention)), rel=1e-4)
    assert done.score == "class"
    assert done.place == f"after block {len(loaded.model.blocks) - 2}"


def test_files(loaded, folder, tmp_path):
    (folder / "cat" / "broken.png").write_bytes(b"no image")
    try:
        done = rank(loaded, folder, tmp_path / "out")
    finally:
        (folder / "cat" / "broken.png").unlink()
    assert done.skipped == [("cat/broken.png", "not an image")]
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["rank.csv", "rank.json", "rank.png"]
    with open(tmp_path / "out" / "rank.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    assert [line["image"] for line in lines] == [row.image for row in done.rows]
    assert [float(line["erank"]) for line in lines] == [row.erank for row in done.rows]
    data = json.loads((tmp_path / "out" / "rank.json").read_text())
    assert data["pearson"] == done.pearson == pytest.approx(pearson([r.erank for r in done.rows], [r.entropy for r in done.rows]))
    with Image.open(tmp_path / "out" / "rank.png") as picture:
        assert min(picture.size) > 300
        assert len(picture.convert("RGB").getcolors(10**6)) > 10
    assert "6 images" in str(done)


def test_vision_language_models():
    model = lvlms.build("qwen2.5")
    batches = [lvlms.pixels("qwen2.5", model, [lvlms.Size(h=16 * (1 + i % 2), seed=i)]) for i in range(3)]
    done = rank(model, batches)
    assert [row.tokens for row in done.rows] == [4, 8, 4]
    assert done.score == "column_mean"
    assert done.place == "between vision encoder and language model"
    assert [row.image for row in done.rows] == ["image 0", "image 1", "image 2"]


def test_correlations_by_hand():
    assert pearson([1, 2, 3], [2, 4, 7]) == pytest.approx(5 / (2 * 38 / 3) ** 0.5)
    assert spearman([1, 2, 30], [2, 40, 41]) == pytest.approx(1)
    assert spearman([1, 1, 2], [1, 2, 3]) == pytest.approx(0.75**0.5)
    assert pearson([1, 1], [1, 2]) is None
    assert pearson([1], [2]) is None


def test_what_cannot_be_ranked(loaded, folder, tmp_path):
    with pytest.raises(PruneError, match="score='clas' is not known; choose class, col_ln, column_mean"):
        rank(loaded, folder, score="clas")
    with pytest.raises(PruneError, match="space='pixels' is not known"):
        rank(loaded, folder, space="pixels")
    with pytest.raises(PruneError, match="out of range"):
        rank(loaded, folder, layer=99)
    with pytest.raises(PruneError, match="does not exist"):
        rank(loaded, tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    with pytest.raises(PruneError, match="cannot be written"):
        rank(loaded, folder, tmp_path / "file")
    assert speaks("llava-hf/llava-1.5-7b-hf")
    assert not speaks("hf_hub:timm/some")
    assert not speaks(str(tmp_path))
