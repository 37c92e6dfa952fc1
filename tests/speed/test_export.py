"""Exported files: the same logits and the same kept patches as PyTorch, at any batch size; what they say about themselves; nothing stays
behind if it fails."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
import transformers
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms.functional import normalize, to_tensor

import sparsight
from sparsight.errors import PruneError
from sparsight.load.models import Loaded
from sparsight.speed.engines import open_exported
from sparsight.speed.export import check_target, export, metadata

SIDE = 32


def small(image: Image.Image) -> Tensor:
    return to_tensor(image.convert("RGB").resize((SIDE, SIDE)))


def timm_vit() -> nn.Module:
    return timm.create_model("vit_tiny_patch16_224", img_size=SIDE, patch_size=8, embed_dim=32, depth=2, num_heads=2, num_classes=5)


def hf_vit() -> nn.Module:
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    config = transformers.ViTConfig(**sizes, image_size=SIDE, patch_size=8, num_labels=5)
    return transformers.ViTForImageClassification(config)


@pytest.fixture
def loaded(request: pytest.FixtureRequest) -> Loaded:
    torch.manual_seed(0)
    model = (request.param if hasattr(request, "param") else timm_vit)().eval()
    return Loaded("tiny", model, small, None, (SIDE, SIDE))


def both(loaded: Loaded, recipe: str, file: Path) -> tuple[list[Tensor], list[Tensor]]:
    """Outputs of PyTorch and of the file on five random images, a batch size that the export did not see."""
    images = torch.rand(5, 3, SIDE, SIDE)
    with torch.no_grad(), sparsight.prune(loaded.model, recipe) as handle:
        result = loaded.model(images)
        wanted = [getattr(result, "logits", result), *(plan.keep for plan in handle.sources())]
    return wanted, [found.clone() for found in open_exported(file)(images)]


@pytest.mark.parametrize("loaded", [hf_vit], indirect=True, ids=["transformers"])
def test_file_has_only_logits_unless_asked(loaded: Loaded, tmp_path: Path) -> None:
    recipe = "tome:remove=3,layers=0/1"
    done = export(loaded, recipe, tmp_path / "m.onnx", limit=4)
    assert done.outputs == ["logits"]
    wanted, got = both(loaded, recipe, tmp_path / "m.onnx")
    assert len(got) == 1
    assert torch.allclose(wanted[0], got[0], atol=1e-4)
    assert json.loads(done.to_json())["recipe"] == recipe
    assert [file.name for file in tmp_path.iterdir()] == ["m.onnx"]


def test_openvino_files_are_two(loaded: Loaded, tmp_path: Path) -> None:
    done = export(loaded, "evit:keep=0.6,layers=0/1", tmp_path / "m.xml", format="openvino", limit=4)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["m.bin", "m.xml"]
    assert done.outputs == ["logits"]
    assert len(open_exported(tmp_path / "m.xml")(torch.rand(2, 3, SIDE, SIDE))) == 1


FILES = {"onnx": "m.onnx", "openvino": "m.xml", "torch-export": "m.pt2"}


@pytest.mark.parametrize("format", FILES)
def test_files_equal_pytorch_and_say_what_they_are(loaded: Loaded, format: str, tmp_path: Path) -> None:
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
    classes = ['a "quoted" one', "<b> & c", "d\u00fc", "e.f", ""]
    normal = replace(loaded, transform=lambda image: normalize(small(image), mean, std), classes=classes)
    file, recipe = tmp_path / FILES[format], "col_ln:keep=0.6,layers=0/1"
    done = export(normal, recipe, file, format=format, limit=4, kept=True)  # type: ignore[arg-type]
    assert done.outputs == ["logits", "kept_0", "kept_1"]
    assert done.same_kept == done.overlap == done.same_top1 == 1
    assert done.bytes == sum(part.stat().st_size for part in tmp_path.iterdir())
    wanted, got = both(loaded, recipe, file)
    assert torch.allclose(wanted[0], got[0], atol=1e-5), "float32, also on a CPU that could do bf16"
    assert all(torch.equal(a, b) for a, b in zip(wanted[1:], got[1:], strict=True))
    session = open_exported(file)
    assert session.size == (3, SIDE, SIDE)
    found = session.metadata
    assert found.pop("mean") == pytest.approx(mean, abs=1e-4)
    assert found.pop("std") == pytest.approx(std, abs=1e-4)
    assert found == {"sparsight": sparsight.__version__, "model": "tiny", "recipe": recipe,
                     "image_size": [SIDE, SIDE], "classes": classes}  # fmt: skip
    with pytest.raises(PruneError, match=r"images \[B, 3, 32, 32\], got \[1, 3, 40, 40\]"):
        session(torch.rand(1, 3, 40, 40))


def test_preprocessing_that_is_no_normalisation_has_no_mean(loaded: Loaded) -> None:
    odd = replace(loaded, transform=lambda image: small(image).square())
    assert (metadata(odd, None)["mean"], metadata(odd, None)["std"]) == (None, None)


def test_int8_is_near(loaded: Loaded, tmp_path: Path) -> None:
    """Quantised weights change the outputs, but not by much; the model itself is as it was."""
    images = torch.rand(2, 3, SIDE, SIDE)
    with torch.no_grad():
        before = loaded.model(images)
        done = export(loaded, None, tmp_path / "q.onnx", limit=4, int8=True)
        assert torch.equal(loaded.model(images), before)
    assert 1e-5 * done.scale < done.difference < 0.2 * done.scale
    assert open_exported(tmp_path / "q.onnx").metadata["recipe"] == "unpruned"


def test_wrong_output_is_refused(loaded: Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file whose logits are off does not appear."""
    from sparsight.speed import exported as module

    monkeypatch.setattr(module, "TOLERANCE", -1.0)
    with pytest.raises(PruneError, match="differs from PyTorch"):
        export(loaded, "col_ln:keep=0.5,layers=1", tmp_path / "m.pt2", format="torch-export", limit=2)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "tflite"}, "choose onnx, openvino, torch-export"),
        ({"format": "torch-export", "int8": True, "out": "m.pt2"}, "int8 is for format onnx"),
        ({"format": "openvino", "int8": True, "out": "m.xml"}, "nncf"),
        ({"out": "m.bin"}, r"must end in \.onnx"),
        ({"out": "nowhere/m.onnx"}, "cannot be written"),
        ({"recipe": "fastv:layer=2,keep=0.5"}, "no decoder"),
        ({"recipe": "col_ln:layers=9"}, "out of range"),
        ({"data": "nowhere"}, "does not exist"),
    ],
    ids=lambda value: "" if isinstance(value, dict) else value[:12],
)
def test_bad_input(
    loaded: Loaded, options: dict[str, object], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PruneError, match=message):
        export(loaded, **options)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_name_of_the_file_follows_the_model() -> None:
    assert check_target(None, "demo", "onnx") == Path("demo.onnx")


