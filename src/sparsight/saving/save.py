"""save_pretrained(model, folder): a pruned model as a folder that `sparsight.load` and `load_vlm` give back, pruned the same way."""

from __future__ import annotations

import copy
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..data.reading import Transform
from ..errors import PruneError, shown
from ..handle import Handle, handles
from ..load.checkpoint import one_line
from ..load.models import Loaded, load, look_of, open_model, processor_transform
from ..load.saved import FILE, FORMAT, LEARNED, sealed
from ..load.vlms import LoadedVlm
from ..prune import family_of
from ..recipe import Recipe
from ..registry import find, make
from ..runs.settings import versions_in_use
from ..runs.store import write_text
from ..vlms.prompt_handle import PromptHandle
from .card import card
from .evidence import read_evidence
from .forms import Form, answers, bare, form_of, home, language_form, open_clip_form, packed

CARD = "README.md"

Savable = nn.Module | Loaded | LoadedVlm
"""What can be saved: a pruned model, or what `load` and `load_vlm` returned."""


@dataclass(frozen=True, eq=False)
class Subject:
    """A model that is to be saved. loaded: with its preprocessing, None where the folder's configuration says everything about it."""

    name: str
    model: nn.Module
    form: Form
    classes: list[str] | None
    loaded: Loaded | None = None


@dataclass(frozen=True, eq=False)
class Note:
    """What stands in sparsight.json. evidence: see `read_evidence`; about: anything else, as plain data."""

    name: str
    recipes: tuple[Recipe, ...]
    learned: dict[str, Tensor] = field(repr=False)
    evidence: dict[str, Any] | None = None
    about: Mapping[str, Any] = field(default_factory=dict)


def save_pretrained(
    model: Savable,
    folder: str | Path,
    evidence: Any = None,
    *,
    classes: Sequence[str] | None = None,
    transform: Transform | None = None,
    processor: Any = None,
    architecture: str | None = None,
) -> Path:
    """Write a pruned model: weights and configuration as its framework does, sparsight.json with its recipes, the weights of learned
    methods, a model card. `sparsight.load(folder)`, or `load_vlm`, gives it back pruned by all its recipes.

    evidence: what was measured of them, for the card: a result of compare, evaluate, evaluate-vlm, bench, tune or train, its folder, or a
    list of rows with 'recipe'. classes: names in the order of the logits. transform, processor: the preprocessing, by default that of the
    checkpoint. architecture: of a model of open_clip. The model itself is not touched. Raises PruneError before anything is written for
    what could not be loaded again, and for a folder that holds something else.
    """
    subject = subject_of(model, classes, transform, processor, architecture)
    note = note_of(subject, evidence, given=model)
    target = free_folder(folder)
    with part_beside(target) as part:
        write_folder(part, subject.model, subject.form, subject.classes, note)
        if not subject.form.whole:
            check_same(subject, part)
        deliver(part, target)
    return target


def subject_of(
    given: Savable, classes: Sequence[str] | None, transform: Transform | None, processor: Any, architecture: str | None
) -> Subject:
    """The model with the way in which it is written."""
    model: Any = given
    if isinstance(given, LoadedVlm):
        model, processor = given.model, processor or given.processor
    elif isinstance(given, Loaded):
        model = given.model
    if not isinstance(model, nn.Module):
        raise PruneError(
            f"what is saved must be a pruned model or what sparsight.load or load_vlm returns, got {type(given).__name__}"
        )
    name = given.name if isinstance(given, (Loaded, LoadedVlm)) else known_as(model)
    if callable(getattr(model, "encode_image", None)) and home(model) == "open_clip":
        return Subject(name, model, open_clip_form(model, architecture or name, processor), None)
    if architecture is not None:
        raise PruneError(f"architecture= is for models of open_clip, and {type(model).__name__} is none; leave it out")
    if family_of(model).language:
        return Subject(name, model, language_form(model, processor), None)
    if processor is not None and transform is None:
        transform = processor_transform(getattr(processor, "image_processor", processor))
    loaded = open_model(given if isinstance(given, Loaded) else model, transform, classes, *place_of(model))
    return Subject(name, loaded.model, form_of(loaded, processor), loaded.classes, loaded)


def known_as(model: nn.Module) -> str:
    """What a model calls itself: where it came from, else its class."""
    config: Any = getattr(model, "config", None)
    return str(getattr(config, "name_or_path", "") or type(model).__name__)


def place_of(model: nn.Module) -> tuple[str, torch.dtype]:
    """Device and precision of a model."""
    first = next(model.parameters())
    return str(first.device), first.dtype


def note_of(subject: Subject, evidence: Any, given: Savable) -> Note:
    """The recipes by which a model is pruned now; the evidence that it was loaded with stays, if they are the same. Raises PruneError if
    there are none, or one that has no name to be loaded by."""
    found = sorted(handles(subject.model), key=lambda handle: isinstance(handle, PromptHandle))  # inside the tower first: see prune
    if not found:
        raise PruneError(f"{subject.name} is not pruned, so there is no recipe to save; prune it first, as by sparsight.prune")
    recipes = tuple(portable(handle.recipe) for handle in found)
    known = given.evidence if isinstance(given, (Loaded, LoadedVlm)) and given.recipes == recipes else None
    measured = known if evidence is None else read_evidence(evidence, recipes)
    return Note(subject.name, recipes, learned_weights(found), measured)


