"""compare(...) -> Comparison: the unpruned model against every recipe, on the same images and in paired runs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import nn

from ..data.fingerprint import digest
from ..data.reading import Source, Transform
from ..data.sources import open_source
from ..errors import PruneError
from ..load.answers import Reader
from ..load.models import Loaded, at_size, data_folder, open_model, twin
from ..ops.schedule import BUDGET
from ..prune import family_of, plan_sites, resolve
from ..recipe import Recipe
from ..registry import accepted, find
from ..registry import methods as all_methods
from ..runs.comparison import Comparison
from ..runs.settings import PRECISIONS, Settings, check_settings, device_name
from ..runs.sweep import Listener, Pace, ignore
from ..runs.workers import Workers
from .beside import USUAL, check_beside
from .beside import beside as place_beside
from .measure import Job, Question
from .study import Study, make_sweep, reserved


def compare(
    model: str | Loaded | nn.Module = "demo",
    data: str | Path | None = None,
    methods: Sequence[str] | None = None,
    keep: Sequence[float | str] | None = (0.7, 0.5),
    layers: Sequence[str] | None = ("3/6/9",),
    out: str | Path = "runs/compare",
    *,
    transform: Transform | None = None,
    classes: Sequence[str] | None = None,
    recipes: Sequence[str | Recipe] = (),
    beside: Sequence[str] = USUAL,
    equal: Sequence[str] = ("macs",),
    batch_size: int = 32,
    limit: int | None = None,
    device: str = "auto",
    precision: str = "fp32",
    seed: int = 0,
    shown: int = 4,
    seconds: float = 4.0,
    listen: Listener | None = None,
) -> Comparison:
    """Measure the unpruned model and every method x budget x layers on images; write results and report into `out`.

    model, transform, classes: see `open_model`. data: see `open_source`, by default the demo images (model "demo" only).
    methods: names or recipe strings, by default all; keep and layers fill in what a recipe string leaves open, None = the
    method's own. recipes: added as they are. beside: baselines that stand in every group of one budget, of "random", "resize" and "pool"; equal: what
    the last two have in common with it, "macs" or "tokens" or both. shown: images in the report; seconds: time for the paired runs of a row.
    Called again with the same arguments it goes on from what is finished. Raises PruneError before any heavy work.
    """
    wanted, words = spell(methods, keep, layers, recipes), check_beside(beside, equal)
    settings = check_settings(Settings(batch_size, precision, device, seed, seconds), shown)
    source = open_source(data_folder(model, data), limit=limit)
    target = Path(out).expanduser()
    with reserved(target, Workers()):
        loaded = open_model(model, transform, classes, settings.device, PRECISIONS[settings.precision])
        loaded = at_size(loaded, source.size if transform is None else None)
        return prepare(loaded, source, wanted, words, settings, target, methods is not None).run(shown, listen or ignore)


def spell(
    methods: Sequence[str] | None,
    keep: Sequence[float | str] | None,
    layers: Sequence[str] | None,
    recipes: Iterable[str | Recipe] = (),
) -> list[Recipe]:
    """Every method under every budget and layer list, then the recipes as they are; each once."""
    names = [entry.name for entry in all_methods() if "layers" in accepted(entry)] if methods is None else methods
    found = []
    for place in layers or (None,):
        for amount in keep or (None,):
            for text in names:
                found.append(complete(text, amount, place))
    found += [resolve(recipe, {}) for recipe in recipes]
    if not found:
        raise PruneError("nothing to compare: give at least one method or recipe")
    return list({str(recipe): recipe for recipe in found}.values())


def complete(text: str, keep: float | str | None, layers: str | None) -> Recipe:
    """The recipe of a string, with budget and layers filled in where the string is silent."""
    name, _, body = text.partition(":")
    words = {part.partition("=")[0].strip() for part in body.split(",")}
    options: dict[str, float | str] = {}
    if keep is not None and not words & set(BUDGET):
        options["keep"] = keep
    if layers is not None and "layers" not in words and "layers" in accepted(find(name.strip())):
        options["layers"] = layers
    return resolve(text, options)


def prepare(
    loaded: Loaded,
    source: Source,
    wanted: list[Recipe],
    words: tuple[list[str], list[str]],
    settings: Settings,
    out: Path,
    strict: bool,
) -> Job:
    """Check every recipe against the model: everything that can go wrong, before the first forward.

    strict False leaves out, with a note, recipes that the model cannot carry out. words: baselines, and what they share with the recipes.
    """
    family = family_of(loaded.model)
    possible, notes = [], []
    for recipe in wanted:
        try:
            plan_sites(family, recipe)
            possible.append(recipe)
        except PruneError as error:
            if strict:
                raise
            notes.append(f"{recipe} is left out: {error}")
    if not possible:
        raise PruneError(f"no method can prune this model; {notes[0]}")
    others = place_beside(loaded.model, possible, *words, loaded.image_size)
    classes = len(loaded.classes or ())
    question = Question(Reader(loaded.model, classes), Reader(twin(loaded.model), classes))
    source = source.aligned(loaded.classes, question.reader.outputs)
    key = digest("compare", settings.seconds, torch.get_num_threads(), device_name(settings.device))
    study = Study(
        loaded, question, source, None, question.reader.outputs, loaded.classes, [source.note, *notes, *others.notes], key
    )
    sweep = make_sweep(study, [*possible, *others.recipes], Pace(settings.batch_size), settings, Workers(), out)
    return Job(study, settings, sweep, out, others.groups)
