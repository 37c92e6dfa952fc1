"""The folder of the trained model: written so that `sparsight.load` gives model, recipe, transform and classes back, and tried before training."""

from __future__ import annotations

import copy
import json
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..data.feed import find_processor
from ..errors import PruneError
from ..handle import handles, unprune
from ..load.checkpoint import one_line
from ..load.models import Loaded, load, look_of
from ..load.trained import LEARNED, MODEL, TRAINED
from ..recipe import Recipe
from ..runs.store import write_text
from .checkpoint import HALF, packed

Look = dict[str, Any]
"""mean, std, interpolation and crop_pct of a preprocessing, as timm names them."""


@dataclass(frozen=True, eq=False)
class Form:
    """How a model's folder is written. look: its preprocessing; config: what is given to timm for it, None: what its checkpoint says."""

    write: Callable[[nn.Module, Path, list[str] | None], None]
    look: Look


def form_of(loaded: Loaded) -> Form:
    """How this model is saved. Raises PruneError for one that could not be loaded again."""
    model: Any = loaded.model
    home = type(model).__module__.partition(".")[0]
    if hasattr(model, "default_cfg") and getattr(model, "pretrained_cfg", {}).get("architecture"):
        return timm_form(loaded)
    config = getattr(model, "config", None)
    if home == "transformers" and config is not None and config.name_or_path:
        processor = find_processor(model)

        def write(model: nn.Module, folder: Path, classes: list[str] | None) -> None:
            model.save_pretrained(folder)  # type: ignore[operator]
            processor.save_pretrained(folder)

        look = {"mean": tuple(processor.image_mean), "std": tuple(processor.image_std), "interpolation": "bicubic"}
        return Form(write, look)
    raise PruneError(
        f"{loaded.name} ({type(model).__name__}) cannot be saved so that it loads again; train a timm model (timm.create_model) or a folder of "
        "timm or transformers"
    )


def timm_form(loaded: Loaded) -> Form:
    """A timm model, with the preprocessing that it is used with."""
    from timm.data import resolve_model_data_config
    from timm.models import save_for_hf

    own = resolve_model_data_config(loaded.model)
    seen = {**own, "input_size": (3, *loaded.image_size), **described(loaded)}

    def write(model: nn.Module, folder: Path, classes: list[str] | None) -> None:
        labels = {"label_names": classes} if classes else {}
        given = {key: seen[key] for key in ("input_size", "interpolation", "mean", "std", "crop_pct")}
        save_for_hf(model, str(folder), model_config=labels, safe_serialization=True, data_config=given)

    return Form(write, seen)


def described(loaded: Loaded) -> Look:
    """Crop, colours and resizing of a transform made of torchvision's parts."""
    found: Look = {}
    resized = None
    for part in getattr(loaded.transform, "transforms", ()):
        name = type(part).__name__
        if name == "Resize":
            resized = part.size if isinstance(part.size, int) else min(part.size)
            found["interpolation"] = part.interpolation.value
        elif name == "Normalize":
            found |= {"mean": tuple(map(float, part.mean)), "std": tuple(map(float, part.std))}
    if resized is not None:
        found["crop_pct"] = min(1.0, min(loaded.image_size) / (resized + 0.5) if resized > min(loaded.image_size) else 1.0)
    return found


def write_trained(
    folder: Path, model: nn.Module, form: Form, recipe: Recipe | None, classes: list[str] | None, facts: dict[str, Any]
) -> None:
    """Write the model, its recipe and the weights of a learned method into the folder, beside what else is there; the model is as it was."""
    learned = next((found.learned for found in handles(model) if found.learned is not None), None)
    part = folder / f"{MODEL}{HALF}"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        form.write(bare(model), part, classes)
        if learned is not None:
            (folder / LEARNED).write_bytes(packed(learned.state_dict(), {"recipe": str(recipe)}))
        shutil.rmtree(folder / MODEL, ignore_errors=True)
        part.rename(folder / MODEL)
    except OSError as error:
        raise PruneError(
            f"the model cannot be written into {folder} ({one_line(error)}); make room and give the same command again"
        ) from error
    except Exception as error:
        if "No space left" not in str(error):
            raise
        raise PruneError(f"no room for the model in {folder}; make room and give the same command again") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    text = {"recipe": None if recipe is None else json.loads(recipe.to_json()), "classes": classes, **facts}
    write_text(folder / TRAINED, json.dumps(text, indent=1) + "\n")


def bare(model: nn.Module) -> nn.Module:
    """A copy on the CPU without pruning."""
    copied = copy.deepcopy(model).cpu().eval()
    unprune(copied)
    return copied


def try_saving(loaded: Loaded, form: Form, recipe: Recipe | None, classes: list[str] | None) -> None:
    """Raise PruneError unless the model, written and loaded again, gives the same preprocessing and the same logits."""
    with tempfile.TemporaryDirectory() as name:
        write_trained(Path(name), loaded.model, form, recipe, classes, {})
        again = load(name)
        if look_of(again) != look_of(loaded):
            raise PruneError(
                f"the preprocessing of {loaded.name} cannot be written beside its weights; leave transform= out, or give the model's own"
            )
        images = torch.linspace(-1, 1, 3 * loaded.image_size[0] * loaded.image_size[1]).view(1, 3, *loaded.image_size)
        with torch.no_grad():
            one, two = (getattr(found, "logits", found) for found in (loaded.model.eval()(images), again.model(images)))
        if one.shape != two.shape or not torch.allclose(one, two, atol=1e-3, rtol=1e-3):
            raise PruneError(
                f"{loaded.name} is another model when it is written and loaded again; build it by timm.create_model with its arguments"
            )