def portable(recipe: Recipe) -> Recipe:
    """The recipe without the file of its weights, which travel beside it."""
    recipe.to_json()  # refuses what has no name to be loaded by
    if recipe.weights is None:
        return recipe
    return make(recipe.name, **{name: value for name, value in recipe.params if name != "weights"})


def learned_weights(found: Sequence[Handle]) -> dict[str, Tensor]:
    """Weights of learned methods by "RECIPE.SITE.NAME"."""
    return {
        f"{number}.{name}": tensor
        for number, handle in enumerate(found)
        if handle.learned is not None
        for name, tensor in handle.learned.state_dict().items()
    }


def free_folder(folder: str | Path) -> Path:
    """The folder to write, if it is new, empty or holds what was saved before. Raises PruneError for any other."""
    target = Path(folder).expanduser()
    if target.exists() and not (target.is_dir() and ((target / FILE).is_file() or not any(target.iterdir()))):
        raise PruneError(f"{target} holds something else; give a new folder, or one that holds a model saved by sparsight")
    return target


@contextmanager
def part_beside(target: Path) -> Iterator[Path]:
    """A folder on the same disk to write into, gone afterwards. Raises PruneError if there can be none."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        part = tempfile.TemporaryDirectory(prefix=".saving", dir=target.parent)
    except OSError as error:
        raise PruneError(f"{shown(str(target))} cannot be written ({error.strerror}); give another folder") from None
    with part as name:
        yield Path(name)


def deliver(part: Path, target: Path) -> None:
    """Move the finished files into the folder, sparsight.json last; weights of an earlier model go."""
    target.mkdir(exist_ok=True)
    new = {file.name for file in part.iterdir()}
    for old in (*target.glob("*.safetensors"), *target.glob("*.safetensors.index.json"), target / FILE):
        old.unlink(missing_ok=True)
    for name in sorted(new, key=lambda name: name == FILE):
        if (target / name).is_dir():
            shutil.rmtree(target / name)
        os.replace(part / name, target / name)


def write_folder(folder: Path, model: nn.Module, form: Form, classes: list[str] | None, note: Note, inner: str = "") -> None:
    """Write model, learned weights, sparsight.json and model card into an empty folder, the model into `inner`; it is as it was. Raises PruneError for a
    full disk."""
    versions = versions_in_use(model)
    facts = {
        "format": FORMAT,
        "recipes": [json.loads(recipe.to_json()) for recipe in note.recipes],
        "learned": sorted(note.learned),
        "model": {"name": called(note.name), "class": type(model).__name__, "library": form.library, "task": form.task},
        "classes": classes,
        "versions": {**versions, "methods": packages_of(note.recipes)},
        "evidence": note.evidence,
        "about": dict(note.about),
    }
    try:
        (folder / inner).mkdir(exist_ok=True)
        form.write(model if form.task == "image-text-to-text" else bare(model), folder / inner, classes)
        if note.learned:
            (folder / LEARNED).write_bytes(packed(note.learned, {"recipes": " + ".join(map(str, note.recipes))}))
        write_text(folder / CARD, card(facts, note.recipes))
        write_text(folder / FILE, sealed(facts))
    except OSError as error:
        raise PruneError(
            f"the model cannot be written into {folder} ({one_line(error)}); make room and do the same again"
        ) from error
    except Exception as error:
        if "No space left" not in str(error):
            raise
        raise PruneError(f"no room for the model in {folder}; make room and do the same again") from error


def called(name: str) -> str:
    """A model's name for others: of a path on this machine the last part."""
    path = Path(name.rpartition("@")[2]).expanduser()
    return path.name if os.path.exists(path) or path.is_absolute() else name.removeprefix("hf_hub:")


def packages_of(recipes: Sequence[Recipe]) -> dict[str, str]:
    """Packages other than this one that methods come from, with their versions."""
    from importlib.metadata import packages_distributions, version

    roots = {find(recipe.name).make.__module__.partition(".")[0] for recipe in recipes} - {__name__.partition(".")[0]}
    known = packages_distributions() if roots else {}
    return {root: version(known[root][0]) if root in known else "of unknown version" for root in sorted(roots)}


def check_same(subject: Subject, folder: Path) -> None:
    """Raise PruneError unless the model, loaded again from the folder, has the same preprocessing and gives the same answers."""
    again = load(str(folder))
    if subject.loaded is not None and look_of(again) != look_of(subject.loaded):
        raise PruneError(
            f"the preprocessing of {subject.name} cannot be written beside its weights; leave transform= out, or give the model's own"
        )
    images = torch.linspace(-1, 1, 3 * again.image_size[0] * again.image_size[1]).view(1, 3, *again.image_size)
    model: Any = copy.deepcopy(subject.model).cpu().float().eval()
    with torch.no_grad():
        one, two = answers(model, images), answers(again.model, images)
    if one.shape != two.shape or not torch.allclose(one, two, atol=1e-3, rtol=1e-3):
        raise PruneError(
            f"{subject.name} is another model when it is written and loaded again; build it by timm.create_model with its arguments"
        )
