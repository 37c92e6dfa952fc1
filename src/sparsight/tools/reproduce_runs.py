"""How the entries of each verb are run, and what has to be brought before they can be."""

from __future__ import annotations

import re
from collections.abc import Callable

from ..errors import PruneError
from ..prune import family_of, plan_sites
from ..recipe import Recipe
from .checkpoint import in_cache
from .compare import compare
from .comparison import Comparison
from .data import Folder, open_folder
from .load import Loaded, load_model
from .macs import macs
from .measure import versions_in_use
from .published import Row, index
from .published_macs import MEASURE
from .reproduce import Order, Yield

Runner = Callable[[Order, Yield], None]

TIMED = ("speedup", "images_per_second")
SECONDS = 4.0
PICTURES = 2
"""Images drawn for a figure where no limit is given."""


def runner(command: str) -> Runner | None:
    """What runs the entries of a verb; None where this command runs none of them."""
    return {"compare": classify, "train": classify, "evaluate": classify, "show": draw}.get(command)


def wanting(order: Order) -> list[str]:
    """What is not at hand, each with where it comes from and the option that brings it."""
    found = order.entry
    if found.command == "none":
        return [f"nothing to run: {found.shows or found.title}"]
    lacks = [f"method {name!r} is not in this version" for name in dict.fromkeys(row.method for row in order.rows if row.pending)]
    for key, place in order.data.items():
        if not place:
            data = index().data[key]
            lacks.append(f"data {key}: {data.title}, from {data.get}; give --data {option(key, 'DIR')}")
    for key, name in order.models.items():
        if not name:
            lacks += weights(key, found.command == "train")
    if not order.data and not order.models:
        lacks.append("the paper does not say what this was made with")
    if runner(found.command) is None:
        lacks.append(f"this table or figure is measured with `{found.command}`, row by row, with the recipes above")
    return lacks


def weights(key: str, tuned: bool) -> list[str]:
    """What is missing of a model's weights; nothing if they lie in the cache of the Hugging Face Hub."""
    model = index().models[key]
    own = f"--model {option(key, 'ARCH@FILE.safetensors' if model.library == 'timm' else 'FOLDER')}"
    if tuned:
        return [f"weights {key}: {model.name}, fine-tuned with each recipe (not published); give your own with {own}"]
    repository = f"timm/{model.name}" if model.library == "timm" else model.name
    if in_cache(repository):
        return []
    return [
        f"weights {key}: {repository} from the Hugging Face Hub, not on this machine; with network they come by themselves, else give {own}"
    ]


def option(key: str, value: str) -> str:
    """KEY=VALUE as it is written in a shell."""
    return f"{key}={value}" if re.fullmatch(r"[\w.-]+", key) else f"'{key}={value}'"


def classify(order: Order, brought: Yield) -> None:
    """Top-1 of every row, model by model and folder by folder; also GFLOPs of the model that was used, and speed where it is asked for."""
    for key, name in order.models.items():
        loaded = load(key, name, order, brought)
        if loaded is None:
            continue
        for data, place in order.data.items():
            if place:
                rows = [row for row in order.rows if row.model == key and row.data in (data, "")]
                folder = open_folder(place, order.limit)
                remark_data(data, folder, order, brought)
                one_folder(order, brought, loaded, key, data, folder, rows)


def load(key: str, name: str, order: Order, brought: Yield) -> Loaded | None:
    """The model that was given, or the paper's own; None, with the reason among what is missing, if that one is not to be had."""
    model = index().models[key]
    if name:
        loaded = load_model(name)
        if name != model.name:
            brought.differs.append(f"model {key}: {name} instead of {model.name}")
    else:
        try:
            loaded = load_model(model.name)
        except PruneError as error:
            brought.missing.append(f"weights {key}: {error}")
            return None
    if order.entry.command == "train":
        brought.differs.append(f"model {key}: one checkpoint for all rows; the paper fine-tunes one for each")
    brought.versions |= versions_in_use(loaded.model)
    return loaded


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


def one_folder(order: Order, brought: Yield, loaded: Loaded, key: str, data: str, folder: Folder, rows: list[Row]) -> None:
    """All recipes of the rows on one model and one folder."""
    recipes = possible(loaded, key, data, rows, brought)
    timed = any(order.entry.measure(name) for name in TIMED)
    out = order.out / re.sub(r"[^\w.-]+", "_", f"{key}-{data}")
    done = compare(
        loaded, folder.path, methods=(), keep=None, layers=None, out=out, recipes=list(recipes.values()) or ["random:keep=1,layers=0"],
        batch_size=order.settings.batch_size, limit=order.limit, device=order.settings.device, precision=order.settings.precision,
        seed=order.settings.seed, shown=0, seconds=SECONDS if timed else 0, listen=order.listen,
    )  # fmt: skip
    brought.differs += done.notes
    brought.files.append(str(out / "results.json"))
    if not done.labelled:
        brought.missing.append(f"data {data}: {folder.path} has no labels for {loaded.name}, so there is no top-1")
    for row in rows:
        if not row.method or row.recipe in recipes:
            take(brought, order, done, loaded, row, data, recipes.get(row.recipe))


def possible(loaded: Loaded, key: str, data: str, rows: list[Row], brought: Yield) -> dict[str, Recipe]:
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
            brought.notes[key, data, row.recipe] = str(error)
    return found


def take(brought: Yield, order: Order, done: Comparison, loaded: Loaded, row: Row, data: str, recipe: Recipe | None) -> None:
    """The numbers of one row, under the names of the entry's measures."""
    result = done.rows[0] if recipe is None else done.row(str(recipe))
    numbers = {"speedup": result.speedup.median, "images_per_second": result.images_per_second}
    if order.entry.measure(MEASURE):
        numbers[MEASURE] = macs(loaded.model, recipe, loaded.image_size, convention="published") / 1e9
    for measure in order.entry.measures:
        if result.top1 is not None and (measure.key == "top1" or measure.data == data):
            numbers[measure.key] = 100 * result.top1
    for name, value in numbers.items():
        brought.numbers[row.model, own_data(order, row, data, name), row.recipe, name] = value


def own_data(order: Order, row: Row, data: str, name: str) -> str:
    """The data set under which a row's number is kept."""
    measure = order.entry.measure(name)
    return data if measure is not None and measure.data else row.data


def draw(order: Order, brought: Yield) -> None:
    """Pictures of what every recipe keeps, for the first images of the folder."""
    from .show import show

    for key, name in order.models.items():
        loaded = load(key, name, order, brought)
        place = next((place for place in order.data.values() if place), "")
        if loaded is None or not place:
            continue
        folder = open_folder(place, order.limit or PICTURES)
        brought.differs.append(f"images: {len(folder)} of {folder.path}, for the paper's own are not known")
        order.out.mkdir(parents=True, exist_ok=True)
        recipes = possible(loaded, key, next(iter(order.data)), [row for row in order.rows if row.model == key], brought)
        for text, recipe in recipes.items():
            for image in folder.paths:
                target = order.out / f"{image.stem}-{re.sub(r'[^A-Za-z0-9_.=-]+', '_', text)}.png"
                brought.files.append(str(target))
                show(image, loaded, recipe, target)
