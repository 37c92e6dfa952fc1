"""A few pictures with the visual tokens that every recipe kept, and what was answered, for the page of a comparison."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from ..data.questions import Item
from ..look.patches import tint
from ..look.prompt_patches import model_picture, prompt_looks
from ..ops.select import smaller
from ..pages.page import picture_uri
from ..runs.sweep import pruned
from .asking import Answer
from .question_scores import judged, kind_of

if TYPE_CHECKING:
    from ..runs.vlm_comparison import VlmComparison
    from .compare_vlm import Job
    from .vlm_entries import Entry

SIDE = 336


@dataclass(frozen=True)
class Said:
    """An answer: its text, and whether it is right (None for lists, which are neither)."""

    text: str
    right: bool | None


@dataclass(frozen=True)
class Talk:
    """A question about a picture, what is right, and the answers by recipe."""

    question: str
    target: str
    said: dict[str, Said]


@dataclass(frozen=True)
class VlmExhibit:
    """One picture: its name and scene, the picture as WebP, for every recipe what is laid over it and how many tokens are left, its questions."""

    name: str
    scene: str
    picture: str
    overlays: dict[str, tuple[str, int]]
    talk: list[Talk]


def gallery(job: Job, done: VlmComparison, answers: Mapping[str, Mapping[str, Answer]], shown: int) -> list[VlmExhibit]:
    """Draw `shown` pictures, those on which the recipes' answers differ most, simple and complex ones in turn."""
    about: dict[tuple[Any, ...], list[Item]] = {}
    for item in job.asked.items:
        if answers[done.rows[0].recipe][item.key].text is not None:
            about.setdefault(item.images, []).append(item)
    names = [row.recipe for row in done.rows]

    def differing(items: list[Item]) -> int:
        return sum(len({answers[name][item.key].text for name in names}) - 1 for item in items)

    queues: dict[str, list[list[Item]]] = {}
    for items in sorted(about.values(), key=lambda items: -differing(items)):
        queues.setdefault(next((item.complexity for item in items if item.complexity), ""), []).append(items)
    turns = [
        queue[place]
        for place in range(max(map(len, queues.values()), default=0))
        for _, queue in sorted(queues.items())
        if place < len(queue)
    ]
    return [exhibit(job, items, answers) for items in turns[:shown]]


def exhibit(job: Job, items: list[Item], answers: Mapping[str, Mapping[str, Answer]]) -> VlmExhibit:
    """One picture."""
    picture = model_picture(job.asker.processor, job.asker.prepared(items[0].load()[0]))
    overlays = {entry.name: overlay(job, entry, items[0]) for entry in job.entries if entry.recipes}
    talk = [
        Talk(
            item.text,
            " or ".join(item.answers),
            {entry.name: said(item, answers[entry.name][item.key]) for entry in job.entries},
        )
        for item in sorted(items, key=kind_of)
    ]
    picture.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    return VlmExhibit(items[0].images[0].name, items[0].scene, picture_uri(picture, "webp"), overlays, talk)


def said(item: Item, answer: Answer) -> Said:
    """An answer and whether it is right."""
    return Said(answer.text or "", None if answer.text is None else judged(item, answer.text))


@torch.no_grad()
def overlay(job: Job, entry: Entry, item: Item) -> tuple[str, int]:
    """What is laid over the picture for a recipe: whitened patches that left, colours of merged ones; or the smaller picture itself."""
    inputs, model = job.write([item]).batches[0].inputs, job.asker.model
    with pruned(model, entry.installed(0)) as handle:
        model.generate(**inputs, max_new_tokens=1, do_sample=False)  # type: ignore[operator]
        assert handle is not None
        sites = prompt_looks(handle, job.family.views("image", inputs)[0])
        left = handle.plans[-1].slots if handle.plans else 0
    if not sites:
        return "", 0
    if not sites[-1]:
        return "", int(left)
    last = sites[-1][-1]  # of an image in tiles these, without the overview
    if last.smaller:
        (rows, columns), grid = smaller(last.owner.shape, last.tokens), last.owner.shape
        whole = model_picture(job.asker.processor, job.asker.prepared(item.load()[0]))
        small = whole.resize((whole.width * columns // grid[1], whole.height * rows // grid[0]), Image.Resampling.BICUBIC)
        return picture_uri(small, "webp"), last.tokens
    return picture_uri(Image.fromarray(np.ascontiguousarray(tint(last)), "RGBA")), last.tokens
