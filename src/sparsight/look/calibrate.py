"""calibrate(model, images) -> Recipe: the averages that AgilePruner compares an image with, measured for one model."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from ..data.feed import Feed
from ..data.images import open_folder
from ..data.reading import Transform
from ..errors import PruneError
from ..load.models import Loaded
from ..load.vlms import open_encoder
from ..prune import resolve
from ..recipe import Recipe
from .complexity import measure_all

AVERAGES = ("erank_avg", "entropy_avg")
SPANS = ("erank_span", "entropy_span")


@dataclass(frozen=True)
class Calibration:
    """Averages and ranges (highest minus lowest) over images, and the recipe that has them."""

    recipe: Recipe
    images: int
    erank_avg: float
    erank_span: float
    entropy_avg: float
    entropy_span: float
    skipped: list[tuple[str, str]]

    def __str__(self) -> str:
        return (
            f"{self.images} images: effective rank {self.erank_avg:.4g} on average (range {self.erank_span:.4g}), "
            f"attention entropy {self.entropy_avg:.4g} nats (range {self.entropy_span:.4g})"
        )


def calibrate(
    model: str | Loaded | nn.Module,
    images: Any,
    recipe: Recipe | str = "agile",
    *,
    processor: Any = None,
    transform: Transform | None = None,
    batch_size: int = 8,
    **options: Any,
) -> Recipe:
    """The recipe with average effective rank and attention entropy of this model on these images.

    model: a name, what `load` returned, or a module; of a vision model the output of the last block but one is measured, which LLaVA
    takes its features from. images: a folder, paths, PIL images, or batches of the model's processor. recipe: `agile` or `mix`, whose score, place and
    `rank_space` say what is measured; `mix` gets the ranges, too, where the images differ. processor or transform: the
    model's, by default those of its checkpoint. The vision encoder runs, the language model does not. The averages of the paper are over LLaVA's
    training images; any sample of the images to come serves. Section 4.3 of arXiv:2603.01236.
    """
    done = calibration(model, images, recipe, processor=processor, transform=transform, batch_size=batch_size, **options)
    if done.skipped:
        name, reason = done.skipped[0]
        warnings.warn(f"{len(done.skipped)} images cannot be read and are left out; {name}: {reason}", stacklevel=2)
    return done.recipe


def calibration(
    model: str | Loaded | nn.Module,
    images: Any,
    recipe: Recipe | str = "agile",
    *,
    processor: Any = None,
    transform: Transform | None = None,
    batch_size: int = 8,
    limit: int | None = None,
    device: str = "cpu",
    **options: Any,
) -> Calibration:
    """What `calibrate` measures, with the recipe. limit: of a folder only so many images."""
    recipe = resolve(recipe, options)
    params = check_recipe(recipe)
    if batch_size < 1:
        raise PruneError(f"batch_size={batch_size} must be 1 or more")
    if isinstance(images, (str, Path)) and not Path(images).expanduser().is_file():
        images = open_folder(Path(images).expanduser(), limit).paths
    _, module, encode = open_encoder(model, processor, transform, device)
    feed = Feed(images, encode, next(module.parameters()), batch_size)
    assert recipe.score is not None
    score, space = recipe.steps[0], params["rank_space"]
    found, skipped = measure_all(module, feed, score, str(space), like=recipe)
    if not found:
        reason = f"{Path(skipped[0][0]).name}: {skipped[0][1]}" if skipped else "none was given"
        raise PruneError(f"no image can be read to calibrate with; {reason}")
    measures = [one.erank for _, one in found], [one.entropy for _, one in found]
    values, spans = [sum(some) / len(some) for some in measures], [max(some) - min(some) for some in measures]
    stored = dict(zip(AVERAGES, values, strict=True))
    stored |= {name: span for name, span in zip(SPANS, spans, strict=True) if name in params and span > 0}
    return Calibration(resolve(recipe, stored), len(found), values[0], spans[0], values[1], spans[1], skipped)


def check_recipe(recipe: Recipe) -> dict[str, Any]:
    """The recipe's parameters; a PruneError if it has no place for averages."""
    params = dict(recipe.params)
    missing = [name for name in AVERAGES if name not in params]
    if missing:
        raise PruneError(f"{recipe.name} has no {' and '.join(missing)} to store; calibrate agile or mix")
    return params
