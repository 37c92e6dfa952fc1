"""A few pictures with the visual tokens that every recipe kept, and what was answered, for the page of a comparison."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..data.questions import Item
from ..look.patches import Look, pictures, tint
from ..ops.select import smaller
from ..pages.page import picture_uri
from ..runs.sweep import pruned
from .asking import Answer
from .question_scores import judged, kind_of

if TYPE_CHECKING:
    from ..runs.vlm_comparison import VlmComparison
    from .compare_vlm import Job
    from .vlm_entries import Entry

SIDE = 224


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
    """One picture: its name and scene, the picture as a JPEG, for every recipe what is laid over it and how many tokens are left, its questions."""

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
    return VlmExhibit(items[0].images[0].name, items[0].scene, picture_uri(picture, "jpeg"), overlays, talk)


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
        plans = handle.plans
        if not plans:
            return "", 0
        owner = owners([plan.owner[0] for plan in plans])
        left = int(plans[-1].slots)
        fused = {plans[-1].slots - 1} if plans[-1].fused else set()
        grid = grid_of(job.family, inputs, owner)
    if grid is None:
        return "", left
    if entry.recipes[0].where == "image":
        rows, columns = smaller(grid, left)
        whole = model_picture(job.asker.processor, job.asker.prepared(item.load()[0]))
        small = whole.resize((whole.width * columns // grid[1], whole.height * rows // grid[0]), Image.Resampling.BICUBIC)
        return picture_uri(small, "jpeg"), left
    look = Look(0, left, owner.cpu().numpy().reshape(grid), frozenset(fused), None)
    return picture_uri(Image.fromarray(np.ascontiguousarray(tint(look)), "RGBA")), left


def owners(sites: list[Tensor]) -> Tensor:
    """Slot after the last site of every token before the first one, -1 if it left on the way."""
    owner = sites[0]
    for later in sites[1:]:
        owner = torch.where(owner < 0, -1, later[owner.clamp(min=0)])
    return owner


def grid_of(family: Any, inputs: Mapping[str, Tensor], owner: Tensor) -> tuple[int, int] | None:
    """The patch grid of a picture whose tokens are one grid; None for pictures in tiles."""
    if not family.one_row:
        return None
    grid: tuple[int, int] = family.grid_of(inputs)
    return grid if grid[0] * grid[1] == owner.numel() else None


def model_picture(processor: Any, picture: Image.Image) -> Image.Image:
    """The picture as the model gets it."""

    def transform(image: Image.Image) -> Tensor:
        pixels: Tensor = processor.image_processor(images=image, return_tensors="pt")["pixel_values"][0]
        return pixels

    pixels = transform(picture)
    return pictures(pixels.reshape(-1, *pixels.shape[-3:])[:1], transform)[0] if pixels.dim() in (3, 4) else picture
