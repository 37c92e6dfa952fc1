"""evaluate-vlm by lmms-eval: what it needs, and the same answers as from a file of questions."""

import json
import os

import pytest

pytest.importorskip("transformers")

from tiny_vlm import save_questions, save_tiny

from sparsight import PruneError
from sparsight.evaluation import vlm_sets as harness
from sparsight.evaluation.evaluate_vlm import evaluate_vlm, find_tasks


def test_a_set_that_needs_the_network_says_which_and_how(monkeypatch, tmp_path):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(
        PruneError, match=r"gqa needs the data set lmms-lab-encoder/GQA .*HF_HUB_OFFLINE.*set HF_HOME to it.*FILE\.jsonl"
    ):
        find_tasks(["gqa"], None)
    (tmp_path / "lmms-lab-encoder___gqa").mkdir()
    harness.check_data("gqa", "lmms-lab-encoder/GQA")


def test_without_lmms_eval_the_command_that_installs_it_is_named(monkeypatch):
    from importlib import util

    monkeypatch.setattr(util, "find_spec", lambda name: None)
    with pytest.raises(PruneError, match=r"own_task runs by lmms-eval.*pip install 'sparsight\[hf,lmms\]'"):
        find_tasks(["lmms:own_task"], None)


def test_a_judge_that_is_missing_is_told(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path))
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    (tmp_path / "lmms-lab-encoder___mmvet").mkdir()
    with pytest.raises(PruneError, match=r"mmvet is judged by a language model .* OPENAI_API_KEY"):
        find_tasks(["mmvet"], None)


TASK = """
task: dogs_by_harness
dataset_path: json
dataset_kwargs:
  data_files:
    test: {file}
test_split: test
output_type: generate_until
doc_to_visual: !function dogs.visual
doc_to_text: !function dogs.text
doc_to_target: answer
generation_kwargs:
  max_new_tokens: 4
metric_list:
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
    ignore_case: true
    ignore_punctuation: true
"""


FUNCTIONS = """
import os
from PIL import Image

def visual(doc):
    with Image.open(os.path.join({folder!r}, doc["image"])) as image:
        return [image.convert("RGB")]

def text(doc, lmms_eval_specific_kwargs=None):
    return doc["question"]
"""


def column(path, name):
    return [json.loads(line)[name] for line in path.read_text().splitlines()]


@pytest.mark.slow
def test_by_lmms_eval(tmp_path):
    """The same questions as a task of lmms-eval: the same answers, right and wrong alike."""
    pytest.importorskip("lmms_eval")
    model, questions = str(save_tiny(tmp_path / "model")), save_questions(tmp_path / "questions")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    (tmp_path / "dogs.yaml").write_text(TASK.format(file=questions))
    (tmp_path / "dogs.py").write_text(FUNCTIONS.format(folder=str(questions.parent)))
    recipes = ["vispruner:tokens=4", "fastv:layer=1,keep=0.25"]
    tasks = [str(tmp_path / "dogs.yaml"), str(questions)]
    result = evaluate_vlm(model, recipes, tasks, tmp_path / "out", batch_size=3, device="cpu", precision="fp32")
    for row in result.rows:
        by_harness, own = row.scores
        assert by_harness.score == pytest.approx(100 * own.accuracy)
        assert by_harness.hits == own.hits
        assert by_harness.kept == own.kept
        texts = [column(tmp_path / "out" / score.answers, "answer") for score in row.scores]
        assert texts[0] == texts[1]
        left = [column(tmp_path / "out" / score.answers, "kept") for score in row.scores]
        assert left[0] == left[1]
    assert result.row(recipes[0]).scores[0].accuracy_change is not None


@pytest.mark.slow
def test_the_demo_model_answers_a_task_of_lmms_eval(tmp_path, monkeypatch):
    """The task of examples/lmms_eval, unpruned and pruned: what lmms-eval's evaluator hears is what evaluate-vlm hears of the same
    questions in a file, answer by answer, with the same tokens left."""
    pytest.importorskip("lmms_eval")
    from pathlib import Path

    from sparsight.load import demo_vlm

    count, root = 6, Path(__file__).parents[2]
    monkeypatch.chdir(root)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    asked = [line for line in map(json.loads, demo_vlm.questions().read_text().splitlines()) if line["kind"] == "yes_no"][:count]
    questions = tmp_path / "same.jsonl"
    plain = [{name: line[name] for name in ("id", "question", "answer")} for line in asked]
    questions.write_text(
        "".join(
            json.dumps({**line, "image": str(demo_vlm.FOLDER / one["image"])}) + "\n"
            for line, one in zip(plain, asked, strict=True)
        )
    )
    task = root / "examples" / "lmms_eval" / "demo_yes_no.yaml"
    result = evaluate_vlm(
        "demo-vlm", ["divprune:tokens=16"], [str(task), str(questions)], tmp_path / "out", limit=count, batch_size=3, device="cpu"
    )
    for row in result.rows:
        by_harness, own = (column_of(tmp_path / "out" / score.answers) for score in row.scores)
        assert by_harness == own
        assert [kept for *_, kept in own] == [[] if row is result.rows[0] else [16]] * count
        assert row.scores[0].score == pytest.approx(100 * row.scores[1].accuracy)
    assert result.rows[0].scores[1].accuracy > 0.7


def column_of(path):
    return [tuple(json.loads(line)[name] for name in ("question", "answer", "kept")) for line in path.read_text().splitlines()]
