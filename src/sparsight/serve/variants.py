"""One model under several recipes, each ready to run: what a server offers, and which of them a request asks for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor, nn

from .. import registry
from ..errors import PruneError, shown
from ..load.answers import Reader
from ..load.models import Loaded, twin
from ..plan import Plan
from ..prune import family_of, prune
from ..recipe import Recipe
from ..runs.store import UNPRUNED
from ..speed.compile import check_engine, compile
from .refusal import Refusal

ENGINES = ("eager", "onnxruntime", "openvino")


@dataclass(frozen=True, eq=False)
class Answer:
    """What a variant says about one image.

    probabilities [K], None without a classifier; features [C], what enters the classifier. left: tokens after each pruned block;
    kept: patches that are left in the end, as ascending indices into the grid.
    """

    probabilities: Tensor | None
    features: Tensor
    left: list[int]
    kept: list[int]


class Shows(Protocol):
    """What shows the kept tokens of the last call in this thread: a Handle or a compiled model."""

    @property
    def plans(self) -> list[Plan]: ...

    def sources(self) -> list[Plan]: ...


@dataclass(frozen=True, eq=False)
class Variant:
    """The model under one recipe (None: unpruned), in one engine. Call it from one thread at a time.

    run: images [B, 3, H, W] -> logits [B, K] or None, features [B, C]. kept: shows what the last call kept, None where nothing is pruned.
    """

    name: str
    recipe: Recipe | None
    grid: tuple[int, int]
    run: Callable[[Tensor], Any] = field(repr=False)
    kept: Shows | None = field(repr=False)

    def __call__(self, images: Sequence[Tensor]) -> list[Answer]:
        """One answer for each image [3, H, W]."""
        with torch.inference_mode():
            logits, features = self.run(torch.stack(list(images)))
            chances = None if logits is None else logits.float().softmax(dim=-1).cpu()
            features = features.cpu()
        counts, kept = self.last(len(images))
        return [
            Answer(
                None if chances is None else chances[number], features[number], [count[number] for count in counts], kept[number]
            )
            for number in range(len(images))
        ]

    def last(self, images: int) -> tuple[list[list[int]], list[list[int]]]:
        """Of the last call, of so many images: tokens of every image after each pruned block, and patches left of every image."""
        plans = self.kept.plans if self.kept else []
        if not (plans and self.kept):
            return [], [list(range(self.grid[0] * self.grid[1]))] * images
        keep = self.kept.sources()[-1].keep.tolist()
        return [plan.counts for plan in plans], [sorted(place for place in row if place >= 0) for row in keep]

    @property
    def budget(self) -> Any:
        """The recipe's `keep`, 1 for the unpruned model, None where the budget is given in other words."""
        return 1.0 if self.recipe is None else dict(self.recipe.params).get("keep")


class Spoken(nn.Module):
    """A model whose forward gives logits (or None) and pooled features."""

    def __init__(self, model: nn.Module, classes: int) -> None:
        super().__init__()
        self.model = model
        self.reader = Reader(model, classes)

    def forward(self, images: Tensor) -> tuple[Tensor | None, Tensor]:
        return self.reader(images)


def check_recipes(recipes: Sequence[str | Recipe], engine: str) -> list[Recipe]:
    """The recipes without repetitions; PruneError for an engine or a recipe that cannot be, and for an engine that is not installed."""
    if engine not in ENGINES:
        raise PruneError(f"engine={shown(engine)!r} is not known; choose {', '.join(ENGINES)}")
    found = [registry.parse(recipe) if isinstance(recipe, str) else recipe for recipe in recipes]
    for recipe in found:
        if recipe.adaptive and engine != "eager":
            raise PruneError(f"{recipe} keeps another number of tokens in every image, which {engine} cannot; take engine eager")
    if engine != "eager":
        check_engine(engine, None)
    return list(dict.fromkeys(found))


def make_variants(
    loaded: Loaded, recipes: Sequence[Recipe], engine: str, threads: int = 0, listen: Callable[[str], object] | None = None
) -> list[Variant]:
    """The model under each recipe, then unpruned, every one run once. Raises PruneError for a recipe that does not fit the model.

    threads: of a forward, 0 = as many as torch uses. listen: called with a word before each. Weights are shared by all variants with
    engine eager; the others hold them once for each recipe.
    """
    grid = family_of(loaded.model).grid
    made = []
    for recipe in (*recipes, None):
        name = UNPRUNED if recipe is None else str(recipe)
        if listen is not None:
            listen(f"{loaded.name}, {name}, {engine} ...")
        made.append(make_variant(loaded, name, recipe, grid, engine, threads))
    return made


def make_variant(loaded: Loaded, name: str, recipe: Recipe | None, grid: tuple[int, int], engine: str, threads: int) -> Variant:
    """The model under one recipe in one engine. Tried at one image and at two, so that no request waits for a graph to be made."""
    model = twin(loaded.model)
    handle = None if recipe is None else prune(model, recipe)
    spoken = Spoken(model, len(loaded.classes or ())).eval()
    example = noise_image(loaded).to(next(model.parameters()).device)
    if engine == "eager":
        variant = Variant(name, recipe, grid, Eager(spoken), handle)
    else:
        fast = compile(spoken, example.unsqueeze(0), engine, batch_sizes=(1,), threads=threads)
        variant = Variant(name, recipe, grid, fast, fast)
    for images in ([example], [example] * 2):
        variant(images)
    return variant


@dataclass(frozen=True, eq=False)
class Eager:
    """The module as it is; images go to its device."""

    module: nn.Module

    def __call__(self, images: Tensor) -> Any:
        like = next(self.module.parameters())
        return self.module(images.to(like.device, like.dtype))


def noise_image(loaded: Loaded) -> Tensor:
    """What the preprocessing makes of a picture of noise [3, H, W]: an example whose patches all differ."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (*loaded.image_size, 3), generator=generator, dtype=torch.uint8).numpy()
    return loaded.transform(Image.fromarray(pixels))


def choose(variants: Sequence[Variant], recipe: str | None, keep: float | None) -> Variant:
    """The variant that a request asks for by its recipe (or the method's name, where one recipe has it) and its keep, the first one
    without either. Raises Refusal 400 with those that there are."""
    found = list(variants)
    if recipe is not None:
        found = named(found, recipe.strip())
    if keep is not None:
        found = [one for one in found if isinstance(one.budget, (int, float)) and abs(one.budget - keep) < 1e-9]
    if len(found) == 1 or (recipe is None and keep is None):
        return found[0]
    names = [one.name for one in variants]
    asked = " and ".join(f"{word}={shown(value)}" for word, value in (("recipe", recipe), ("keep", keep)) if value is not None)
    problem = f"fits {len(found)} recipes" if found else "is not served"
    raise Refusal(400, f"{asked} {problem}; this server has {' | '.join(names)}", {"served": names})


def named(variants: Sequence[Variant], text: str) -> list[Variant]:
    """The variants that a text names: in full, in another spelling of the same recipe, or by the method."""
    found = [one for one in variants if one.name == text]
    if not found and len(text) <= 1000:
        try:
            wanted = registry.parse(text)
        except PruneError:
            return []
        found = [one for one in variants if one.recipe == wanted] or [
            one for one in variants if one.recipe is not None and one.recipe.name == text
        ]
    return found
