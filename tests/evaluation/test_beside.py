"""Baselines beside the recipes: at the same budget, at equal work, with as many tokens; their groups in a comparison."""

import pytest
import transformers
from compare_data import make_images, make_model

from sparsight.errors import PruneError
from sparsight.evaluation.beside import beside, check_beside
from sparsight.evaluation.compare import compare
from sparsight.evaluation.evaluate import evaluate
from sparsight.pages.report import report
from sparsight.prune import resolve
from sparsight.registry import parse
from sparsight.runs.comparison import UNPRUNED, Comparison
from sparsight.speed.macs import macs

pytest.importorskip("timm")

SIZE = (160, 160)
COL_LN = "col_ln:keep=0.5,layers=1/3"
EARLY = ("keep=0.5", "1/3")


@pytest.fixture(scope="module")
def loaded():
    return make_model()


def texts(found):
    return [str(recipe) for recipe in found.recipes]


def test_the_smaller_picture_is_the_one_nearest_in_work(loaded):
    found = beside(loaded.model, [parse(COL_LN), parse("evit:keep=0.5,layers=1/3")], image_size=SIZE)
    random, resize = texts(found)
    assert random == "random:keep=0.5,layers=1/3"
    goal = macs(loaded.model, COL_LN, SIZE)
    every = {f"resize:tokens={side * side}": macs(loaded.model, f"resize:tokens={side * side}", SIZE) for side in range(2, 10)}
    assert resize == min(every, key=lambda text: abs(every[text] - goal))
    assert found.groups == {random: [EARLY], resize: [EARLY]}
    assert not found.notes


def test_pool_stands_behind_the_first_block_and_equal_tokens_are_those_left(loaded):
    found = beside(loaded.model, [parse(COL_LN)], ("resize", "pool"), ("tokens",), SIZE)
    assert texts(found) == ["resize:tokens=25", "pool:tokens=25,layer=1"]
    both = beside(loaded.model, [parse(COL_LN)], ("resize",), ("macs", "tokens"), SIZE)
    assert len(both.recipes) == 2


def test_work_that_no_baseline_comes_near_is_told(loaded):
    found = beside(loaded.model, [parse("col_ln:tokens=1,layers=0")], ("pool", "resize"), image_size=SIZE)
    assert [text.partition(":")[0] for text in texts(found)] == ["resize"]
    assert "no pool comes near" in found.notes[0]


def test_a_model_of_one_size_has_no_smaller_picture():
    config = {
        "hidden_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "image_size": 64,
        "patch_size": 8,
    }
    model = transformers.BeitModel(transformers.BeitConfig(**config)).eval()
    found = beside(model, [parse("random:keep=0.5,layers=1")], image_size=(64, 64))
    assert not found.recipes
    assert "takes images of its own size only" in found.notes[0]


def test_adaptive_recipes_and_baselines_get_none(loaded):
    recipes = [parse(text) for text in ("ats:layers=1", "resize:keep=0.5", "pool:keep=0.5,layer=1")]
    assert not beside(loaded.model, recipes, image_size=SIZE).recipes


def test_words_are_checked():
    assert check_beside(["pool", "pool"], ["macs"]) == (["pool"], ["macs"])
    for names, equal, message in (
        (["poll"], ["macs"], "beside=poll"),
        (["pool"], ["mac"], "equal=mac"),
        (["pool"], [], "equal is empty"),
    ):
        with pytest.raises(PruneError, match=message):
            check_beside(names, equal)


@pytest.fixture(scope="module")
def done(loaded, tmp_path_factory):
    folder = make_images(tmp_path_factory.mktemp("images"))
    out = tmp_path_factory.mktemp("out")
    found = compare(
        loaded,
        folder,
        ["evit", "col_ln"],
        [0.5],
        ["1/3"],
        out,
        recipes=["similarity:keep=0.45,layers=1"],
        batch_size=4,
        seconds=0,
        shown=1,
    )
    return found, out


def test_a_comparison_has_the_baselines_in_the_groups(done):
    found, out = done
    assert [len(rows) for rows in found.groups.values()] == [4, 3]
    for (budget, layers), rows in found.groups.items():
        names = [row.recipe.partition(":")[0] for row in rows]
        assert names[-2:] == ["random", "resize"]
        assert rows[-2].recipe == f"random:{budget},layers={layers}"
        assert (budget, layers) in rows[-1].groups
        assert abs(rows[-1].macs - rows[0].macs) < 0.15 * rows[0].macs
    assert Comparison.load(out) == found
    assert "beside" not in (out / "results.csv").read_text()


def test_one_baseline_may_stand_in_two_groups(loaded):
    recipes = [resolve(text, {}) for text in ("evit:keep=0.5,layers=1/3", "evit:keep=0.51,layers=1/3")]
    found = beside(loaded.model, recipes, ("resize",), image_size=SIZE)
    (resize,) = found.recipes
    assert found.groups[str(resize)] == [EARLY, ("keep=0.51", "1/3")]


def test_the_page_shows_the_smaller_picture_smaller(done):
    found, out = done
    page = (out / "report.html").read_text(encoding="utf-8")
    glance = page.partition("At a glance")[2].partition("<h2>Results")[0]
    assert glance.count('<div class="thumb small"') == sum(row.recipe.startswith("resize") for row in found.rows)
    assert glance.count("<tr") == 1 + len(found.rows)
    best = max((row for row in found.rows[1:] if not row.beside), key=lambda row: (row.top1, -row.macs))
    assert f"{best.recipe} is right on {100 * best.top1:.1f}%" in glance.replace("<wbr>", "")
    assert report(found, []).count("thumb small") == 0


def test_without_baselines(loaded, tmp_path):
    folder = make_images(tmp_path / "images")
    found = compare(loaded, folder, ["evit"], [0.5], ["1/3"], tmp_path / "out", beside=(), batch_size=4, seconds=0, shown=0)
    assert [row.recipe for row in found.rows] == [UNPRUNED, "evit:keep=0.5,layers=1/3"]


def test_evaluate_has_them_on_request(loaded, tmp_path):
    folder = make_images(tmp_path / "images")
    found = evaluate(loaded, folder, [COL_LN], tmp_path / "out", beside=("random", "pool"), equal=("macs", "tokens"), device="cpu")
    names = [score.recipe.partition(":")[0] for score in found.scores]
    assert names[:3] == [UNPRUNED, "col_ln", "random"]
    assert set(names[3:]) == {"pool"}
    with pytest.raises(PruneError, match="beside=x is not known"):
        evaluate(loaded, folder, [COL_LN], tmp_path / "other", beside=("x",))
    assert not (tmp_path / "other").exists()
