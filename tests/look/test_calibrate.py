"""Calibration and rank against features and attention that the model itself gives out, and what cannot be measured."""

import numpy as np
import pytest
import torch
from PIL import Image

import sparsight
from sparsight import PruneError
from sparsight.demo import demo_images
from sparsight.evaluation import metrics
from sparsight.look import complexity

lvlms = pytest.importorskip("lvlms")
processors = pytest.importorskip("test_lvlm_processors")


def pictures(count=3):
    draw = np.random.default_rng(0)
    return [Image.fromarray(draw.integers(0, 255, (30 + 5 * i, 40, 3), dtype=np.uint8)) for i in range(count)]


@pytest.fixture
def folder(tmp_path):
    for i, picture in enumerate(pictures()):
        picture.save(tmp_path / f"{i}.png")
    return tmp_path


@pytest.fixture(scope="module")
def llava():
    return lvlms.build("llava").float()


def by_hand(model, call):
    """Rank of what the projector gives, and the class token's eager attention in the layer that makes the features."""
    tower = model.model.vision_tower
    tower.set_attn_implementation("eager")
    with torch.no_grad():
        seen = tower(call["pixel_values"], output_attentions=True)
        tokens = torch.stack(list(model.model.get_image_features(**call).pooler_output))
    tower.set_attn_implementation("sdpa")
    return tokens, seen.attentions[-2][:, :, 0, 1:]


def test_averages_are_those_of_the_model(llava):
    prepare = processors.processor("llava")
    call = dict(prepare.image_processor(images=pictures(), return_tensors="pt"))
    want = metrics.calibration([by_hand(llava, call)])
    recipe = sparsight.calibrate(llava, pictures(), "agile:tokens=5,by=entropy", processor=prepare, batch_size=2)
    got = dict(recipe.params)
    assert {name: got[name] for name in want} == pytest.approx(want, rel=1e-4)
    assert str(recipe).startswith("agile:tokens=5,by=entropy,")
    assert sparsight.parse(str(recipe)) == recipe
    assert sparsight.Recipe.from_json(recipe.to_json()) == recipe
    with sparsight.prune(llava, recipe) as handle, torch.no_grad():
        text = prepare(images=[pictures()[:1]], text=["USER: <image> what is this ? ASSISTANT:"], return_tensors="pt")
        llava(**text)
        assert handle.counts == [5]


def test_a_calibrated_image_is_average(llava):
    """With an average of its own, one image is exactly as complex as the average: an adaptive count stays at `tokens`."""
    prepare = processors.processor("llava")
    one = pictures(1)
    recipe = sparsight.calibrate(llava, one, "agile:tokens=7,count=adaptive", processor=prepare)
    call = prepare(images=[one], text=["USER: <image> what is this ? ASSISTANT:"], return_tensors="pt")
    with sparsight.prune(llava, recipe) as handle, torch.no_grad():
        llava(**call)
        assert handle.counts == [7]


@pytest.mark.parametrize("form", ["folder", "paths", "pictures", "batch", "batches"])
def test_forms_of_images(llava, folder, form):
    prepare = processors.processor("llava")
    paths = sorted(folder.iterdir())
    batch = [prepare.image_processor(images=pictures()[i : i + 2], return_tensors="pt") for i in (0, 2)]
    given = {"folder": str(folder), "paths": paths, "pictures": pictures(), "batch": batch[0], "batches": iter(batch)}[form]
    got = dict(sparsight.calibrate(llava, given, processor=prepare).params)["erank_avg"]
    all_three = dict(sparsight.calibrate(llava, pictures(), processor=prepare).params)["erank_avg"]
    if form == "batch":
        all_three = dict(sparsight.calibrate(llava, pictures(2), processor=prepare).params)["erank_avg"]
    assert got == pytest.approx(all_three, rel=1e-5)


