"""Metrics against examples worked by hand."""

import math

import pytest
import torch

from sparsight.errors import PruneError
from sparsight.evaluation import metrics


def test_effective_rank_by_hand():
    """Singular values 3, 1: shares 3/4, 1/4, entropy 2.25 ln 2... = ln 4 - 0.75 ln 3."""
    x = torch.tensor([[3.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    assert metrics.effective_rank(x) == pytest.approx(4 / 3**0.75, abs=1e-12)
    assert metrics.effective_rank(torch.eye(5)) == pytest.approx(5)
    assert metrics.effective_rank(torch.zeros(4, 3)) == 1


@pytest.mark.parametrize("shape", [(20, 50), (50, 20), (30, 30)])
def test_effective_rank_is_that_of_the_singular_values(rng, shape):
    x = torch.randn(3, *shape, generator=rng)
    s = torch.linalg.svdvals(x.double())
    q = s / s.sum(-1, keepdim=True)
    assert torch.allclose(metrics.effective_rank(x), (-(q * q.log()).sum(-1)).exp(), atol=1e-8)
    assert torch.equal(metrics.effective_rank(x)[1], metrics.effective_rank(x[1:2])[0])


def test_effective_rank_of_nearly_low_rank_features(rng):
    """Squaring in float32 would turn one direction into several: the Gram matrix is float64."""
    x = 100 * torch.randn(200, 1, generator=rng) @ torch.randn(1, 300, generator=rng)
    assert metrics.effective_rank(x) == pytest.approx(1, abs=1e-3)


def test_attention_entropy_by_hand():
    """(2, 1, 1) / 4: entropy 1.5 ln 2, whatever the scale."""
    a = torch.tensor([0.2, 0.1, 0.1, 0.0])
    assert metrics.attention_entropy(a) == pytest.approx(1.5 * math.log(2), abs=1e-6)
    assert metrics.attention_entropy(torch.ones(2, 4, 576)).tolist() == pytest.approx([math.log(576)] * 2)
    with pytest.raises(PruneError, match="negative"):
        metrics.attention_entropy(-a)


def test_calibration_averages_over_images():
    got = metrics.calibration([(torch.eye(4)[None], torch.ones(1, 2, 4)), (torch.eye(2)[None], torch.ones(1, 2, 2))])
    assert got == pytest.approx({"erank_avg": 3.0, "entropy_avg": 1.5 * math.log(2)})
    with pytest.raises(PruneError, match="no samples"):
        metrics.calibration([])


def test_pope_by_hand():
    """Answers yes yes yes no no, labels yes no yes yes no: TP 2, FP 1, FN 1, TN 1."""
    answers = ["Yes, there is.", "I cannot tell", "NO", "No, no.", "There is not. Yes"]
    got = metrics.pope(answers, ["yes", "no", "yes", "yes", "no"])
    assert (got.true_positive, got.false_positive, got.true_negative, got.false_negative) == (2, 1, 1, 1)
    assert (got.precision, got.recall, got.f1) == pytest.approx((2 / 3, 2 / 3, 2 / 3))
    assert (got.accuracy, got.yes_ratio) == pytest.approx((3 / 5, 3 / 5))
    assert "f1 66.67" in str(got)


def test_pope_edges():
    none = metrics.pope(["no"], [True])
    assert (none.precision, none.recall, none.f1, none.accuracy) == (0, 0, 0, 0)
    perfect = metrics.pope(["yes"], ["yes"])
    assert metrics.mean_f1({"random": perfect, "popular": none}) == 0.5
    assert metrics.pope(["No: it is"], ["no"]).false_positive == 1  # "No:" is no "No"
    with pytest.raises(PruneError, match="2 answers for 1 labels"):
        metrics.pope(["a", "b"], ["yes"])
    with pytest.raises(PruneError, match="neither"):
        metrics.pope(["a"], ["maybe"])


def test_mme_by_hand():
    """Count: image a both right, b one: accuracy 3/4, accuracy+ 1/2, score 125. Calculation: 0 + 0."""
    rows = {
        "count": [("a", "Yes", "Yes"), ("a", "No.", "No"), ("b", "yes it is", "yes"), ("b", "Perhaps not", "no")],
        "numerical_calculation": [("c", "It is no", "no"), ("c", "other", "yes")],
    }
    got = metrics.mme(rows)
    assert got.scores == pytest.approx({"count": 125.0, "numerical_calculation": 0.0})
    assert (got.perception, got.cognition, got.total) == pytest.approx((125, 0, 125))
    with pytest.raises(PruneError, match="two questions"):
        metrics.mme({"count": [("a", "yes", "yes"), ("b", "yes", "yes")]})
    with pytest.raises(PruneError, match="no MME task"):
        metrics.mme({"counting": []})


def test_mme_full_marks():
    rows = {task: [("a", "yes", "yes"), ("a", "no", "no")] for task in metrics.PERCEPTION + metrics.COGNITION}
    assert (metrics.mme(rows).perception, metrics.mme(rows).cognition) == (2000, 800)


def test_chair_by_hand():
    """Two captions, five mentions: dog, dog, hot dog, people (person), cat; hallucinated: hot dog and cat.

    First: dogs near a dog and a hot dog . = 8 words with "hot dog" as one; second: people and a cat = 4 words.
    Objects: {dog, car} and {person}; mentioned of them: dog, person.
    """
    captions = [(1, "Dogs near a dog and a hot dog."), (2, "People and a cat")]
    got = metrics.chair(captions, {1: ["dog", "car"], 2: ["person"]})
    assert got.hallucinated == (("hot dog",), ("cat",))
    assert got.chair_s == 1
    assert got.chair_i == pytest.approx(2 / 5)
    assert got.recall == pytest.approx(2 / 3)
    assert got.length == pytest.approx((8 + 4) / 2)


def test_chair_synonyms_and_references(tmp_path):
    file = tmp_path / "synonyms.txt"
    file.write_text("person, girl,  little boy\nchair, seat\ntoilet\ncar, automobile\n", encoding="utf-8")
    captions = {"a": "A toilet seat and two little boys", "b": "a seat, an automobile"}
    got = metrics.chair(captions, {"a": ["toilet"], "b": []}, references={"a": ["A girl"], "b": ["chairs"]}, synonyms=file)
    assert got.hallucinated == ((), ("car",))
    assert got.chair_s == 0.5
    assert got.recall == 1
    assert metrics.chair(captions, {"a": [], "b": []}, synonyms={"car": ["automobile"]}).chair_i == 1


def test_chair_edges():
    with pytest.raises(PruneError, match="no captions"):
        metrics.chair([], {})
    with pytest.raises(PruneError, match="no annotation"):
        metrics.chair([(1, "a dog")], {})
    nothing = metrics.chair([(1, "It is dark")], {1: []})
    assert (nothing.chair_s, nothing.chair_i, nothing.recall, nothing.length) == (0, 0, 0, 3)
