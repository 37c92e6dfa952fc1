"""What a vision model makes of one picture, unpruned and under a few recipes: predictions, patches left at every site, costs."""

from __future__ import annotations

import shlex
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import PruneError
from ..handle import handles, unprune
from ..load.answers import Reader, check_finite
from ..load.models import Loaded
from ..look.overlay import level
from ..look.patches import Look, looks, pictures
from ..pages.page import picture_uri
from ..prune import family_of
from ..recipe import Recipe
from ..runs.intervals import spread
from ..runs.sweep import pruned
from ..speed.macs import macs
from ..speed.timing import clock
from .controls import Card, read_recipe, vision_cards, within

TOP = 5
"""Classes that the page shows."""
ROUNDS, MOST_ROUNDS, SECONDS = 3, 15, 1.0
"""Timed runs of each way: at least, at most, and how long they may take in all beyond the least."""
FIRST, SECOND = "col_ln:keep=0.5,layers=3/6/9", "evit:keep=0.5,layers=3/6/9"
"""What the page begins with, unless the model was trained under a recipe, and what it puts beside that."""
DROPPED, KEPT, FUSED, GROUP = -1, 0, 1, 2
"""How a patch is painted: groups that are merged count on from the last."""


@dataclass(frozen=True)
class Class:
    name: str
    probability: float


@dataclass(frozen=True)
class Site:
    """One site, patch by patch in rows from the top. owner: the token that stands for each, -1 for none; paint: see above; score: 0 to
    255, -1 where no token was left, None for methods without one. side: share of its side that a picture made smaller has left."""

    layer: int
    tokens: int
    owner: list[int]
    paint: list[int]
    score: list[int] | None
    side: float = 1.0


@dataclass(frozen=True)
class Side:
    """The picture under one recipe: what the model says, what each site left, and how to do the same elsewhere; or the error alone."""

    recipe: str
    classes: list[Class] = field(default_factory=list)
    sites: list[Site] = field(default_factory=list)
    python: str = ""
    command: str = ""
    error: str = ""


@dataclass(frozen=True)
class Seen:
    """picture: as the model gets it; classes: of the unpruned model, none without a classifier; depth: its blocks."""

    picture: str
    grid: tuple[int, int]
    depth: int
    classes: list[Class]
    sides: list[Side]


@dataclass(frozen=True)
class Cost:
    """Multiply-accumulates of one picture; milliseconds of a forward, median and quartiles; how many times faster than unpruned."""

    macs: int
    milliseconds: float
    low: float
    high: float
    speedup: float
    runs: int


