"""The loss over the steps as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from ..errors import PruneError
from ..pages.training_page import loss_points
from ..runs.store import write
from .result import LogLine


def draw_loss(runs: Mapping[str, Sequence[LogLine]], file: Path) -> None:
    """One line for each run, by name: PNG. Raises PruneError without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise PruneError("pictures of the loss need matplotlib; pip install 'sparsight[train]'") from None
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    for name, lines in runs.items():
        points = loss_points(lines)
        axes.plot([point.x for point in points], [point.y for point in points], label=name, linewidth=1.6)
    axes.set(xlabel="optimiser steps", ylabel="training loss")
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8, frameon=False)
    write(file, partial(figure.savefig, format="png", dpi=120))
