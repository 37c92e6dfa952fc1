"""Damaged files: checkpoints, configurations, questions and images are read, or refused by a PruneError that can be shown."""

import io
import json
import random
import shutil

import pytest
import torch
from PIL import Image

from sparsight import PruneError
from sparsight.data.images import batches, open_folder
from sparsight.data.questions import read_set
from sparsight.load.checkpoint import read_shapes
from sparsight.load.models import load

ODD = [
    5, -1, 0, 0.5, 1e400, float("nan"), 10**30, True, None, "", "x", "x" * 5000, "\x1b[31m", "\ud800", "../..", [], [[]], [None], {}, {"a": {}},
]  # fmt: skip


def spoil(data: bytes, dice: random.Random) -> bytes:
    """The bytes cut, changed, doubled or replaced somewhere."""
    at, length = dice.randrange(len(data)), dice.choice((1, 4, 64))
    other = dice.randbytes(length)
    return dice.choice((data[:at], data[:at] + other + data[at + length :], data[:at] + other + data[at:], data[at:], other, b""))


def spoil_json(value, dice: random.Random):
    """One value somewhere in it is another one, or gone; or the text is spoilt."""
    if dice.random() < 0.1:
        return spoil(json.dumps(value).encode(), dice)
    changed = json.loads(json.dumps(value))
    here = changed
    while True:
        places = list(here) if isinstance(here, dict) else list(range(len(here)))
        place = dice.choice(places)
        if isinstance(here[place], (dict, list)) and here[place] and dice.random() < 0.5:
            here = here[place]
            continue
        if dice.random() < 0.2:
            del here[place]
        else:
            here[place] = dice.choice(ODD)
        return json.dumps(changed).encode()


def examine(read) -> bool:
    """Run it; whether it refused, with a message of one line that is not too long."""
    try:
        read()
    except PruneError as error:
        message = str(error)
        assert message.isprintable(), message
        assert len(message) < 1500, message
        return True
    return False


@pytest.fixture(scope="module")
def transformers_folder(tmp_path_factory):
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("vit")
    config = transformers.ViTConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, image_size=16, patch_size=8
    )
    transformers.ViTForImageClassification(config).save_pretrained(folder)
    transformers.ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(folder)
    assert load(str(folder)).image_size == (16, 16)
    return folder


@pytest.fixture(scope="module")
def timm_folder(tmp_path_factory):
    timm = pytest.importorskip("timm")
    folder = tmp_path_factory.mktemp("timm")
    model = timm.create_model("test_vit", num_classes=3)
    timm.models.save_for_hf(model, folder, safe_serialization=True)
    assert load(str(folder)).classes is None
    return folder


def files(count: int, folder, name: str, dice: random.Random, tmp_path):
    """Copies of a folder of which one file is spoilt."""
    whole = (folder / name).read_bytes()
    for number in range(count):
        copy = tmp_path / f"{name}-{number}"
        shutil.copytree(folder, copy)
        (copy / name).write_bytes(spoil_json(json.loads(whole), dice) if name.endswith(".json") else spoil(whole, dice))
        yield copy
        shutil.rmtree(copy)


def checkpoints(count, tmp_path, transformers_folder, timm_folder) -> int:
    dice, refused = random.Random(count), 0
    for copy in files(count, timm_folder, "model.safetensors", dice, tmp_path):
        refused += examine(lambda copy=copy: read_shapes(copy / "model.safetensors"))
        examine(lambda copy=copy: load(f"test_vit@{copy / 'model.safetensors'}"))
    return refused


def configurations(count, tmp_path, transformers_folder, timm_folder) -> int:
    dice, refused = random.Random(count), 0
    for folder, name in (
        (transformers_folder, "config.json"),
        (transformers_folder, "preprocessor_config.json"),
        (timm_folder, "config.json"),
    ):
        for copy in files(count // 3, folder, name, dice, tmp_path):
            refused += examine(lambda copy=copy: use(load(str(copy))))
    return refused


def use(loaded) -> None:
    """The transform that a configuration describes."""
    loaded.transform(Image.new("RGB", (20, 20)))


def questions(count, tmp_path, transformers_folder, timm_folder) -> int:
    dice, refused = random.Random(count), 0
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    lines = [{"id": str(n), "image": ["a.png"], "question": "What?", "answer": ["this", "that"], "category": "c"} for n in range(3)]
    for number in range(count):
        file = tmp_path / f"{number}.jsonl"
        file.write_bytes(b"\n".join([*(json.dumps(line).encode() for line in lines[:2]), spoil_json(lines[2], dice)]))
        refused += examine(lambda file=file: read_set(file))
    return refused


def images(count, tmp_path, transformers_folder, timm_folder) -> int:
    dice = random.Random(count)
    kinds = {"png": "RGBA", "jpg": "RGB", "gif": "P", "bmp": "L", "webp": "RGB", "tiff": "I;16"}
    for number in range(count):
        ending, mode = dice.choice(list(kinds.items()))
        whole = io.BytesIO()
        Image.new(mode, (9, 7)).save(whole, "JPEG" if ending == "jpg" else ending.upper())
        (tmp_path / f"{number}.{ending}").write_bytes(spoil(whole.getvalue(), dice))
    found = batches(open_folder(tmp_path), lambda image: torch.zeros(1), size=8, workers=1)
    read = sum(len(places) for _, places in found)
    assert read + len(found.skipped) == count
    return len(found.skipped)


KINDS = [checkpoints, configurations, questions, images]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_some(kind, tmp_path, transformers_folder, timm_folder):
    assert kind(12, tmp_path, transformers_folder, timm_folder)


@pytest.mark.product
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_many(kind, tmp_path, transformers_folder, timm_folder):
    assert kind(60, tmp_path, transformers_folder, timm_folder) > 5
