"""Models from names, folders and files, and every way in which that can fail. No network is touched."""

import json
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from sparsight.demo import demo_images
from sparsight.errors import PruneError
from sparsight.load.models import load, open_model

timm = pytest.importorskip("timm")
transformers = pytest.importorskip("transformers")
ARCHITECTURE = "test_vit"
"""timm's own miniature, made for tests."""


@pytest.fixture(scope="module")
def timm_file(tmp_path_factory):
    """A timm checkpoint with 7 classes."""
    path = tmp_path_factory.mktemp("timm") / "model.safetensors"
    save_file(timm.create_model(ARCHITECTURE, num_classes=7).state_dict(), path)
    return path


def hf_folder(path, model, processor=None):
    """Save a tiny transformers model as a user would."""
    model.save_pretrained(path)
    processor = processor or transformers.ViTImageProcessor(size={"height": 32, "width": 32})
    processor.save_pretrained(path)
    return path


def vit_config(**changes):
    """A ViT of 2 blocks."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    return transformers.ViTConfig(**{**sizes, "image_size": 32, "patch_size": 8, **changes})


@pytest.fixture(scope="module")
def hf_vit(tmp_path_factory):
    """A folder with a ViT classifier that has class names."""
    config = vit_config(id2label={0: "cat", 1: "dog", 2: "emu"}, label2id={"cat": 0, "dog": 1, "emu": 2})
    return hf_folder(tmp_path_factory.mktemp("vit"), transformers.ViTForImageClassification(config))


def run(loaded):
    """The model's answer to one picture."""
    with torch.inference_mode():
        return loaded.model(loaded.transform(Image.new("RGB", (60, 50), "orange"))[None])


def test_checkpoint_file(timm_file):
    loaded = load(f"{ARCHITECTURE}@{timm_file}")
    assert not loaded.model.training
    assert loaded.classes is None
    assert loaded.image_size == (160, 160)
    assert run(loaded).shape == (1, 7)
    assert torch.equal(loaded.model.state_dict()["head.weight"], load_file(timm_file)["head.weight"])


def test_checkpoint_file_in_half_precision_without_head_at_another_size(tmp_path):
    state = timm.create_model(ARCHITECTURE, num_classes=0, img_size=64).half().state_dict()
    save_file(state, tmp_path / "small.safetensors")
    loaded = load(f"{ARCHITECTURE}@{tmp_path / 'small.safetensors'}")
    assert loaded.image_size == (64, 64)
    assert loaded.model.num_classes == 0
    assert next(loaded.model.parameters()).dtype == torch.float32
    assert run(loaded).shape == (1, loaded.model.num_features)


@pytest.mark.parametrize("prefix", ["", "local-dir:"])
def test_timm_folder(tmp_path, prefix):
    model = timm.create_model(ARCHITECTURE, num_classes=2, img_size=64)
    timm.models.save_for_hf(
        model, tmp_path, model_config={"label_names": ["cat", "dog"]}, model_args={"img_size": 64}, safe_serialization=True
    )
    loaded = load(f"{prefix}{tmp_path}")
    assert loaded.classes == ["cat", "dog"]
    assert loaded.image_size == (64, 64)
    model.eval()
    with torch.inference_mode():
        assert torch.equal(run(loaded), model(loaded.transform(Image.new("RGB", (60, 50), "orange"))[None]))


def test_transformers_classifier(hf_vit):
    loaded = load(str(hf_vit))
    assert loaded.classes == ["cat", "dog", "emu"]
    assert loaded.image_size == (32, 32)
    assert not loaded.model.training
    assert run(loaded).logits.shape == (1, 3)
    assert loaded.transform(Image.new("RGB", (99, 33), "white")).max() == 1.0


def test_transformers_placeholder_names_are_no_names(tmp_path):
    hf_folder(tmp_path, transformers.ViTForImageClassification(vit_config(num_labels=4)))
    assert load(str(tmp_path)).classes is None


def test_transformers_half_precision_becomes_float32(tmp_path):
    hf_folder(tmp_path, transformers.ViTForImageClassification(vit_config(num_labels=4)).half())
    assert next(load(str(tmp_path)).model.parameters()).dtype == torch.float32


def test_transformers_encoder_with_and_without_pooler(tmp_path):
    for pooler in (True, False):
        folder = hf_folder(tmp_path / str(pooler), transformers.ViTModel(vit_config(), add_pooling_layer=pooler))
        loaded = load(str(folder))
        assert loaded.classes is None
        assert run(loaded).last_hidden_state.shape == (1, 17, 16)
        assert (loaded.model.pooler is not None) == pooler


@pytest.mark.parametrize("kind", ["CLIP", "Siglip"])
def test_transformers_vision_tower(tmp_path, kind):
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    vision = {**sizes, "image_size": 32, "patch_size": 8}
    text = {**sizes, "vocab_size": 50, "max_position_embeddings": 8}
    config = getattr(transformers, f"{kind}Config")(text_config=text, vision_config=vision)
    whole = getattr(transformers, f"{kind}Model")(config).eval()
    loaded = load(str(hf_folder(tmp_path, whole)))
    pixels = loaded.transform(Image.new("RGB", (60, 50), "orange"))[None]
    with torch.inference_mode():
        assert torch.equal(run(loaded).last_hidden_state, whole.vision_model(pixels).last_hidden_state)


