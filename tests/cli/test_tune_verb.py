"""sparsight tune on the command line: a search, a first look, a target that is missed, what is refused; 80 columns are enough."""

import pytest
from tune_data import save_images, save_model

pytest.importorskip("optuna")


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    images = save_images(tmp_path_factory.mktemp("images"), 24)
    return [
        "--model",
        save_model(tmp_path_factory.mktemp("model")),
        "--data",
        images,
        "--device",
        "cpu",
        "--methods",
        "resize,col_ln",
    ]


def test_a_search_fits_into_80_columns(sparsight, given, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    code, text, news = sparsight(
        "tune", *given, "--metric", "agreement", "--speedup", 1.2, "--trials", 4, "--recipe", "random:keep=0.5,layers=2", "--out", tmp_path
    )  # fmt: skip
    assert code == 0, news
    lines = text.splitlines()
    assert all(len(line) <= 80 for line in lines if str(tmp_path) not in line)
    assert any(line.startswith("unpruned") for line in lines)
    assert any(line.startswith("speed-up at least 1.2:") for line in lines)
    assert str(tmp_path / "recipe.json") in text
    assert "4/4 " in news


def test_a_target_that_is_missed_shows_the_nearest_and_fails(sparsight, given, tmp_path):
    code, text, news = sparsight(
        "tune", *given, "--metric", "agreement", "--speedup", 1.9, "--loss", 0, "--trials", 2, "--out", tmp_path
    )
    if code == 0:
        pytest.skip("the tiny model loses nothing")
    assert code == 2
    assert "unpruned" in text
    assert "error: no recipe of 2 has speed-up at least 1.9, loss at most 0 points; the nearest is" in news
    assert not (tmp_path / "recipe.json").exists()


def test_a_first_look(sparsight, given, tmp_path):
    pytest.importorskip("matplotlib")
    code, text, _ = sparsight(
        "tune", *given, "--sensitivity", "--keep", "0.5", "--metric", "agreement", "--limit", 12, "--out", tmp_path
    )
    assert code == 0
    assert "col_ln:keep=0.5,layers=0" in text
    assert "resize:keep=0.5" in text
    assert (tmp_path / "sensitivity.png").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--tasks", "Q.jsonl"], "--data, --metric are for images; leave out"),
        (["--prompt", "{images}"], "--prompt is for questions; leave out"),
        (["--sensitivity", "--keep", "a"], "is no list of numbers"),
        (["--speedup", "1000"], "cannot be met: the cheapest recipe that is searched"),
    ],
)
def test_what_is_refused(sparsight, given, tmp_path, more, message):
    code, text, news = sparsight("tune", *given, "--metric", "agreement", *more, "--out", tmp_path / "out")
    assert (code, text) == (2, "")
    assert message in news
    assert not (tmp_path / "out").exists()
