"""A vision-language model in OpenVINO: answers and kept tokens are those of the pruned model in PyTorch; what it cannot do is refused."""

import json
import shutil
import threading
from contextlib import nullcontext
from functools import cache
from pathlib import Path

import pytest
import torch
from lvlms import IMAGE, Size, build, inputs

import sparsight
from sparsight.errors import PruneError

pytest.importorskip("openvino")

from sparsight.speed import export_vlm as module
from sparsight.speed.bench_vlm import bench_vlm
from sparsight.speed.engines import on_cpu
from sparsight.speed.openvino_vlm import Facts, OpenVinoVlm, axes, open_vlm
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


GRID = Size(24, 40)
"""Six times ten patches of four pixels, so that windows at the border are smaller."""
QWEN = [
    "unpruned", "divprune:tokens=5", "random:keep=0.4", "cdpruner:tokens=5,text=none", "visionzip:tokens=6,score=column_mean", "fps:tokens=5",
    "pool:tokens=6", "holov:tokens=6,score=column_mean", "scope:tokens=5,score=column_mean", "vispruner:tokens=6,score=column_mean",
]  # fmt: skip


def pictures_of(name, model):
    """Two pictures in one row, one in the other, as the processor gives them."""
    given = inputs(name, model, [[3, GRID, 4, Size(24, 40, 1), 2], [5, Size(24, 40, 2), 3]])
    return {key: value.float() if value.is_floating_point() else value for key, value in given.items()}


@pytest.fixture(scope="module")
def qwen():
    """`qwen(name)`: a model, its inputs, and `compiled(handle)` as above."""

    @cache
    def make(name):
        model = build(name).float()
        given = pictures_of(name, model)
        grid = tuple(given["image_grid_thw"][0].tolist())
        facts = Facts("0", "tiny", "any", IMAGE, 15, [given["pixel_values"].shape[1]], [], 0, list(grid), 2, 4)
        embeddings, language = on_cpu(embedding_graph(model), threads=1), on_cpu(language_graph(model), threads=1)

        def compiled(handle):
            return OpenVinoVlm(
                facts, on_cpu(vision_graph(model, handle, given["pixel_values"][:60], grid), threads=1), embeddings, language
            )

        return model, given, compiled

    return make


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("name", "recipe"),
    [
        ("qwen2.5", "col_ln:tokens=5"), *(pytest.param("qwen2.5", recipe, marks=pytest.mark.product) for recipe in QWEN),
        *(pytest.param("qwen2", recipe, marks=pytest.mark.product) for recipe in ("unpruned", "col_ln:tokens=5")),
    ],
)  # fmt: skip
def test_grids_and_positions_with_axes(qwen, name, recipe):
    """Qwen-VL for pictures of one grid: two rows with padding and three pictures, one row, text alone, and pictures of another grid."""
    model, given, compiled = qwen(name)
    with nullcontext() if recipe == "unpruned" else sparsight.prune(model, recipe) as handle:
        vlm = compiled(handle)
        assert torch.equal(*both(model, vlm, **given))
        if handle is not None:
            assert [plan.keep[0].sort().values.tolist() for plan in handle.plans] == [kept.tolist() for kept in vlm.kept]
            assert [len(places) for places in vlm.places] == handle.counts
        one = {key: value[1:] for key, value in given.items() if key not in ("pixel_values", "image_grid_thw")}
        assert torch.equal(
            *both(model, vlm, **one, pixel_values=given["pixel_values"][120:], image_grid_thw=given["image_grid_thw"][2:])
        )
        assert torch.equal(*both(model, vlm, **text(mm_token_type_ids=torch.zeros(2, 3, dtype=torch.int32))))
    assert handle is None or model.model.visual.config._attn_implementation == "sdpa"
    with pytest.raises(
        PruneError, match=r"image_grid_thw=\[\[1, 10, 6\]\], but tiny was exported for \[1, 6, 10\]; resize pictures to 40 x 24"
    ):
        vlm.generate(**one, pixel_values=given["pixel_values"][:60], image_grid_thw=torch.tensor([[1, 10, 6]]))
    with pytest.raises(PruneError, match="image_grid_thw and mm_token_type_ids missing"):
        vlm.generate(one["input_ids"], given["pixel_values"][:60])


