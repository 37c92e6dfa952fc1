"""What the verbs print of their results, at every width and in a pipe: recipes and numbers whole, dropped columns named."""

from pathlib import Path

import made_up
import pytest

from sparsight.cli import results
from sparsight.evaluation.vlm_scores import Score, VlmEvaluation, VlmRow
from sparsight.runs.intervals import Interval

OUT = Path("runs/some")


def vlm_evaluation():
    def scores(factor):
        return [
            Score(f"set{i}", f"Benchmark {i}", 1234.5 * factor + i, 2000.0, True, {}, 9, [], 0.5 * factor, Interval(0.1, -0.1, 0.2), 64.0, "", [])
            for i in range(8)
        ]  # fmt: skip

    rows = [VlmRow.make(name, None, scores(factor), scores(1)) for name, factor in (("unpruned", 1.0), (made_up.LONG, 0.9))]
    return VlmEvaluation("m", "cpu", "bf16", 1, None, None, False, "2026", {}, ["a note"], rows)


PRINTED = {
    "compare": lambda: results.print_comparison(made_up.comparison("col_ln:keep=0.7,layers=0/3/6"), OUT),
    "compare-questions": lambda: results.print_vlm_comparison(made_up.questions("divprune:tokens=64"), OUT),
    "evaluate": lambda: results.print_evaluation(made_up.evaluation("evit:keep=0.7"), OUT),
    "robustness": lambda: results.print_robustness(made_up.robustness(), OUT),
    "evaluate-vlm": lambda: results.print_vlm_evaluation(vlm_evaluation(), OUT),
    "bench": lambda: results.print_bench(made_up.bench("evit:keep=0.7"), OUT),
    "bench-vlm": lambda: results.print_stages(made_up.stages("evit:keep=0.7"), OUT),
}
IMPORTANT = {
    "compare": ["88.0", "85.0", "1.50", "2.10"],
    "compare-questions": ["87.5", "75.0"],
    "evaluate": ["88.00", "86.00"],
    "robustness": ["80.0"],
    "evaluate-vlm": ["90.03"],
    "bench": ["1.40", "1.75"],
    "bench-vlm": ["1.38", "1.68"],
}


@pytest.mark.parametrize("verb", PRINTED)
def test_numbers_and_recipes_stay_whole(capsys, monkeypatch, verb):
    monkeypatch.delenv("COLUMNS", raising=False)
    PRINTED[verb]()
    whole = capsys.readouterr().out
    assert made_up.LONG in whole
    assert "no room" not in whole
    known = set(whole.split())
    for width in (60, 80, 100, 120, 200):
        monkeypatch.setenv("COLUMNS", str(width))
        PRINTED[verb]()
        text = capsys.readouterr().out
        table = text.partition("no room")[0]
        shown = [line for line in text.splitlines() if made_up.LONG not in line]
        assert max(map(len, shown)) <= width
        assert made_up.LONG in "".join(table.split()) or all(part in table for part in ("compose:keep=0.5,", "rows=patches"))
        numbers = [word for word in table.split() if word.replace(".", "").isdigit()]
        assert set(numbers) <= known  # none is the front part of another
        assert all(number in numbers for number in IMPORTANT[verb])


def test_engines_are_told_apart_at_any_width(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    PRINTED["bench"]()
    text = capsys.readouterr().out
    assert "onnxruntime" in text
    assert text.count("eager") == 3
