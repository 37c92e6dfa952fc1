"""Answers that are NaN or infinite: counted, named and wrong; an error where there are no others."""

import csv
import json

import pytest
import torch
from compare_data import make_images, make_model

from sparsight import PruneError, calibrate
from sparsight.evaluation.compare import compare
from sparsight.evaluation.evaluate import evaluate
from sparsight.evaluation.robustness import robustness
from sparsight.look.analyse import analyse
from sparsight.look.rank import rank
from sparsight.look.show import show
from sparsight.speed.bench import bench
from sparsight.speed.export import export

RECIPE = "evit:keep=0.5,layers=1/3"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_images(tmp_path_factory.mktemp("images"))


@pytest.fixture
def spoilt(folder):
    """A model whose features are infinite for one of the six images, dog/1.png."""
    from sparsight.data.reading import decode

    loaded = make_model()
    target = loaded.transform(decode(folder / "dog" / "1.png"))
    bad = []
    loaded.model.register_forward_pre_hook(
        lambda _m, given: bad.append((given[0] - target.to(given[0].device)).abs().amax(dim=(1, 2, 3)) < 1e-3)
    )

    def overflow(_module, _given, x):
        return torch.where(bad.pop().view(-1, 1, 1), torch.inf, x)

    loaded.model.norm.register_forward_hook(overflow)
    return loaded


@pytest.fixture
def broken():
    loaded = make_model()
    with torch.no_grad():
        loaded.model.blocks[2].mlp.fc1.weight[0, 0] = torch.nan
    return loaded


def test_evaluate_counts_and_names(spoilt, folder, tmp_path):
    done = evaluate(spoilt, folder, [RECIPE], tmp_path, device="cpu")
    for score in done.scores:
        assert score.not_finite == ["dog/1.png"]
        assert score.agreement.value == pytest.approx(5 / 6)
    assert any(note.startswith("1 of 6 answers of the unpruned model are NaN or infinite") for note in done.notes)
    with (tmp_path / "predictions.csv").open(newline="") as file:
        line = next(row for row in csv.DictReader(file) if row["image"] == "dog/1.png")
    assert (line["predicted"], line["probability"], line["correct"], line["label_name"]) == ("", "", "0", "dog")


def test_compare_counts_and_names(spoilt, folder, tmp_path):
    done = compare(spoilt, folder, ["evit"], [0.5], ["1/3"], tmp_path, beside=(), seconds=0, device="cpu", shown=0)
    row = done.row(RECIPE)
    assert row.not_finite == ["dog/1.png"]
    assert row.agreement.value == pytest.approx(5 / 6)
    assert row.outcomes.cosine[done.images.index("dog/1.png")] == 0
    assert json.loads((tmp_path / "results.json").read_text())["rows"][0]["not_finite"] == ["dog/1.png"]
    assert sum("NaN or infinite" in note for note in done.notes) == 2


def test_robustness_counts_and_names(spoilt, folder, tmp_path):
    pytest.importorskip("imagecorruptions")
    done = robustness(spoilt, folder, [RECIPE], tmp_path, corruptions=["contrast"], severities=[1], device="cpu")
    assert all(row.rank == pytest.approx(row.rank) for row in done.rows)
    assert any("unpruned, clean" in note and "dog/1.png" in note for note in done.notes)


@pytest.mark.parametrize("verb", [compare, evaluate, robustness])
def test_no_finite_answer_is_an_error(verb, broken, folder, tmp_path):
    if verb is robustness:
        pytest.importorskip("imagecorruptions")
    more = {"seconds": 0} if verb is compare else {"corruptions": ["contrast"]} if verb is robustness else {}
    with pytest.raises(PruneError, match="all 6 answers are NaN or infinite; check the weights"):
        verb(broken, folder, recipes=[RECIPE], out=tmp_path, device="cpu", **more)


def test_analyse_leaves_them_out(spoilt, folder, tmp_path):
    done = analyse(spoilt, folder, ["col_ln:keep=0.5"], tmp_path, layers="1", shown=0, device="cpu")
    assert done.skipped == [("dog/1.png", "tokens or attention are NaN or infinite")]
    assert done.images == 5


VERBS = {
    "analyse": lambda model, folder, out: analyse(model, folder, ["col_ln:keep=0.5"], out, device="cpu"),
    "bench": lambda model, folder, out: bench(model, ["col_ln:keep=0.5,layers=1"], out, batch_sizes=[1], data=folder, device="cpu"),
    "calibrate": lambda model, folder, out: calibrate(model, folder),
    "export": lambda model, folder, out: export(model, None, out / "file.pt2", format="torch-export", data=folder),
    "rank": lambda model, folder, out: rank(model, folder, out, layer=3),
    "show": lambda model, folder, out: show(folder / "cat" / "0.png", model, "col_ln:keep=0.5,layers=3", out / "kept.png"),
}


@pytest.mark.parametrize("verb", VERBS)
def test_no_finite_answer_is_an_error_elsewhere(verb, broken, folder, tmp_path):
    with pytest.raises(PruneError, match="NaN or infinite"):
        VERBS[verb](broken, folder, tmp_path)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.parametrize("mode", ["knn", "probe"])
def test_features_that_are_not_finite_have_no_neighbours(mode, spoilt, folder, tmp_path):
    if mode == "probe":
        pytest.importorskip("sklearn")
    done = evaluate(spoilt, folder, [], tmp_path, mode=mode, train=folder, k=1, device="cpu")
    assert done.score().not_finite == ["dog/1.png"]
    assert done.score().top1.value == pytest.approx(5 / 6)
