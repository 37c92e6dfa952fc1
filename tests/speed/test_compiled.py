"""sparsight.compile: inputs, outputs and kept tokens of the model itself, in every engine, at every batch size, in threads."""

import ctypes
import sys
import tempfile
import threading
from functools import partial
from pathlib import Path

import pytest
import timm
import torch
import transformers
from torch import Tensor, nn

import sparsight
from sparsight.errors import PruneError

SIDE = 32
RECIPE = "col_ln:keep=0.6,layers=0/1"


def vit() -> nn.Module:
    torch.manual_seed(0)
    sizes = {"img_size": SIDE, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 5}
    return timm.create_model("vit_tiny_patch16_224", **sizes).eval()


@pytest.fixture(autouse=True)
def no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """What makes code of a graph does not matter here, and inductor needs half a minute for it."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))


IMAGES = torch.rand(2, 3, SIDE, SIDE)


def same(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, atol=1e-5)


@pytest.mark.parametrize(
    ("engine", "recipe"),
    [("openvino", "evit:keep=0.6,layers=0/1"), ("onnxruntime", "tome:remove=3,layers=0/1"), ("inductor", RECIPE)],
)
def test_outputs_and_kept_tokens(engine: str, recipe: str) -> None:
    model = vit()
    handle = sparsight.prune(model, recipe)
    fast = sparsight.compile(model, torch.rand(2, 3, SIDE, SIDE), engine)
    assert fast.plans == fast.counts == fast.keep == []
    for batch in (2, 5, 1):
        images = torch.rand(batch, 3, SIDE, SIDE)
        with torch.no_grad():
            wanted = model(images)
        assert same(fast(images), wanted)
        assert fast.counts == handle.counts
        assert all(torch.equal(ours.keep, theirs.keep) for ours, theirs in zip(fast.plans, handle.plans, strict=True))
        assert all(torch.equal(ours.owner, theirs.owner) for ours, theirs in zip(fast.sources(), handle.sources(), strict=True))
        assert all(torch.equal(kept, theirs.keep) for kept, theirs in zip(fast.keep, handle.sources(), strict=True))


def test_the_model_is_not_touched() -> None:
    model = vit()
    handle = sparsight.prune(model, RECIPE)
    images = torch.rand(2, 3, SIDE, SIDE)
    with torch.no_grad():
        wanted = model(images)
    before = [plan.keep for plan in handle.plans]
    fast = sparsight.compile(model, images[:1])
    assert all(torch.equal(a, b.keep) for a, b in zip(before, handle.plans, strict=True))
    handle.remove()
    assert same(fast(images), wanted), "what was compiled stays pruned"


def test_transformers_models_keep_their_inputs_and_outputs() -> None:
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    config = transformers.ViTConfig(**sizes, image_size=SIDE, patch_size=8, num_labels=5)
    model = transformers.ViTForImageClassification(config).eval()
    sparsight.prune(model, RECIPE)
    given = {"pixel_values": torch.rand(3, 3, SIDE, SIDE)}
    fast = sparsight.compile(model, given)
    with torch.no_grad():
        wanted = model(**given)
    for found in (fast(**given), fast(given["pixel_values"])):
        assert type(found) is type(wanted)
        assert same(found.logits, wanted.logits)
    assert len(fast.keep) == 2


@pytest.mark.parametrize("engine", ["openvino", pytest.param("onnxruntime", marks=pytest.mark.product)])
def test_threads(engine: str) -> None:
    """Every thread gets its own outputs and sees its own kept tokens."""
    model = vit()
    handle = sparsight.prune(model, "evit:keep=0.6,layers=0/1")
    batches = [torch.rand(1 + number % 3, 3, SIDE, SIDE) for number in range(8)]
    with torch.no_grad():
        wanted = [(model(images), handle.sources()[-1].keep) for images in batches]
    fast = sparsight.compile(model, batches[0], engine, threads=1)
    wrong: list[object] = []

    def work(first: int) -> None:
        try:
            for turn in range(40):
                number = (first + turn) % len(batches)
                found = fast(batches[number])
                if not (same(found, wanted[number][0]) and torch.equal(fast.keep[-1], wanted[number][1])):
                    wrong.append(number)
        except Exception as error:
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert fast.keep == [], "this thread has called nothing"


def test_precisions_and_no_file_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """float32 unless asked otherwise; other precisions are near."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    model = vit()
    with torch.no_grad():
        wanted = model(IMAGES)
    fast = sparsight.compile(model, IMAGES, "onnxruntime", precision="int8")
    assert "int8" in repr(fast)
    assert 1e-6 < (fast(IMAGES) - wanted).abs().max() < 0.1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.product