class Vision:
    """A vision model of the page. Call it from one thread at a time; between calls it is unpruned and remembers nothing of a picture."""

    def __init__(self, loaded: Loaded) -> None:
        if any(handle.learned is not None for handle in handles(loaded.model)):
            raise PruneError(
                f"{loaded.name} is pruned with learned weights, which the page cannot put on and off; try sparsight show"
            )
        unprune(loaded.model)
        self.loaded, self.name = loaded, loaded.name
        self.reader = Reader(loaded.model, len(loaded.classes or ()))
        self.family = family_of(loaded.model)
        first, second = (within(read_recipe(text), len(self.family.blocks)) for text in (FIRST, SECOND))
        self.first = [str(next(iter(loaded.recipes), first)), str(second)]
        self.work: dict[str, int] = {}

    def cards(self) -> list[Card]:
        return vision_cards(self.loaded.model)

    def look(self, image: Tensor, recipes: Sequence[str], path: str) -> Seen:
        """Everything about an image [3, H, W] but what it costs. A recipe that cannot be run is a Side with its error. path: of the image,
        for the command line."""
        images = self.batch(image)
        picture = picture_uri(pictures(images, self.loaded.transform)[0], "jpeg")
        with torch.inference_mode():
            logits, _ = self.reader(images)
        classes = self.best(logits, "unpruned")
        sides = [self.side(images, text, path) for text in recipes]
        height, width = self.family.grid
        return Seen(picture, (height, width), len(self.family.blocks), classes, sides)

    def side(self, images: Tensor, text: str, path: str) -> Side:
        try:
            recipe = read_recipe(text)
            with warnings.catch_warnings(), torch.inference_mode(), pruned(self.loaded.model, recipe) as handle:
                warnings.simplefilter("ignore")  # that nothing is removed can be seen
                assert handle is not None
                logits, _ = self.reader(images)
                found = looks(0, handle.sources(), handle.scores, handle.layers, handle.grid)
        except PruneError as error:
            return Side(text, error=str(error))
        name = str(recipe)
        classes = self.best(logits, name)
        return Side(name, classes, [site(one) for one in found], python_line(self.name, name), command_line(self.name, name, path))

    def best(self, logits: Tensor | None, what: str) -> list[Class]:
        """The most probable classes."""
        if logits is None:
            return []
        check_finite(logits, f"{self.name} ({what})")
        found = logits[0].float().softmax(dim=-1).topk(min(TOP, logits.shape[-1]))
        names = self.loaded.classes
        return [
            Class(names[index] if names else f"class {index}", value)
            for index, value in zip(found.indices.tolist(), found.values.tolist(), strict=True)
        ]

    def measure(self, image: Tensor, recipes: Sequence[str]) -> list[Cost]:
        """Cost unpruned, then under each recipe; the timed runs take turns, so that all have the same share of what else the machine does."""
        images, found = self.batch(image), [None, *map(read_recipe, recipes)]
        work = [self.macs(recipe, images) for recipe in found]
        seconds = self.race(images, found)
        costs = []
        for count, times in zip(work, seconds, strict=True):
            middle = spread(1000 * one for one in times)
            faster = spread(usual / one for usual, one in zip(seconds[0], times, strict=True))
            costs.append(Cost(count, middle.median, middle.low, middle.high, faster.median, len(times)))
        return costs

    def race(self, images: Tensor, recipes: Sequence[Recipe | None]) -> list[list[float]]:
        """Seconds of the runs of each way, one of every way in each round; the first round, which warms up, is not counted."""
        rounds: list[list[float]] = []
        spent = 0.0
        with warnings.catch_warnings(), torch.inference_mode():
            warnings.simplefilter("ignore")
            while len(rounds) <= ROUNDS or (spent < SECONDS and len(rounds) <= MOST_ROUNDS):
                rounds.append([self.timed(images, recipe) for recipe in recipes])
                spent += sum(rounds[-1])
        return [list(times) for times in zip(*rounds[1:], strict=True)]

    def timed(self, images: Tensor, recipe: Recipe | None) -> float:
        with pruned(self.loaded.model, recipe):
            return clock(lambda: self.loaded.model(images), images.device)

    def macs(self, recipe: Recipe | None, images: Tensor) -> int:
        """Multiply-accumulates, counted once for each recipe; those of methods with counts of their own for each image."""
        if recipe is not None and recipe.adaptive:
            with torch.inference_mode(), pruned(self.loaded.model, recipe) as handle:
                assert handle is not None
                self.loaded.model(images)
                counts = handle.counts
            return macs(self.loaded.model, recipe, self.loaded.image_size, counts=counts)
        name = str(recipe)
        if name not in self.work:
            if len(self.work) >= 1000:
                self.work.clear()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self.work[name] = macs(self.loaded.model, recipe, self.loaded.image_size)
        return self.work[name]

    def batch(self, image: Tensor) -> Tensor:
        like = next(self.loaded.model.parameters())
        return image.unsqueeze(0).to(like.device, like.dtype)


def site(look: Look) -> Site:
    """A site as the page draws it."""
    owner = look.owner.ravel()
    if look.layer < -1:  # the picture itself was made smaller: there is nothing to lay over it
        return Site(look.layer, look.tokens, [0] * owner.size, [KEPT] * owner.size, None, (look.tokens / owner.size) ** 0.5)
    paint = np.where(owner < 0, DROPPED, KEPT)
    groups = [slot for slot in look.shared if slot not in look.fused]
    for place, slot in enumerate(groups):
        paint[owner == slot] = GROUP + place
    for slot in look.fused & set(look.shared):
        paint[owner == slot] = FUSED
    return Site(look.layer, look.tokens, owner.tolist(), paint.tolist(), None if look.score is None else shades(look.score))


def shades(score: Any) -> list[int]:
    """A score [h, w] as whole numbers from 0 to 255, -1 where there is none."""
    missing = ~np.isfinite(score)
    if missing.all():
        return [-1] * score.size
    found = (255 * level(score)).round().astype(int)
    found[missing] = -1
    shades: list[int] = found.ravel().tolist()
    return shades


def python_line(model: str, recipe: str) -> str:
    return f'import sparsight\nloaded = sparsight.load({model!r})\nhandle = sparsight.prune(loaded.model, "{recipe}")'


def command_line(model: str, recipe: str, path: str) -> str:
    chosen = "" if model == "demo" else f" --model {shlex.quote(model)}"
    return f"sparsight show {shlex.quote(path)}{chosen} --recipe {shlex.quote(recipe)} --out kept.png"
