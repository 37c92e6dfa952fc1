"""The folder of a fine-tuned model: `model/` is an ordinary model folder, beside it are the recipe it was trained under and its weights."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from ..errors import PruneError, shown
from ..recipe import Recipe

TRAINED, MODEL, LEARNED = "trained.json", "model", "learned.safetensors"
"""Names in the folder: what was trained, the model, the weights of a learned method."""


@dataclass(frozen=True)
class Trained:
    """recipe: None for a model that was trained unpruned. classes: in the order of the logits. weights: of a learned method."""

    recipe: Recipe | None
    classes: list[str] | None
    weights: Path | None


def is_trained(folder: Path) -> bool:
    """Whether a folder is that of a fine-tuned model."""
    return (folder / TRAINED).is_file()


def read_trained(folder: Path) -> Trained:
    """What the folder says. Raises PruneError for a damaged one."""
    file = folder / TRAINED
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        recipe, classes = found["recipe"], found["classes"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise PruneError(
            f"{file} cannot be read ({shown(str(error))}); train again, or load {folder / MODEL} without its recipe"
        ) from None
    if not (classes is None or (isinstance(classes, list) and all(isinstance(name, str) for name in classes))):
        raise PruneError(f"{file} has classes={shown(classes)}; a list of names is needed")
    weights = folder / LEARNED
    return Trained(
        None if recipe is None else Recipe.from_json(json.dumps(recipe)), classes, weights if weights.is_file() else None
    )
