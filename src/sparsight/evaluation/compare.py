"""compare(...) -> Comparison: the unpruned model against every recipe, on the same images and in paired runs."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from ..data.images import Folder, align, open_folder
from ..errors import PruneError
from ..load.answers import Reader
from ..load.models import Loaded, demo_images, load_model
from ..ops.schedule import BUDGET
from ..prune import family_of, plan_sites, resolve
from ..recipe import Recipe
from ..registry import accepted, find
from ..registry import methods as all_methods
from ..runs.comparison import Comparison
from ..runs.store import claim, release
from .measure import PRECISIONS, Job, Listener, Settings, ignore


def compare(
    model: str | Loaded = "demo",
    data: str | Path | None = None,
    methods: Sequence[str] | None = None,
    keep: Sequence[float | str] | None = (0.7, 0.5),
    layers: Sequence[str] | None = ("3/6/9",),
    out: str | Path = "runs/compare",
    *,
    recipes: Sequence[str | Recipe] = (),
    batch_size: int = 32,
    limit: int | None = None,
    device: str = "auto",
    precision: str = "fp32",
    seed: int = 0,
    shown: int = 4,
    seconds: float = 4.0,
    listen: Listener | None = None,
) -> Comparison:
    """Measure the unpruned model and every method x budget x layers on a folder of images; write results and report into `out`.

    model: a name that `load_model` takes, or a Loaded. data: a folder of images, by default the demo images (model "demo" only).
    methods: names or recipe strings, by default all; keep and layers fill in what a recipe string leaves open, None = the
    method's own. recipes: added as they are. shown: images in the report; seconds: time for the paired runs of a row.
    Called again with the same arguments it goes on after the last finished row. Raises PruneError before any heavy work.
    """
    wanted = spell(methods, keep, layers, recipes)
    settings = check_settings(Settings(batch_size, precision, device, seed, seconds), shown)
    folder = open_folder(data_folder(model, data), limit)
    made = claim(Path(out).expanduser())
    try:
        job, notes = prepare(model, folder, wanted, settings, Path(out).expanduser(), strict=methods is not None)
        reference = job.reference(listen or ignore)
    except PruneError:
        release(made)
        raise
    return job.run(reference, notes, shown, listen or ignore)


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


def check_settings(settings: Settings, shown: int) -> Settings:
    """The settings with the device spelled out; a PruneError for what cannot be."""
    for name, value, least in (("batch_size", settings.batch_size, 1), ("shown", shown, 0), ("seconds", settings.seconds, 0)):
        if value < least:
            raise PruneError(f"{name}={value:g} must be at least {least}")
    if settings.precision not in PRECISIONS:
        raise PruneError(f"precision={settings.precision!r} is not known; choose {', '.join(PRECISIONS)}")
    name = settings.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError) as error:
        why = str(error).splitlines()[0].partition(". ")[0]
        raise PruneError(f"device={name!r} cannot be used ({why}); try cpu") from None
    return replace(settings, device=name)


def data_folder(model: str | Loaded, data: str | Path | None) -> str | Path:
    """The folder of images; the demo model brings its own."""
    if data is not None:
        return data
    name = model if isinstance(model, str) else model.name
    if name != "demo":
        raise PruneError(f"no data folder for model {name}; give one with --data (only the demo model brings images)")
    return demo_images()


def prepare(
    model: str | Loaded, folder: Folder, wanted: list[Recipe], settings: Settings, out: Path, strict: bool
) -> tuple[Job, list[str]]:
    """Load the model and check every recipe against it: everything that can go wrong, before the first forward.

    strict False leaves out, with a note, recipes that the model cannot carry out.
    """
    loaded = load_model(model) if isinstance(model, str) else model
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
    folder = align(folder, loaded.classes, Reader(loaded.model).outputs)
    # Somebody's own model stays on its device and in its precision.
    moved = loaded.model if isinstance(model, str) else copy.deepcopy(loaded.model)
    moved = moved.to(settings.device, PRECISIONS[settings.precision]).eval()
    job = Job.make(replace(loaded, model=moved), folder, possible, settings, out)
    return job, [*filter(None, [folder.note]), *notes]
