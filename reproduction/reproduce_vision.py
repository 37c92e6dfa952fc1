"""Run the entries of vision models: top-1 by `evaluate`, speed by `compare`, pictures by `show`, complexity by `rank`, blocks by `analyse`."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean, quantiles

from sparsight.data.images import Folder, open_folder
from sparsight.errors import PruneError
from sparsight.evaluation.compare import compare
from sparsight.evaluation.evaluate import evaluate
from sparsight.load import models
from sparsight.load.models import Loaded
from sparsight.load.open_clip import OPEN_CLIP
from sparsight.load.zero_shot import Dual, load_dual
from sparsight.look.analyse import analyse
from sparsight.prune import family_of, plan_sites
from sparsight.recipe import Recipe
from sparsight.runs.comparison import UNPRUNED
from sparsight.runs.settings import versions_in_use
from sparsight.speed.macs import macs

from .order import Order, Yield
from .published import Row, index
from .published_macs import MEASURE

TIMED = ("speedup", "images_per_second")
PICTURES = 2
"""Images drawn for a figure where no limit is given."""
ANALYSED = 64
"""Images that are looked into block by block where no limit is given."""


def classify(order: Order, brought: Yield) -> None:
    """Top-1 of every row, model by model and data set by data set; GFLOPs of the model that was used, and speed where it is asked for."""
    for name, keys in by_name(order.models):
        loaded = load(keys, name, order, brought)
        if loaded is None:
            continue
        for data, place in order.data.items():
            rows = [row for row in order.rows if row.model in keys and row.data in (data, "")]
            if place and rows:
                folder = open_folder(place, order.limit)
                remark_data(data, folder, order, brought)
                one_folder(order, brought, loaded, data, folder, rows)


def by_name(models: dict[str, str]) -> Iterator[tuple[str, list[str]]]:
    """Every model that was given with the keys it stands for, and every other key by itself: one stand-in runs once."""
    for name in dict.fromkeys(filter(None, models.values())):
        yield name, [key for key, given in models.items() if given == name]
    yield from (("", [key]) for key, given in models.items() if not given)


def load(keys: list[str], name: str, order: Order, brought: Yield) -> Loaded | Dual | None:
    """The model that was given, or the paper's own; None, with the reason among what is missing, if that one is not to be had."""
    known = [index().models[key] for key in keys]
    try:
        found = load_any(name or known[0].name)
    except PruneError as error:
        if name:
            raise
        brought.missing.append(f"weights {keys[0]}: {error}")
        return None
    for model in known:
        if name and name != model.name:
            brought.differs.append(f"model {model.key}: {name} instead of {model.name}")
        if order.entry.command == "train":
            brought.differs.append(f"model {model.key}: one checkpoint for all rows; the paper fine-tunes one for each")
    brought.versions |= versions_in_use((found.loaded if isinstance(found, Dual) else found).model)
    return found


def load_any(name: str) -> Loaded | Dual:
    """A model of images and texts where the name is one's, else a model of images."""
    folder = Path(name).expanduser()
    config = folder / "config.json"
    kind = json.loads(config.read_text(encoding="utf-8")).get("model_type") if config.is_file() else None
    if name.startswith(OPEN_CLIP) or (folder / "open_clip_config.json").is_file() or kind in ("clip", "siglip"):
        return load_dual(name)
    return models.load(name)


def remark_data(key: str, folder: Folder, order: Order, brought: Yield) -> None:
    """Say what stands for the paper's data set."""
    data = index().data[key]
    if data.images and len(folder) != data.images:
        limit = f" (limit {order.limit})" if order.limit else ""
        brought.differs.append(
            f"data {key}: {len(folder)} images of {folder.path}{limit} instead of the {data.images} of {data.title}"
        )
    else:
        brought.differs.append(f"data {key}: {folder.path} is taken for {data.title}; that it is, was not checked")


def one_folder(order: Order, brought: Yield, model: Loaded | Dual, data: str, folder: Folder, rows: list[Row]) -> None:
    """All recipes of the rows on one model and one folder."""
    loaded = model.loaded if isinstance(model, Dual) else model
    recipes = possible(loaded, data, rows, brought)
    out = order.out / re.sub(r"[^\w.-]+", "_", f"{Path(loaded.name).name}-{data}")
    mode, preset = ("zero-shot", index().data[data].preset or None) if isinstance(model, Dual) else ("classify", None)
    done = evaluate(
        model, folder.path, list(recipes.values()), out, mode=mode, preset=preset, limit=order.limit,
        batch_size=order.settings.batch_size, device=order.settings.device, precision=order.settings.precision,
        seed=order.settings.seed, listen=order.listen,
    )  # fmt: skip
    brought.differs += done.notes
    brought.files.append(str(out / "results.json"))
    gmacs = costs(loaded, recipes) if order.entry.measure(MEASURE) else {}
    speeds = timed(order, loaded, folder, recipes, out) if any(order.entry.measure(name) for name in TIMED) else {}
    for row in rows:
        if row.recipe == UNPRUNED or row.recipe in recipes:
            spelled = str(recipes.get(row.recipe, UNPRUNED))
            top1 = done.score(spelled).top1
            numbers = {**speeds.get(spelled, {}), **gmacs.get(spelled, {})}
            if top1 is not None:
                numbers |= {m.key: 100 * top1.value for m in order.entry.measures if m.key == "top1" or m.data == data}
            keep(brought, order, row, data, numbers)


def costs(loaded: Loaded, recipes: dict[str, Recipe]) -> dict[str, dict[str, float]]:
    """GFLOPs of the model that is used, as the papers count them."""
    wanted = {UNPRUNED: None, **{str(recipe): recipe for recipe in recipes.values()}}
    return {name: {MEASURE: macs(loaded.model, it, loaded.image_size, convention="published") / 1e9} for name, it in wanted.items()}


