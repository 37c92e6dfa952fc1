"""bench: rows beside the unpruned model in the same engine, taken up again where they were left; nothing is asserted about speed."""

import json
import shutil
from functools import partial
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import to_tensor

from sparsight.errors import PruneError
from sparsight.load.models import Loaded
from sparsight.runs.comparison import UNPRUNED
from sparsight.runs.sweep import Step
from sparsight.speed.bench import bench
from sparsight.speed.bench_result import Bench, BenchRow, Timing

SIDE = 32
RECIPES = ("col_ln:keep=0.5,layers=0/1", "tome:remove=3,layers=1")


def small(image: Image.Image) -> Tensor:
    return to_tensor(image.convert("RGB").resize((SIDE, SIDE)))


@pytest.fixture(scope="module")
def loaded() -> Loaded:
    torch.manual_seed(0)
    sizes = {"img_size": SIDE, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2, "num_classes": 5}
    return Loaded("tiny", timm.create_model("vit_tiny_patch16_224", **sizes).eval(), small, None, (SIDE, SIDE))


@pytest.fixture(scope="module")
def done(loaded: Loaded, tmp_path_factory: pytest.TempPathFactory) -> tuple[Bench, Path]:
    out = tmp_path_factory.mktemp("bench")
    return bench(loaded, RECIPES, out, batch_sizes=(4, 1), seconds=0.0), out


def test_rows(done: tuple[Bench, Path]) -> None:
    rows = done[0].rows
    assert [row.recipe for row in rows] == [UNPRUNED, *RECIPES]
    assert [row.tokens for row in rows] == [[], [8, 4], [13]]
    assert rows[0].mac_ratio == 1 < rows[2].mac_ratio < rows[1].mac_ratio
    for row in rows:
        assert [timing.batch for timing in row.timings] == [1, 4]
        assert all(len(timing.runs) == len(timing.beside) >= 6 for timing in row.timings)
        assert row.latency.seconds <= row.latency.p95 <= max(row.latency.runs)
        assert row.peak_memory is not None
    assert rows[0].site_share is None
    assert all(row.site_share is not None and 0 < row.site_share < 1 for row in rows[1:])


def test_model_is_as_it_was(loaded: Loaded, done: tuple[Bench, Path]) -> None:
    assert not hasattr(loaded.model, "_sparsight")
    assert all("forward" not in block.__dict__ for block in loaded.model.blocks)


def test_file_and_page(done: tuple[Bench, Path]) -> None:
    result, out = done
    assert Bench.load(out) == result
    page = (out / "report.html").read_text().replace("<wbr>", "")
    assert all(recipe in page for recipe in RECIPES)
    assert "http:" not in page
    assert "https:" not in page


def test_finished_rows_are_taken_up(loaded: Loaded, done: tuple[Bench, Path], tmp_path: Path) -> None:
    result, out = done[0], shutil.copytree(done[1], tmp_path / "copied")
    heard: list[Step] = []
    again = bench(loaded, [*RECIPES, "evit:keep=0.5,layers=1"], out, batch_sizes=(4, 1), seconds=0.0, listen=heard.append)
    assert again.rows[:3] == result.rows
    assert [step.restored for step in heard if step.row is not None] == [True, True, True, False]


@pytest.mark.parametrize("backend", ["inductor", "openvino", pytest.param("onnxruntime-int8", marks=pytest.mark.product)])
def test_engines(loaded: Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backend: str) -> None:
    """Compiled engines run beside the unpruned model in the same engine; inductor itself needs a C++ compiler and time."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    result = bench(loaded, RECIPES[:1], tmp_path, backends=(backend,), batch_sizes=(2, 1), seconds=0.0)
    assert [row.backend for row in result.rows] == ["compile" if backend == "inductor" else backend] * 2
    assert result.rows[1].tokens == [8, 4]
    assert result.rows[1].peak_memory is None


def test_numbers_of_a_row() -> None:
    timing = Timing(4, [1.0, 2.0, 3.0], [2.0, 4.0, 12.0])
    row = BenchRow("r", "fp32", "eager", [], 10, 4.0, [Timing(1, [1.0, 1.0], [1.0, 1.0]), timing], None, None)
    assert timing.speedup.median == 2
    assert (timing.seconds, timing.unpruned) == (2, 4)
    assert timing.images_per_second == 2
    assert row.throughput is timing
    assert row.share(timing) == 0.5
    assert BenchRow.from_dict(json.loads(json.dumps(row.to_dict()))) == row


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backends": ("tensorrt",)}, "choose eager, compile, onnxruntime"),
        ({"precisions": ("int4",)}, "choose fp32, bf16, fp16"),
        ({"backends": ("onnxruntime",), "precisions": ("bf16",)}, "add fp32"),
        ({"backends": ("openvino",), "recipes": ("ats:keep=0.5,layers=1",)}, "openvino cannot hold"),
        ({"batch_sizes": (0,)}, "batch_size=0 must be at least 1"),
        ({"recipes": ("col_ln:layers=9",)}, "out of range"),
        ({"recipes": ("fastv:layer=2,keep=0.5",)}, "language model"),
        ({"data": "nowhere"}, "does not exist"),
        ({"device": "cuda:77"}, "cannot be used"),
    ],
    ids=lambda value: "" if isinstance(value, dict) else value[:12],
)
def test_bad_input(loaded: Loaded, options: dict[str, object], message: str, tmp_path: Path) -> None:
    with pytest.raises(PruneError, match=message):
        bench(loaded, out=tmp_path / "new", **options)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_damaged_result(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text("{}")
    with pytest.raises(PruneError, match="no result of bench"):
        Bench.load(tmp_path)
