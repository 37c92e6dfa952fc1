"""evaluation_page(...) -> str: accuracy under recipes as one page: table, and quality against multiply-accumulates."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .page import TIMES, render
from .plots import Plot, Point, Series

if TYPE_CHECKING:
    from ..evaluation.result import Evaluation, Score


def evaluation_page(done: Evaluation) -> str:
    """The page, with every score of the evaluation."""
    h, w = done.image_size
    recipes = len(done.scores) - 1
    facts = (
        f"data {done.data}", done.mode, done.preset or "", f"{done.classes} classes", f"{h} {TIMES} {w} pixels", done.device, done.precision,
        f"batch {done.batch_size}", done.date[:10],
    )  # fmt: skip
    return render(
        "evaluation.html",
        done=done,
        title=f"{done.model}: {recipes} recipe{'s' * (recipes != 1)} on {done.images} images",
        facts=facts,
        plots=plots(done) if recipes else [],
    )


def plots(done: Evaluation) -> list[Plot]:
    """What can be measured without and with labels, against multiply-accumulates."""
    titles = {"top1": "Top-1 accuracy, %", "agreement": "Agreement with unpruned, %"}
    found = []
    for measure, title in titles.items():
        if all(getattr(score, measure) is not None for score in done.scores):
            first, *others = (point(score, measure) for score in done.scores)
            series = [Series(score.recipe, look, points=[p]) for look, (score, p) in enumerate(zip(done.scores[1:], others))]
            found.append(Plot(series, first, "GMACs per image", title))
    return found


def point(score: Score, measure: str) -> Point:
    """A score as a point of a plot."""
    return Point(score.macs / 1e9, 100 * getattr(score, measure).value, str(score))
