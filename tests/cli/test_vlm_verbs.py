"""calibrate and rank on the command line, with a saved tiny LLaVA."""

import sys

import pytest

pytest.importorskip("transformers")
pytest.importorskip("matplotlib")

from tiny_vlm import save_questions, save_tiny

import sparsight
from sparsight.cli.main import run


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(save_tiny(tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return str(save_questions(tmp_path_factory.mktemp("photos"), 4).parent)


@pytest.fixture
def command(monkeypatch, capsys):
    def call(*words):
        monkeypatch.setattr(sys, "argv", ["sparsight", *map(str, words)])
        with pytest.raises(SystemExit) as stop:
            run()
        return (stop.value.code or 0, *capsys.readouterr())

    return call


def test_calibrate_prints_a_recipe(command, model, photos):
    code, text, news = command(
        "calibrate", "--model", model, "--images", photos, "--recipe", "mix:tokens=4,by=entropy", "--limit", 3
    )
    assert code == 0
    assert "3 images: effective rank" in news
    recipe = sparsight.parse(text.strip())
    values = dict(recipe.params)
    assert values["erank_avg"] != 94.87
    assert values["entropy_span"] != 1.4
    code, text, _ = command(
        "calibrate", "--model", model, "--images", photos, "--recipe", "mix:tokens=4,by=entropy", "--limit", 3, "--json"
    )
    assert sparsight.Recipe.from_json(text) == recipe


def test_rank_prints_and_writes(command, model, photos, tmp_path):
    code, text, _ = command("rank", "--model", model, "--images", photos, "--out", tmp_path / "rank")
    assert code == 0
    assert "0.jpg" in text
    assert "4 images: effective rank" in text
    assert "(Spearman)" in text
    assert sorted(file.name for file in (tmp_path / "rank").iterdir()) == ["rank.csv", "rank.json", "rank.png"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["calibrate", "--model", "M", "--images", "nowhere"], "does not exist"),
        (["calibrate", "--model", "M", "--images", "P", "--recipe", "fastervlm"], "calibrate agile or mix"),
        (["rank", "--model", "M", "--images", "P", "--score", "x"], "score='x' is not known"),
        (["rank", "--model", "M"], "give one with --data"),
        (["rank", "--model", "nowhere/at/all", "--images", "P"], "no model folder"),
        (["evaluate-vlm", "--model", "M", "--tasks", "nowhere.jsonl"], "cannot be read"),
    ],
)
def test_bad_input_is_one_line(command, model, photos, words, says):
    code, text, news = command(*({"M": model, "P": photos}.get(word, word) for word in words))
    assert code == 2
    assert text == ""
    assert says in news
    assert news.splitlines()[-1].startswith("error: ")
