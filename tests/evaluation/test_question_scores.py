"""Scores of questions by their kind: those of the modules that score whole sets, and of nothing but arithmetic."""

from pathlib import Path

import pytest

from sparsight.data.questions import Item
from sparsight.evaluation import metrics
from sparsight.evaluation.captions import chair
from sparsight.evaluation.question_scores import Names, judged, summary, tally
from sparsight.runs.vlm_counts import score


def item(picture, kind, answer, scene="single", objects=("emu",), text="?"):
    return Item(f"{picture}{kind}{text}", (Path(picture),), text, (answer,), "", kind, scene, tuple(objects))


LISTS = [
    ("a", "emu , okapi", ("emu", "okapi"), "emu , okapi , emu"),
    ("b", "llama", ("llama",), "llama , grand piano"),
    ("c", "grand piano", ("grand piano",), "emu"),
    ("d", "llama , emu", ("llama", "emu"), ""),
]


def test_chair_is_that_of_captions():
    items = [item(picture, "list", answer, "mosaic", objects) for picture, answer, objects, _ in LISTS]
    said = [text for *_, text in LISTS]
    counts = tally(items, said)
    names = {name: [] for _, _, objects, _ in LISTS for name in objects}
    want = chair(dict(zip("abcd", said, strict=True)), {p: o for p, _, o, _ in LISTS}, synonyms=names)
    for name in ("chair_s", "chair_i", "recall", "length"):
        assert score(counts, name) == pytest.approx(getattr(want, name)), name


def test_a_name_that_is_in_no_picture_is_a_hallucination():
    items = [item("a", "list", "emu")]
    assert score(tally(items, ["emu , wild cat"]), "chair_i") == 0.5
    assert score(tally(items, ["wild cat and emu"]), "chair_i") == 0.5
    assert Names.of(items).mentions("the emu , and a wild cat .")[0] == ["emu", "a wild cat"]


def test_yes_no_is_pope_and_mme():
    labels = ["yes", "no", "yes", "no", "yes", "no"]
    said = ["yes", "no", "no", "no", "yes .", "it is not"]
    items = [item("abc"[place // 2], "yes_no", label, text=str(place)) for place, label in enumerate(labels)]
    counts = tally(items, said)
    want = metrics.pope(said, labels)
    assert score(counts, "yes_no") == pytest.approx(want.accuracy)
    assert score(counts, "f1") == pytest.approx(want.f1)
    assert score(counts, "yes") == pytest.approx(want.yes_ratio)
    rows = [("abc"[place // 2], text, label) for place, (text, label) in enumerate(zip(said, labels, strict=True))]
    assert 100 * score(counts, "mme") == pytest.approx(metrics.mme({"existence": rows}).total)


def test_kinds_and_splits():
    items = [
        item("a", "count", "one"), item("a", "name", "emu"), item("b", "count", "two", "mosaic"), item("b", "place", "emu", "mosaic"),
        item("b", "list", "emu , okapi", "mosaic", ("emu", "okapi")),
    ]  # fmt: skip
    found = summary(items, ["One.", "okapi", "three", "emu", "okapi"])
    assert found["accuracy"] == 50
    assert found["simple/count"] == 100
    assert found["complex/count"] == 0
    assert found["simple/name"] == 0
    assert found["complex/recall"] == 50
    assert "simple/recall" not in found
    assert [judged(one, "emu") for one in items] == [False, True, False, True, None]


def test_answers_that_are_not_there_do_not_count():
    items = [item("a", "count", "one"), item("a", "name", "emu")]
    assert summary(items, ["one", None])["accuracy"] == 100