NAMES = {
    "vit_smal_patch16_224": r"timm has no model 'vit_smal_patch16_224'; did you mean .*vit_small_patch16_224",
    "zzzzzzzz": "sparsight takes timm names, folders",
    "vit_small_patch16_224.nonsense": "has no tag 'nonsense'; known tags: .*augreg",
    "vit_small_patch16_18x2_224": "no pretrained weights of vit_small_patch16_18x2_224; give your own as",
    "some/where": r"no model folder 'some/where'; for .* write hf_hub:some/where",
    "": "name is empty",
    "weights.pth": "pickled checkpoint, and reading one can run any code in it; convert it .*safetensors.torch.save_file",
    "test_vit@weights.bin": "pickled checkpoint",
    "weights.safetensors": "which timm architecture it is for, as in",
    "test_vit@none.safetensors": "no checkpoint file none.safetensors",
}


@pytest.mark.parametrize("name", NAMES)
def test_bad_names(name):
    with pytest.raises(PruneError, match=NAMES[name]):
        load(name)


def test_wrong_architecture_of_a_good_file(timm_file):
    with pytest.raises(PruneError, match=r"did you mean .*test_vit"):
        load(f"test_vitt@{timm_file}")
    with pytest.raises(PruneError, match=r"does not match vit_tiny_patch16_224@.*tensors missing \(.*of another shape \("):
        load(f"vit_tiny_patch16_224@{timm_file}")


def test_checkpoint_with_missing_unexpected_and_wrong_tensors(timm_file, tmp_path):
    state = load_file(timm_file)
    state["extra.weight"] = state.pop("norm.bias")
    state["head.bias"] = torch.zeros(9)
    save_file(state, tmp_path / "odd.safetensors")
    message = r"1 tensors missing \(norm.bias\); 1 tensors unexpected \(extra.weight\); 1 tensors of another shape \(head.bias \[9\] instead of \[7\]\)"
    with pytest.raises(PruneError, match=message):
        load(f"{ARCHITECTURE}@{tmp_path / 'odd.safetensors'}")


