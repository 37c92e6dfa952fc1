"""VTC-Bench's split, counted by hand on the answers of a small run."""

import json

import pytest

from sparsight import PruneError
from sparsight.evaluation.vtc_split import vtc_split

FULL, SMALL = "unpruned", "resize:tokens=16"
HITS = {
    FULL: [True, True, True, True, False, None],
    "resize:tokens=64": [True, True, True, True, True, True],
    SMALL: [False, False, True, True, False, True],
    "divprune:tokens=16": [True, False, True, False, True, True],
    "fastervlm:tokens=16": [False, False, True, True, False, None],
}


@pytest.fixture
def run(tmp_path):
    lines = [{"recipe": name, "id": f"q{i}", "right": hit} for name, hits in HITS.items() for i, hit in enumerate(hits)]
    (tmp_path / "answers.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path


def test_groups_by_hand(run):
    done = vtc_split(run)
    assert (done.small, done.sizes, done.missing) == (SMALL, {"A": 2, "B": 2}, 1)
    found = {row.recipe: (row.need.value, row.enough.value) for row in done.rows}
    assert found == {"resize:tokens=64": (1, 1), "divprune:tokens=16": (0.5, 0.5), "fastervlm:tokens=16": (0, 1)}
    assert all(0 <= row.need.low <= row.need.value <= row.need.high <= 1 for row in done.rows)
    assert json.loads(done.to_json())["rows"][0]["recipe"] == "resize:tokens=64"


def test_another_smaller_picture(run):
    done = vtc_split(run / "answers.jsonl", "resize:tokens=64")
    assert done.sizes == {"A": 0, "B": 4}
    assert {row.need for row in done.rows} == {None}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"small": "resize:tokens=9"}, "no answers of resize:tokens=9"),
        ({"only": FULL}, "add resize to the methods"),
        ({"only": SMALL}, "no answers of the unpruned model"),
        ({"text": "{"}, "has no answers of sparsight compare"),
        ({"gone": True}, "has no answers of sparsight compare"),
    ],
    ids=str,
)
def test_refusals(run, change, says):
    file = run / "answers.jsonl"
    if "only" in change:
        file.write_text("".join(line for line in file.read_text().splitlines(True) if change["only"] in line))
    if "text" in change:
        file.write_text(change["text"])
    if "gone" in change:
        file.unlink()
    with pytest.raises(PruneError, match=says):
        vtc_split(run, change.get("small"))