def test_unreadable_files(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"nonsense")
    (tmp_path / "m.pt2").write_bytes(b"nonsense")
    (tmp_path / "m.xml").write_bytes(b"nonsense")
    for name, message in (
        ("m.onnx", "onnxruntime"),
        ("m.xml", "OpenVINO"),
        ("m.pt2", "torch.export"),
        ("no.onnx", "no file"),
        ("", "no file"),
    ):
        with pytest.raises(PruneError, match=message):
            open_exported(tmp_path / name)


@pytest.mark.parametrize("format", ["onnx", "openvino"])
def test_ties(loaded: Loaded, format: str, tmp_path: Path) -> None:
    """All patches of a blank image are alike: the first ones stay, as in PyTorch."""
    nn.init.zeros_(loaded.model.pos_embed)  # type: ignore[arg-type]
    recipe = "similarity:keep=0.5,layers=0/1"
    export(loaded, recipe, tmp_path / FILES[format], format=format, limit=4, kept=True)  # type: ignore[arg-type]
    blank = torch.ones(3, 3, SIDE, SIDE)
    with torch.no_grad(), sparsight.prune(loaded.model, recipe) as handle:
        loaded.model(blank)
        kept = [plan.keep for plan in handle.sources()]
    assert all(torch.equal(a, b) for a, b in zip(kept, open_exported(tmp_path / FILES[format])(blank)[1:], strict=True))


def test_adaptive_counts_are_refused(loaded: Loaded, tmp_path: Path) -> None:
    with pytest.raises(PruneError, match="another number of tokens in every image"):
        export(loaded, "ats:keep=0.5,layers=1", tmp_path / "m.onnx")


@pytest.mark.parametrize(
    ("recipe", "dynamo"),
    [("similarity:keep=0.6,layers=1,metric=l2", True), ("col_ln:keep=0.6,layers=0/1", False)],
    ids=["torch.export", "TorchScript"],
)
def test_pytorch_s_own_exporters_take_a_pruned_model(loaded: Loaded, recipe: str, dynamo: bool, tmp_path: Path) -> None:
    """They have no stable sort and no distances; equal scores go to the lower index in the file, too."""
    model, images, file = loaded.model, torch.rand(2, 3, SIDE, SIDE), tmp_path / "m.onnx"
    images[0] = 0.5
    sparsight.prune(model, recipe)
    with torch.no_grad():
        wanted = model(images)
        torch.onnx.export(model, (images,), str(file), dynamo=dynamo, verbose=False)
        assert torch.allclose(open_exported(file)(images)[0], wanted, atol=1e-4)


def test_pytorch_s_tracer_takes_a_pruned_model(loaded: Loaded) -> None:
    sparsight.prune(loaded.model, "evit:keep=0.6,layers=0/1")
    with torch.no_grad():
        traced = torch.jit.trace(loaded.model, torch.rand(2, 3, SIDE, SIDE))
        images = torch.rand(5, 3, SIDE, SIDE)
        assert torch.allclose(traced(images), loaded.model(images), atol=1e-5)
