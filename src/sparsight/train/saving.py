"""The trained model: written into the run's folder as `save_pretrained` writes it, and tried before training."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from torch import nn

from ..handle import handles
from ..load.models import Loaded
from ..load.saved import INNER
from ..recipe import Recipe
from ..saving.evidence import read_evidence
from ..saving.forms import Form
from ..saving.save import Note, Subject, check_same, deliver, learned_weights, part_beside, write_folder


def write_trained(
    folder: Path, model: nn.Module, form: Form, recipe: Recipe | None, loaded: Loaded, evidence: Any = None, **about: Any
) -> None:
    """Write the model into `model` and its recipe beside it, among what else is in the folder."""
    recipes = () if recipe is None else (recipe,)
    note = Note(loaded.name, recipes, learned_weights(handles(model)), read_evidence(evidence, recipes), about)
    with part_beside(folder / INNER) as part:
        write_folder(part, model, form, loaded.classes, note, INNER)
        deliver(part, folder)


def try_saving(loaded: Loaded, form: Form, recipe: Recipe | None) -> None:
    """Raise PruneError unless the model, written and loaded again, gives the same preprocessing and the same logits."""
    with tempfile.TemporaryDirectory() as name:
        write_trained(Path(name), loaded.model, form, recipe, loaded)
        check_same(Subject(loaded.name, loaded.model, form, loaded.classes, loaded), Path(name))
