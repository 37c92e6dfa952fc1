"""Every benchmark runs from its command line, with settings so small that the numbers say nothing."""

import importlib.util
import json
import sys
from functools import partial
from pathlib import Path
from types import ModuleType

import made_up
import pytest
import torch

FOLDER = Path(__file__).parents[2] / "benchmarks"
pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason="benchmarks are not part of an installed package")


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Load a benchmark, change some of its constants, and call its main with words."""

    def load(name: str, words: str = "", **changed: object) -> ModuleType:
        spec = importlib.util.spec_from_file_location(f"benchmark_{name}", FOLDER / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, module.__name__, module)
        monkeypatch.syspath_prepend(FOLDER)
        spec.loader.exec_module(module)
        for key, value in changed.items():
            monkeypatch.setattr(module, key, value)
        monkeypatch.setattr(sys, "argv", [name, *words.split()])
        threads = torch.get_num_threads()
        if words:
            module.main()
        torch.set_num_threads(threads)
        return module

    return load


def table(file: Path) -> str:
    """The page beside a JSON file."""
    assert json.loads(file.read_text())
    text = file.with_suffix(".md").read_text()
    assert "| --- " in text
    return text


def test_every_benchmark_has_a_test():
    tested = {name for name in globals() if name.startswith("test_")}
    tested |= {"test_serving", "test_serving_faults"}  # those are in tests_vllm
    tested |= {"test_http_load"}  # of that one test_serving_vit and test_app_load are made
    assert {f"test_{file.stem}" for file in FOLDER.glob("*.py")} <= tested


def test_accuracy_table(run):
    module = run("accuracy_table")
    text = module.tables(made_up.comparison("x"))
    assert "### " in text
    assert "| method |" in text


def test_against_authors(run, tmp_path):
    """In place of the authors' code two modules of the same interface that prune by ours."""
    for file, code in {
        "tome/patch/timm.py": "import sparsight\ndef apply_patch(model, prop_attn):\n    sparsight.prune(model, 'tome:remove=13,layers=all')\n",
        "evit.py": "import sparsight, timm\ndef EViT(**sizes):\n    model = timm.create_model('vit_small_patch16_224')\n"
        "    sparsight.prune(model, 'evit:keep=0.7,layers=3/6/9')\n    return model\n",
    }.items():
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text(code)
    before = sys.path[:]
    run("against_authors", f"--tome {tmp_path} --evit {tmp_path} --batches 1 --seconds 0 --out {tmp_path / 'o.json'}")
    sys.path[:] = before
    rows = json.loads((tmp_path / "o.json").read_text())["rows"]
    assert [row["method"] for row in rows] == ["ToMe, r=13", "EViT, keep 0.7"]
    assert all(row["difference"] < 1e-5 for row in rows)


def test_attention(run, tmp_path):
    out = tmp_path / "o.json"
    run("attention", f"--quick --seconds 0.01 --threads 1 --out {out}", QUICK=(17, 33))
    assert "| 33 | 6 | Col-Ln |" in table(out)


def test_engines(run, tmp_path):
    out = tmp_path / "o.json"
    recipe = "col_ln:keep=0.7,layers=3/6/9"
    run("engines", f"--smoke --engines eager --recipes {recipe} --beside {FOLDER.parent / 'src'} --out {out}", WARM=1)
    text = table(out)
    assert "| recipe | MAC ratio | eager | other version |" in text
    assert f"| `{recipe}` |" in text
    assert "of the other version" in text


@pytest.mark.product
def test_make_demo_vlm(run, tmp_path):
    """Trained for a few steps, and trained again: the second run has nothing left to do, and its file is the same."""
    from sparsight.demo import demo_images

    words = f"--photos {demo_images()} --test {demo_images()} --work {tmp_path / 'work'} --smoke"
    run("make_demo_vlm", f"{words} --out {tmp_path / 'first'}")
    run("make_demo_vlm", f"{words} --out {tmp_path / 'again'}")
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("first", "again")]
    assert files[0] == files[1]
    assert (tmp_path / "first/questions.jsonl").exists()
    assert (tmp_path / "work/curves.png").exists()


