"""compare on a vision-language model: from the command to the files, against questions asked one by one; going on; refusals."""

import json
import shutil
import sys

import pytest
import torch
from PIL import Image

pytest.importorskip("transformers")

from tiny_demo import save_demo, save_scenes

import sparsight
from sparsight import PruneError
from sparsight.cli.main import run
from sparsight.data.questions import read_set
from sparsight.evaluation.compare_vlm import compare_vlm
from sparsight.evaluation.vlm_entries import complete, scaled
from sparsight.runs.vlm_comparison import VlmComparison

METHODS, MORE = ["fastervlm", "fastv:layer=1"], ["divprune:tokens=9"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(save_demo(tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def questions(tmp_path_factory):
    return save_scenes(tmp_path_factory.mktemp("scenes") / "set", 4)


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    return tmp_path_factory.mktemp("out")


@pytest.fixture(scope="module")
def done(model, questions, out):
    return compare_vlm(model, questions, METHODS, (4,), out, recipes=MORE, seeds=2, batch_size=16, device="cpu", rounds=2, shown=2)


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def by_hand(model, questions, recipe):
    """One question at a time, with nothing but transformers."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    network, prepare = AutoModelForImageTextToText.from_pretrained(model).eval(), AutoProcessor.from_pretrained(model)
    handle = sparsight.prune(network, recipe) if recipe else None
    answers = {}
    for line in lines(questions / "questions.jsonl"):
        said = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": line["question"]}]}]
        text = prepare.apply_chat_template(said, add_generation_prompt=True)
        call = prepare(images=[Image.open(questions / line["image"])], text=[text], return_tensors="pt")
        with torch.no_grad():
            made = network.generate(**call, max_new_tokens=32, do_sample=False)
        answers[line["id"]] = prepare.tokenizer.decode(made[0, call["input_ids"].shape[1] :], skip_special_tokens=True).strip()
    return answers, handle


def test_rows(done):
    names = [row.recipe for row in done.rows]
    assert names == [
        "unpruned",
        *(f"{m}:tokens=4" for m in ("random", "resize", "pool", "fastervlm")),
        "fastv:tokens=4,layer=1",
        *MORE,
    ]
    random = done.row("random:tokens=4")
    assert random.seeds == ["random:tokens=4", "random:tokens=4,seed=1"]
    assert [row.kept for row in done.rows] == [None] + [4] * 5 + [9]
    assert done.capacity == 16
    assert done.splits == ["simple", "complex"]


@pytest.mark.parametrize(
    "recipe",
    [
        "fastv:layer=1,tokens=4",
        "resize:tokens=4",
        *(pytest.param(one, marks=pytest.mark.product) for one in (None, "fastervlm:tokens=4", "random:tokens=4,seed=1")),
    ],
)
def test_answers_are_those_of_the_users_own_call(done, out, model, questions, recipe):
    want, _ = by_hand(model, questions, recipe)
    name = {None: "unpruned", "fastv:layer=1,tokens=4": "fastv:tokens=4,layer=1"}.get(recipe, recipe)
    got = {line["id"]: line["answer"] for line in lines(out / "answers.jsonl") if line["recipe"] == name}
    assert got == want
    assert len(set(want.values())) > 2


def test_scores_are_those_of_the_answers(done, out, questions):
    one = read_set(questions)
    for row in done.rows:
        mine = [line for line in lines(out / "answers.jsonl") if line["recipe"] in row.seeds]
        for split in done.splits:
            asked = {item.key for item in one.items if item.complexity == split and item.kind == "count"}
            right = [line["answer"] == line["target"][0] for line in mine if line["id"] in asked]
            assert done.value(row, "count", split) == pytest.approx(sum(right) / len(right))
    assert done.change(done.rows[0], "count", "simple") is None
    span = done.change(done.rows[-1], "yes_no", "complex")
    assert span.low <= span.value <= span.high


def test_costs(done):
    whole = done.rows[0].cost
    for row in done.rows[1:]:
        assert row.cost.prefill < whole.prefill, row.recipe
        assert row.cost.cache < whole.cache
    text = whole.lengths[0] - 16
    assert done.row("divprune:tokens=9").cost.lengths == [text + 9] * 4
    assert done.row("fastv:tokens=4,layer=1").cost.lengths == [text + 16] + [text + 4] * 3
    assert done.row("resize:tokens=4").cost.vision < whole.vision
    assert done.row("pool:tokens=4").cost.vision == whole.vision


def test_files(done, out):
    assert VlmComparison.load(out) == done
    table = (out / "results.csv").read_text().splitlines()
    assert len(table) == 1 + 2 * len(done.rows)
    page = (out / "report.html").read_text()
    for text in (
        "Simple pictures",
        "Complex pictures",
        "CHAIR_I",
        "divprune",
        "Accuracy against tokens",
        "Pictures and answers",
        "<svg",
    ):
        assert text in page, text
    assert page.count("<details") == 2


def test_the_order_of_questions_and_batches_does_not_matter(done, model, questions, tmp_path):
    again = compare_vlm(
        model, questions, ["divprune"], (9,), tmp_path, baselines=False, batch_size=3, device="cpu", rounds=2, shown=0
    )
    assert again.row("divprune:tokens=9").counts == done.row("divprune:tokens=9").counts


def test_going_on(done, out, model, questions, tmp_path):
    """Killed in the middle: what is there is not asked again."""
    copy = shutil.copytree(out, tmp_path / "out")
    gone = [file for file in (copy / "rows").iterdir() if file.name.startswith("divprune_tokens=9_")]
    assert len(gone) == 2  # answers and row
    kept = {file: file.stat().st_mtime_ns for file in (copy / "rows").iterdir() if file not in gone}
    for file in gone:
        file.unlink()
    news = []
    again = compare_vlm(
        model,
        questions,
        METHODS,
        (4,),
        copy,
        recipes=MORE,
        seeds=2,
        batch_size=16,
        device="cpu",
        rounds=2,
        shown=0,
        listen=news.append,
    )
    assert [row.counts for row in again.rows] == [row.counts for row in done.rows]
    assert kept == {file: file.stat().st_mtime_ns for file in kept}
    assert [step.restored for step in news if step.row is not None].count(False) == 1


def test_more_pictures_later_ask_only_about_them(model, questions, tmp_path, monkeypatch):
    monkeypatch.setattr("sparsight.evaluation.compare_vlm.AT_ONCE", 2)
    options = {"baselines": False, "device": "cpu", "rounds": 2, "shown": 0}
    compare_vlm(model, questions, ["divprune"], (4,), tmp_path, limit=2, **options)
    kept = {file: file.stat().st_mtime_ns for file in (tmp_path / "rows").iterdir() if "row" not in file.name}
    more = compare_vlm(model, questions, ["divprune"], (4,), tmp_path, limit=4, **options)
    assert kept == {file: file.stat().st_mtime_ns for file in kept}
    assert len(kept) == 2
    assert len(more.pictures) == 4


def test_an_unreadable_picture_is_left_out(model, questions, tmp_path):
    copy = shutil.copytree(questions, tmp_path / "set")
    (copy / "pictures" / "0002.jpg").write_bytes(b"no image")
    result = compare_vlm(model, copy, ["divprune"], (4,), tmp_path / "out", baselines=False, device="cpu", rounds=2, shown=1)
    bad = [line["id"] for line in lines(questions / "questions.jsonl") if line["image"].endswith("0002.jpg")]
    assert [key for key, _ in result.skipped] == bad


def test_layers_of_the_papers_are_scaled():
    assert scaled([8, 16, 24], 6, False) == (2, 3, 5)
    assert scaled([2, 6, 15], 6, True) == (0, 1, 3)
    assert scaled([2, 6, 15], 5, True) == (0, 1, 2)
    assert str(complete("pyramiddrop", 16, 6)) == "pyramiddrop:tokens=64/32/16,layers=2/3/5"
    assert str(complete("pyramiddrop:layers=1/2/3", 16, 6)) == "pyramiddrop:tokens=64/32/16,layers=1/2/3"
    assert str(complete("fastv", 16, 32)) == "fastv:tokens=16"
    assert str(complete("sparsevlm:tokens=64", 16, 32)) == "sparsevlm:tokens=64,layers=2/6/15"
    with pytest.raises(PruneError, match="3 stages need more layers"):
        complete("pyramiddrop", 16, 3)


def test_bad_requests_leave_nothing(model, questions, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(questions / "pictures", tmp_path / "pictures")
    for change, says in (
        ({"data": None}, "no questions for .*only demo-vlm brings"),
        ({"data": tmp_path}, "holds 0 .jsonl files but"),
        ({"methods": ["fastervlmm"]}, "fastervlm"),
        ({"methods": ["divprune:tokens=99"]}, "more than the 16 tokens"),
        ({"methods": None, "tokens": (99,)}, "more than the 16 tokens"),
        ({"methods": ["evit:layers=3"]}, "leave layers out"),
        ({"methods": ["fastv:layer=9"]}, "out of range"),
        ({"seeds": 0}, "seeds=0"),
        ({"tokens": (0,)}, "1 or more"),
        ({"rounds": 1}, "rounds must be 2"),
        ({"limit": 0}, "limit=0"),
        ({"device": "abacus"}, "cannot be used"),
        ({"precision": "int8"}, "precision='int8'"),
    ):
        given = {"data": questions, "methods": ["divprune"], "tokens": (4,), "device": "cpu", **change}
        with pytest.raises(PruneError, match=says):
            compare_vlm(model, given.pop("data"), given.pop("methods"), given.pop("tokens"), out, **given)
        assert not out.exists(), change


def command(monkeypatch, capsys, *words):
    monkeypatch.setattr(sys, "argv", ["sparsight", *map(str, words)])
    with pytest.raises(SystemExit) as stop:
        run()
    return (stop.value.code or 0, *capsys.readouterr())


def test_the_command(model, questions, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    words = [
        "compare",
        "--model",
        model,
        "--data",
        questions,
        "--methods",
        "divprune",
        "--tokens",
        "4",
        "--beside",
        "",
        "--limit",
        "3",
    ]
    code, text, news = command(monkeypatch, capsys, *words, "--out", tmp_path / "out", "--device", "cpu")
    assert code == 0
    assert all(len(line) <= 80 for line in text.splitlines() if str(tmp_path) not in line)
    for part in (
        "simple pictures:",
        "complex pictures:",
        "cost of one prompt",
        "divprune:tokens=4",
        "yes/no %",
        "CHAIR_I",
        "report.html",
    ):
        assert part in text, part
    assert "divprune:tokens=4" in news


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--keep", "0.5"], "--keep is for vision models"),
        (["--layers", "3"], "--layers is for vision models"),
    ],
)
def test_options_of_the_other_kind_of_model(model, questions, monkeypatch, capsys, words, says):
    code, _, news = command(monkeypatch, capsys, "compare", "--model", model, "--data", questions, *words)
    assert code == 2
    assert says in " ".join(news.split())
    code, _, news = command(monkeypatch, capsys, "compare", "--tokens", "4")
    assert code == 2
    assert "for vision-language models" in " ".join(news.split())
