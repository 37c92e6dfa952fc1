"""Exported files: the same logits and the same kept patches as PyTorch, at any batch size; nothing stays behind if it fails."""

import json
from pathlib import Path

import pytest
import timm
import torch
import transformers
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms.functional import to_tensor

import sparsight
from sparsight.errors import PruneError
from sparsight.load.models import Loaded
from sparsight.speed.export import check_target, export
from sparsight.speed.runtimes import open_exported

SIDE = 32


def small(image: Image.Image) -> Tensor:
    return to_tensor(image.convert("RGB").resize((SIDE, SIDE)))


def timm_vit() -> nn.Module:
    return timm.create_model("vit_tiny_patch16_224", img_size=SIDE, patch_size=8, embed_dim=32, depth=3, num_heads=2, num_classes=5)


def hf_vit() -> nn.Module:
    sizes = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 64}
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


def test_onnx_equals_pytorch(loaded: Loaded, tmp_path: Path) -> None:
    recipe = "evit:keep=0.6,layers=0/1"
    done = export(loaded, recipe, tmp_path / "m.onnx", limit=4, kept=True)
    assert done.outputs == ["logits", "kept_0", "kept_1"]
    assert done.same_kept == done.overlap == done.same_top1 == 1
    wanted, got = both(loaded, recipe, tmp_path / "m.onnx")
    assert torch.allclose(wanted[0], got[0], atol=1e-4)
    assert all(torch.equal(a, b) for a, b in zip(wanted[1:], got[1:], strict=True))


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


def test_torch_export_equals_pytorch(loaded: Loaded, tmp_path: Path) -> None:
    recipe = "col_ln:keep=0.6,layers=0/1"
    done = export(loaded, recipe, tmp_path / "m.pt2", format="torch-export", limit=4)
    assert done.bytes == (tmp_path / "m.pt2").stat().st_size
    wanted, got = both(loaded, recipe, tmp_path / "m.pt2")
    assert torch.allclose(wanted[0], got[0], atol=1e-4)


def test_int8_is_near(loaded: Loaded, tmp_path: Path) -> None:
    """Quantised weights change the outputs, but not by much; the model itself is as it was."""
    images = torch.rand(2, 3, SIDE, SIDE)
    with torch.no_grad():
        before = loaded.model(images)
        done = export(loaded, None, tmp_path / "q.onnx", limit=4, int8=True)
        assert torch.equal(loaded.model(images), before)
    assert 1e-5 * done.scale < done.difference < 0.2 * done.scale


def test_wrong_output_is_refused(loaded: Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file whose logits are off does not appear."""
    from sparsight.speed import export as module

    monkeypatch.setattr(module, "TOLERANCE", -1.0)
    with pytest.raises(PruneError, match="differs from PyTorch"):
        export(loaded, "col_ln:keep=0.5,layers=1", tmp_path / "m.pt2", format="torch-export", limit=2)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "tflite"}, "choose onnx or torch-export"),
        ({"format": "torch-export", "int8": True, "out": "m.pt2"}, "int8 is for format onnx"),
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
    for name, message in (("m.onnx", "onnxruntime"), ("m.pt2", "torch.export"), ("no.onnx", "no file"), ("", "no file")):
        with pytest.raises(PruneError, match=message):
            open_exported(tmp_path / name)


def test_distances_in_onnx(loaded: Loaded, tmp_path: Path) -> None:
    """Clustering needs the stable sort and the distances that the exporter does not know by itself."""
    recipe = "dpc_knn:keep=0.6,layers=1"
    assert export(loaded, recipe, tmp_path / "m.onnx", limit=4).same_kept == 1
    wanted, got = both(loaded, recipe, tmp_path / "m.onnx")
    assert torch.allclose(wanted[0], got[0], atol=1e-4)


def test_adaptive_counts_are_refused(loaded: Loaded, tmp_path: Path) -> None:
    with pytest.raises(PruneError, match="another number of tokens in every image"):
        export(loaded, "ats:keep=0.5,layers=1", tmp_path / "m.onnx")