def test_adaptive_counts_by_inductor() -> None:
    model = vit()
    handle = sparsight.prune(model, "ats:keep=0.5,layers=1")
    images = torch.rand(4, 3, SIDE, SIDE)
    with torch.no_grad():
        wanted = model(images)
    fast = sparsight.compile(model, images, "inductor")
    assert same(fast(images), wanted)
    assert fast.counts == handle.counts


def half() -> nn.Module:
    return vit().to(torch.bfloat16)


def adaptive() -> nn.Module:
    model = vit()
    sparsight.prune(model, "ats:keep=0.5,layers=1")
    return model


class Branching(nn.Module):
    """A model that no engine takes as a graph."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)

    def forward(self, images: Tensor) -> Tensor:
        x = self.linear(images.mean(dim=(2, 3)))
        return x if x.sum().item() > 0 else -x


@pytest.mark.parametrize(("make", "options", "message"), [
    (vit, {"engine": "tensorrt"}, "choose openvino, onnxruntime, inductor"),
    (vit, {"precision": "int8"}, "choose f32 or bf16 or f16"),
    (vit, {"engine": "inductor", "precision": "f32"}, "convert the model"),
    (vit, {"example": IMAGES[0]}, r"must be images \[B, 3, H, W\], got \[3, 32, 32\]"),
    (vit, {"example": {"pixel_values": IMAGES, "text": IMAGES}}, "images alone"),
    (vit, {"example": IMAGES.double()}, "float32"),
    (lambda: vit().train(), {}, "training mode"),
    (vit, {"example": torch.rand(1, 3, 40, 40)}, "does not take the example"),
    (half, {"example": IMAGES.bfloat16()}, "bfloat16"),
    (adaptive, {}, "another number of tokens in every image"),
    (Branching, {}, "cannot be traced"),
    (Branching, {"engine": "inductor"}, "cannot be compiled"),
    (lambda: "vit", {}, "must be a torch.nn.Module"),
])  # fmt: skip
def test_refused(make, options, message) -> None:
    model = make()
    if isinstance(model, Branching):
        model.eval()
    with pytest.raises(PruneError, match=message):
        sparsight.compile(model, **{"example": IMAGES, **options})


def test_refused_calls() -> None:
    model = vit()
    fast = sparsight.compile(model, IMAGES, precision="bf16")
    with torch.no_grad():
        assert torch.allclose(fast(IMAGES), model(IMAGES), atol=0.1)
    assert fast.keep == []
    for args, kwargs, message in (
        ((torch.rand(2, 3, 40, 40),), {}, r"compiled for images \[B, 3, 32, 32\], got \[2, 3, 40, 40\]"),
        ((IMAGES.half(),), {}, "float32"),
        ((IMAGES[:0],), {}, r"got \[0, 3, 32, 32\]"),
        ((), {}, "images alone"),
        ((IMAGES,), {"mask": IMAGES}, "images alone"),
    ):
        with pytest.raises(PruneError, match=message):
            fast(*args, **kwargs)


@pytest.mark.parametrize(
    ("engine", "module", "extra"), [("openvino", "openvino", "openvino"), ("onnxruntime", "onnxscript", "onnx")]
)
def test_missing_extras_are_named(engine: str, module: str, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(PruneError, match=rf"pip install 'sparsight\[{extra}\]'"):
        sparsight.compile(vit(), IMAGES, engine)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="signal stacks are looked at on Linux")
def test_openvino_leaves_the_place_for_signals_alone():
    """It puts one of its own there where the CPU has AMX, and frees it: the next signal was a segmentation fault."""
    openvino = pytest.importorskip("openvino")
    from sparsight.speed.engines import OpenVINO, SignalStack

    def place():
        found = SignalStack()
        ctypes.CDLL(None).sigaltstack(None, ctypes.byref(found))
        return found.place, found.size, found.flags

    before = place()
    program = torch.export.export(torch.nn.Conv2d(3, 4, 2).eval(), (torch.zeros(1, 3, 8, 8),))
    run = OpenVINO(openvino.convert_model(program), [1])
    assert run(torch.zeros(1, 3, 8, 8))[0].shape == (1, 4, 7, 7)
    assert place() == before
