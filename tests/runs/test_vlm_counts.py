"""Scores as sums over sums picture by picture: values, paired intervals, Holm's correction."""

import numpy as np
import pytest
from scipy.stats import bootstrap

from sparsight.runs.vlm_counts import Tally, difference, holm, p_value, pooled, score


def made(rights, of=None):
    counts = Tally.empty(len(rights))
    for place, right in enumerate(rights):
        counts.add("count", place, right, 1 if of is None else of[place])
    return counts


def test_a_score_is_a_sum_over_a_sum():
    counts = made([1, 3, 0], [2, 3, 1])
    assert score(counts, "count") == 4 / 6
    assert score(counts, "count", [True, False, True]) == 1 / 3
    assert score(counts, "place") is None
    counts.add("chair_i", 0, 0, 0)
    assert score(counts, "chair_i") == 0
    assert score(counts, "chair_i", [False, True, True]) is None


def test_mme_is_the_sum_of_two_shares():
    counts = Tally.empty(2)
    for place, pair in enumerate([(True, True), (True, False)]):
        for right in pair:
            counts.add("mme_one", place, right, 1)
        counts.add("mme_all", place, all(pair), 1)
    assert counts.measures == ["mme"]
    assert score(counts, "mme") == 0.75 + 0.5


def test_seeds_are_pooled():
    one, two = made([1, 0]), made([1, 1])
    assert score([one, two], "count") == 0.75
    assert pooled([one, two]).wholes["count"] == [2, 2]


def test_intervals_are_those_of_a_paired_bootstrap_by_picture():
    rng = np.random.default_rng(1)
    of = rng.integers(1, 5, 80)
    before, after = rng.binomial(of, 0.6), rng.binomial(of, 0.75)
    found = difference(made(after, of), made(before, of), "count")
    want = bootstrap(
        (after, before, of),
        lambda a, b, n, axis=-1: a.sum(axis) / n.sum(axis) - b.sum(axis) / n.sum(axis),
        paired=True,
        method="percentile",
        n_resamples=5000,
        rng=np.random.default_rng(2),
    ).confidence_interval
    assert found.value == pytest.approx((after.sum() - before.sum()) / of.sum())
    assert (found.low, found.high) == pytest.approx((want.low, want.high), abs=0.015)
    same = difference(made(after, of), made(after, of), "count")
    assert (same.value, same.low, same.high) == (0, 0, 0)


def test_pairing_narrows():
    rng = np.random.default_rng(0)
    hard = rng.random(200) < 0.5
    before = made(hard.astype(float))
    better = hard.copy()
    better[np.flatnonzero(~hard)[:20]] = True
    span = difference(made(better.astype(float)), before, "count")
    assert span.low > 0.05
    assert span.high < 0.15
    assert p_value(made(better.astype(float)), before, "count") < 1e-4
    assert p_value(before, before, "count") == 1


def test_holm():
    """The example of Holm's paper: 0.01 and 0.02 of four survive at 0.05 as 0.04 and 0.06 do not."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []
