"""evaluate-vlm: questions in a file from the command to the files it writes, going on, relative scores of the papers, refusals."""

import json
import shutil
import sys

import pytest
import torch
from PIL import Image

pytest.importorskip("transformers")

from tiny_vlm import save_questions, save_tiny

import sparsight
from sparsight import PruneError
from sparsight.cli.main import run
from sparsight.cli.results import print_vlm_evaluation
from sparsight.data.questions import read_set
from sparsight.evaluation import metrics
from sparsight.evaluation.asking import AnswerLog, Asker, Question, cut
from sparsight.evaluation.evaluate_vlm import evaluate_vlm
from sparsight.evaluation.vlm_scores import VlmEvaluation
from sparsight.evaluation.vlm_sets import right, score_set
from sparsight.runs.intervals import paired

RECIPES = ["vispruner:tokens=4", "fastv:layer=1,keep=0.25"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(save_tiny(tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def questions(tmp_path_factory):
    return save_questions(tmp_path_factory.mktemp("questions"))


@pytest.fixture(scope="module")
def done(model, questions, tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    return evaluate_vlm(model, RECIPES, [str(questions)], out, batch_size=3, device="cpu", precision="fp32"), out


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def by_hand(model, questions, recipe=None):
    """One question at a time, with nothing but transformers."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    network, prepare = AutoModelForImageTextToText.from_pretrained(model).eval(), AutoProcessor.from_pretrained(model)
    handle = sparsight.prune(network, recipe) if recipe else None
    answers = []
    for line in lines(questions):
        image = Image.open(questions.parent / line["image"])
        call = prepare(images=[image], text=[f"USER: <image>\n{line['question']} ASSISTANT:"], return_tensors="pt")
        with torch.no_grad():
            made = network.generate(**call, max_new_tokens=4, do_sample=False)
        answers.append(prepare.tokenizer.decode(made[0, call["input_ids"].shape[1] :]))
    return answers, handle


def test_answers_are_those_of_the_users_own_call(done, model, questions):
    result, out = done
    for row, recipe in zip(result.rows, [None, *RECIPES], strict=True):
        score = row.scores[0]
        answers, _ = by_hand(model, questions, recipe)
        assert [line["answer"] for line in lines(out / score.answers)] == answers
        labels = [line["answer"] for line in lines(questions)]
        want = metrics.pope(answers, labels)
        assert score.score == pytest.approx(100 * want.f1)
        assert score.metrics["yes_ratio"] == pytest.approx(100 * want.yes_ratio)
        assert score.accuracy == pytest.approx(want.accuracy)
        assert score.questions == 8
    assert {"yes", "no"} == {line["answer"] for row in result.rows for line in lines(out / row.scores[0].answers)}


def test_relative_scores_and_intervals(done):
    result, _ = done
    whole, pruned = result.rows[0], result.rows[1]
    assert whole.relative == 100
    assert pruned.relative == pytest.approx(100 * pruned.scores[0].score / whole.scores[0].score)
    assert whole.scores[0].accuracy_change is None
    hits = [[int(hit) for hit in row.scores[0].hits] for row in (pruned, whole)]
    assert pruned.scores[0].accuracy_change == paired(*hits)
    assert [row.scores[0].kept for row in result.rows] == [None, 4, 4]
    assert "points against unpruned" in result.changes()[0]
    assert len(result.changes()) == 2


def test_files(done):
    result, out = done
    assert VlmEvaluation.from_json((out / "results.json").read_text()) == result
    table = (out / "results.csv").read_text().splitlines()
    assert len(table) == 4
    assert table[2].startswith("vispruner:tokens=4,photos,")
    assert sorted(file.suffix for file in (out / "rows").iterdir()) == [".json"] * 3


def test_going_on(model, questions, tmp_path):
    """Killed in the middle of a row: finished rows and answers are not asked again, a line cut off is."""
    news = []
    first = evaluate_vlm(model, RECIPES[:1], [str(questions)], tmp_path, device="cpu", precision="fp32", listen=news.append)
    rows = sorted((tmp_path / "rows").iterdir())
    row = next(file for file in rows if "vispruner" in file.name)
    answers = lines(tmp_path / first.rows[1].scores[0].answers)
    row.unlink()
    entries = [json.dumps({"key": line["id"], "text": "no no", "kept": [9], "fault": ""}) for line in answers[:3]]
    row.with_suffix(".log").write_text("\n".join(entries) + '\n{"key": "q3", "te')
    again = evaluate_vlm(model, RECIPES[:1], [str(questions)], tmp_path, device="cpu", precision="fp32", listen=news.append)
    got = lines(tmp_path / again.rows[1].scores[0].answers)
    assert [line["answer"] for line in got[:3]] == ["no no"] * 3
    assert got[3:] == answers[3:]
    assert [step.restored for step in news if step.row is not None] == [False, False, True, False]
    assert sorted((tmp_path / "rows").iterdir()) == rows
    other = evaluate_vlm(model, [], [str(questions)], tmp_path, limit=2, device="cpu", precision="fp32")
    assert other.rows[0].scores[0].questions == 2


def test_a_module_with_its_processor(done, model, questions, tmp_path):
    from transformers import AutoModelForImageTextToText, AutoProcessor

    network = AutoModelForImageTextToText.from_pretrained(model).eval()
    result = evaluate_vlm(
        network, RECIPES, [str(questions)], tmp_path, processor=AutoProcessor.from_pretrained(model), batch_size=3
    )
    assert [row.scores[0].score for row in result.rows] == [row.scores[0].score for row in done[0].rows]
    assert (result.device, result.precision) == (done[0].device, "fp32")
    with pytest.raises(PruneError, match="needs its processor"):
        evaluate_vlm(network, [], [str(questions)], tmp_path)


def test_logits_that_are_not_finite(model, questions, tmp_path):
    """The answers that come from them are named and left out; where there are no others it is an error."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    network, prepare = AutoModelForImageTextToText.from_pretrained(model).eval(), AutoProcessor.from_pretrained(model)
    calls = []

    def spoil(_module, _given, logits):
        calls.append(logits.shape[0])
        return logits * torch.nan if len(calls) == 1 else None

    hook = network.lm_head.register_forward_hook(spoil)
    score = evaluate_vlm(network, [], [str(questions)], tmp_path / "one", processor=prepare, batch_size=2).rows[0].scores[0]
    hook.remove()
    assert [why for _, why in score.skipped] == ["the logits are NaN or infinite"] * 2
    assert score.questions == len(lines(questions)) - 2
    network.lm_head.weight.data[0] = torch.nan
    with pytest.raises(PruneError, match=r"all \d+ answers to photos come from logits that are NaN or infinite"):
        evaluate_vlm(network, [], [str(questions)], tmp_path / "all", processor=prepare)


def test_an_unreadable_image_is_left_out(model, questions, tmp_path, capsys):
    shutil.copytree(questions.parent, tmp_path / "q")
    (tmp_path / "q" / "2.jpg").write_bytes(b"no image")
    result = evaluate_vlm(model, RECIPES[:1], [str(tmp_path / "q")], tmp_path / "out", batch_size=4, device="cpu", precision="fp32")
    for row in result.rows:
        assert row.scores[0].questions == 7
        assert [name for name, _ in row.scores[0].skipped] == ["q2"]
        assert row.scores[0].hits[2] is None
    print_vlm_evaluation(result, tmp_path / "out")
    assert "skipped q2: " in "".join(capsys.readouterr())
    assert "1 unreadable image was skipped: q2 (" in (tmp_path / "out" / "report.html").read_text()


def test_the_command(model, questions, tmp_path, monkeypatch, capsys):
    words = ["evaluate-vlm", "--model", model, "--tasks", str(questions), "--recipe", RECIPES[0], "--out", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", ["sparsight", *words, "--device", "cpu", "--precision", "fp32", "--batch-size", "8"])
    with pytest.raises(SystemExit) as stop:
        run()
    text, news = capsys.readouterr()
    assert not stop.value.code
    assert "vispruner:tokens=4" in text
    assert "points against unpruned" in " ".join(text.split())
    assert "wrote" in text
    assert "unpruned, photos: " in news


def test_answers_of_words(tmp_path):
    """Other answers than yes and no count by the same words; several may be right."""
    path = save_questions(tmp_path, 2, question="what colour is the dog", answer=["Light brown", "tan"])
    found = read_set(path)
    assert not found.binary
    assert right(found.items[0], "light brown.", False)
    assert right(found.items[0], "Tan", False)
    assert not right(found.items[0], "brown", False)


def test_categories_are_splits(tmp_path):
    """The mean of F1 over categories, as POPE's splits: 1 and 0."""
    from sparsight.evaluation.asking import Answer

    path = save_questions(tmp_path, 4)
    rows = [{**json.loads(line), "category": "ab"[i // 2]} for i, line in enumerate(path.read_text().splitlines())]
    path.write_text("\n".join(map(json.dumps, rows)))
    scores, hits = score_set(read_set(path), [Answer("yes"), Answer("no"), Answer("no"), Answer("no")])
    assert scores["f1"] == 50
    assert scores["accuracy"] == 75
    assert hits == [1, 1, 0, 1]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "holds no questions"),
        ("{", "line 1 is no JSON object"),
        ('{"image": "0.jpg", "question": "a", "answer": null}', "line 1 has the answer None, which is no text"),
        ("[1]\n3", r"2 of 2 lines .* line 1 is no JSON object but \[1\]; line 2 is no JSON object but 3"),
        ('{"image": "0.jpg", "question": "a"}', "line 1 has no 'answer'"),
        ('{"image": "9.jpg", "question": "a", "answer": "no"}', "no image file .*9.jpg; paths are relative"),
        ('{"image": "0.jpg", "question": " ", "answer": "no"}', "empty question"),
        ('{"id": 1, "image": "0.jpg", "question": "a", "answer": "no"}\n' * 2, "the same id"),
    ],
)
def test_bad_questions(questions, tmp_path, text, says):
    shutil.copy(questions.parent / "0.jpg", tmp_path)
    (tmp_path / "q.jsonl").write_text(text)
    with pytest.raises(PruneError, match=says):
        read_set(tmp_path / "q.jsonl")


def test_a_file_that_windows_has_marked(questions, tmp_path):
    (tmp_path / "0.jpg").symlink_to(questions.parent / "0.jpg")
    (tmp_path / "q.jsonl").write_text('{"image": "0.jpg", "question": "a", "answer": "no"}\n', encoding="utf-8-sig")
    assert len(read_set(tmp_path).items) == 1


def test_bad_requests_leave_nothing(model, questions, tmp_path):
    out = tmp_path / "out"
    for change, says in (
        ({"recipes": ["vispruner:tokens=40"]}, "more than the 16 tokens"),
        ({"recipes": ["fastv:layer=9"]}, "out of range"),
        ({"tasks": []}, "no sets are given"),
        ({"tasks": ["popee"]}, "no evaluation set 'popee'; did you mean pope"),
        ({"tasks": [str(questions), str(questions)]}, "asked for twice"),
        ({"tasks": [str(tmp_path)]}, "holds 0 .jsonl files"),
        ({"tasks": [str(tmp_path / "none")]}, "there is no file or folder"),
        ({"limit": 0}, "limit=0"),
        ({"precision": "int8"}, "precision='int8'"),
        ({"device": "abacus"}, "cannot be used"),
        ({"prompt": "say {question}"}, "must hold"),
        ({"model": str(tmp_path)}, "config.json"),
    ):
        given = {
            "model": model,
            "recipes": [],
            "tasks": [str(questions)],
            "out": out,
            "device": "cpu",
            "precision": "fp32",
            **change,
        }
        with pytest.raises(PruneError, match=says):
            evaluate_vlm(**given)
    assert not out.exists()


def test_prompts_and_pictures(model):
    from transformers import AutoModelForImageTextToText, AutoProcessor

    network, prepare = AutoModelForImageTextToText.from_pretrained(model), AutoProcessor.from_pretrained(model)
    assert Asker(network, prepare).written("why", 2) == "USER: <image>\n<image>\nwhy ASSISTANT:"
    assert Asker(network, prepare, prompt="{images} Q: {question} A:").written("why", 1) == "<image> Q: why A:"
    prepare.chat_template = (
        "{% for m in messages %}{% for c in m.content %}{{ '<image>' if c.type == 'image' else c.text }}{% endfor %}{% endfor %} !"
    )
    assert Asker(network, prepare).written("why", 1) == "<image>why !"
    wide = Asker(network, prepare, square=True).prepared(Image.new("RGB", (40, 20), "red"))
    assert wide.size == (40, 40)
    assert wide.getpixel((0, 20)) == (255, 0, 0)
    assert wide.getpixel((0, 0)) == tuple(int(255 * part) for part in prepare.image_processor.image_mean)
    with pytest.raises(PruneError, match="batch_size=0"):
        Asker(network, prepare, 0)
    assert cut("a cat\nASSISTANT: x", ("ASSISTANT:", "")) == "a cat"
    gone = Asker(network, prepare).ask([Question("k", lambda: [Image.open("nowhere.png")], "q")], AnswerLog())
    assert gone[0].text is None