def possible(loaded: Loaded, data: str, rows: list[Row], brought: Yield) -> dict[str, Recipe]:
    """The recipes that this model can carry out, by their text; of the others a note says why not."""
    found = {}
    family = family_of(loaded.model)
    for row in rows:
        if not row.method or row.pending or row.recipe in found:
            continue
        try:
            recipe = row.parsed()
            assert recipe is not None
            plan_sites(family, recipe)
            found[row.recipe] = recipe
        except PruneError as error:
            brought.notes[row.model, data, row.recipe] = str(error)
    return found


def timed(order: Order, loaded: Loaded, folder: Folder, recipes: dict[str, Recipe], out: Path) -> dict[str, dict[str, float]]:
    """Images per second and speed-up of every recipe, in runs paired with the unpruned model."""
    if not recipes:
        return {}
    done = compare(
        loaded, folder.path, methods=(), keep=None, layers=None, out=out / "speed", recipes=list(recipes.values()), shown=0,
        batch_size=order.settings.batch_size, limit=order.settings.batch_size, device=order.settings.device,
        precision=order.settings.precision, seed=order.settings.seed,
    )  # fmt: skip
    return {row.recipe: {"speedup": row.speedup.median, "images_per_second": row.images_per_second} for row in done.rows}


def keep(brought: Yield, order: Order, row: Row, data: str, numbers: dict[str, float]) -> None:
    """Put a row's numbers where the entry looks for them."""
    for name, value in numbers.items():
        measure = order.entry.measure(name)
        if measure is not None:
            brought.numbers[row.model, data if measure.data else row.data, row.recipe, name] = value


def draw(order: Order, brought: Yield) -> None:
    """Pictures of what every recipe keeps, for the first images of the folder."""
    from sparsight.look.show import show

    place = next((place for place in order.data.values() if place), "")
    for name, keys in by_name(order.models):
        model = load(keys, name, order, brought)
        if model is None or isinstance(model, Dual):
            continue
        folder = open_folder(place, order.limit or PICTURES)
        brought.differs.append(f"images: {len(folder)} of {folder.path}, for the paper's own are not known")
        order.out.mkdir(parents=True, exist_ok=True)
        rows = [row for row in order.rows if row.model in keys]
        for text, recipe in possible(model, next(iter(order.data)), rows, brought).items():
            for image in folder.paths:
                target = order.out / f"{image.stem}-{re.sub(r'[^A-Za-z0-9_.=-]+', '_', text)}.png"
                show(image, model, recipe, target)
                brought.files.append(str(target))


def inspect(order: Order, brought: Yield) -> None:
    """Scores, entropy and attention distance block by block, over some images of the folder."""
    place = next((place for place in order.data.values() if place), "")
    for name, keys in by_name(order.models):
        model = load(keys, name, order, brought)
        if model is None or isinstance(model, Dual):
            continue
        rows = [row for row in order.rows if row.model in keys]
        recipes = possible(model, next(iter(order.data)), rows, brought)
        out = order.out / re.sub(r"[^\w.-]+", "_", Path(model.name).name)
        done = analyse(
            model, place, list(recipes.values()), out, limit=order.limit or ANALYSED, shown=PICTURES,
            batch_size=order.settings.batch_size, device=order.settings.device, seed=order.settings.seed, listen=order.listen,
        )  # fmt: skip
        brought.differs += [f"images: {done.images} of {place}, for the paper's own are not known", *done.notes]
        brought.files += [str(file) for file in sorted(out.glob("*.png"))] + [str(out / "report.html")]


def complexity(order: Order, brought: Yield) -> None:
    """Effective rank and attention entropy over a folder: their correlation, or mean, median and quartiles, by the row's label."""
    from sparsight.look.rank import rank

    for key, name in order.models.items():
        for data, place in order.data.items():
            if not place:
                continue
            remark_data(data, open_folder(place, order.limit), order, brought)
            try:
                done = rank(name or index().models[key].name, place, order.out, limit=order.limit, device=order.settings.device)
            except PruneError as error:
                if name:
                    raise
                brought.missing.append(f"weights {key}: {error}")
                continue
            if name and name != index().models[key].name:
                brought.differs.append(f"model {key}: {name} instead of {index().models[key].name}")
            brought.files += [str(order.out / f"rank.{ending}") for ending in ("csv", "json", "png")]
            values = {"erank": [row.erank for row in done.rows], "attention_entropy": [row.entropy for row in done.rows]}
            record(order, brought, key, data, values, done.pearson)


def record(order: Order, brought: Yield, key: str, data: str, values: dict[str, list[float]], pearson: float | None) -> None:
    """Give rows without recipe their statistic; a row of the unpruned model the mean, if it is the only one on this data set."""
    whole = [row for row in order.rows if row.recipe == UNPRUNED and row.data == data]
    for row in order.rows:
        if not row.recipe:
            found = {measure: summary(row.label, numbers) for measure, numbers in values.items()}
            brought.by_label[row.label] = found | ({} if pearson is None else {"pearson": pearson})
        elif row in whole and len(whole) == 1:
            keep(brought, order, row, data, {measure: fmean(numbers) for measure, numbers in values.items()})
        elif row in whole:
            brought.notes[key, data, row.recipe] = (
                f"{len(whole)} rows are about parts of {data}; choose one with --only and give its images"
            )


def summary(label: str, values: list[float]) -> float:
    """The mean, median or quartile that a label names."""
    if label == "mean" or len(values) < 2:
        return fmean(values)
    low, middle, high = quantiles(values, n=4, method="inclusive")
    return {"median": middle, "lower quartile": low, "upper quartile": high}.get(label, middle)