def test_make_demo_weights(run):
    from sparsight.demo import dequantise

    module = run("make_demo_weights")
    state = {"blocks.0.mlp.fc1.weight": torch.randn(6, 8), "head.weight": torch.randn(3, 4)}
    back = dequantise(module.compress(state))
    assert torch.equal(back["head.weight"], state["head.weight"])
    assert torch.allclose(back["blocks.0.mlp.fc1.weight"], state["blocks.0.mlp.fc1.weight"], atol=0.02)


def test_prefill(run, tmp_path):
    from sparsight.load.shapes import shape_config

    out = tmp_path / "o.json"
    run(
        "prefill", f"--rounds 2 --batch 2 --new-tokens 2 --threads 1 --out {out}", ALONE=["vispruner:tokens=64"],
        shape_config=lambda name, vision_layers: shape_config("tiny", vision_layers),
    )  # fmt: skip
    text = table(out)
    assert "| `short prompt, 128 tokens` |" in text
    assert "## Batch 2" in text


@pytest.mark.product
def test_regimes(run, tmp_path):
    page, out = tmp_path / "docs" / "page.md", tmp_path / "out"
    page.parent.mkdir()
    module = run("regimes")
    page.write_text(f"before\n{module.START}\nold\n{module.END}\nafter\n")
    recipes = ("col_ln:keep=0.5,layers=0/3/6", "similarity:keep=0.3,layers=input", "resize:tokens=16")
    tiny = {"small": module.Regime("Small", "demo:small,size=112,object=56", 5, recipes[:1], recipes[1:])}
    run("regimes", f"--out {out} --page {page}", REGIMES=tiny)
    rows = json.loads((out / "regimes.json").read_text())["small"]["rows"]
    assert [row["recipe"] for row in rows][:1] == ["unpruned"]
    names = {row["recipe"]: row for row in rows}
    assert {name.partition(":")[0] for name in names} == {"unpruned", "resize", "col_ln", "random", "pool", "similarity"}
    assert names[recipes[0]]["against"][0] == "random:keep=0.5,layers=0/3/6"
    assert names[recipes[1]]["to_random"] is not None
    assert (page.parent / "images" / "small.jpg").stat().st_size > 3000
    run("regimes", f"--speed --out {out} --page {page} --backends eager --seconds 0", REGIMES=tiny)
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    assert "eager, batch 8: speed-up |" in text
    assert f"| `{recipes[1]}` | 20 |" in text


@pytest.mark.product
def test_quantised(run, tmp_path):
    pytest.importorskip("torchao")
    out = tmp_path / "o.json"
    module = run("quantised")
    schemes = {name: module.SCHEMES[name] for name in ("torchao int8",)}
    module = run(
        "quantised", f"--out {out}", VISION=("col_ln:keep=0.7",), LANGUAGE=("divprune:tokens=64",), PICTURES=2, SCHEMES=schemes
    )
    assert [row["model"] for row in json.loads(out.read_text())["rows"]] == ["demo", "demo-vlm"]
    assert "| torchao int8 |" in table(out)


def test_same_tokens(run, tmp_path, monkeypatch):
    out = tmp_path / "o.json"
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    run("same_tokens", f"--out {out}", RECIPES=("col_ln:keep=0.7",), ENGINES={"torch.compile": ("inductor", None)})
    assert json.loads(out.read_text())["rows"][0]["same_kept"] == 1
    assert "| torch.compile | 100 |" in table(out)


def test_selection(run, tmp_path):
    out = tmp_path / "o.json"
    run("selection", f"--tokens 256 --width 32 --rounds 2 --threads 1 --out {out}")
    assert "| divprune:tokens=64 |" in table(out)


@pytest.mark.product
@pytest.mark.timeout(1800)
def test_serving_vit(run, tmp_path):
    """A thousand good and bad requests of eight clients: no answer is lost or wrong, and memory stays flat."""
    out = tmp_path / "o.json"
    run("serving_vit", f"--requests 1000 --clients 8 --starts 4 --at-once 2 --per-recipe 8 --turns 1 --out {out}", WARM=8)
    found = json.loads(out.read_text())
    assert found["lost"] == found["wrong"] == []
    answers = found["storm"]["answers"]
    assert sum(sum(kind.values()) for kind in answers.values()) == found["storm"]["requests"] == 1000
    assert {"good", "truncated", "bomb", "too long", "hang-up"} <= answers.keys()
    assert all(len(kind) == 1 for kind in answers.values())
    assert found["storm"]["MB after"] < found["storm"]["MB half way"] * 1.05
    assert found["exit code"] == 0
    assert found["starts"]["answered after the start"] == 4
    assert (found["starts"]["stopped by SIGTERM"], found["starts"]["killed by kill -9"], found["starts"]["failed"]) == (2, 2, [])
    assert found["starts"]["of these answered"] == found["starts"]["under way then"] == 8
    assert "| unpruned |" in table(out)


