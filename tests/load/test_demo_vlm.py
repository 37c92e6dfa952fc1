"""The demo vision-language model's form of storage: what is in the file, what the embedded ViT gives, and what is refused."""

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

pytest.importorskip("transformers")
pytest.importorskip("timm")

from PIL import Image
from tiny_demo import save_compact, save_scenes

import sparsight
from sparsight import PruneError
from sparsight.demo import demo_images, demo_weights
from sparsight.demo.tower import dinov2_state
from sparsight.load import demo_vlm
from sparsight.load.models import data_folder
from sparsight.load.vlms import find_source, speaks


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("package") / "vlm"
    save_scenes(made, 2)
    return save_compact(made)


@pytest.fixture(scope="module")
def loaded(folder):
    return sparsight.load_vlm(str(folder))


@pytest.fixture
def damaged(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "vlm")


@pytest.fixture
def package(folder, monkeypatch):
    """The folder in the place of the package's."""
    monkeypatch.setattr(demo_vlm, "FOLDER", folder)
    return folder


def test_weights(folder, loaded):
    state, stored, tower = loaded.model.state_dict(), load_file(folder / "model.safetensors"), dinov2_state(demo_weights()[0])
    start = "model.vision_tower."
    for name, value in tower.items():
        trained = start + name in stored
        assert torch.equal(state[start + name], value) != trained, name
    name = "model.multi_modal_projector.linear_1.weight"
    assert torch.equal(state[name], stored[name].float() * stored[name + "::scale"].float()[:, None])
    assert state["lm_head.weight"].data_ptr() == state["model.language_model.embed_tokens.weight"].data_ptr()
    assert not loaded.model.training


def test_it_answers_and_is_pruned(loaded):
    photo = Image.open(demo_images() / "okapi" / "image_0022.jpg").convert("RGB")
    call = loaded.processor(images=[photo], text=["user : <image> what is this ? assistant :"], return_tensors="pt")
    with torch.no_grad(), sparsight.prune(loaded.model, "fastervlm:tokens=16") as handle:
        made = loaded.model.generate(**call, max_new_tokens=3, do_sample=False)
        assert handle.counts == [16]
    assert made.shape[1] > call["input_ids"].shape[1] == 256 + 8


def test_by_its_name(package):
    assert speaks("demo-vlm")
    source = find_source("demo-vlm", None, None)
    assert (source.name, source.path, source.depth) == ("demo-vlm", str(package), 4)
    model = source.load("cpu", torch.float32, 0)
    assert model.config._name_or_path == "demo-vlm"
    assert data_folder("demo-vlm", None) == package / "pictures"
    tower = sparsight.load("demo-vlm")
    assert type(tower.model).__name__ == "Dinov2Model"
    assert tower.image_size == (224, 224)


def test_layers_can_be_cut(folder):
    source = find_source(str(folder), None, 2)
    assert len(source.load("cpu", torch.float32, 0).model.language_model.layers) == 2


@pytest.mark.parametrize("gone", ["config.json", "model.safetensors", "tokenizer.json", "questions.jsonl", "pictures"])
def test_a_part_is_missing(damaged, monkeypatch, gone):
    monkeypatch.setattr(demo_vlm, "FOLDER", damaged)
    (shutil.rmtree if gone == "pictures" else type(damaged).unlink)(damaged / gone)
    with pytest.raises(PruneError, match=rf"demo-vlm is not whole: {gone} missing.*install sparsight again"):
        find_source("demo-vlm", None, None)


def change(folder, how):
    stored = load_file(folder / "model.safetensors")
    how(stored)
    save_file(stored, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("how", "says"),
    [
        (lambda s: s.pop("model.language_model.norm.weight"), r"1 tensors missing \(model.language_model.norm.weight"),
        (lambda s: s.update(more=torch.ones(2)), r"1 tensors unexpected \(more"),
        (lambda s: s["model.language_model.norm.weight"].fill_(torch.nan), "NaN or infinite numbers"),
        (lambda s: s.update({"model.language_model.norm.weight": torch.ones(3)}), "of another shape"),
    ],
    ids=["missing", "unexpected", "not finite", "shape"],
)
def test_weights_that_do_not_fit(damaged, how, says):
    change(damaged, how)
    with pytest.raises(PruneError, match=says):
        sparsight.load_vlm(str(damaged))


def test_a_file_cut_off(damaged):
    data = (damaged / "model.safetensors").read_bytes()
    (damaged / "model.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(PruneError, match="no readable safetensors file"):
        sparsight.load_vlm(str(damaged))
