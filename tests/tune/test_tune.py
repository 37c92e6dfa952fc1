"""tune: real searches with a tiny model, from the call to the files; targets met and not; what is refused before anything is measured."""

import json
from dataclasses import replace

import pytest
from compare_data import CLASSES, make_model
from tune_data import save_images

import sparsight
from sparsight import PruneError, Recipe
from sparsight.pages.page import breakable
from sparsight.speed.macs import macs
from sparsight.tune.result import Tuning, load_recipes
from sparsight.tune.sensitivity import Sensitivity, sensitivity
from sparsight.tune.space import vision_space
from sparsight.tune.tune import tune

pytest.importorskip("optuna")

METHODS = ("col_ln", "tome", "random", "resize")


@pytest.fixture(scope="module")
def loaded():
    return make_model()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_images(tmp_path_factory.mktemp("images"), 64)


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    return tmp_path_factory.mktemp("tune") / "out"


@pytest.fixture(scope="module")
def news():
    return []


@pytest.fixture(scope="module")
def done(loaded, folder, out, news):
    return tune(
        loaded, folder, out, speedup=1.5, metric="agreement", methods=METHODS, trials=6, recipes=["random:keep=0.5,layers=1/3"],
        device="cpu", listen=news.append,
    )  # fmt: skip


def test_the_chosen_recipe_meets_the_target_and_runs(done, out, loaded):
    assert done.met
    assert done.chosen.speedup >= 1.5
    assert done.recipes == load_recipes(out)
    whole = macs(loaded.model, None, 160)
    with sparsight.prune(loaded.model, done.recipes[0]):
        if len(done.recipes) == 1:
            assert whole / macs(loaded.model, None, 160) == pytest.approx(done.chosen.speedup)
    text = (out / "recipe.json").read_text()
    if len(done.recipes) == 1:
        assert Recipe.from_json(text) == done.recipes[0]
    evidence = json.loads((out / "evidence.json").read_text())
    assert evidence["recipe"] == done.chosen.name
    assert set(evidence["fingerprints"]) == {"model", "search", "report"}
    assert {"optuna", "torch", "sparsight"} <= set(evidence["versions"])
    assert evidence["chosen"]["report_change"]["low"] <= evidence["chosen"]["report_change"]["high"]


def test_the_front_is_the_trials_front(done):
    assert len(done.trials) == 6
    assert len({one.name for one in done.trials}) == 6
    ended = [one for one in done.trials if not one.stopped]
    for row in done.rows[1:]:
        if not row.chosen:
            assert not any(one.quality > row.search and one.cost <= row.cost for one in ended)
    assert [row.cost for row in done.rows[1:]] == sorted(row.cost for row in done.rows[1:])
    assert done.rows[0].recipes == []
    assert done.rows[0].report.value == 1.0


def test_search_and_report_are_different_images(done):
    assert done.images == {"search": 32, "report": 32}
    assert done.fingerprints["search"] != done.fingerprints["report"]
    (given,) = done.given
    assert given.name == "random:keep=0.5,layers=1/3"
    (contest,) = done.contests
    assert contest.given == given.name
    if contest.found is not None:
        rival = next(row for row in done.rows if row.name == contest.found)
        assert rival.cost <= given.cost
        assert contest.difference.value == pytest.approx(rival.report.value - given.report.value)


def test_results_read_back_and_the_page_has_them(done, out):
    again = Tuning.load(out)
    assert again == done
    page = (out / "report.html").read_text().replace("<wbr>", "")
    for row in done.rows[1:]:
        assert all(recipe in page for recipe in row.recipes)


def test_the_same_call_again_measures_nothing(done, out, loaded, folder, monkeypatch):
    def never(*_):
        raise AssertionError("an answer was asked for again")

    from sparsight.runs import sweep

    monkeypatch.setattr(sweep, "answer", never)
    heard = []
    again = tune(
        loaded, folder, out, speedup=1.5, metric="agreement", methods=METHODS, trials=6, recipes=["random:keep=0.5,layers=1/3"],
        device="cpu", listen=heard.append,
    )  # fmt: skip
    assert replace(again, date="") == replace(done, date="")
    assert [step.restored for step in heard if step.row is not None] == [True] * 6


@pytest.mark.product
def test_another_target_and_more_trials_go_on(done, copied, loaded, folder):
    further = tune(loaded, folder, copied, loss=100, metric="agreement", methods=METHODS, trials=7, device="cpu")
    assert len(further.trials) == 7
    assert {one.name for one in done.trials} < {one.name for one in further.trials}
    assert further.chosen.cost == min(row.cost for row in further.rows)


@pytest.mark.product
def test_one_worker_draws_the_same_again(done, loaded, folder, tmp_path):
    again = tune(
        loaded, folder, tmp_path, speedup=1.5, metric="agreement", methods=METHODS, trials=6, recipes=["random:keep=0.5,layers=1/3"],
        device="cpu",
    )  # fmt: skip
    assert replace(again, date="") == replace(done, date="")


