"""vlm_evaluation_page(...) -> str: scores of a vision-language model on sets of questions as one page: a table of all, then set by set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..runs.vlm_counts import MEASURES
from .page import DASH, counted, render

if TYPE_CHECKING:
    from ..evaluation.vlm_scores import VlmEvaluation

PARTS = {"": "all questions", "simple": "simple pictures", "complex": "complex pictures"}


@dataclass(frozen=True)
class Part:
    """A table: the numbers of a set, or of its simple or complex pictures. place: of the set in a row; columns: (key, head) of its metrics."""

    title: str
    place: int
    columns: list[tuple[str, str]]


def vlm_evaluation_page(done: VlmEvaluation) -> str:
    sets = done.rows[0].scores
    facts = (
        ", ".join(f"{one.title}: {counted(one.questions, 'question')}" for one in sets), done.device, done.precision,
        f"batch {done.batch_size}", f"prompt {done.prompt}" if done.prompt else "", "pictures padded to squares" if done.square else "", done.date[:10],
    )  # fmt: skip
    return render(
        "vlm_evaluation.html",
        done=done,
        title=f"{done.model}: {counted(len(done.rows) - 1, 'recipe')} on {counted(sum(one.questions for one in sets), 'question')}",
        facts=facts,
        sets=sets,
        parts=[part for place in range(len(sets)) for part in parts_of(done, place)],
        number=number,
    )


def parts_of(done: VlmEvaluation, place: int) -> list[Part]:
    """The tables of a set, without columns that say what the first table says."""
    one = done.rows[0].scores[place]
    known = list(dict.fromkeys(key for row in done.rows for key in row.scores[place].metrics))
    found = []
    for split, words in PARTS.items():
        own = [key for key in known if key.rpartition("/")[0] == split]
        if len(own) + (len(known) > len(own)) > 1:
            found.append(Part(f"{one.title}, {words}", place, [(key, head_of(key.rpartition("/")[2])) for key in own]))
    return found


def head_of(name: str) -> str:
    """What a metric is called."""
    return MEASURES[name].title if name in MEASURES else name.replace("_", " ")


def number(value: float | None) -> str:
    """Four digits: shares, percentages and points alike."""
    return DASH if value is None else f"{value:.4g}"