@pytest.mark.parametrize("damage", ["cut", "text", "empty"])
def test_corrupt_safetensors(timm_file, hf_vit, tmp_path, damage):
    whole = timm_file.read_bytes()
    broken = {"cut": whole[: len(whole) // 2], "text": b"version https://git-lfs.github.com/spec/v1", "empty": b""}[damage]
    (tmp_path / "model.safetensors").write_bytes(broken)
    with pytest.raises(PruneError, match=r"model.safetensors is no readable safetensors file"):
        load(f"{ARCHITECTURE}@{tmp_path / 'model.safetensors'}")
    (tmp_path / "config.json").write_bytes((hf_vit / "config.json").read_bytes())
    with pytest.raises(PruneError, match=r"model.safetensors is no readable safetensors file"):
        load(str(tmp_path))


def copy(folder, target):
    """Copy the files of a model folder."""
    target.mkdir(exist_ok=True)
    for file in folder.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    return target


def test_transformers_folder_that_does_not_match(hf_vit, tmp_path):
    state = load_file(hf_vit / "model.safetensors")
    state["classifier.weight"] = torch.zeros(5, 16)
    del state["classifier.bias"]
    save_file(state, copy(hf_vit, tmp_path) / "model.safetensors", {"format": "pt"})
    with pytest.raises(
        PruneError, match=r"1 tensors missing \(classifier.bias\); 1 tensors of another shape \(classifier.weight \[5, 16\]"
    ):
        load(str(tmp_path))


def test_folders_with_faults(hf_vit, tmp_path):
    with pytest.raises(PruneError, match=r"has no config.json"):
        load(str(tmp_path))
    config = tmp_path / "config.json"
    for text, message in {
        "{": "config.json cannot be read",
        "[]": "neither timm's",
        '{"model_type": "vit"}': "no model.safetensors",
    }.items():
        config.write_text(text)
        with pytest.raises(PruneError, match=message):
            load(str(tmp_path))
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(PruneError, match=r"pytorch_model.bin is a pickled checkpoint"):
        load(str(tmp_path))
    copy(hf_vit, tmp_path)
    (tmp_path / "preprocessor_config.json").unlink()
    with pytest.raises(PruneError, match=r"has no preprocessor_config.json"):
        load(str(tmp_path))
    config.write_text(json.dumps({"model_type": "bert", "architectures": ["BertModel"]}))
    with pytest.raises(PruneError, match="holds a BertModel; this tool loads image classifiers"):
        load(str(tmp_path))


def test_no_network_is_noticed_at_once(tmp_path, monkeypatch):
    constants = pytest.importorskip("huggingface_hub").constants
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    for proxy in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(proxy, raising=False)
        monkeypatch.delenv(proxy.upper(), raising=False)
    began = time.monotonic()
    with pytest.raises(PruneError, match=r"weights of test_vit.* cannot be loaded \(Connect.*ARCH@FILE"):
        load("test_vit.r160_in1k")
    assert time.monotonic() - began < 10


def test_weights_out_of_reach(tmp_path, monkeypatch):
    constants = pytest.importorskip("huggingface_hub").constants
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    for name, file in (("test_vit.r160_in1k", r"timm/test_vit\.r160_in1k"), ("hf_hub:nobody/nothing", "nobody/nothing")):
        with pytest.raises(PruneError, match=rf"weights of .*{file}.* cannot be loaded .*without network give a local folder"):
            load(name)


FRESH = """
import sys
from sparsight.load.models import load, open_model
print({"timm", "transformers", "torchvision"} & set(sys.modules))
for module, name in zip(("timm", "transformers", "timm"), sys.argv[1:]):
    sys.modules[module] = None
    try:
        load(name)
    except ValueError as error:
        print(error)
"""


def test_nothing_imported_early_and_missing_extras_named(hf_vit, timm_file):
    command = [sys.executable, "-c", FRESH, "demo", str(hf_vit), f"{ARCHITECTURE}@{timm_file}"]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert lines == [
        "set()",
        "the demo model needs timm; pip install 'sparsight[timm]'",
        f"{hf_vit} needs transformers; pip install 'sparsight[hf]'",
        f"{ARCHITECTURE}@{timm_file} needs timm; pip install 'sparsight[timm]'",
    ]


def test_weights_in_whole_numbers(hf_vit, tmp_path):
    state = {name: tensor.mul(100).long() for name, tensor in timm.create_model(ARCHITECTURE).state_dict().items()}
    save_file(state, tmp_path / "whole.safetensors")
    with pytest.raises(PruneError, match=r"holds I64 in \d+ weights .*floating point is needed"):
        load(f"{ARCHITECTURE}@{tmp_path / 'whole.safetensors'}")
    folder = tmp_path / "vit"
    shutil.copytree(hf_vit, folder)
    state = load_file(folder / "model.safetensors")
    save_file({name: tensor.mul(100).long() for name, tensor in state.items()}, folder / "model.safetensors")
    with pytest.raises(PruneError, match="floating point is needed"):
        load(str(folder))


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("config.json", {"model_type": 5}, "has model_type=5, which is no str"),
        ("config.json", {"architectures": [1]}, "a list of names is needed"),
        ("preprocessor_config.json", {"image_std": [0, 0, 0]}, "a std of 0"),
    ],
)
def test_configurations_of_the_wrong_kind(hf_vit, tmp_path, file, change, message):
    shutil.copytree(hf_vit, tmp_path / "vit")
    path = tmp_path / "vit" / file
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(PruneError, match=message):
        load(str(tmp_path / "vit"))


def test_a_mistaken_name_gets_names_of_its_family():
    with pytest.raises(PruneError, match=r"no model 'vit_nope'; did you mean vit_\w+ or vit_\w+ or vit_\w+\?"):
        load("vit_nope")


def test_the_demo_model_in_python():
    """As the README has it: model, transform, class names, without a network."""
    import sparsight

    demo = sparsight.load("demo")
    assert len(demo.classes) == demo.model.num_classes == 101
    with sparsight.prune(demo.model, "col_ln:keep=0.7,layers=0/3/6") as handle, torch.inference_mode():
        with Image.open(demo_images() / "okapi" / "image_0022.jpg") as image:
            logits = demo.model(demo.transform(image.convert("RGB")).unsqueeze(0))
        assert demo.classes[logits.argmax()] == "okapi"
        assert handle.counts == [180, 126, 89]


def test_somebodys_own_module():
    """Its transform and class names are taken from its checkpoint or given; the module itself stays as it is."""
    own = timm.create_model(ARCHITECTURE, num_classes=2).train()
    loaded = open_model(own, classes=["cat", "dog"], dtype=torch.bfloat16)
    assert own.training
    assert next(own.parameters()).dtype == torch.float32
    assert (loaded.classes, loaded.image_size) == (["cat", "dog"], (160, 160))
    assert next(open_model(own).model.parameters()).data_ptr() == next(own.parameters()).data_ptr()

    class Bare(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

    with pytest.raises(PruneError, match="the preprocessing of Bare is not known; give transform="):
        open_model(Bare())
    with pytest.raises(PruneError, match="makes ndarray of a picture"):
        open_model(Bare(), transform=np.asarray)
    with pytest.raises(PruneError, match="must be a name, a module"):
        open_model(3)


def test_random_weights_by_name():
    """For speed, where the trained ones cannot be had."""
    found = load("random:vit_tiny_patch16_224")
    assert found.name == "random:vit_tiny_patch16_224"
    assert found.image_size == (224, 224)
    again = load("random:vit_tiny_patch16_224")
    assert all(torch.equal(a, b) for a, b in zip(found.model.parameters(), again.model.parameters(), strict=True))
    with pytest.raises(PruneError, match="timm has no model 'vit_nope'; did you mean vit_"):
        load("random:vit_nope")
