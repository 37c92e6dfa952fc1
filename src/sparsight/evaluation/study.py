"""What an evaluation asks of the model, mode by mode: everything that can go wrong is found here, before the first forward."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from ..data.fingerprint import digest
from ..data.images import SPLITS
from ..data.labels import SYNSET
from ..data.presets import PHOTO, Preset, spaced
from ..data.reading import Source, Transform, mark
from ..data.sources import HUB, is_table, open_source
from ..errors import PruneError
from ..load.answers import Reader, ranked
from ..load.models import Loaded, at_size, data_folder, look_of, open_model
from ..load.zero_shot import Dual, Template, load_dual
from ..prune import Handle, prune, resolve
from ..recipe import Recipe
from ..runs.settings import PRECISIONS, Settings, versions_in_use
from ..runs.store import ResultStore, claim, fingerprint_model, release
from ..runs.sweep import Ask, Pace, Sweep
from ..runs.workers import Workers
from ..speed.macs import Forward, as_model, macs

MODES = ("classify", "zero-shot", "knn", "probe")
TRAIN = ("train", "training")


@dataclass(frozen=True)
class Data:
    """Which images: see `open_source`. train: the training images of knn and probe, by default the split `train` beside them."""

    data: str | Path | None = None
    split: str | None = None
    limit: int | None = None
    train: str | Path | None = None
    preset: Preset | None = None

    def open(self, model: str | Loaded | Dual | nn.Module) -> Source:
        """The images to evaluate on."""
        if self.preset is not None and self.data is None:
            raise PruneError(f"preset {self.preset.name} ({self.preset.title}) needs --data: {self.preset.layout}")
        named = model.loaded if isinstance(model, Dual) else model
        preset = self.preset
        nested, ignore = (preset.nested, preset.ignore) if preset else (False, ())
        return open_source(data_folder(named, self.data), self.split, self.limit, nested=nested, ignore=ignore)

    def open_train(self) -> Source:
        """The training images: all of them, whatever the limit."""
        if self.train is not None:
            return open_source(self.train)
        text = str(self.data)
        root = Path(text.removeprefix(HUB)).expanduser()
        if is_table(root) or (text.startswith(HUB) and not root.exists()):
            return open_source(HUB + text.removeprefix(HUB).partition(":")[0] if text.startswith(HUB) else text, TRAIN[0])
        for split in TRAIN:
            for place in (root, root.parent) if root.name in SPLITS else (root,):
                if (place / split).is_dir():
                    return open_source(place, split)
        raise PruneError(f"nearest neighbours and probes need training images; {root} has no folder train: give one with --train")


@dataclass(frozen=True, eq=False)
class Study:
    """The model on its device, the question, the images with labels in the order of the classes, and what to tell the reader.

    names: of the classes, None where nobody knows them. key: fingerprint of what the question depends on, beside model and images.
    forward: how the model is called.
    """

    loaded: Loaded
    ask: Ask
    source: Source
    train: Source | None
    classes: int
    names: list[str] | None
    notes: list[str]
    key: str
    forward: Forward = as_model

    def macs(self, recipe: Recipe | None, tokens: Sequence[float]) -> int:
        """Multiply-accumulates per image. tokens: mean number after each site, which is what an adaptive recipe is counted with."""
        counts = [max(1, round(count)) for count in tokens]
        return macs(self.loaded.model, recipe, self.loaded.image_size, counts=counts, forward=self.forward)


def prepare(
    model: str | Loaded | Dual | nn.Module,
    data: Data,
    mode: str,
    settings: Settings,
    templates: Sequence[Template] | None,
    transform: Transform | None = None,
    classes: Sequence[str] | None = None,
) -> Study:
    """Load the model, open the images and match their classes. transform, classes: see `open_model`."""
    if mode not in MODES:
        raise PruneError(f"mode={mode!r} is not known; choose {', '.join(MODES)}")
    if templates and mode != "zero-shot":
        raise PruneError(f"templates are for mode zero-shot, not for {mode}; leave them out")
    source = data.open(model)
    train = data.open_train() if mode in ("knn", "probe") else None
    if mode == "zero-shot":
        return zero_shot(model, source, data.preset, settings, templates)
    if isinstance(model, Dual):
        raise PruneError(f"a model of images and texts was given for mode {mode}; give its name, or mode zero-shot")
    loaded = open_model(model, transform, classes, settings.device, PRECISIONS[settings.precision])
    loaded = at_size(loaded, source.size if transform is None else None)
    if train is None:
        return classify(loaded, source, data.preset)
    return features(loaded, source, train)


def place(model: nn.Module, settings: Settings) -> nn.Module:
    """The model on the device, in the precision, ready to evaluate."""
    return model.to(settings.device, PRECISIONS[settings.precision]).eval()


def classify(loaded: Loaded, source: Source, preset: Preset | None) -> Study:
    """The checkpoint's own classifier. A preset with a part of ImageNet's classes leaves the other logits out."""
    reader = Reader(loaded.model, len(loaded.classes or ()))
    if not reader.outputs:
        raise PruneError(f"{loaded.name} has no classifier; try mode knn or probe (features), or zero-shot (image-text models)")
    source = source.aligned(loaded.classes, reader.outputs)
    allowed = preset.logits() if preset is not None and preset.subset and reader.outputs == 1000 else None

    def ask(images: Tensor, _handle: Handle | None) -> Mapping[str, Tensor]:
        logits, _ = reader(images)
        assert logits is not None
        return ranked(logits if allowed is None else only(logits, allowed))

    own = " + ".join(map(str, loaded.recipes))
    trained = f"the model is pruned in every row, as it was saved: {own}" if own else ""
    notes = [
        trained,
        source.note,
        f"only the logits of the {len(allowed)} classes of {preset.title} count" if preset and allowed else "",
    ]
    return Study(loaded, ask, source, None, reader.outputs, loaded.classes or source.classes, notes, digest("classify", allowed))


def only(logits: Tensor, allowed: Sequence[int]) -> Tensor:
    """The logits with those of other classes at minus infinity."""
    masked = torch.full_like(logits, -torch.inf)
    masked[:, list(allowed)] = logits[:, list(allowed)]
    return masked


def features(loaded: Loaded, source: Source, train: Source) -> Study:
    """Pooled features, to be classified when all are there; labels in the order of the training set's classes."""
    reader = Reader(loaded.model)

    def ask(images: Tensor, _handle: Handle | None) -> Mapping[str, Tensor]:
        return {"pooled": reader(images)[1]}

    if train.classes is None:
        raise PruneError(f"the training images {train.title} have no classes; expected one folder per class")
    source = source.aligned(train.classes, len(train.classes))
    notes = [source.note, "training features are made by the model as it is in each row, pruned or not"]
    return Study(loaded, ask, source, train, len(train.classes), train.classes, notes, digest("features"))


