"""A vision-language model in OpenVINO: answers and kept tokens are those of the pruned model in PyTorch; what it cannot do is refused."""

import json
import shutil
import threading
from pathlib import Path

import pytest
import torch
from lvlms import IMAGE, build

import sparsight
from sparsight.errors import PruneError

pytest.importorskip("openvino")

from sparsight.speed import export_vlm as module
from sparsight.speed.bench_vlm import bench_vlm
from sparsight.speed.engines import on_cpu
from sparsight.speed.openvino_vlm import Facts, OpenVinoVlm, open_vlm
from sparsight.speed.vlm_tracing import check_traceable, embedding_graph, language_graph, vision_graph

RECIPES = [
    "visionzip:tokens=6", "divprune:tokens=5", "prumerge_plus:tokens=6", "resize:tokens=4", "pool:tokens=4", "random:tokens=4",
    "cdpruner:tokens=5,text=none", "vispruner:tokens=6", "holov:tokens=6", "scope:tokens=5", "agile:tokens=5,by=entropy", "col_ln:tokens=5",
    "fps:tokens=5", "bat:tokens=6", "class_attention:keep=0.5",
]  # fmt: skip
INPUTS = {
    "input_ids": torch.tensor([[5, 6, *[IMAGE] * 16, 7, 8, *[IMAGE] * 16, 9], [0] * 19 + [3, *[IMAGE] * 16, 11]]),
    "attention_mask": torch.tensor([[1] * 37, [0] * 19 + [1] * 18]),
    "pixel_values": torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0)),
}
"""A row of two pictures, and one of one, padded."""


@pytest.fixture(scope="module")
def model():
    return build("llava").float()


@pytest.fixture(scope="module")
def compiled(model):
    """`compiled(handle)`: the model in OpenVINO, pruned as it is now."""
    facts = Facts("0", "tiny", "any", IMAGE, 16, [3, 16, 16], [], 0)
    embeddings, language = on_cpu(embedding_graph(model), threads=1), on_cpu(language_graph(model), threads=1)
    return lambda handle: OpenVinoVlm(
        facts, on_cpu(vision_graph(model, handle, INPUTS["pixel_values"][:1]), threads=1), embeddings, language
    )


def both(model, vlm, **given):
    new = {"max_new_tokens": 6, "min_new_tokens": 6}
    return model.generate(**given, **new, do_sample=False), vlm.generate(**given, **new)


def text(**more):
    ids = torch.tensor([[5, 6, 7], [0, 8, 9]])
    return {"input_ids": ids, "attention_mask": torch.tensor([[1, 1, 1], [0, 1, 1]]), **more}


@pytest.mark.parametrize("recipe", ["fastervlm:tokens=5", *(pytest.param(recipe, marks=pytest.mark.product) for recipe in RECIPES)])
def test_answers_and_kept_tokens(model, compiled, recipe):
    """Of two rows with padding and three pictures, of text alone, and of a prompt without a mask."""
    with sparsight.prune(model, recipe) as handle:
        vlm = compiled(handle)
        wanted, got = both(model, vlm, **INPUTS)
        assert torch.equal(wanted, got)
        assert [plan.keep[0].sort().values.tolist() for plan in handle.plans] == [kept.tolist() for kept in vlm.kept]
        assert [len(places) for places in vlm.places] == handle.counts
        one = {"input_ids": INPUTS["input_ids"][:1], "pixel_values": INPUTS["pixel_values"][:2]}
        assert torch.equal(*both(model, vlm, **one))
        assert torch.equal(*both(model, vlm, **text()))
        assert vlm.kept == []


@pytest.mark.product
def test_unpruned(model, compiled):
    vlm = compiled(None)
    assert torch.equal(*both(model, vlm, **INPUTS))
    assert [len(kept) for kept in vlm.kept] == [16] * 3


@pytest.mark.product
def test_an_answer_ends_where_it_ends(model, compiled):
    """Rows that have ended are filled up, and nothing is generated any more when all have."""
    vlm = compiled(None)
    free = vlm.generate(**INPUTS, max_new_tokens=6)[:, 37:]
    end = int(free[0, 2])
    ending = OpenVinoVlm(Facts(**{**vars(vlm.facts), "ends": [end], "pad": 77}), vlm.vision, vlm.embeddings, vlm.language)
    made = ending.generate(**INPUTS, max_new_tokens=6)[:, 37:]
    first = free[0].tolist().index(end)
    assert made[0].tolist() == [*free[0, : first + 1].tolist(), *[77] * (made.shape[1] - first - 1)]
    alone = {name: value[:1] for name, value in INPUTS.items()} | {"pixel_values": INPUTS["pixel_values"][:2]}
    assert ending.generate(**alone, max_new_tokens=6).shape[1] == 37 + first + 1


