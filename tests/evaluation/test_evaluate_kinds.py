"""evaluate-vlm on questions that say their kind, as the demo model's: the package's questions by default, fp32 on the CPU, the tower once."""

import json
import shutil
import sys

import pytest

pytest.importorskip("transformers")

from tiny_demo import save_demo, save_scenes

from sparsight import PruneError
from sparsight.cli.main import run
from sparsight.data.questions import read_set
from sparsight.evaluation.evaluate_vlm import evaluate_vlm
from sparsight.evaluation.question_scores import summary
from sparsight.load import demo_vlm


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """An ordinary folder with questions: what the package has, but tiny."""
    folder = tmp_path_factory.mktemp("package") / "vlm"
    return save_demo(save_scenes(folder, 4))


@pytest.fixture
def installed(package, monkeypatch):
    monkeypatch.setattr(demo_vlm, "FOLDER", package)
    return package


def answers(out, score):
    return [json.loads(line)["answer"] for line in (out / score.answers).read_text().splitlines()]


def test_scores_by_kind(package, tmp_path):
    done = evaluate_vlm(str(package), ["divprune:tokens=4"], [str(package)], tmp_path, batch_size=4, device="cpu")
    assert done.precision == "fp32"
    one = read_set(package)
    for row in done.rows:
        score = row.scores[0]
        want = summary(one.items, answers(tmp_path, score))
        assert score.metrics == want
        assert score.score == want["accuracy"]
        assert {"simple/yes_no", "complex/chair_i", "mme", "f1"} <= set(want)
        assert [hit is None for hit in score.hits] == [item.kind == "list" for item in one.items]
    assert done.rows[1].scores[0].accuracy_change is not None


def test_the_demo_model_brings_its_questions(installed, tmp_path, monkeypatch, capsys):
    words = [
        "evaluate-vlm",
        "demo-vlm",
        "--recipe",
        "divprune:tokens=4",
        "--batch-size",
        "8",
        "--limit",
        "6",
        "--out",
        str(tmp_path / "out"),
    ]
    monkeypatch.setattr(sys, "argv", ["sparsight", *words, "--device", "cpu"])
    with pytest.raises(SystemExit) as stop:
        run()
    assert not stop.value.code
    assert "demo-vlm on questions: 1 recipes" in capsys.readouterr().out


def test_unknown_words_are_refused_before_the_model_is_loaded(package, tmp_path):
    copy = shutil.copytree(package, tmp_path / "set")
    lines = (copy / "questions.jsonl").read_text().splitlines()
    changed = {**json.loads(lines[0]), "question": "is there a zeppelin ?"}
    (copy / "questions.jsonl").write_text(json.dumps(changed))
    with pytest.raises(PruneError, match=r"no word 'zeppelin' \(in the question"):
        evaluate_vlm(str(package), [], [str(copy)], tmp_path / "out", device="cpu")
    assert not (tmp_path / "out").exists()