def test_mix_gets_the_range_of_the_images(llava):
    prepare = processors.processor("llava")
    call = dict(prepare.image_processor(images=pictures(), return_tensors="pt"))
    ranks = metrics.effective_rank(by_hand(llava, call)[0]).tolist()
    got = dict(sparsight.calibrate(llava, pictures(), "mix:tokens=4", processor=prepare).params)
    assert got["erank_span"] == pytest.approx(max(ranks) - min(ranks), rel=1e-3)
    assert got["entropy_span"] > 0
    assert dict(sparsight.calibrate(llava, pictures(1), "mix:tokens=4", processor=prepare).params)["erank_span"] == 103.0


@pytest.mark.parametrize("name", ["llava-siglip", "llava-next", "onevision", "qwen2.5", "qwen3"])
def test_every_family(name):
    model = lvlms.build(name)
    sizes = [lvlms.Size(), lvlms.Size(seed=1)]
    call = lvlms.pixels(name, model, sizes)
    score = "" if name == "llava-next" else ",score=column_mean"
    recipe = sparsight.calibrate(model, call, f"agile:tokens=3{score}")
    alone = [sparsight.calibrate(model, lvlms.pixels(name, model, [size]), recipe) for size in sizes]
    for average in ("erank_avg", "entropy_avg"):
        values = [dict(one.params)[average] for one in alone]
        assert dict(recipe.params)[average] == pytest.approx(sum(values) / 2)
    assert 1 <= dict(recipe.params)["erank_avg"] <= 32


def test_encoders_without_class_token_say_what_to_use():
    model = lvlms.build("qwen2.5")
    call = lvlms.pixels("qwen2.5", model, [lvlms.Size()])
    with pytest.raises(PruneError, match=r"agile scores by class attention.*no class token.*score=column_mean"):
        sparsight.calibrate(model, call)
    assert complexity.score_of(model)[0] == "column_mean"


def test_unreadable_files_are_left_out(llava, folder):
    prepare = processors.processor("llava")
    want = sparsight.calibrate(llava, str(folder), processor=prepare)
    (folder / "broken.png").write_bytes(b"no image")
    with pytest.warns(UserWarning, match=r"1 images cannot be read .*broken.png: not an image"):
        assert sparsight.calibrate(llava, str(folder), processor=prepare) == want


def test_what_cannot_be_calibrated(llava, tmp_path):
    prepare = processors.processor("llava")
    with pytest.raises(PruneError, match="list of images is empty"):
        sparsight.calibrate(llava, [], processor=prepare)
    with pytest.raises(PruneError, match="no erank_avg and entropy_avg"):
        sparsight.calibrate(llava, pictures(), "fastervlm:tokens=3", processor=prepare)
    with pytest.raises(PruneError, match="no image file"):
        sparsight.calibrate(llava, ["nowhere.png"], processor=prepare)
    with pytest.raises(PruneError, match="is empty"):
        sparsight.calibrate(llava, tmp_path, processor=prepare)
    with pytest.raises(PruneError, match="path, a PIL image or a batch"):
        sparsight.calibrate(llava, [3], processor=prepare)
    with pytest.raises(PruneError, match="must be a folder, files"):
        sparsight.calibrate(llava, 3, processor=prepare)
    with pytest.raises(PruneError, match="does not say where it was loaded from"):
        sparsight.calibrate(llava, pictures())
    with pytest.raises(PruneError, match="batch_size=0"):
        sparsight.calibrate(llava, pictures(), processor=prepare, batch_size=0)
    (tmp_path / "broken.png").write_bytes(b"no image")
    with pytest.raises(PruneError, match=r"no image can be read .*broken.png"):
        sparsight.calibrate(llava, tmp_path, processor=prepare)


def test_a_vision_model_by_name_is_measured():
    """As `sparsight calibrate --model demo`: the averages of the encoder, which agile may be given in a model built on it."""
    recipe = sparsight.calibrate("demo", demo_images())
    values = dict(recipe.params)
    assert recipe.name == "agile"
    assert 1 < values["erank_avg"] < 256
    assert 0 < values["entropy_avg"] < 5.6
