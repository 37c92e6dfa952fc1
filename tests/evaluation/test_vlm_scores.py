"""Scores of image-text models as the papers compute them, from numbers that they print."""

import pytest

from sparsight.evaluation import vlm_sets as benchmarks
from sparsight.evaluation import vlm_sets as harness


def test_every_set_of_the_papers_has_a_name():
    assert all(len(benchmarks.find(name)) == len(parts) for name, parts in benchmarks.GROUPS.items())
    assert len(benchmarks.find("col_ln")) == 10
    assert len(benchmarks.find("agile")) == 9
    assert len({one.name for one in benchmarks.SETS}) == len(benchmarks.SETS)


AGILE_7B = (78.5, 61.9, 50.1, 69.5, 58.2, 85.9, 1862, 64.7, 58.1)


@pytest.mark.parametrize(
    ("scores", "published"),
    [
        ((76.4, 59.4, 53.0, 68.6, 57.0, 87.4, 1748, 61.8, 55.5), 98.04),
        ((72.7, 55.4, 53.3, 69.1, 55.8, 80.4, 1650, 61.3, 55.1), 95.07),
        ((65.6, 52.9, 53.5, 67.9, 49.2, 66.7, 1550, 55.1, 45.9), 87.01),
    ],
)
def test_relative_scores_of_agilepruner_table_7(scores, published):
    assert benchmarks.relative(scores, AGILE_7B) == pytest.approx(published, abs=0.03)


def test_relative_scores_of_col_ln_table_6():
    """Averages with MME in percent of 2000: 63.4 unpruned, PruMerge 59.2 (93.4%), Col-Ln 62.3 (98.3%)."""
    full = [one.full for one in benchmarks.find("col_ln")]
    whole = benchmarks.average([76.7, 62.0, 54.2, 69.5, 58.2, 85.9, 1505, 64.6, 58.1, 29.7], full)
    prumerge = benchmarks.average([70.8, 55.7, 56.0, 68.0, 54.7, 73.7, 1364, 61.8, 56.4, 26.8], full)
    assert whole == pytest.approx(63.4, abs=0.05)
    assert prumerge == pytest.approx(59.2, abs=0.05)
    assert 100 * prumerge / whole == pytest.approx(93.4, abs=0.05)
    assert benchmarks.relative([1], [0]) is None


def test_scores_by_the_papers_rules_from_samples():
    """POPE: the mean F1 of splits; MME: two questions per image."""

    def sample(answer, target, **doc):
        return {"filtered_resps": [answer], "target": target, "doc": doc}

    pope = [
        sample("Yes", "yes", category="random"),
        sample("No.", "no", category="random"),
        sample("no", "yes", category="popular"),
    ]
    assert harness.by_rule("pope", pope)["f1"] == 0.5
    mme = [
        sample("Yes", "Yes", category="count", question_id="a"),
        sample("code", "No", category="code_reasoning", question_id="c"),
        sample("No", "No", category="count", question_id="a"),
        sample("yes", "Yes", category="code_reasoning", question_id="c"),
        sample("yes", "Yes", category="count", question_id="lonely"),
    ]
    assert harness.by_rule("mme", mme) == {"total": 250, "perception": 200, "cognition": 50}
