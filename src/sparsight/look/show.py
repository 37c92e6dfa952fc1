"""show(...) -> Shown: what recipes keep of images and what the model says then, as PNG, SVG, or animated over the layers."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from PIL import Image
from torch import nn

from ..data.demo_sets import DEMO
from ..data.reading import Transform
from ..errors import PruneError
from ..load.models import Loaded
from ..load.vlms import LoadedVlm, speaks
from ..prune import resolve
from ..recipe import Recipe
from .show_vision import classified
from .show_vlm import answered
from .shown import Given, Shown, target_of

MOST = 200
"""Cells of a sheet."""


def show(
    images: Given | Sequence[Given],
    model: str | Loaded | LoadedVlm | nn.Module = "demo",
    recipes: str | Recipe | Sequence[str | Recipe] = "col_ln",
    out: str | Path | None = None,
    *,
    transform: Transform | None = None,
    question: str | None = None,
) -> Shown:
    """Draw what recipes keep of images, in the model's own crop, and what the model says before and after.

    One image under one recipe: the score and the kept patches at each site. Several: a table, images below each other and recipes beside
    each other, after the last site. Of a vision-language model (a name, a folder, what `load_vlm` returned) the tokens lie where they are in
    the picture (LLaVA-NeXT: in the overview and in the tiles), and `question` is answered.
    images: files, Pillow images, or a data set such as "demo:small", whose first picture it is. out: .png, .svg, or .gif and .webp, which
    show the layers one after the other; None writes nothing. model, transform: see `open_model`. Later sites show what all sites up to
    there have left. Raises PruneError for an image, model or recipe that cannot be used.
    """
    chosen = [resolve(recipe, {}) for recipe in ([recipes] if isinstance(recipes, str | Recipe) else recipes)]
    given = [images] if isinstance(images, str | Path | Image.Image) else list(images)
    check(given, chosen)
    if out is not None:
        target_of(out)
    if isinstance(model, LoadedVlm) or (isinstance(model, str) and speaks(model)):
        if transform is not None:
            raise PruneError("transform is for vision models; a vision-language model has its processor")
        name, rows = answered(given, model, chosen, question)
    elif question is not None:
        raise PruneError("a question needs a vision-language model; take model='demo-vlm', or leave the question out")
    else:
        name, rows = classified(given, model, chosen, transform)
    shown = Shown(None, name, rows)
    return shown if out is None else shown.save(out)


def check(given: Sequence[Given], recipes: Sequence[Recipe]) -> None:
    """Raise PruneError for what is no image or too much for one sheet, before a model is loaded."""
    if not given or not recipes:
        raise PruneError(f"show needs an image and a recipe, got {len(given)} and {len(recipes)}")
    if len(given) * len(recipes) > MOST:
        raise PruneError(
            f"{len(given)} images under {len(recipes)} recipes are more than the {MOST} pictures that a sheet can have"
        )
    for one in given:
        file = Path(one).expanduser() if isinstance(one, str | Path) else None
        if file is not None and os.path.isdir(file):
            raise PruneError(f"{file} is a folder; give its files, such as {file}/*.jpg")
        if file is not None and not str(one).startswith(DEMO) and not os.path.isfile(file):
            raise PruneError(f"no image file {file}")
