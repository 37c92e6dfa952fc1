"""What a vision model says before and after, and what is left of its patches."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

from ..data.demo_sets import DEMO, DemoSource, open_demo
from ..data.images import Skipped, load_image
from ..data.reading import Transform
from ..errors import PruneError
from ..load.answers import Reader
from ..load.models import Loaded, at_size, open_model
from ..prune import family_of, plan_sites
from ..recipe import Recipe
from .patches import look_and_ask, pictures
from .sheets import Cell, View
from .shown import Given, name_of


def classified(
    given: Sequence[Given], model: str | Loaded | nn.Module, recipes: Sequence[Recipe], transform: Transform | None
) -> tuple[str, list[list[Cell]]]:
    """Name and cells of a vision model."""
    sets = {str(one): open_demo(str(one), 1) for one in given if isinstance(one, str | Path) and str(one).startswith(DEMO)}
    sizes = {made.size for made in sets.values()} | ({None} if len(sets) < len(given) else set())
    if len(sizes) > 1 and transform is None:
        raise PruneError("pictures of demo: are seen as they are, files in the model's own size; show them one by one")
    loaded = at_size(open_model(model, transform), None if transform is not None else sizes.pop())
    for recipe in recipes:
        plan_sites(family_of(loaded.model), recipe)
    batch = torch.stack([tensor_of(one, sets, loaded.transform) for one in given])
    reader = Reader(loaded.model, len(loaded.classes or ()))
    inputs = batch.to(next(loaded.model.parameters()))
    with torch.inference_mode():
        base = reader(inputs)
    seen = [look_and_ask(loaded.model, recipe, inputs, reader) for recipe in recipes]
    drawn, rows = pictures(batch, loaded.transform), []
    for item, (one, picture) in enumerate(zip(given, drawn, strict=True)):
        row = []
        for recipe, (looks, pruned) in zip(recipes, seen, strict=True):
            sites, (before, after) = looks[item], said(base, pruned, item, loaded.classes)
            layers, tokens = tuple(site.layer for site in sites), tuple(site.tokens for site in sites)
            row.append(
                Cell(name_of(one), str(recipe), sites[0].owner.size, layers, tokens, before, after, (View(picture, tuple(sites)),))
            )
        rows.append(row)
    return loaded.name, rows


def tensor_of(one: Given, sets: dict[str, DemoSource], transform: Transform) -> Tensor:
    """An image as the model gets it."""
    made = sets.get(str(one))
    if isinstance(one, Image.Image):
        return transform(one.convert("RGB"))
    if made is not None:
        return transform(made.ref(0).read())
    tensor = load_image(Path(one).expanduser(), transform)
    if isinstance(tensor, Skipped):
        raise PruneError(f"image {one} cannot be read: {tensor.reason}")
    return tensor


Reading = tuple[Tensor | None, Tensor]


def said(base: Reading, pruned: Reading, item: int, classes: Sequence[str] | None) -> tuple[str, str]:
    """The most probable class before and after; of a model without a classifier how alike the features are."""
    if base[0] is None or pruned[0] is None:
        alike = torch.cosine_similarity(base[1][item], pruned[1][item], dim=0)
        return "", f"features: cosine {float(alike):.3f}"
    return named(base[0][item], classes), named(pruned[0][item], classes)


def named(logits: Tensor, classes: Sequence[str] | None) -> str:
    """The first class and its softmax in percent."""
    if not logits.isfinite().all():
        return "NaN or infinite"
    chance, place = logits.float().softmax(dim=-1).max(dim=-1)
    name = classes[int(place)] if classes else f"class {int(place)}"
    return f"{name} {100 * float(chance):.0f}%"
