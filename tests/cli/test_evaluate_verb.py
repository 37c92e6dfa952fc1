"""sparsight evaluate and sparsight robustness: options arrive, tables are printed, errors are one line."""

import pytest
from compare_data import ARCHITECTURE, make_images, make_model
from safetensors.torch import save_file

pytest.importorskip("timm")


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """Options of a tiny model and its images."""
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    save_file(make_model().model.state_dict(), path)
    images = make_images(tmp_path_factory.mktemp("images") / "val", ("c0", "c1", "c2")).parent
    return ["--model", f"{ARCHITECTURE}@{path}", "--data", str(images), "--split", "val"]


def test_evaluate(sparsight, given, tmp_path):
    recipes = ["--recipe", "evit:keep=0.5,layers=1/3", "--recipe", "random:tokens=20,layers=2"]
    code, text, news = sparsight("evaluate", *given, *recipes, "--out", tmp_path, "--limit", 3, "--batch-size", 2, "--workers", 1)
    assert code == 0
    assert news.splitlines() == ["test: 0 of 3 images", "test: 3 of 3 images"]
    assert "3 images, classify" in text
    assert "random:tokens=20,layers=2" in text
    assert {file.name for file in tmp_path.iterdir()} >= {"rows", "predictions.csv", "report.html", "results.json"}


def test_robustness(sparsight, given, tmp_path):
    pytest.importorskip("imagecorruptions")
    code, text, _ = sparsight(
        "robustness", *given, "--corruptions", "fog, contrast", "--severity", "2", "--out", tmp_path, "--limit", 2
    )
    assert code == 0
    assert [line.split()[0] for line in text.splitlines()[2:7] if line.strip()] == ["clean", "fog", "contrast", "average"]
    assert (tmp_path / "robustness.png").stat().st_size > 5000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["evaluate", "--split", "test"], "has no split 'test'; it has val"),
        (["evaluate", "--mode", "guess"], "choose classify"),
        (["evaluate", "--recipe", "evitt"], "did you mean 'evit'"),
        (["robustness", "--severity", "high"], "no list of whole numbers"),
    ],
)
def test_errors_are_one_line(sparsight, given, tmp_path, arguments, message):
    code, text, news = sparsight(arguments[0], *given, *arguments[1:], "--out", tmp_path / "out")
    assert (code, text) == (2, "")
    assert message in news
    assert news.count("\n") == 1
    assert not (tmp_path / "out").exists()