@pytest.mark.product
@pytest.mark.timeout(900)
def test_app_load(run, tmp_path):
    pytest.importorskip("fastapi")
    out = tmp_path / "o.json"
    run("app_load", f"--requests 30 --clients 4 --out {out}")
    found = json.loads(out.read_text())
    assert found["lost"] == found["wrong"] == []
    assert found["exit code"] == 0
    assert "| MB after |" in table(out)


@pytest.mark.product
def test_train_demo(run, tmp_path):
    from safetensors.torch import save_file
    from train_runs import draw, tiny

    save_file(tiny().model.state_dict(), tmp_path / "tiny.safetensors")
    draw(tmp_path / "train")
    draw(tmp_path / "test", each=2, seed=1)
    words = f"--model test_vit@{tmp_path / 'tiny.safetensors'} --data {tmp_path / 'train'} --test {tmp_path / 'test'} --device cpu --out {tmp_path / 'o'}"
    short = {
        "RECIPES": tuple(f"{name}:keep=0.5,layers=1" for name in ("col_ln", "class_attention", "random")),
        "SETTINGS": {"batch_size": 8, "lr": 1e-3},
    }
    run("train_demo", f"{words} --epochs 2 --seeds 1", **short)
    before = (tmp_path / "o" / "col_ln-0" / "results.json").stat().st_mtime_ns
    run("train_demo", f"{words} --epochs 2 --seeds 2", **short)
    assert (tmp_path / "o" / "col_ln-0" / "results.json").stat().st_mtime_ns == before
    text = table(tmp_path / "o" / "train_demo.json")
    assert "2 seeds, 2 epochs of 15 images, tested on 6" in text
    assert text.count("| `") == 3
    assert "lower in" in text
    assert "borne out" in text or "undecided" in text
    assert (tmp_path / "o" / "train_demo.png").read_bytes().startswith(b"\x89PNG")


def test_vit_sizes(run, tmp_path):
    out = tmp_path / "o.json"
    run("vit_sizes", f"--models ViT-S/16 --sides 64 --batches 1 --seconds 0 --threads 1 --out {out}")
    assert "| ViT-S/16 at 64 | col_ln:keep=0.5,layers=3/6/9 |" in table(out)


def test_vit_speed(run, tmp_path):
    out = tmp_path / "o.json"
    one = ["class_attention:keep=0.5"]
    run("vit_speed", f"--batches 1 --seconds 0 --out {out}", LIMITS=one, REALISED=one, SCORES=["col_ln"], COPIES=1)
    assert "| `class_attention:keep=0.5` |" in table(out)


def test_results_vlm(run, tmp_path):
    """The page about a trained vision-language model, on a tiny one with random weights; given again, nothing is measured anew."""
    pytest.importorskip("transformers")
    from tiny_demo import save_demo, save_scenes

    model, data = save_demo(tmp_path / "model"), save_scenes(tmp_path / "set", 4)
    words = (
        f"--model {model} --data {data} --work {tmp_path / 'work'} --out {tmp_path / 'page.md'} --tokens 4 --seeds 2 --rounds 2 --shown 1 "
        "--methods fastervlm,visionzip,divprune,fps,agile --corruptions , --device cpu"
    )
    run("results_vlm", words)
    text = (tmp_path / "page.md").read_text()
    for part in (
        "diversity hallucinates more than attention",
        "Holm",
        "effective rank",
        "### 4 tokens, complex pictures",
        "Cost of one prompt",
    ):
        assert part in text, part
    assert "not separable here" in text
    rows = {file: file.stat().st_mtime_ns for file in (tmp_path / "work").rglob("*.json") if file.parent.name == "rows"}
    run("results_vlm", words)
    assert (tmp_path / "page.md").read_text() == text
    assert rows == {file: file.stat().st_mtime_ns for file in rows}