@pytest.mark.product
def test_threads(model, compiled):
    """Every thread gets its own answers and sees its own kept tokens."""
    with sparsight.prune(model, "fastervlm:tokens=5") as handle:
        vlm = compiled(handle)
        wanted = vlm.generate(**INPUTS, max_new_tokens=6)
    kept, wrong = vlm.kept, []

    def work(rows):
        given = {name: value[rows] for name, value in INPUTS.items() if name != "pixel_values"}
        pictures = slice(0, 2) if rows == slice(0, 1) else slice(2, 3)
        for _ in range(5):
            got = vlm.generate(**given, pixel_values=INPUTS["pixel_values"][pictures], max_new_tokens=6)
            if not torch.equal(got, wanted[rows]) or any(
                not torch.equal(a, b) for a, b in zip(vlm.kept, kept[pictures], strict=True)
            ):
                wrong.append(rows)

    threads = [threading.Thread(target=work, args=(slice(row, row + 1),)) for row in (0, 1, 0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert wrong == []


def test_what_is_refused(model, monkeypatch, tmp_path):
    """Calls, recipes, models and folders, each with one line."""
    vlm = OpenVinoVlm(Facts("0", "tiny", "any", IMAGE, 16, [3, 16, 16], [], 0), None, None, None)
    for given, words in (
        ({**INPUTS, "num_beams": 3}, "num_beams: this generate takes"),
        ({**INPUTS, "input_ids": torch.rand(2, 5)}, r"input_ids must be ids"),
        ({**INPUTS, "attention_mask": torch.ones(2, 5)}, r"as large as input_ids \[2, 37\], got \[2, 5\]"),
        ({**INPUTS, "pixel_values": torch.rand(3, 3, 20, 20)}, r"\[pictures, 3, 16, 16\].*got \[3, 3, 20, 20\]"),
        ({**INPUTS, "max_new_tokens": 0}, "max_new_tokens=0 must be at least 1"),
        ({"input_ids": INPUTS["input_ids"]}, "pixel_values are not given"),
    ):
        with pytest.raises(PruneError, match=words):
            vlm.generate(**given)
    with pytest.raises(PruneError, match="between layers of the language model"):
        check_traceable(model, sparsight.parse("fastv:layer=1,keep=0.5"))
    with pytest.raises(PruneError, match="that is for LLaVA"):
        check_traceable(build("qwen2.5"), None)
    for recipe in ("prumerge", "agile:tokens=5,count=adaptive"):
        with pytest.raises(PruneError, match="another number of tokens in every image"):
            check_traceable(model, sparsight.parse(recipe))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    for out, words in ((tmp_path / "full", "exists already"), (tmp_path / "no" / "x", "cannot be written")):
        with pytest.raises(PruneError, match=words):
            module.export_vlm("demo-vlm", "fastervlm:tokens=64", out)
    with pytest.raises(PruneError, match="is no exported vision-language model"):
        open_vlm(tmp_path)
    for options, words in (
        ({"engine": "tpu"}, "choose eager, openvino"),
        ({"engine": "openvino", "device": "cuda"}, "runs on the CPU|cannot be used"),
        ({"engine": "openvino", "precision": "bf16"}, "runs on the CPU in fp32"),
    ):
        with pytest.raises(PruneError, match=words):
            bench_vlm(config="tiny", recipes=["divprune:tokens=4"], out=tmp_path / "b", **options)


@pytest.mark.product
@pytest.mark.timeout(900)
def test_the_demo_model_exported(tmp_path):
    """By the command line's own words: a folder that answers as the pruned model, read again, asked as one would ask transformers."""
    from PIL import Image

    from sparsight.load import demo_vlm

    done = module.export_vlm("demo-vlm", "fastervlm:tokens=64", tmp_path / "out", limit=48)
    assert (done.prompts, done.tokens, done.same_kept, done.same_answers) == (48, 64, 1, 1)
    assert json.loads(done.to_json())["recipe"] == "fastervlm:tokens=64"
    vlm = open_vlm(tmp_path / "out", threads=1)
    picture = Image.open(sorted(demo_vlm.pictures().glob("*.jpg"))[0])
    said = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": demo_vlm.QUESTION}]}]
    prompt = vlm.processor.apply_chat_template(said, add_generation_prompt=True)
    inputs = vlm.processor(images=[picture], text=[prompt], return_tensors="pt")
    made = vlm.generate(**inputs, max_new_tokens=8)
    answer = vlm.processor.batch_decode(made[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)[0]
    first = json.loads(Path(demo_vlm.questions()).read_text().splitlines()[0])
    assert answer.strip() == first["answer"]
    with pytest.raises(PruneError, match="exists already"):
        module.export_vlm("demo-vlm", "fastervlm:tokens=64", tmp_path / "out")
    shutil.copy(tmp_path / "out" / "sparsight.json", tmp_path / "out" / "language.xml")
    with pytest.raises(PruneError, match="cannot be read"):
        open_vlm(tmp_path / "out")
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]


@pytest.mark.product
@pytest.mark.timeout(900)
def test_bench(tmp_path):
    """Pruned beside unpruned in the same engine; all is said of which it was, and the run resumes."""
    words = {
        "config": "tiny",
        "recipes": ["divprune:tokens=16", "fastervlm:tokens=16"],
        "rounds": 2,
        "new_tokens": 3,
        "device": "cpu",
    }
    done = bench_vlm(out=tmp_path, engine="openvino", **words)
    assert [row.recipe for row in done.rows] == ["unpruned", *words["recipes"]]
    assert done.attention == "openvino"
    assert "resident memory" in done.memory_method
    for row in done.rows:
        assert all(
            time.vision > 0 and time.prefill > 0 and time.decoding > 0 and time.selection == 0 for time in row.runs + row.beside
        )
        assert row.footprint.peak > 0
    assert done.rows[1].macs.prefill < done.rows[0].macs.prefill
    page = (tmp_path / "report.html").read_text()
    assert "openvino" in page
    again = bench_vlm(out=tmp_path, engine="openvino", **words)
    assert [row.runs for row in again.rows] == [row.runs for row in done.rows]
