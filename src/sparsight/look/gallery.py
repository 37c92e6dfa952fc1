"""A few images with the patches that every recipe kept, small enough to travel inside a page."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from PIL import Image

from ..data.reading import Source, by_threads
from ..load.models import Loaded
from ..pages.page import picture_uri
from ..recipe import Recipe
from ..runs.comparison import Comparison
from .patches import Look, look, pictures, tint

SIDE = 336
MOST_SITES = 4


@dataclass(frozen=True)
class Thumb:
    """One site of one recipe: what to write beside it, and its patches as a tiny PNG that is laid over the image.

    side: share of its side that a picture made smaller has left; nothing is laid over it.
    """

    title: str
    tokens: int
    overlay: str
    side: float = 1.0


@dataclass(frozen=True)
class Exhibit:
    """One image: its name and place in the comparison, the picture as WebP, and the sites of every recipe, by the recipe's string."""

    name: str
    picture: str
    sites: dict[str, list[Thumb]]
    place: int


def gallery(
    loaded: Loaded, source: Source, places: Mapping[str, int], done: Comparison, recipes: list[Recipe], shown: int
) -> list[Exhibit]:
    """Draw `shown` images, chosen by the comparison's seed. places: of the images in the source, by name."""
    chosen = random.Random(done.seed).sample(done.images, min(shown, len(done.images)))
    wanted = {places[name] for name in chosen}
    groups = by_threads(source.refs(wanted.__contains__), loaded.transform, size=1, threads=1)
    tensors = {ref.name: group.images[0] for group in groups for ref in group.refs if group.images is not None}
    if not tensors:
        return []
    batch = torch.stack(list(tensors.values()))
    seen = {str(recipe): look(loaded.model, recipe, batch.to(next(loaded.model.parameters()))) for recipe in recipes}
    exhibits = []
    for item, (name, picture) in enumerate(zip(tensors, pictures(batch, loaded.transform))):
        sites = {text: [thumb(site) for site in few(looks[item])] for text, looks in seen.items()}
        picture.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
        exhibits.append(Exhibit(name, picture_uri(picture, "webp"), sites, done.images.index(name)))
    return exhibits


def thumb(site: Look) -> Thumb:
    """A site on the page."""
    if site.layer < -1:
        return Thumb(site.title, site.tokens, "", round((site.tokens / site.owner.size) ** 0.5, 3))
    return Thumb(site.title, site.tokens, picture_uri(Image.fromarray(tint(site), "RGBA")))


def few(sites: list[Look]) -> list[Look]:
    """At most four sites, evenly spaced, the last one among them."""
    if len(sites) <= MOST_SITES:
        return sites
    return [sites[(index + 1) * len(sites) // MOST_SITES - 1] for index in range(MOST_SITES)]