def test_a_target_that_no_recipe_meets(loaded, folder, tmp_path):
    arguments = {"speedup": 1.2, "loss": 0, "metric": "accuracy", "methods": ["resize"], "trials": 2, "device": "cpu"}
    nearest = tune(loaded, folder, tmp_path, **{**arguments, "loss": 0, "speedup": 3.9}, strict=False)
    if nearest.met:
        pytest.skip("the tiny model loses nothing")
    assert not (tmp_path / "recipe.json").exists()
    assert (tmp_path / "evidence.json").exists()
    with pytest.raises(PruneError, match=r"no recipe of 2 has speed-up at least 3.9.*; the nearest is resize:tokens="):
        tune(loaded, folder, tmp_path, **{**arguments, "loss": 0, "speedup": 3.9})


def test_without_labels_agreement_counts(loaded, tmp_path):
    bare = save_images(tmp_path / "bare", 12, ("",))
    done = tune(loaded, bare, tmp_path / "out", methods=["resize"], trials=1, device="cpu", strict=False)
    assert done.metric == "agreement"
    assert any("there are no labels" in note for note in done.notes)
    for given, match in (
        ({"loss": 1}, "a loss is one of accuracy, and .* has no labels; give one folder per class, or metric=agreement"),
        ({"metric": "accuracy"}, "accuracy needs labels, and .* has no labels"),
    ):
        with pytest.raises(PruneError, match=match):
            tune(loaded, bare, tmp_path / "none", methods=["resize"], trials=1, device="cpu", **given)
        assert not (tmp_path / "none").exists()


REFUSED = {
    "target": ({"speedup": 0.1}, "speedup=0.1 is no target"),
    "impossible": ({"speedup": 500}, "speedup=500 cannot be met: the cheapest recipe that is searched, .* has"),
    "trials": ({"trials": 0}, "trials=0 finds nothing"),
    "engine": ({"engine": "steam"}, "engine='steam' is not known; choose macs, eager"),
    "ms": ({"ms": 3}, "engine=macs measures none"),
    "metric": ({"metric": "beauty"}, "metric='beauty' is not known; choose accuracy or agreement"),
    "method": ({"methods": ["sit"]}, "sit cannot be searched"),
    "recipe": ({"recipes": ["evit:keep=2"]}, "keep=2 is outside"),
    "storage": ({"storage": "trials.db"}, "storage=trials.db is no URL"),
    "driver": ({"storage": "nosuch://me:secret@x/y"}, r"storage=nosuch://me:\*\*\*@x/y cannot be opened"),
    "batch": ({"latency_batch": 0}, "latency_batch=0 must be 1 or more"),
    "limit": ({"report_limit": 3}, "report_limit= is for images of their own"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_input_is_refused_before_anything_is_measured(case, loaded, folder, tmp_path):
    given, match = REFUSED[case]
    with pytest.raises(PruneError, match=match):
        tune(loaded, folder, tmp_path / "out", **{"methods": ["resize", "col_ln"], "trials": 1, "device": "cpu", **given})
    assert not (tmp_path / "out").exists()


def test_images_cannot_be_searched_and_reported(loaded, folder, tmp_path):
    with pytest.raises(PruneError, match="would be searched and reported"):
        tune(loaded, folder, tmp_path / "out", report=folder, trials=1, device="cpu")
    assert not (tmp_path / "out").exists()


def test_images_of_their_own_to_report_on(loaded, folder, tmp_path):
    other = save_images(tmp_path / "other", 9, seed=2)
    done = tune(
        loaded, folder, tmp_path / "out", report=other, report_limit=6, limit=12, methods=["resize"], trials=1, loss=100, device="cpu"
    )  # fmt: skip
    assert done.images == {"search": 12, "report": 6}
    assert done.metric == "accuracy"


@pytest.mark.product
def test_latency_is_measured_beside_the_unpruned_model(loaded, folder, tmp_path):
    done = tune(
        loaded, folder, tmp_path, limit=12, methods=["resize"], trials=1, ms=1000, engine="eager", metric="agreement", device="cpu"
    )  # fmt: skip
    assert (done.unit, done.met) == ("ms", True)
    assert 0 < done.chosen.cost < 1000


def test_one_site_at_a_time(loaded, folder, tmp_path):
    pytest.importorskip("matplotlib")
    done = sensitivity(
        loaded, folder, tmp_path, methods=["col_ln", "resize"], keep=[0.5], limit=24, metric="agreement", device="cpu"
    )
    depth = len(loaded.model.blocks)
    assert [row.place for row in done.rows[1:]] == [*map(str, range(depth)), "image"]
    assert done.rows[1].recipe == "col_ln:keep=0.5,layers=0"
    assert done.rows[1].speedup > done.rows[depth].speedup > 1
    assert Sensitivity.load(tmp_path) == done
    assert (tmp_path / "sensitivity.png").stat().st_size > 10_000
    page = (tmp_path / "sensitivity.html").read_text()
    assert all(breakable(row.recipe) in page for row in done.rows)
    with pytest.raises(PruneError, match="keep=2 is outside"):
        sensitivity(loaded, folder, tmp_path / "none", keep=[2.0])


def test_classes_are_used_as_given(loaded, folder, tmp_path):
    done = tune(
        loaded.model, folder, tmp_path, transform=loaded.transform, classes=CLASSES, limit=12, methods=["resize"], trials=1, loss=100,
        device="cpu",
    )  # fmt: skip
    assert done.metric == "accuracy"
    assert str(vision_space(loaded.model, ["resize"])) == done.space
