"""evaluation_page(...) -> str: accuracy under recipes as one page: table, and quality against multiply-accumulates."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from .page import TIMES, counted, render
from .plots import Plot, Point, around, by_recipe, ends

if TYPE_CHECKING:
    from ..evaluation.result import Evaluation, Score


def evaluation_page(done: Evaluation) -> str:
    h, w = done.image_size
    recipes = len(done.scores) - 1
    facts = (
        f"data {done.data}", done.mode, done.preset or "", f"{done.classes} classes", f"{h} {TIMES} {w} pixels", done.device, done.precision,
        f"batch {done.batch_size}", done.date[:10],
    )  # fmt: skip
    return render(
        "evaluation.html",
        done=done,
        title=f"{done.model}: {counted(recipes, 'recipe')} on {done.images} images",
        facts=facts,
        plots=plots(done) if recipes else [],
    )


def plots(done: Evaluation) -> list[Plot]:
    """What can be measured without and with labels, against multiply-accumulates."""
    titles = {"top1": "Top-1 accuracy, %", "agreement": "Agreement with unpruned, %"}
    return [
        by_recipe(done.scores, partial(point, measure), "GMACs per image", title, better=-1)
        for measure, title in titles.items()
        if all(getattr(score, measure) is not None for score in done.scores)
    ]


def point(measure: str, score: Score) -> Point:
    """A score, with the interval of its change (top-1) or of itself."""
    value = 100 * getattr(score, measure).value
    upright = ends(score.agreement, 100) if measure == "agreement" else around(score.top1_change, value)
    return Point(score.macs / 1e9, value, str(score), upright=upright)