def zero_shot(
    model: str | Loaded | Dual | nn.Module,
    source: Source,
    preset: Preset | None,
    settings: Settings,
    templates: Sequence[Template] | None,
) -> Study:
    """A classifier from the class names and templates."""
    if isinstance(model, Loaded | nn.Module):
        raise PruneError("zero-shot needs a model of images and texts; give its name, or what load_dual returns")
    keys = preset.keys() if preset is not None else None
    if keys is not None:
        source = source.aligned(keys, len(keys))
    if not source.classes:
        raise PruneError(
            f"zero-shot needs class names, and {source.title} has none; expected one folder per class, or give --preset"
        )
    if preset is None and all(SYNSET.fullmatch(name) for name in source.classes):
        raise PruneError(f"the classes of {source.title} are ImageNet synsets without names; give --preset imagenet or a variant")
    names = preset.classes(source.classes) if preset is not None else [spaced(name) for name in source.classes]
    prompts = templates or (preset.prompts() if preset is not None else PHOTO)
    dual = load_dual(model) if isinstance(model, str) else model
    if isinstance(model, str):
        loaded = replace(dual.loaded, model=place(dual.loaded.model, settings))
    else:
        loaded = open_model(dual.loaded, device=settings.device, dtype=PRECISIONS[settings.precision])
    dual = replace(dual, loaded=loaded)
    rows = dual.classifier(names, prompts)

    def ask(images: Tensor, _handle: Handle | None) -> Mapping[str, Tensor]:
        return dual.answer(images, rows)

    said = [t.format("{}") if isinstance(t, str) else t("{}") for t in prompts]
    notes = [source.note, f"{len(names)} class names in {len(said)} templates, such as {said[0]!r}"]
    return Study(loaded, ask, source, None, len(names), names, notes, digest("zero-shot", names, said), dual.image)


def check_recipes(recipes: Sequence[str | Recipe], model: nn.Module) -> list[Recipe]:
    """The recipes, each once, that this model can carry out; a PruneError for the first one that it cannot."""
    found = list({str(recipe): recipe for recipe in (resolve(recipe, {}) for recipe in recipes)}.values())
    for recipe in found:
        recipe.to_json()  # refuses what has no name to be kept under
        prune(model, recipe).remove()
    return found


@contextmanager
def reserved(out: Path, processes: Workers) -> Iterator[None]:
    """The first process makes OUT, and takes it back if a fault shows before anything is kept there."""
    made = claim(out) if processes.rank == 0 else []
    try:
        yield
    except PruneError:
        release(made)
        raise


def check_pace(batch_size: int, chunk: int, workers: int, k: int = 1) -> Pace:
    """How images are read; a PruneError for what cannot be."""
    if workers < 0 or chunk < 1 or k < 1:
        raise PruneError(f"workers={workers}, chunk={chunk}, k={k}: workers must not be negative, the others at least 1")
    return Pace(batch_size, chunk, workers)


def make_sweep(study: Study, recipes: list[Recipe], pace: Pace, settings: Settings, processes: Workers, out: Path) -> Sweep:
    """The sweep, with the key that all processes share: that of the first one, as times of files differ between disks."""
    loaded = study.loaded
    facts = [settings.batch_size, pace.stride, settings.precision, torch.device(settings.device).type, settings.seed]
    versions = sorted(versions_in_use(loaded.model).items())
    sources = [mark(source) for source in (study.train, study.source) if source is not None]
    own = digest(fingerprint_model(loaded.model), look_of(loaded), sources, facts, versions, study.key)
    key, total = processes.share((own, study.source.total))
    if total != study.source.total:
        raise PruneError(
            f"this process sees {study.source.total} images in {study.source.title}, the first one {total}; give all the same"
        )
    (out / "rows").mkdir(parents=True, exist_ok=True)
    store = ResultStore(out / "rows", key)
    return Sweep(loaded.model, loaded.transform, [None, *recipes], study.ask, pace, settings.seed, store, processes)
