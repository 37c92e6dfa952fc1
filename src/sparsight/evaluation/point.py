"""accuracy(model, recipe, data, size=...) -> Point: one recipe on pictures of one size, which are the two dials of cost."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from torch import nn

from ..data.reading import Source, Transform, by_threads
from ..errors import PruneError
from ..load.models import Loaded, at_size, open_model
from ..prune import family_of, plan_sites, resolve
from ..recipe import Recipe
from ..runs.intervals import Interval
from ..runs.settings import PRECISIONS, Settings, check_settings, versions_in_use
from ..runs.store import UNPRUNED, Chunk
from ..runs.sweep import THREADS, answer
from .accuracy import judge
from .study import Data, classify


@dataclass(frozen=True)
class Point:
    """Accuracy and work of one recipe at one size.

    size: (H, W) of the pictures in pixels; images: those that have a label; top1: a fraction with its 95% interval; hits: 1 or 0 for each of
    them, in the order of the data, to pair with another point; tokens: mean number left after each site; macs: multiply-accumulates per image.
    """

    model: str
    recipe: str
    size: tuple[int, int]
    data: str
    images: int
    top1: Interval
    tokens: list[float]
    macs: int
    device: str
    seed: int
    versions: dict[str, str] = field(repr=False)
    hits: list[int] = field(repr=False)

    def __str__(self) -> str:
        low, high = 100 * self.top1.low, 100 * self.top1.high
        right = f"top-1 {100 * self.top1.value:.1f}% [{low:.1f}, {high:.1f}] of {self.images} images"
        return f"{self.recipe} at {self.size[0]} x {self.size[1]}: {right}, {self.macs / 1e9:.2f} GMACs"

    def to_json(self) -> str:
        """All of it as JSON text; `from_json` is the inverse."""
        return json.dumps(asdict(self)) + "\n"

    @staticmethod
    def from_json(text: str) -> Point:
        """Read what `to_json` wrote."""
        data = json.loads(text)
        return Point(**{**data, "size": tuple(data["size"]), "top1": Interval(**data["top1"])})


def accuracy(
    model: str | Loaded | nn.Module = "demo",
    recipe: str | Recipe | None = None,
    data: str | Path | Source | None = None,
    *,
    size: int | None = None,
    transform: Transform | None = None,
    split: str | None = None,
    limit: int | None = None,
    batch_size: int = 32,
    device: str = "auto",
    precision: str = "fp32",
    seed: int = 0,
    listen: Callable[[int], object] = lambda images: None,
) -> Point:
    """Top-1 accuracy of a classifier under a recipe (None: unpruned) on pictures of size x size pixels. Nothing is written.

    model, transform: see `open_model`; data, split, limit: see `open_source`, or what it returned. size None: the size of the demo set, or the
    checkpoint's own; else pictures are resized once, straight to it, with the checkpoint's crop, and positions are resampled. listen hears
    how many images were done with every batch. Raises PruneError before any heavy work.
    """
    if size is not None and size < 1:
        raise PruneError(f"size={size} leaves no picture; give its side in pixels")
    settings = check_settings(Settings(batch_size, precision, device, seed, 0))
    source = data if isinstance(data, Source) else Data(data, split, limit).open(model)
    loaded = open_model(model, transform, None, settings.device, PRECISIONS[settings.precision])
    if transform is None:
        loaded = at_size(loaded, size or source.size, whole=source.size is not None)
    elif size not in (None, *loaded.image_size):
        raise PruneError(f"size={size} and a transform of your own, which makes {loaded.image_size[0]} pixels: give one of the two")
    chosen = None if recipe is None else resolve(recipe, {})
    if chosen is not None:
        plan_sites(family_of(loaded.model), chosen)
    study = classify(loaded, source, None)
    chunk, like = Chunk(), next(loaded.model.parameters())
    for group in by_threads(study.source.refs(lambda place: True), loaded.transform, batch_size, THREADS):
        columns = {} if group.images is None else answer(loaded.model, study.ask, chosen, group.images.to(like), seed)
        chunk.add(group, columns)
        listen(len(group.refs))
    judged = judge(chunk, chunk) if len(chunk) else None
    if judged is None or judged.top1 is None:
        raise PruneError(f"no image of {study.source.title} has a label and can be read; accuracy needs both")
    tokens = chunk.columns["tokens"].float().mean(dim=0).tolist() if chosen is not None else []
    return Point(
        model=loaded.name,
        recipe=UNPRUNED if chosen is None else str(chosen),
        size=loaded.image_size,
        data=study.source.title,
        images=len(judged.top1),
        top1=judged.intervals(None)["top1"] or Interval(0, 0, 1),
        tokens=tokens,
        macs=study.macs(chosen, tokens),
        device=settings.device,
        seed=seed,
        versions=versions_in_use(loaded.model),
        hits=judged.top1,
    )
