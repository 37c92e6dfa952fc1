"""The figure of a robustness run: bars stand around their ticks, also where a recipe has none."""

import made_up
import pytest

from sparsight.evaluation.corruption_rows import figure_of

pytest.importorskip("matplotlib")


def test_bars_stand_around_their_ticks():
    done = made_up.robustness()
    panels = figure_of(done).axes
    assert len(panels) == 3 * 2
    for panel in panels:
        bars = sorted((bar.get_x(), bar.get_x() + bar.get_width()) for bar in panel.patches)
        count = len(bars) // 3
        groups = [bars[count * spot : count * (spot + 1)] for spot in range(3)]
        assert [(group[0][0] + group[-1][1]) / 2 for group in groups] == pytest.approx(list(panel.get_xticks()))
    assert [len(panel.patches) for panel in panels[-2:]] == [3, 3]  # the unpruned model keeps nothing again
