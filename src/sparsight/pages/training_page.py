"""training_page(...) -> str: a finished training as one page: accuracy before and after, the loss over the steps, every setting."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from .page import TIMES, counted, render
from .plots import Plot, Point, Series

if TYPE_CHECKING:
    from ..train.result import LogLine, Training

MOST = 60
"""Points of a curve; longer logs are averaged over equal parts."""


def training_page(done: Training) -> str:
    h, w = done.image_size
    facts = (
        f"data {done.data}", counted(done.images, "image"), f"{done.classes} classes", f"{h} {TIMES} {w} pixels", f"preset {done.preset}", done.device,
        counted(done.processes, "process") if done.processes == 1 else f"{done.processes} processes", done.date[:10],
    )  # fmt: skip
    asked = [
        Point(line.step, 100 * line.top1, f"step {line.step}: {100 * line.top1:.1f}%") for line in done.log if line.top1 is not None
    ]
    start = None if done.before is None else Point(0, 100 * done.before.value, f"before: {100 * done.before.value:.1f}%")
    plots = [plot(loss_points(done.log), None, "Training loss", done.recipe)] if done.log else []
    if start is not None and done.after is not None:
        end = Point(done.steps, 100 * done.after.value, f"after: {100 * done.after.value:.1f}%")
        plots.append(plot([start, *asked, end], start, "Top-1 accuracy, %", done.recipe))
    return render("training.html", done=done, title=f"{done.model}: fine-tuned under {done.recipe}", facts=facts, plots=plots)


def loss_points(log: Sequence[LogLine]) -> list[Point]:
    """The mean loss of at most so many equal parts of the run, the first line by itself."""
    rest = log[1:]
    size = -(-len(rest) // MOST) or 1
    groups = [log[:1], *(rest[at : at + size] for at in range(0, len(rest), size))]
    means = [(group[-1].step, sum(line.loss for line in group) / len(group)) for group in groups]
    return [Point(step, loss, f"step {step}: {loss:.4f}") for step, loss in means]


def plot(points: list[Point], base: Point | None, title: str, name: str) -> Plot:
    """A curve over the steps; dotted lines through where it begins."""
    return Plot([Series(name, 0, points=points)], base or points[0], "Optimiser steps", title)