def test_axes():
    """The positions are those that the model itself gives: text before, between and behind pictures, padding on either side."""
    model = build("qwen2.5")
    for samples, side in (
        ([[3, GRID, 4, GRID, 2], [5, GRID, 3]], "left"),
        ([[GRID, 1], [2, GRID]], "right"),
        ([[4], [2, GRID, 7]], "left"),
    ):
        given = inputs("qwen2.5", model, samples, side)
        words = {name: given[name] for name in ("input_ids", "mm_token_type_ids", "image_grid_thw", "attention_mask")}
        wanted, delta = model.model.get_rope_index(**words)
        found = axes(given["input_ids"] == IMAGE, given["attention_mask"], 3, 5)
        assert torch.equal(found, wanted)
        assert torch.equal(found.amax(dim=(0, 2)) + 1, given["attention_mask"].sum(dim=1) + delta.flatten())


@pytest.mark.product
@pytest.mark.timeout(1800)
def test_a_qwen_exported_and_asked(tmp_path):
    """From a checkpoint with its processor, on real pictures of one size; others are refused, before the export and after it."""
    from PIL import Image
    from test_lvlm_processors import processor

    from sparsight.load import demo_vlm

    model, prepare = build("qwen2.5").float(), processor("qwen2.5")
    model.save_pretrained(tmp_path / "qwen")
    prepare.save_pretrained(tmp_path / "qwen")
    done = module.export_vlm(str(tmp_path / "qwen"), "col_ln:tokens=16", tmp_path / "out", data=demo_vlm.pictures(), limit=16)
    assert (done.prompts, done.tokens, done.same_kept, done.same_answers) == (16, 16, 1, 1)
    vlm = open_vlm(tmp_path / "out", threads=1)
    picture = Image.open(sorted(demo_vlm.pictures().glob("*.jpg"))[20])
    prompt = "USER: <|vision_start|> <|image_pad|> <|vision_end|> what is this ? ASSISTANT:"
    with sparsight.prune(model, "col_ln:tokens=16") as handle:
        given = vlm.processor(images=[picture], text=[prompt], return_tensors="pt")
        assert torch.equal(*both(model, vlm, **given))
        assert torch.equal(handle.plans[0].keep[0].sort().values, vlm.kept[0])
    with pytest.raises(PruneError, match="resize pictures to "):
        vlm.generate(**vlm.processor(images=[picture.resize((64, 32))], text=[prompt], return_tensors="pt"))
    mixed = tmp_path / "mixed"
    mixed.mkdir()
    for number, size in enumerate([(64, 64), (64, 32)]):
        picture.resize(size).save(mixed / f"{number}.png")
    with pytest.raises(PruneError, match="an export is for one size"):
        module.export_vlm(str(tmp_path / "qwen"), "col_ln:tokens=4", tmp_path / "o2", data=mixed, limit=2)
    rows = bench_vlm(
        str(tmp_path / "qwen"), ["col_ln:tokens=16"], tmp_path / "bench", images=demo_vlm.pictures(), engine="openvino", rounds=2,
        new_tokens=3, device="cpu",
    ).rows  # fmt: skip
    assert [row.left for row in rows] == [[], [16]]


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
        check_traceable(build("qwen3"), None)
    with pytest.raises(PruneError, match="give that a smaller max_pixels"):
        check_traceable(build("qwen2.5"), sparsight.parse("resize:tokens=4"))
    for recipe in ("prumerge", "agile:tokens=5,count=adaptive"):
        with pytest.raises(PruneError, match="another number of tokens in every image"):
            check_traceable(model, sparsight.parse(recipe))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    for out, words in ((tmp_path / "full", "exists already"), (tmp_path / "no" / "x", r"^/.*/no/x cannot be written")):
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
