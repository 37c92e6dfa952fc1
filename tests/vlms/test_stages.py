"""bench-vlm on every kind of model, from folders as users have them."""

import pytest
from lvlms import build
from PIL import Image
from test_lvlm_processors import photo, processor

from sparsight import PruneError
from sparsight.speed.bench_vlm import bench_vlm

LATER = "fastv:layer=1,keep=0.5"


@pytest.mark.parametrize("name", ["llava-next", "onevision", "qwen2.5"])
def test_a_folder_of_each_family(name, tmp_path):
    build(name).float().save_pretrained(tmp_path / "model")
    processor(name).save_pretrained(tmp_path / "model")
    images = tmp_path / "images"
    images.mkdir()
    for i, size in enumerate(((40, 24), (64, 64))):
        Image.fromarray(photo(*size, i)).save(images / f"{i}.png")
    done = bench_vlm(
        str(tmp_path / "model"), ["divprune:tokens=5", LATER], tmp_path / "out", images=images, prompt="what is this ?", batch_size=2,
        new_tokens=2, rounds=2,
    )  # fmt: skip
    plain, before, inside = done.rows
    assert plain.visual > 10
    assert before.left == [10]
    assert before.macs.prefill < plain.macs.prefill
    assert all(times.selection > 0 for row in (before, inside) for times in row.runs)
    first, *rest = plain.footprint.lengths
    assert rest == [first] * 2
    assert len(set(before.footprint.lengths)) == 1
    assert before.footprint.lengths[0] < first
    assert inside.footprint.lengths[0] == first > inside.footprint.lengths[1] == inside.footprint.lengths[2]


def test_scores_that_the_encoder_cannot_give_are_refused(tmp_path):
    build("qwen2.5").float().save_pretrained(tmp_path / "model")
    processor("qwen2.5").save_pretrained(tmp_path / "model")
    with pytest.raises(PruneError, match="no class token"):
        bench_vlm(str(tmp_path / "model"), ["fastervlm:tokens=5"], tmp_path / "out")
    assert not (tmp_path / "out").exists()
